"""Results of a study for people: comparisons.csv, study.md and study.png, of whatever has ended so far."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd import __version__
from jaxkd.analysis.comparisons import (
    MOST_PAIRS,
    NO_SPREAD,
    Interval,
    PairedComparison,
    holm,
    mean_interval,
    paired_comparison,
)
from jaxkd.data.files import write_atomic
from jaxkd.experiment.study.grid import Comparison, Grid
from jaxkd.experiment.study.ledger import Ledger, Row, table_text
from jaxkd.report.study_figures import Method, draw_study

COMPARISONS, PAGE, FIGURE = "comparisons.csv", "study.md", "study.png"


@dataclass(frozen=True)
class Tested:
    """A declared comparison with its numbers and Holm-adjusted p-values."""

    declared: Comparison
    found: PairedComparison
    holm_t: float
    holm_sign_flip: float


def paired_tests(grid: Grid, rows: Sequence[Row]) -> list[Tested]:
    """Paired tests of all declared comparisons on the final top-1, corrected within each family."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(f"{row.group}/{row.name}", {})[row.seed] = row.top1
    found = []
    for declared in grid.comparisons:
        a, b = scores.get(declared.a, {}), scores.get(declared.b, {})
        seeds = sorted(a.keys() & b.keys())
        found.append(paired_comparison([a[s] for s in seeds], [b[s] for s in seeds]))
    adjusted = {}
    for family in dict.fromkeys(c.family for c in grid.comparisons):
        places = [i for i, c in enumerate(grid.comparisons) if c.family == family]
        for kind in ("p_t", "p_sign_flip"):
            for i, p in zip(places, holm([getattr(found[i], kind) for i in places]), strict=True):
                adjusted[i, kind] = float(p)
    return [
        Tested(c, f, adjusted[i, "p_t"], adjusted[i, "p_sign_flip"])
        for i, (c, f) in enumerate(zip(grid.comparisons, found, strict=True))
    ]


def write_summary(grid: Grid, ledger: Ledger, left_out: Sequence[str], workdir: Path, device: str) -> None:
    """Writes comparisons.csv, study.md and study.png.

    Args:
      grid: the study.
      ledger: its results.
      left_out: keys of runs without a result.
      workdir: where the files go.
      device: the machine, in words.
    """
    rows = list(ledger.rows.values())
    tested = paired_tests(grid, rows)
    if tested:
        write_atomic(workdir / COMPARISONS, table_text([_comparison_row(t) for t in tested]))
    intervals = {key: mean_interval([r.top1 for r in found]) for key, found in _by_member(rows).items()}
    write_atomic(workdir / PAGE, _page(grid, rows, intervals, tested, left_out, device))
    _draw(grid, rows, intervals, tested, workdir / FIGURE)


def _by_member(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row.group}/{row.name}", []).append(row)
    return found


def _comparison_row(tested: Tested) -> dict[str, Any]:
    c, f = tested.declared, tested.found
    return {
        "name": c.name,
        "family": c.family,
        "a": c.a,
        "b": c.b,
        "pairs": f.n,
        "difference": float(f.difference),
        "low": float(f.low),
        "high": float(f.high),
        "cohen_dz": float(f.dz),
        "t": float(f.t),
        "p_t": float(f.p_t),
        "p_t_holm": tested.holm_t,
        "p_sign_flip": float(f.p_sign_flip),
        "p_sign_flip_holm": tested.holm_sign_flip,
    }


def _draw(grid: Grid, rows: Sequence[Row], intervals: dict[str, Interval], tested: list[Tested], path: Path) -> None:
    panels: dict[str, list[Method]] = {}
    for key, found in _by_member(rows).items():
        title = f"Part {found[0].study}" if found[0].study else "Runs"
        panels.setdefault(title, []).append(Method(key, [r.top1 for r in found], intervals[key]))
    differences = [(t.declared.name, t.found) for t in tested if t.found.n]
    scale = f"{grid.config.study.scale}. " if grid.config.study.scale else ""
    caption = (
        f"{scale}Dot: one seed. Tick and bar: mean and 95 % t interval over seeds. {_seeds(rows)} Differences: "
        "a - b by seed, 95 % t interval, not corrected for their number."
    )
    draw_study(list(panels.items()), differences, path, caption=caption)


def _seeds(rows: Sequence[Row]) -> str:
    counts = {len(found) for found in _by_member(rows).values()}
    if not counts:
        return "No run has ended."
    least, most = min(counts), max(counts)
    return f"{least} seeds each." if least == most else f"{least} to {most} seeds each."


def _page(
    grid: Grid,
    rows: Sequence[Row],
    intervals: dict[str, Interval],
    tested: Sequence[Tested],
    left_out: Sequence[str],
    device: str,
) -> str:
    config, members = grid.config, _by_member(rows)
    images = sorted({row.train_images for row in rows if row.train_images})
    lines = [
        "# Results of the study",
        "",
        *([f"**{config.study.scale}**", ""] if config.study.scale else []),
        f"{len(rows)} of {len(grid.runs)} runs have ended. jaxkd {__version__}, {device}, "
        f"{time.strftime('%Y-%m-%d %H:%M')}. Training images: {', '.join(f'{n:,}' for n in images) or '-'}. "
        + (
            "All seeds see the same batches: they differ in initial weights only."
            if config.study.shared_batches
            else "A seed decides initial weights, order and augmentation of the images."
        ),
        "",
        "Top-1 in percent on the validation split at the end of training (raw weights), mean and 95 % t interval over "
        "seeds; best: mean of the best evaluations, which papers print and which is chosen on the same images. "
        "Agreement with the teacher in percent of images, debiased linear CKA and effective rank of the last layer: "
        "means over seeds.",
        "",
        "| part | run | seeds | top-1 | 95 % interval | sd | best | agreement | CKA | rank | diverged |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for key, found in members.items():
        i = intervals[key]
        means = [_mean([getattr(r, name) for r in found]) for name in _MEANS]
        cells = [
            *(found[0].study, key, str(len(found)), _number(i.mean), _interval(i.low, i.high, i.n), _number(i.sd)),
            *(_number(means[0]), _number(means[1], 1), _number(means[2], 3), _number(means[3], 1)),
            str(sum(r.diverged_at_step >= 0 for r in found)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_comparison_lines(tested)]
    if left_out:
        lines += ["## Not run", "", ", ".join(f"`{key}`" for key in left_out), ""]
    return "\n".join(lines)


_MEANS = ("best_top1", "teacher_agreement", "cka_last", "effective_rank_last")


def _comparison_lines(tested: Sequence[Tested]) -> list[str]:
    if not tested:
        return []
    most = max((t.found.n for t in tested), default=0)
    exact = min(most, MOST_PAIRS)
    floor = f" With {exact} pairs the exact test cannot fall below {2 / 2**exact:.3g}." if exact > 1 else ""
    lines = [
        "## Comparisons",
        "",
        "Difference a - b in points of top-1 by seed, with its 95 % t interval; dz: mean over standard deviation of "
        "the differences; p of the paired t-test and of the exact sign-flip test, each with Holm's correction within "
        f"its family.{floor}",
        "",
        "| comparison | family | pairs | difference | 95 % interval | dz | p (t) | Holm | p (flips) | Holm |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for t in tested:
        f = t.found
        cells = (
            *(t.declared.name, t.declared.family, str(f.n), _number(f.difference, signed=True)),
            *(_interval(f.low, f.high, f.n, signed=True), _number(f.dz), _p(f.p_t), _p(t.holm_t)),
            *(_p(f.p_sign_flip), _p(t.holm_sign_flip)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    questions = [t.declared for t in tested if t.declared.question]
    lines += ["", *[f"- {c.name}: {c.question}" for c in questions], ""]
    return lines


def _mean(values: Sequence[float]) -> float:
    x = np.asarray(values, np.float64)
    return float(x[np.isfinite(x)].mean()) if np.isfinite(x).any() else math.nan


def _number(value: float, digits: int = 2, *, signed: bool = False) -> str:
    return "-" if not math.isfinite(value) else f"{value:{'+' if signed else ''}.{digits}f}"


def _interval(low: float, high: float, count: int, *, signed: bool = False) -> str:
    if not math.isfinite(low):
        return NO_SPREAD if count > 1 else "-"
    return f"{_number(low, signed=signed)} to {_number(high, signed=signed)}"


def _p(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.3g}"
