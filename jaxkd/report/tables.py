"""Every number of an analysis as CSV: one tidy file for each family, one line for each number or small group of them.

Undefined numbers are empty cells. Numbers are written so that reading them back gives the same float. A file is written
only if it has lines; `entropy_by_layer*.csv` have the published form, everything else names the model in each line.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jaxkd.report.results import Results, array, label_of, models_of, models_with, null_line, pick

Row = list[Any]
SPREAD = ("mean", "sd", "median", "q25", "q75", "p99")
LEVELS = ("99", "95", "90", "80")


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Writes the tables.

    Args:
      results: see `analysis.reading`; any part may be absent or null.
      folder: made if it is not there; files of the same names are replaced.

    Returns:
      The paths written, those of `FAMILIES` first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (header, rows_of) in FAMILIES.items():
        rows = list(rows_of(results))
        if rows:
            written.append(_write(folder / f"{name}.csv", header, rows))
    return written + _write_entropy(results, folder)


def _write(path: Path, header: Row, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
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
    models = models_with(results, "per_layer", "entropy", "mean")
    written: list[Path] = []
    for model in models:
        stem = "entropy_by_layer"
        if len(models_of(results)) > 1:
            stem += "_" + (re.sub(r"[^A-Za-z0-9.-]+", "_", label_of(model)).strip("_.") or "model")
        path, again = folder / f"{stem}.csv", 2
        while path in written:  # two labels that differ in signs only
            path, again = folder / f"{stem}_{again}.csv", again + 1
        rows = [[i + 1, v] for i, v in enumerate(pick(model, "per_layer", "entropy", "mean"))]
        written.append(_write(path, ["Layer", "Shannon_Entropy"], rows))
    return written


def _layers(model: dict[str, Any]) -> Iterator[tuple[int, str]]:
    yield from enumerate(model.get("layers") or [])


def _per_layer(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for statistic, spread in (model.get("per_layer") or {}).items():
            for i, layer in _layers(model):
                sizes = [pick(model, "tokens", i), pick(model, "channels", i)]
                yield [label_of(model), i, layer, *sizes, statistic, *(pick(spread, k, i) for k in SPREAD)]


def _spectrum(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for i, layer in _layers(model):
            values = pick(model, "spectrum", i) or []
            for k, value in enumerate(values):
                yield [label_of(model), i, layer, k, k / len(values), value, pick(model, "spectrum_sd", i, k)]


def _radial(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for i, layer in _layers(model):
            frequencies = pick(model, "radial_frequency", i) or []
            for f, value in zip(frequencies, pick(model, "radial", i) or [], strict=False):
                yield [label_of(model), i, layer, f, value]


def _spatial(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for i, layer in _layers(model):
            rows = pick(model, "spatial", i) or []
            for y, row in enumerate(rows):
                for x, value in enumerate(row):
                    place = [(y - len(rows) // 2) / len(rows), (x - len(row) // 2) / len(row)]
                    yield [label_of(model), i, layer, *place, value]


def _ranks(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for level in LEVELS:
            columns = [
                pick(model, "last", "ranks", level, "values") or [],
                pick(model, "last", "pca", "uncentred", "required_d", level, "values") or [],
                pick(model, "last", "pca", "centred", "required_d", level, "values") or [],
            ]
            for image, row in enumerate(zip_longest(*columns)):
                yield [label_of(model), image, level, *row]


def _rank_summary(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for level in LEVELS:
            for kind in ("rank", "required_d_uncentred", "required_d_centred"):
                centring = kind.removeprefix("required_d_")
                keys = ("ranks",) if kind == "rank" else ("pca", centring, "required_d")
                spread = pick(model, "last", *keys, level)
                if spread:
                    numbers = [spread.get(k) for k in (*SPREAD, "min", "max")]
                    yield [label_of(model), pick(model, "last", "layer"), kind, level, *numbers]


def _pca(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for centring in ("uncentred", "centred"):
            part = pick(model, "last", "pca", centring) or {}
            values = array(part.get("eigenvalues")).tolist()
            total, so_far = math.fsum(values), 0.0
            for j, value in enumerate(values):
                so_far += value
                shares = [value / total, so_far / total] if total > 0 else [None, None]
                captured = [pick(part, "captured", k, j) for k in ("median", "p10", "p1")]
                yield [label_of(model), centring, j + 1, value, *shares, *captured]


def _global_d(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for centring in ("uncentred", "centred"):
            for level, d in (pick(model, "last", "pca", centring, "global_d") or {}).items():
                yield [label_of(model), centring, level, d]


def _sep(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for mode in ("full", "folded"):
            mean = array(pick(model, "last", "sep", mode, "mean"))
            # the line of random permutations is that of the full curve only: folded bins hold unequal shares
            line = null_line(mean).tolist() if mode == "full" and len(mean) else [None] * len(mean)
            for j, value in enumerate(mean.tolist()):
                sd = pick(model, "last", "sep", mode, "sd", j)
                yield [label_of(model), mode, j + 1, (j + 1) / len(mean), value, sd, line[j]]


def _bandwidth(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for mode in ("full", "folded"):
            part = pick(model, "last", "sep", mode) or {}
            size = len(part.get("mean") or [])
            for level, d in (part.get("bandwidth") or {}).items():
                share = d / size if d is not None and size else None
                yield [label_of(model), mode, level, d, share, part.get("tokens"), part.get("zero_tokens")]


def _permutation(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        entry = pick(model, "last", "permutation") or {}
        counts = [entry.get(k) for k in ("images", "permutations", "bootstrap")]
        for i, level in enumerate(entry.get("thresholds") or []):
            keys = ("original", "permuted", "delta", "delta_sd", "delta_p5", "delta_p95")
            interval = [pick(entry, "ci", i, 0), pick(entry, "ci", i, 1)]
            yield [label_of(model), level, *(pick(entry, k, i) for k in keys), *interval, *counts]


def _permutation_curve(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        entry = pick(model, "last", "permutation") or {}
        for j, mean in enumerate(entry.get("curve_mean") or []):
            distance = [entry.get("curve_l1_mean"), entry.get("curve_l1_sd")]
            yield [label_of(model), j + 1, mean, pick(entry, "curve_p5", j), pick(entry, "curve_p95", j), *distance]


def _nulls(results: Results) -> Iterator[Row]:
    for model in models_of(results):
        for kind, entry in (pick(model, "last", "nulls") or {}).items():
            for quantity, value in (entry or {}).items():
                if quantity == "sep":
                    for j, s in enumerate(value or []):
                        yield [label_of(model), kind, "sep_percent", j + 1, s]
                elif isinstance(value, dict):
                    for level, number in value.items():
                        yield [label_of(model), kind, f"rank_{level}", None, number]
                else:
                    yield [label_of(model), kind, quantity, None, value]


def _cka(results: Results) -> Iterator[Row]:
    for pair in results.get("comparisons") or []:
        for i, row in enumerate(pair.get("cka") or []):
            for j, value in enumerate(row):
                names = [pick(pair, "student_layers", i), pick(pair, "teacher_layers", j)]
                yield [pair["teacher"], pair["student"], i, j, *names, value]


def _angles(results: Results) -> Iterator[Row]:
    for pair in results.get("comparisons") or []:
        for i, cosine in enumerate(pair.get("principal_cosines") or []):
            angle = None if cosine is None else math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
            yield [pair["teacher"], pair["student"], i + 1, cosine, angle]


def _pairs(results: Results) -> Iterator[Row]:
    for pair in results.get("comparisons") or []:
        suggestion = pair.get("suggestion") or {}
        for s, t in suggestion.get("pairs") or []:
            yield [pair["teacher"], pair["student"], s, t, suggestion.get("supported"), suggestion.get("reason")]


def _saliency(results: Results) -> Iterator[Row]:
    for entry in results.get("saliency") or []:
        yield [entry.get(k) for k in ("model", "image", "class", "completeness_error", "png", "gif")]


LAYER = ["model", "layer_index", "layer"]
INTERVAL = ["ci_low", "ci_high", "images", "permutations", "bootstrap"]
FAMILIES: dict[str, tuple[Row, Callable[[Results], Iterator[Row]]]] = {
    "per_layer": ([*LAYER, "tokens", "channels", "statistic", *SPREAD], _per_layer),
    "spectrum": ([*LAYER, "k", "k_over_C", "amplitude", "amplitude_sd"], _spectrum),
    "radial": ([*LAYER, "cycles_per_token", "amplitude"], _radial),
    "spatial": ([*LAYER, "vertical_cycles_per_token", "horizontal_cycles_per_token", "log10_amplitude"], _spatial),
    "ranks": (
        ["model", "image", "energy_percent", "rank", "required_d_uncentred", "required_d_centred"],
        _ranks,
    ),
    "rank_summary": (["model", "layer", "quantity", "energy_percent", *SPREAD, "min", "max"], _rank_summary),
    "pca": (
        [
            "model",
            "centring",
            "d",
            "eigenvalue",
            "share",
            "cumulative",
            "captured_median",
            "captured_p10",
            "captured_p1",
        ],
        _pca,
    ),
    "pca_global_d": (["model", "centring", "energy_percent", "d"], _global_d),
    "sep": (["model", "mode", "d", "d_over_D", "mean_percent", "sd_over_tokens", "null_line_percent"], _sep),
    "sep_bandwidth": (["model", "mode", "energy_percent", "d", "d_over_D", "tokens", "zero_tokens"], _bandwidth),
    "permutation": (
        ["model", "energy_percent", "original", "permuted", "delta", "delta_sd", "delta_p5", "delta_p95", *INTERVAL],
        _permutation,
    ),
    "permutation_curve": (["model", "d", "mean_percent", "p5", "p95", "l1_mean", "l1_sd"], _permutation_curve),
    "nulls": (["model", "null", "quantity", "d", "value"], _nulls),
    "cka": (
        ["teacher", "student", "student_index", "teacher_index", "student_layer", "teacher_layer", "cka"],
        _cka,
    ),
    "principal_angles": (["teacher", "student", "index", "cosine", "angle_degrees"], _angles),
    "suggested_pairs": (["teacher", "student", "student_index", "teacher_index", "supported", "reason"], _pairs),
    "saliency": (["model", "image", "class", "completeness_error", "png", "gif"], _saliency),
}
