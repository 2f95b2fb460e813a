"""Everything that a decoding found as one dictionary of plain values, for `report.decoding`."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd import __version__
from jaxkd.errors import DataError
from jaxkd.experiment.eeg.decode import Decoding, Opened, detectors, summarise_subjects
from jaxkd.report.decoding_figures import BANDS, scalp_weights

EXAMPLES = 10


def collect(
    opened: Opened,
    decoding: Decoding,
    controls: Sequence[dict[str, Any]],
    *,
    sentences: Sequence[dict[str, Any]],
    text_metrics: Sequence[dict[str, Any]],
    scalp: dict[str, Any] | None = None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The results of a decoding.

    Args:
      opened, decoding: of `decode`.
      controls: of `run_controls`.
      sentences: rows of sentences.jsonl of the mode that the examples show, one of each test reading.
      text_metrics: a row for each mode.
      scalp: of `read_scalp`; None leaves the map out.
      settings: further facts, such as the command.
    """
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    config, corpus = opened.config, opened.eeg_data.corpus
    results = {
        "settings": {
            "source": config.data.source,
            "split": config.eeg.split + (f" ({opened.eeg_data.split.leave_out})" if config.eeg.leave_out else ""),
            "weights": opened.origin,
            "network": config.student.name,
            "keywords": len(opened.eeg_data.vocabulary.words),
            "vectors": opened.eeg_data.vectors.name,
            "seed": config.seed,
            "device": device,
            **settings,
            "versions": {"jaxkd": __version__, "jax": jax.__version__},
        },
        "k": decoding.k,
        "curve": decoding.curve,
        "retrieval": decoding.retrieval,
        "controls": list(controls),
        "subjects": decoding.subjects,
        "subject_summary": summarise_subjects(decoding.subjects),
        "words": decoding.words,
        "anchors": decoding.anchors,
        "leaks": opened.eeg_data.leaks.as_dict(),
        "detectors": detectors(opened, controls),
        "corpus": {k: v for k, v in corpus.facts.items() if not isinstance(v, dict)},
        "text_metrics": list(text_metrics),
        "examples": _examples(opened, decoding, sentences),
        "scalp": scalp,
    }
    results["sentences_in_short"] = in_short(results)
    return _without_nan(results)


def in_short(results: Mapping[str, Any]) -> list[str]:
    """The run and its most telling controls in sentences."""
    rows = {row["row"]: row for row in results["controls"]}
    own = rows["EEG"]
    said = [
        f"Among candidates of as many words as the right one (chance {own['matched_chance5']:.1f} %), the run finds "
        f"the sentence among the first 5 in {own['matched_top5']:.1f} % of the readings "
        f"(95 % interval {own['matched_low']:.1f} to {own['matched_high']:.1f}, p = {own['matched_p_holm']:.3f} after "
        f"Holm); among all candidates in {own['all_top5']:.1f} % (chance {own['all_chance5']:.1f} %)."
    ]
    for name in ("EEG without length and gaze", "gaze only", "word length only"):
        row = rows.get(name, {})
        if row.get("networks"):
            said.append(f"{name[0].upper()}{name[1:]}: {row['matched_top5']:.1f} % (p = {row['matched_p_holm']:.3f}).")
    return said


def _examples(opened: Opened, decoding: Decoding, sentences: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Readings spread evenly over the test part."""
    queries, rows = decoding.queries, []
    chosen = np.unique(np.linspace(0, len(queries.readings) - 1, min(EXAMPLES, len(queries.readings))).astype(int))
    for i in chosen.tolist():
        scores, right = decoding.scores[i], queries.truth[i]
        above, tied = (scores > scores[right]).sum(), (scores == scores[right]).sum()
        rows.append(
            {
                "text": opened.eeg_data.texts[queries.candidates[right]],
                "subject": str(queries.subject[i]),
                "words": int(queries.words[right]),
                "anchors": named_anchors(opened, decoding, i),
                "sentence": sentences[i]["sentence"] if i < len(sentences) else "",
                "best": [opened.eeg_data.texts[queries.candidates[c]] for c in np.argsort(-scores, kind="stable")[:3]],
                "rank": float(above + (tied + 1) / 2),
                "candidates": len(queries.candidates),
            }
        )
    return rows


def named_anchors(opened: Opened, decoding: Decoding, i: int) -> list[tuple[str, float]]:
    """(keyword, probability) of the i-th test reading, in reading order."""
    words = opened.eeg_data.vocabulary.words
    return [(words[a.word], round(math.exp(a.certainty), 4)) for a in decoding.decoded.anchors(i, decoding.k)]


def read_scalp(opened: Opened, montage: str) -> dict[str, Any]:
    """Places of the electrodes and the first layer's weights in each band.

    Args:
      opened: of `open_run`.
      montage: .npz file with `coords` (E, 3), electrodes in the order of the recording, +x front and +y left.

    Raises:
      DataError: the file cannot be read, or is of another number of electrodes.
    """
    path = Path(montage).expanduser()
    try:
        with np.load(path, allow_pickle=False) as held:
            coordinates = np.asarray(held["coords"], np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f'--montage="{montage}" cannot be read ({error}). Give an .npz file with "coords" (electrodes, 3), +x '
            "front and +y left."
        ) from error
    params = jax.device_get(opened.fitted.params["student"])
    kernel = params["input" if "input" in params else "head"]["kernel"]
    if coordinates.ndim != 2 or coordinates.shape[1] != 3:
        raise DataError(
            f'"coords" in --montage="{montage}" has shape {coordinates.shape}. Give three numbers for each electrode.'
        )
    if kernel.shape[0] != len(BANDS) * len(coordinates):
        raise DataError(
            f'--montage="{montage}" has {len(coordinates)} electrodes, and the network takes {kernel.shape[0]} '
            f"features of {len(BANDS)} bands. Give the montage of the recording."
        )
    weights = scalp_weights(kernel)
    return {"coordinates": coordinates.tolist(), "weights": weights.tolist(), "bands": list(BANDS)}


def _without_nan(value: Any) -> Any:
    """JSON has neither NaN nor NumPy's numbers."""
    if isinstance(value, Mapping):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
