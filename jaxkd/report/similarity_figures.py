"""Figures that compare a student with a teacher: CKA between all layers, principal cosines of the last."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.depth_figures import footer_of
from jaxkd.report.results import Results, array, has_numbers, label_of, models_of, pick


def comparisons_with(results: Results, key: str) -> list[dict[str, Any]]:
    """The comparisons whose `key` holds a finite number."""
    return [c for c in results.get("comparisons") or [] if has_numbers(pick(c, key))]


def _compared(results: Results, comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {c[side] for c in comparisons for side in ("teacher", "student")}
    return [m for m in models_of(results) if label_of(m) in names]


def draw_cka(results: Results) -> Any:
    """Per comparison: linear CKA of every student layer (rows) with every teacher layer (columns), suggested pairs."""
    comparisons = comparisons_with(results, "cka")
    figure, axes = style.panels(len(comparisons), width=4.5, height=3.7)
    for axis, comparison in zip(axes, comparisons, strict=True):
        picture = array(comparison["cka"])
        image = axis.imshow(
            picture, origin="lower", vmin=0, vmax=1, cmap=style.COLOUR_MAP, aspect="auto", interpolation="nearest"
        )
        axis.grid(False)
        pairs = pick(comparison, "suggestion", "pairs") or []
        if pairs:
            rows, columns = zip(*pairs, strict=True)
            axis.plot(columns, rows, "o", color="black", markersize=8, fillstyle="none", markeredgewidth=2.6)
            circle = {"color": "white", "fillstyle": "none", "markeredgewidth": 1.2}
            axis.plot(columns, rows, "o", markersize=8, **circle)
        axis.set_xlabel(f"layer of {style.plain(comparison['teacher'])} (teacher)")
        axis.set_ylabel(f"layer of {style.plain(comparison['student'])}\n(student)")
        style.name_layers(axis, comparison.get("teacher_layers") or range(picture.shape[1]), "x")
        style.name_layers(axis, comparison.get("student_layers") or range(picture.shape[0]), "y")
    figure.colorbar(image, ax=axes, label="linear CKA (0 to 1)", extend="min")
    marked = "; circles: suggested pairs" if any(pick(c, "suggestion", "pairs") for c in comparisons) else ""
    footer = footer_of(results, _compared(results, comparisons), f"mean over chunks of images, no band{marked}")
    return style.finish(figure, footer)


def draw_cosines(results: Results) -> Any:
    """Principal cosines in descending order, one line for each comparison."""
    comparisons = comparisons_with(results, "principal_cosines")
    figure, (axis,) = style.panels(1, width=6.4, height=3.8)
    for i, comparison in enumerate(comparisons):
        cosines = array(comparison["principal_cosines"])
        x = np.arange(1, len(cosines) + 1)
        names = f"{style.plain(comparison['student'], 22)} in {style.plain(comparison['teacher'], 22)}"
        axis.plot(x, cosines, label=names, markevery=max(1, len(x) // 12), **style.style(i))
    axis.set(xlabel="principal direction (sorted)", ylabel="cosine of the principal angle", ylim=(0, 1.03))
    footer = footer_of(results, _compared(results, comparisons), "last layers, all tokens of all images; no band")
    return style.finish(figure, footer, legend_of=[axis])
