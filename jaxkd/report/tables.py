"""CSV tables of an analysis: one tidy file for each family, one line for each number or small group of them.

Undefined numbers are empty cells. Numbers are written so that reading them back gives the same float. A file is written
only if it has lines; `entropy_by_layer*.csv` have the published form, everything else names the model in each line.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.files import atomic_file
from jaxkd.report.results import (
    THRESHOLDS,
    Results,
    array,
    comparisons_of,
    label_of,
    models_of,
    models_with,
    null_line,
    pick,
)

Row = list[Any]
Rows = Iterator[Row]
Model = dict[str, Any]
SPREAD = "mean sd median q25 q75 p99"
CENTRINGS = ("uncentred", "centred")
TABLES: dict[str, tuple[str, str, Callable[[Model], Rows]]] = {}


def _table(name: str, columns: str, of: str = "models") -> Callable:
    """Declares `name`.csv: a function that gives the rows of one model, comparison or saliency map.

    Rows begin with the model's label, or with the labels of teacher and student, which `columns` leave out.
    """

    def declare(rows: Callable[[Model], Rows]) -> Callable[[Model], Rows]:
        TABLES[name] = (of, columns, rows)
        return rows

    return declare


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Writes the tables.

    Returns:
      The paths written, those of `TABLES` first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    subjects = {
        "models": (["model"], [([label_of(m)], m) for m in models_of(results)]),
        "comparisons": (
            ["teacher", "student"],
            [([c["teacher"], c["student"]], c) for c in comparisons_of(results)],
        ),
        "saliency": (["model"], [([s.get("model")], s) for s in results.get("saliency") or []]),
    }
    written = []
    for name, (of, columns, rows_of) in TABLES.items():
        head, sources = subjects[of]
        rows = [[*labels, *row] for labels, source in sources for row in rows_of(source)]
        if rows:
            written.append(write_csv(folder / f"{name}.csv", [*head, *columns.split()], rows))
    return written + _write_entropy(results, folder)


def write_csv(path: Path, header: Row, rows: Iterable[Row]) -> Path:
    """Writes a CSV file; numbers that are not finite and None are empty cells."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([[_cell(v) for v in row] for row in rows])
    return path


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return "" if value is None else value


def _write_entropy(results: Results, folder: Path) -> list[Path]:
    """`Layer,Shannon_Entropy` in bits, layers counted from 1 as in the published tables; one file for each model."""
    written: list[Path] = []
    for model in models_with(results, "per_layer", "entropy", "mean"):
        stem = "entropy_by_layer"
        if len(models_of(results)) > 1:
            stem += "_" + (re.sub(r"[^A-Za-z0-9.-]+", "_", label_of(model)).strip("_.") or "model")
        path, again = folder / f"{stem}.csv", 2
        while path in written:  # two labels that differ in signs only
            path, again = folder / f"{stem}_{again}.csv", again + 1
        rows = [[i, v] for i, v in enumerate(pick(model, "per_layer", "entropy", "mean"), start=1)]
        written.append(write_csv(path, ["Layer", "Shannon_Entropy"], rows))
    return written


def _layers(model: Model) -> Iterator[tuple[int, str]]:
    yield from enumerate(model.get("layers") or [])


@_table("accuracy", "images top1")
def _accuracy(model: Model) -> Rows:
    if model.get("top1") is not None:
        yield [model.get("images"), model["top1"]]


@_table("per_layer", f"layer_index layer tokens channels statistic {SPREAD}")
def _per_layer(model: Model) -> Rows:
    for statistic, spread in (model.get("per_layer") or {}).items():
        for i, layer in _layers(model):
            sizes = [pick(model, "tokens", i), pick(model, "channels", i)]
            yield [i, layer, *sizes, statistic, *(pick(spread, k, i) for k in SPREAD.split())]


@_table("spectrum", "layer_index layer k k_over_C amplitude amplitude_sd")
def _spectrum(model: Model) -> Rows:
    for i, layer in _layers(model):
        values = pick(model, "spectrum", i) or []
        for k, value in enumerate(values):
            yield [i, layer, k, k / len(values), value, pick(model, "spectrum_sd", i, k)]


@_table("radial", "layer_index layer cycles_per_token amplitude")
def _radial(model: Model) -> Rows:
    for i, layer in _layers(model):
        frequencies, values = (pick(model, key, i) or [] for key in ("radial_frequency", "radial"))
        yield from ([i, layer, f, value] for f, value in zip(frequencies, values, strict=False))


@_table("spatial", "layer_index layer vertical_cycles_per_token horizontal_cycles_per_token log10_amplitude")
def _spatial(model: Model) -> Rows:
    for i, layer in _layers(model):
        rows = pick(model, "spatial", i) or []
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                yield [i, layer, (y - len(rows) // 2) / len(rows), (x - len(row) // 2) / len(row), value]


@_table("ranks", "image energy_percent rank required_d_uncentred required_d_centred")
def _ranks(model: Model) -> Rows:
    for level in THRESHOLDS:
        paths = (("ranks",), *(("pca", centring, "required_d") for centring in CENTRINGS))
        columns = [pick(model, "last", *path, level, "values") or [] for path in paths]
        yield from ([image, level, *row] for image, row in enumerate(zip_longest(*columns)))


@_table("rank_summary", f"layer quantity energy_percent {SPREAD} min max")
def _rank_summary(model: Model) -> Rows:
    kinds = {"rank": ("ranks",)} | {f"required_d_{c}": ("pca", c, "required_d") for c in CENTRINGS}
    for level in THRESHOLDS:
        for kind, path in kinds.items():
            spread = pick(model, "last", *path, level)
            if spread:
                numbers = [spread.get(k) for k in (*SPREAD.split(), "min", "max")]
                yield [pick(model, "last", "layer"), kind, level, *numbers]


@_table("pca", "centring d eigenvalue share cumulative captured_median captured_p10 captured_p1")
def _pca(model: Model) -> Rows:
    for centring in CENTRINGS:
        part = pick(model, "last", "pca", centring) or {}
        values = array(part.get("eigenvalues"))
        cumulative = np.cumsum(values).tolist()
        for j, value in enumerate(values.tolist()):
            shares = [value / cumulative[-1], cumulative[j] / cumulative[-1]] if cumulative[-1] > 0 else [None, None]
            yield [centring, j + 1, value, *shares, *(pick(part, "captured", k, j) for k in ("median", "p10", "p1"))]


@_table("pca_global_d", "centring energy_percent d")
def _global_d(model: Model) -> Rows:
    for centring in CENTRINGS:
        found = pick(model, "last", "pca", centring, "global_d") or {}
        yield from ([centring, level, d] for level, d in found.items())


@_table("sep", "mode d d_over_D mean_percent sd_over_tokens null_line_percent")
def _sep(model: Model) -> Rows:
    for mode in ("full", "folded"):
        mean = array(pick(model, "last", "sep", mode, "mean"))
        # The line of random permutations is that of the full curve only: folded bins hold unequal shares.
        line = null_line(mean).tolist() if mode == "full" and len(mean) else [None] * len(mean)
        for j, value in enumerate(mean.tolist()):
            yield [mode, j + 1, (j + 1) / len(mean), value, pick(model, "last", "sep", mode, "sd", j), line[j]]


@_table("sep_bandwidth", "mode energy_percent d d_over_D tokens zero_tokens")
def _bandwidth(model: Model) -> Rows:
    for mode in ("full", "folded"):
        part = pick(model, "last", "sep", mode) or {}
        size = len(part.get("mean") or [])
        for level, d in (part.get("bandwidth") or {}).items():
            share = d / size if d is not None and size else None
            yield [mode, level, d, share, part.get("tokens"), part.get("zero_tokens")]


DELTAS = "original permuted delta delta_sd delta_p5 delta_p95"


@_table("permutation", f"energy_percent {DELTAS} ci_low ci_high images permutations bootstrap")
def _permutation(model: Model) -> Rows:
    entry = pick(model, "last", "permutation") or {}
    counts = [entry.get(k) for k in ("images", "permutations", "bootstrap")]
    for i, level in enumerate(entry.get("thresholds") or []):
        interval = [pick(entry, "ci", i, end) for end in (0, 1)]
        yield [level, *(pick(entry, k, i) for k in DELTAS.split()), *interval, *counts]


@_table("permutation_curve", "d mean_percent p5 p95 l1_mean l1_sd")
def _permutation_curve(model: Model) -> Rows:
    entry = pick(model, "last", "permutation") or {}
    distance = [entry.get("curve_l1_mean"), entry.get("curve_l1_sd")]
    for j, mean in enumerate(entry.get("curve_mean") or []):
        yield [j + 1, mean, pick(entry, "curve_p5", j), pick(entry, "curve_p95", j), *distance]


@_table("nulls", "null quantity d value")
def _nulls(model: Model) -> Rows:
    for kind, entry in (pick(model, "last", "nulls") or {}).items():
        for quantity, value in (entry or {}).items():
            if quantity == "sep":
                yield from ([kind, "sep_percent", j, s] for j, s in enumerate(value or [], start=1))
            elif isinstance(value, dict):
                yield from ([kind, f"rank_{level}", None, number] for level, number in value.items())
            else:
                yield [kind, quantity, None, value]


@_table("cka", "student_index teacher_index student_layer teacher_layer cka", "comparisons")
def _cka(pair: Model) -> Rows:
    for i, row in enumerate(pair.get("cka") or []):
        for j, value in enumerate(row):
            yield [i, j, pick(pair, "student_layers", i), pick(pair, "teacher_layers", j), value]


@_table("principal_angles", "index cosine angle_degrees", "comparisons")
def _angles(pair: Model) -> Rows:
    for i, cosine in enumerate(pair.get("principal_cosines") or []):
        yield [i + 1, cosine, None if cosine is None else math.degrees(math.acos(min(1.0, max(-1.0, cosine))))]


@_table("suggested_pairs", "student_index teacher_index supported reason", "comparisons")
def _pairs(pair: Model) -> Rows:
    suggestion = pair.get("suggestion") or {}
    for s, t in suggestion.get("pairs") or []:
        yield [s, t, suggestion.get("supported"), suggestion.get("reason")]


@_table("saliency", "image class completeness_error png gif", "saliency")
def _saliency(entry: Model) -> Rows:
    yield [entry.get(k) for k in ("image", "class", "completeness_error", "png", "gif")]
