"""Decoding of a run's test readings: anchors, retrieval beside chance, and the controls; results as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import data, metrics, parallel, train
from jaxkd.analysis.comparisons import holm
from jaxkd.config.fields import base, change, flatten
from jaxkd.errors import CheckpointError, ConfigError
from jaxkd.experiment.eeg import controls, retrieval, scoring
from jaxkd.experiment.eeg.components import VOCABULARY, build_task, direct_scores
from jaxkd.experiment.eeg.data import EegData, open_eeg_data
from jaxkd.experiment.eeg.fit import Fitted, Trainer
from jaxkd.language.keywords import read_vocabulary
from jaxkd.tasks.contrastive import class_weights
from jaxkd.train.progress import Progress

CHOICES: tuple[int | None, ...] = (1, 2, 3, 5, 8, 12, None)  # numbers of anchors that are tried; None is all
PARTS = ("dev", "test")


@dataclass(frozen=True)
class Opened:
    """A run that is ready to be decoded.

    Attributes:
      config: of the run.
      eeg_data: its readings, split and keywords.
      fitted: its network.
      origin: what was loaded, for people.
    """

    config: ConfigDict
    eeg_data: EegData
    fitted: Fitted
    origin: str


def open_run(
    path: str | Path,
    *,
    changes: dict[str, Any],
    allow_leaks: bool = False,
    variant: str = "",
    step: str = "",
    corpus: data.EegCorpus | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Opened:
    """Loads a contrastive run and its data.

    Args:
      path: work directory.
      changes: dotted fields that are to hold, such as {"data.source": ...}; fields of the split must be the run's own.
      allow_leaks: whether parts of the split may share texts.
      variant: "raw", "ema" or "".
      step: "last", "best", a number or "".
      corpus: of this run, where it is open already.
      on_progress: `(bytes read, bytes, what)`.

    Raises:
      CheckpointError: no contrastive run, or other keywords than the data give now.
      ConfigError: a split that the run was not trained with.
      DataError: the data or the keywords of the run cannot be read.
    """
    params, saved, origin = train.load_run_params(path, variant=variant or None, step=step)
    if saved.get("task") != "contrastive":
        raise CheckpointError(
            f'"{path}" is a run of task "{saved.get("task")}", which decodes no EEG. Give a run of '
            "configs/brain_cliplm.py."
        )
    config = change(base(), {k: _tuples(v) for k, v in _flatten(saved).items()})
    for field, value in changes.items():
        own = flatten(config)[field]
        if field.startswith("eeg.") and value != own:
            raise ConfigError(
                f'"{path}" was trained with {field}={own!r}, and its test part is one that it has not seen. Asked was '
                f"{value!r}. Train with --config.{field}={value} for that, or leave the option out."
            )
    if allow_leaks:
        changes = {**changes, "eeg.allow_leaks": True}
    config = change(config, changes).lock()
    eeg_data = open_eeg_data(config, corpus=corpus, on_progress=on_progress)
    run = train.find_run(path)
    known = read_vocabulary(run / VOCABULARY)
    if known.hash != eeg_data.vocabulary.hash:
        raise CheckpointError(
            f'"{path}" was trained with {len(known.words)} other keywords than the {len(eeg_data.vocabulary.words)} '
            f"that {config.data.source} gives. Give the data that it was trained on."
        )
    mesh = parallel.make_mesh(1, devices=jax.devices()[:1])
    task = build_task(
        config, eeg_data.keyword_vectors, eeg_data.sentence_vectors, class_weights(eeg_data.class_counts), load=False
    )
    params = parallel.put_on_mesh(params, mesh)
    fitted = Fitted(task, params, scoring.compile_embed(task), mesh, config.train.batch_size, config.eeg.max_words)
    return Opened(config, eeg_data, fitted, origin)


def _flatten(saved: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    known, found = flatten(base()), {}
    for name, value in saved.items():
        dotted = prefix + name
        if isinstance(value, dict) and dotted not in known:
            found |= _flatten(value, f"{dotted}.")
        else:
            found[dotted] = value
    return found


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Decoding:
    """Findings of a decoding; every list is rows of a table.

    Attributes:
      k: number of anchors, None for all.
      queries: of the test part.
      scores: (Q, C) of the test part by `k` anchors.
      decoded: outputs of the network for the test part.
      curve: of the numbers of anchors, on both parts.
      retrieval: methods by pools.
      subjects: top-5 of each test subject.
      words: accuracies of words.
      anchors: precision, recall and F of the anchors, beside chance.
    """

    k: int | None
    queries: retrieval.Queries
    scorer: Any
    scores: np.ndarray
    decoded: scoring.Decoded
    curve: list[dict[str, Any]]
    retrieval: list[dict[str, Any]]
    subjects: list[dict[str, Any]]
    words: dict[str, float]
    anchors: dict[str, float]


def decode(opened: Opened, *, k: int | None = 0, pools: Sequence[str] = ()) -> Decoding:
    """Decodes the test readings.

    Args:
      opened: of `open_run`.
      k: number of anchors; 0 chooses it on the development part, None takes all.
      pools: further pools, as numbers of candidates.
    """
    eeg_data, fitted, seed = opened.eeg_data, opened.fitted, opened.config.seed
    found = {}
    for part in PARTS:
        readings = eeg_data.split.parts()[part]
        queries = retrieval.make_queries(eeg_data, readings, seed=seed)
        found[part] = queries, retrieval.make_scorer(eeg_data, queries), fitted.decode(eeg_data, readings)
    choices = CHOICES if not k or k in CHOICES else (*CHOICES[:-1], k, None)
    curve, best = [], None
    for part in PARTS:
        queries, scorer, decoded = found[part]
        chosen, rows = retrieval.choose_k(decoded, queries, scorer, choices)
        best = chosen if part == "dev" else best
        curve += [{"part": part, **row} for row in rows]
    k = best if k == 0 else k
    queries, scorer, decoded = found["test"]
    scores = retrieval.anchor_scores(decoded, scorer, k)
    texts = eeg_data.sentence_vectors[queries.candidates]
    methods = {
        f"{k or 'all'} anchors": scores,
        "all anchors, by certainty": retrieval.anchor_scores(decoded, scorer, None, weight="certainty"),
        "sentence embedding": direct_scores(fitted.task, fitted.params, decoded, texts),
    }
    smaller = [str(n) for n in retrieval.SIZES if n < len(queries.candidates)]
    rows = []
    for method, one in methods.items():
        for pool in dict.fromkeys([*smaller, *pools, "all", "matched"]):
            row = {"method": method, **retrieval.retrieval_row(queries, one, pool)}
            if pool in controls.POOLS:
                row |= retrieval.certainty_of(queries, one, pool, seed=seed)
            rows.append(row)
    _add_holm(rows)
    return Decoding(
        k=k,
        queries=queries,
        scorer=scorer,
        scores=scores,
        decoded=decoded,
        curve=curve,
        retrieval=rows,
        subjects=_by_subject(queries, scores),
        words=scoring.word_scores(decoded, eeg_data.class_counts),
        anchors=anchor_scores(eeg_data, queries, decoded, k),
    )


def with_methods(decoding: Decoding, rows: Sequence[dict[str, Any]]) -> Decoding:
    """The decoding with further rows of retrieval; Holm's correction is over all of them."""
    every = [dict(row) for row in (*decoding.retrieval, *rows)]
    _add_holm(every)
    return dataclasses.replace(decoding, retrieval=every)


def _add_holm(rows: list[dict[str, Any]]) -> None:
    """Adds `p_holm`, corrected over all rows that have a p-value."""
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = float(p)


def _by_subject(queries: retrieval.Queries, scores: np.ndarray) -> list[dict[str, Any]]:
    """Top-5 of each subject in the pool of as many words, and among all."""
    rows = []
    for name in np.unique(queries.subject):
        row: dict[str, Any] = {"subject": str(name), "queries": int((queries.subject == name).sum())}
        for pool in controls.POOLS:
            where = queries.pool(pool)
            found = metrics.top_k_hits(scores, queries.right, 5, where=where)
            own = queries.subject == name
            row[f"{pool}_top5"] = 100.0 * float(found[own].mean())
            row[f"{pool}_chance5"] = 100.0 * float(np.minimum(1.0, 5 / where.sum(axis=1))[own].mean())
        rows.append(row)
    return rows


def summarise_subjects(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over the subjects, each with the same weight, and the worst of them, as rows like those of the subjects."""
    worst = min(rows, key=lambda row: row["matched_top5"] - row["matched_chance5"])
    numbers = [name for name in worst if name not in ("subject", "queries")]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in numbers}
    readings = sum(row["queries"] for row in rows)
    return [
        {"subject": f"mean over {len(rows)}", "queries": readings, **mean},
        {**worst, "subject": f"worst: {worst['subject']}"},
    ]


def anchor_scores(
    eeg_data: EegData, queries: retrieval.Queries, decoded: scoring.Decoded, k: int | None
) -> dict[str, float]:
    """Precision, recall and F, in percent, of the anchors against the keywords of the texts, over all readings.

    `chance_precision`, `chance_recall` and `chance_f` are those of the same anchors against the text of a reading that
    is drawn at random: the mean over all permutations of the texts.
    """
    vocabulary, count = eeg_data.vocabulary, len(queries.truth)
    found, gold = (np.zeros((count, len(vocabulary.words)), bool) for _ in range(2))
    for i, place in enumerate(queries.truth):
        gold[i, vocabulary.indices(vocabulary.anchors(eeg_data.texts[queries.candidates[place]]))] = True
        found[i, [a.word for a in decoded.anchors(i, k)]] = True
    scores = {}
    for name, hit in (
        ("", float((found & gold).sum())),
        ("chance_", float(found.sum(axis=0, dtype=float) @ gold.sum(axis=0, dtype=float)) / count),
    ):
        precision, recall = hit / max(found.sum(), 1), hit / max(gold.sum(), 1)
        f = 2 * precision * recall / max(precision + recall, 1e-12)
        scores |= {f"{name}precision": 100 * precision, f"{name}recall": 100 * recall, f"{name}f": 100 * f}
    return {k: float(v) for k, v in scores.items()}


def run_controls(
    opened: Opened,
    decoding: Decoding,
    *,
    retrain: bool = True,
    trained: dict[str, scoring.Decoded] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table of controls, the run's own first.

    Args:
      opened: of `open_run`.
      decoding: of `decode`.
      retrain: whether rows that train networks are computed; else they say so.
      trained: filled with the outputs of these networks, see `controls.Context`.
      progress: shows the steps of the networks that are trained.
    """
    context = controls.Context(
        *(opened.eeg_data, decoding.queries, decoding.scorer, decoding.k, opened.config.seed),
        trained={} if trained is None else trained,
    )
    show = None if progress is None else lambda name, done, total: progress.show(f"control: {name}", done, total)
    trainer = Trainer(opened.config, opened.fitted.mesh, show)
    rows = [{**controls.score_row(context, "EEG", [decoding.scores]), "expected": controls.CHANCE}]
    for control in controls.CONTROLS:
        if control.train is not None and not retrain:
            rows.append({"row": control.name, "networks": 0, "expected": control.expected})
            continue
        if control.train is not None:
            scores = control.train(context, trainer)
        else:
            scores = [control.score(context, opened.fitted)]
        rows.append({**controls.score_row(context, control.name, scores), "expected": control.expected})
    tested = [row for row in rows if "matched_p" in row]
    for pool in controls.POOLS:
        corrected = holm([row[f"{pool}_p"] for row in tested])
        for row, p in zip(tested, corrected, strict=True):
            row[f"{pool}_p_holm"] = float(p)
    return rows


def detectors(opened: Opened, rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Leaks that show: shared texts or statistics, and controls that retrieve sentences of equally many words.

    "word count" looks at all candidates, as it is blind among sentences of one length; it fires in any corpus whose
    sentences differ in length. A control that was not run is left out.
    """
    report, by_name = opened.eeg_data.leaks, {row["row"]: row for row in rows}
    found = {
        "shared texts": bool(sum(report.shared_texts.values()) + sum(report.shared_near_duplicates.values())),
        "vocabulary": bool(report.fitted_outside.get("vocabulary")),
        "standardisation": bool(report.fitted_outside.get("standardisation")),
    }
    for name, control, pool in (
        ("word count", "count only", "all"),
        ("word length", "word length only", "matched"),
        ("gaze", "word length from gaze", "matched"),
        ("subject", controls.ANY_SUBJECT, "all"),
    ):
        row = by_name.get(control, {})
        if f"{pool}_p" in row:
            above = row[f"{pool}_top5"] > row[f"{pool}_chance5"]
            found[name] = bool(above and row[f"{pool}_p"] < controls.FIRES)
    return found
