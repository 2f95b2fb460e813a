"""Figure of a study: each method's mean with its interval and every seed as a dot, and the declared differences."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxkd.analysis.comparisons import Interval, PairedComparison
from jaxkd.report import style

LINE = 0.27  # inches of a method


@dataclass(frozen=True)
class Method:
    """A line of the figure: a label, the score of each seed, and their mean with its interval."""

    label: str
    values: Sequence[float]
    interval: Interval


@style.applied()
def draw_study(
    panels: Sequence[tuple[str, Sequence[Method]]],
    differences: Sequence[tuple[str, PairedComparison]],
    path: Path,
    *,
    caption: str,
    score: str = "top-1 on held-out images (%)",
) -> None:
    """Writes a PNG with one panel for each (title, methods), and one of the differences below.

    Args:
      panels: parts of the study, in order.
      differences: (name, comparison); those without an interval are drawn as a dot.
      path: PNG.
      caption: what the runs are.
      score: label of the axis of the panels.
    """
    from matplotlib.figure import Figure

    blocks = [(title, list(methods)) for title, methods in panels if methods]
    rows = [len(methods) for _, methods in blocks] + ([len(differences)] if differences else [])
    if not rows:
        return
    heights = [LINE * count + 0.75 for count in rows]
    figure = Figure(figsize=(8.2, sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, methods) in zip(axes, blocks, strict=False):
        _draw_methods(axis, methods)
        axis.set(title=title, xlabel=score)
    if differences:
        _draw_differences(axes[-1], differences)
    figure.supxlabel(textwrap.fill(caption, 125), fontsize=7.5, color="#555555")
    figure.savefig(path, dpi=style.DPI, metadata={"Software": None})


def _draw_methods(axis, methods: Sequence[Method]) -> None:
    places = range(len(methods), 0, -1)
    for place, method in zip(places, methods, strict=True):
        seen = [v for v in method.values if math.isfinite(v)]
        axis.plot(seen, [place] * len(seen), "o", color="#d9673f", markersize=4, alpha=0.75)
        _bar(axis, place, method.interval.mean, method.interval.low, method.interval.high)
    axis.set_yticks(list(places), [style.plain(m.label, 44) for m in methods])
    axis.set_ylim(0.4, len(methods) + 0.6)


def _draw_differences(axis, differences: Sequence[tuple[str, PairedComparison]]) -> None:
    places = range(len(differences), 0, -1)
    for place, (_, found) in zip(places, differences, strict=True):
        _bar(axis, place, found.difference, found.low, found.high)
    axis.axvline(0.0, color="#777777", linestyle=":", linewidth=1.2)
    axis.set_yticks(list(places), [style.plain(name, 60) for name, _ in differences])
    axis.set_ylim(0.4, len(differences) + 0.6)
    axis.set(title="Paired differences", xlabel="points of top-1, mean over seeds and interval")


def _bar(axis, place: float, mean: float, low: float, high: float) -> None:
    if not math.isfinite(mean):
        return
    if math.isfinite(low) and math.isfinite(high):
        axis.plot([low, high], [place, place], "-", color="#14285f", linewidth=1.7)
    axis.plot([mean], [place], "|", color="#14285f", markersize=11, markeredgewidth=2)
