"""Analysis of several networks over the same images: one pass each, comparisons, and a report on disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkd import __version__, data
from jaxkd.analysis.pipeline.accumulators import Streamed
from jaxkd.analysis.pipeline.comparison import compare
from jaxkd.analysis.pipeline.dataset_pass import Stream, StreamOptions
from jaxkd.analysis.pipeline.features import FeatureSource
from jaxkd.analysis.pipeline.passages import Passages
from jaxkd.analysis.pipeline.summary import SummaryOptions, summarise
from jaxkd.data.files import write_atomic
from jaxkd.errors import ConfigError, DataError, printable
from jaxkd.report.results import in_units

Progress = Callable[[str, str, int, int], None]  # model, phase, done, total


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of an analysis; see `StreamOptions` and `SummaryOptions` for the rest."""

    stream: StreamOptions = field(default_factory=StreamOptions)  # of the pass
    summary: SummaryOptions = field(default_factory=SummaryOptions)  # of PCA, SEP, permutations and null models
    compare: bool = True  # the first network with each other one
    crop_pct: float = 0.0  # of the evaluation crop; 0 is each network's own
    interpolation: str = ""  # likewise; "" is each network's own


def analyse(
    networks: Sequence[FeatureSource],
    source: Any,
    mesh: Mesh,
    options: AnalysisOptions | None = None,
    *,
    scratch: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every statistic of `networks` over the images of `source`.

    Args:
      networks: what to analyse; the first is the teacher of the comparisons. Labels must differ.
      source: images (a `data.Source`), or `Passages` of EEG words, which stand in their place throughout.
      mesh: where batches are split.
      options: what is computed.
      scratch: folder for the last layers' tokens (4 N C bytes an image and network), deleted afterwards; None is the
        system's.
      progress: called with (label, phase, done, total).

    Returns:
      `{"settings": ..., "models": [...], "comparisons": [...], "saliency": []}` of plain Python numbers, None where a
      number does not exist, with the reason in words in "notes".
    """
    begin = time.perf_counter()
    options = options or AnalysisOptions()
    progress = progress or (lambda label, phase, done, total: None)
    pair = options.compare and len(networks) > 1
    stream_options = replace(options.stream, grams=options.stream.grams or pair)
    if isinstance(source, Passages):
        # Whole passages would be alike for their reader, whose share grows with every word.
        stream_options = replace(stream_options, token_grams=True)
    models: list[dict[str, Any]] = []
    passes: list[Streamed] = []
    with tempfile.TemporaryDirectory(prefix="jaxkd-tokens-", dir=scratch) as folder:
        for index, network in enumerate(networks):
            batches = _batches(network, source, options)
            stream = Stream(
                network,
                mesh,
                stream_options,
                # mypy infers no type of a lambda with a default.
                progress=lambda done, phase, label=network.label: progress(  # type: ignore[misc]
                    label, phase, done, len(source)
                ),
            )
            tokens = Path(folder) / f"{index}.tokens"
            streamed = stream.run(batches, tokens, total=len(source), names=source.name)
            model = summarise(
                streamed,
                options.summary,
                progress=lambda done, total, phase, label=network.label: progress(  # type: ignore[misc]
                    label, phase, done, total
                ),
            )
            models.append({**_about(network), **model, "notes": [*network.notes, *model["notes"]]})
            models[-1]["top1"] = _top1(network, source, streamed)
            models[-1]["gradient_of"] = None if "gradient" not in model["per_layer"] else network.gradient_of
            passes.append(streamed)
        comparisons = []
        for index in range(1, len(networks)) if pair else ():
            progress(networks[index].label, "comparison", index, len(networks) - 1)
            found = compare(passes[0], passes[index])
            comparisons.append({"teacher": networks[0].label, "student": networks[index].label, **found})
        for streamed in passes:
            del streamed.spool  # the map is closed before its folder goes
    settings = _settings(stream_options, options, passes, mesh) | {"seconds": time.perf_counter() - begin}
    results = {"settings": settings, "models": models, "comparisons": comparisons, "saliency": []}
    if isinstance(source, Passages):
        settings |= source.about()
        for part in (*models, *comparisons):
            part["notes"] = [in_units(results, note) for note in part["notes"]]
    return results


def open_report(out: str | Path, *, overwrite: bool = False) -> Path:
    """The folder `out`, made where it is missing, if a report may be written there."""
    out = Path(out).expanduser()
    if (out / "results.json").exists() and not overwrite:
        raise ConfigError(
            f'--out="{out}" holds an earlier report (results.json). Choose another folder, or add --overwrite.'
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError("no permission to write there")
    except OSError as error:
        raise ConfigError(
            f'--out="{out}" cannot be used ({error.strerror or error}). Name a folder that can be written.'
        ) from None
    return out


def clear_report(out: Path) -> None:
    """Removes the files of an earlier report; called once the new numbers are there."""
    for path in (out / "results.json", out / "report.html", *out.glob("*.csv")):
        path.unlink(missing_ok=True)
    for folder in ("figures", "saliency", "dynamics"):
        shutil.rmtree(out / folder, ignore_errors=True)


def write_analysis(
    networks: Sequence[FeatureSource],
    source: Any,
    mesh: Mesh,
    out: Path,
    options: AnalysisOptions,
    *,
    saliency: int = 0,
    over_time: bool = False,
    figures: bool = True,
    about: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`analyse`, and its report: results.json, tables, and with figures also report.html.

    Args:
      networks, source, mesh, options, progress: see `analyse`.
      out: of `open_report`.
      saliency: maps for the first so many images.
      over_time: the networks are checkpoints of one run, labelled "step N", and get tables by step.
      figures: also draw figures and write report.html.
      about: added to the settings: "source", the images in words, and "command".

    Returns:
      The contents of results.json.
    """
    from jaxkd.analysis.pipeline.saliency_maps import saliency_maps
    from jaxkd.report.figures import write_figures
    from jaxkd.report.html import write_report
    from jaxkd.report.saliency_figures import write_saliency
    from jaxkd.report.tables import write_tables

    results = analyse(networks, source, mesh, options, scratch=out, progress=progress)
    results["settings"] |= about or {}
    results = printable(results)
    clear_report(out)
    if saliency:
        crop: dict[str, Any] = {"crop_pct": options.crop_pct, "interpolation": options.interpolation}
        found = saliency_maps(networks, source, count=saliency, **crop, seed=options.summary.seed, progress=progress)
        results["saliency"] = write_saliency(found, out / "saliency")
    write_atomic(out / "results.json", json.dumps(results, indent=1, allow_nan=False))
    write_tables(results, out)
    if over_time:
        _write_over_time(results, out / "dynamics", figures=figures)
    if figures:
        if progress is not None:
            progress("report", "figures", 0, 1)
        write_report(results, write_figures(results, out / "figures"), out / "report.html")
    return results


def _write_over_time(results: dict[str, Any], folder: Path, *, figures: bool) -> None:
    """Tables and figures of each statistic by step and layer, in the form of those written during training."""
    from jaxkd.report import training_statistics

    rows = [
        {"step": int(m["label"].split()[1]), "layers": m["layers"]}
        | {k: ["nan" if x is None else x for x in v["mean"]] for k, v in m["per_layer"].items()}
        for m in results["models"]
    ]
    training_statistics.write_tables(rows, folder)
    if figures:
        over = in_units(results, "images")
        caption = f"{results['settings']['images']} {over} of {results['settings']['source']}, mean over {over}"
        training_statistics.draw_tables(rows, folder, caption=caption)


def _batches(network: FeatureSource, source: Any, options: AnalysisOptions) -> Any:
    if isinstance(source, Passages):
        return source.batches(options.stream.batch_size)
    size = cast(tuple[int, int], network.image_size)
    preprocess = data.eval_preprocess(network, size, options.crop_pct, options.interpolation)
    if not len(source):
        raise DataError("There are no images to analyse. Give at least one.")
    return data.EvalBatches(source, preprocess, batch_size=options.stream.batch_size, max_broken=1.0)


def _top1(network: FeatureSource, source: Any, streamed: Streamed) -> float | None:
    """Accuracy in percent over the readable images; None without labels of the network's classes, or gradients."""
    names = tuple(getattr(source, "class_names", ()))
    if len(names) < 2 or len(names) != network.num_classes or streamed.correct is None or not streamed.images:
        return None
    if network.class_names and tuple(network.class_names) != names:  # trained on others, or in another order
        return None
    return 100.0 * streamed.correct / streamed.images


def _about(network: FeatureSource) -> dict[str, Any]:
    return {
        "label": network.label,
        "name": network.name,
        "weights": network.origin,
        "parameters": network.parameters,
        "image_size": list(network.image_size),
    }


def _settings(stream: StreamOptions, options: AnalysisOptions, passes: list[Streamed], mesh: Mesh) -> dict[str, Any]:
    searched = isinstance(stream.entropy_range, str)
    return {
        "images": max(p.images for p in passes),
        "seed": options.summary.seed,
        "chunk": stream.chunk,
        "batch_size": stream.batch_size,
        "bins": stream.bins,
        "entropy_range": stream.entropy_range if searched else "given",
        "range": None if searched else list(stream.entropy_range),
        "permutations": options.summary.permutations,
        "bootstrap": options.summary.bootstrap,
        "device": f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}",
        "precision": "highest",
        "versions": {"jaxkd": __version__, "jax": jax.__version__, "numpy": np.__version__},
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
