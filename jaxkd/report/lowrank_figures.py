"""Figures of the last layer's directions: per-image ranks beside the shared basis, and the PCA itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.plan import RANKS, Plan
from jaxkd.report.results import Results, array, has_numbers, models_of, models_with, number, pick, short_number

SHOWN = ("95", "99")
RANK = "of this image's own directions (per-image rank)"
SHARED = "of the directions shared by all images (PCA)"
PCA_BAND = "shaded: 1st to 10th percentile of the images; uncentred unless said"


def draw_rank_histogram(results: Results) -> Any:
    """Rows of models, columns 95 and 99 %: how many directions an image needs, of its own and of the shared basis."""
    models = [m for m in models_of(results) if _counts(m, "95") or _counts(m, "99")]
    figure, axes = style.panels(len(models) * 2, columns=2, width=4.9, height=2.9)
    for row, model in enumerate(models):
        for column, level in enumerate(SHOWN):
            _overlay(axes[2 * row + column], model, level)
    return style.finish(figure, results, models, "dashed: 99th percentile over images", legend_of=axes)


def _counts(model: dict[str, Any], level: str) -> dict[str, np.ndarray]:
    """The values per image that there are, by legend text."""
    values = {
        RANK: array(pick(model, "last", "ranks", level, "values")),
        SHARED: array(pick(model, "last", "pca", "uncentred", "required_d", level, "values")),
    }
    return {text: v[np.isfinite(v)] for text, v in values.items() if np.isfinite(v).any()}


def _overlay(axis: Any, model: dict[str, Any], level: str) -> None:
    from matplotlib.ticker import MaxNLocator

    drawing = {
        RANK: {"facecolor": "#9db4d8", "edgecolor": "#14285f"},
        SHARED: {"facecolor": "none", "edgecolor": "#8a3a1e", "hatch": "////"},
    }
    counts = _counts(model, level)
    width, tokens = int(number(pick(model, "last", "D"))), number(pick(model, "last", "N"))
    every = np.concatenate(list(counts.values())) if counts else np.zeros(1)
    # whole numbers: bins of equal whole width with edges between them, or the histogram would show a comb
    step = max(1, int(np.ceil((every.max() - every.min()) / 45)))
    edges = np.arange(every.min() - 0.5, every.max() + step + 0.5, step)
    counts_99, top = [], 0.0
    for text, values in counts.items():
        weights = np.full(len(values), 100 / len(values))
        heights, _, _ = axis.hist(values, edges, weights=weights, label=text, linewidth=0.8, **drawing[text])
        top = max(top, float(heights.max()))
        p99 = float(np.percentile(values, 99))
        axis.axvline(p99, color=drawing[text]["edgecolor"], linestyle="--", linewidth=1.4)
        counts_99.append(f"{'own' if text == RANK else 'shared'} {p99:.0f}")
    if np.isfinite(tokens) and tokens < width:
        axis.axvline(tokens, color="#777777", linewidth=1, label="largest possible own rank, min(N, D)")
    null = number(pick(model, "last", "nulls", "gaussian", "ranks", level))
    if np.isfinite(null):
        axis.axvline(null, color="black", linestyle=":", linewidth=1.6, label="own rank of Gaussian tokens (null)")
    axis.set_title(
        f"{style.title_of(model)} (D = {width})\n{level} % of energy; 99 of 100 images: {', '.join(counts_99)}",
        fontsize=9,
    )
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axis.set(xlim=(0, width * 1.03), ylim=(0, top * 1.08 or 1), xlabel="directions d", ylabel="share of images (%)")


def draw_pca(results: Results) -> Any:
    """Per model: eigenvalues of the second moment above, energy of images captured by the first d directions below."""
    from matplotlib.ticker import MaxNLocator

    models = models_with(results, "last", "pca", "uncentred", "eigenvalues")
    models += [m for m in models_with(results, "last", "pca", "centred", "eigenvalues") if m not in models]
    figure, pairs = style.stacked_panels(len(models), width=4.2, height=3.0)
    for (upper, lower), model in zip(pairs, models, strict=True):
        _draw_eigenvalues(upper, model)
        _draw_captured(lower, model)
        for axis in (upper, lower):
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    used = [axis for pair in pairs for axis in pair]
    return style.finish(figure, results, models, PCA_BAND, legend_of=used)


def _draw_eigenvalues(axis: Any, model: dict[str, Any]) -> None:
    lowest = []
    for i, kind in enumerate(("uncentred", "centred")):
        values = array(pick(model, "last", "pca", kind, "eigenvalues"))
        if not values.size or not values.sum() > 0:
            continue
        share = 100 * values / values.sum()
        x = np.arange(1, len(share) + 1)
        axis.plot(x, share, label=f"eigenvalues, {kind}", markevery=max(1, len(x) // 8), **style.style(i))
        lowest.append(share[share > share[0] * 1e-9].min())  # beyond is round-off
    if lowest:
        style.log_scale(axis)
        axis.set_ylim(min(lowest) / 1.5, None)
    width = pick(model, "last", "D")
    axis.set(title=style.title_of(model, f"D = {width}"), xlabel="direction j", ylabel="share of the energy (%)")


def _draw_captured(axis: Any, model: dict[str, Any]) -> None:
    uncentred = pick(model, "last", "pca", "uncentred") or {}
    eigenvalues = array(uncentred.get("eigenvalues"))
    if eigenvalues.size and eigenvalues.sum() > 0:
        total = 100 * np.cumsum(eigenvalues) / eigenvalues.sum()
        axis.plot(np.arange(1, len(total) + 1), total, color="#777777", linewidth=1.2, label="all tokens together")
    names = {"median": "median image", "p10": "10th percentile of images", "p1": "1st percentile of images"}
    curves = {k: 100 * array(pick(uncentred, "captured", k)) for k in names}
    for i, (key, text) in enumerate(names.items()):
        if has_numbers(curves[key]):
            x = np.arange(1, len(curves[key]) + 1)
            options = style.style(i + 2) | {"markersize": 4}
            axis.plot(x, curves[key], label=text, markevery=(i * len(x) // 24, max(1, len(x) // 8)), **options)
    if has_numbers(curves["p10"]) and has_numbers(curves["p1"]):
        x = np.arange(1, len(curves["p1"]) + 1)
        axis.fill_between(x, curves["p1"], curves["p10"], color="#888888", alpha=0.2, linewidth=0)
    for level in (80, 90, 95, 99):
        axis.axhline(level, color="#777777", linestyle=":", linewidth=0.8)
    counts_99 = [f"{t} %: {short_number(pick(uncentred, 'required_d', t, 'p99'))}" for t in SHOWN]
    axis.set_title(f"d for 99 of 100 images, {', '.join(counts_99)}", fontsize=9)
    axis.set(xlabel="directions d of the shared basis", ylabel="energy captured (%)", ylim=(None, 101))


PLANS = (
    Plan(
        "rank_histogram",
        "One image's own directions beside the directions shared by all",
        RANKS,
        draw_rank_histogram,
        tuple(
            keys
            for t in SHOWN
            for keys in (("last", "ranks", t, "values"), ("last", "pca", "uncentred", "required_d", t, "values"))
        ),
        ("rank", "pca", "required"),
        "For the tokens of the last layer: how many directions an image needs when it may choose its own (per-image "
        "rank, from its singular values), and how many when all images share one basis (the eigenvectors of the second "
        "moment of all tokens, uncentred, in their global order).",
        "That the shared basis needs more is certain beforehand: an image's own singular vectors are its best basis, "
        "so no other needs fewer, and its rank is at most min(N, D). The figure shows the size of the gap, not that a "
        "narrower student must fail; and a single mean direction can dominate uncentred energies.",
        "dashed lines: 99th percentile over images, as published; the spread is the histogram itself",
    ),
    Plan(
        "pca",
        "Principal directions of all tokens, and what they hold of an image",
        RANKS,
        draw_pca,
        (("last", "pca", "uncentred", "eigenvalues"), ("last", "pca", "centred", "eigenvalues")),
        ("pca",),
        "Above, the share of the energy that each shared direction holds. Below, the energy of an image that the first "
        "d shared directions capture, for the median image and for those that fare worst.",
        "With fewer tokens than channels, or few images, the shared basis is fitted to these very images and looks "
        "better than it would on others. Centring removes the mean direction only.",
        PCA_BAND,
    ),
)
