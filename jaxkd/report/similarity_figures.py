"""Figures that compare a student with a teacher: CKA between all layers, principal cosines of the last."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.plan import PAIRS, Plan
from jaxkd.report.results import Results, array, comparisons_of, has_numbers, label_of, models_of, pick


def comparisons_with(results: Results, key: str) -> list[dict[str, Any]]:
    """The comparisons whose `key` holds a finite number."""
    return [c for c in comparisons_of(results) if has_numbers(pick(c, key))]


def _compared(results: Results, comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {c[side] for c in comparisons for side in ("teacher", "student")}
    return [m for m in models_of(results) if label_of(m) in names]


def draw_cka(results: Results) -> Any:
    """Per comparison: linear CKA of every student layer (rows) with every teacher layer (columns), suggested pairs."""
    comparisons = comparisons_with(results, "cka")
    figure, axes = style.panels(len(comparisons), width=4.5, height=3.7)
    for axis, comparison in zip(axes, comparisons, strict=True):
        picture = array(comparison["cka"])
        image = style.heat_map(axis, picture, vmin=0, vmax=1)
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
    band = f"mean over chunks of images, no band{marked}"
    return style.finish(figure, results, _compared(results, comparisons), band)


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
    band = "last layers, all tokens of all images; no band"
    return style.finish(figure, results, _compared(results, comparisons), band, legend_of=[axis])


PLANS = (
    Plan(
        "cka",
        "Similarity of all layers (linear CKA)",
        PAIRS,
        draw_cka,
        (("cka",),),
        ("cka",),
        "Linear CKA between each layer of the student (rows) and each of the teacher (columns): 1 if the features of "
        "the images are equal up to rotation and scale, near 0 if unrelated. The estimator is the unbiased one over "
        "chunks of images.",
        "Dominated by the directions of largest variance; a high value does not mean that a linear map carries over "
        "what the task needs, and it depends on which images were used.",
        band="no band",
    ),
    Plan(
        "principal_cosines",
        "Principal angles of the last layers",
        PAIRS,
        draw_cosines,
        (("principal_cosines",),),
        ("principal angles",),
        "The cosines of the angles between the main subspaces of the two last layers, in descending order: 1 where a "
        "direction of one is a linear function of the other.",
        "The more directions are kept and the fewer the tokens, the larger the cosines by chance; they weigh a weak "
        "direction like a strong one.",
        band="no band",
    ),
)
