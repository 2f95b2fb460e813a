"""Figures of the encoding mismatch of the last layer: per-image ranks beside the shared basis, and the PCA itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.depth_figures import footer_of
from jaxkd.report.results import Results, array, figure_of, has_numbers, models_of, models_with, number, pick

SHOWN = ("95", "99")
RANK = "of this image's own directions (per-image rank)"
SHARED = "of the directions shared by all images (PCA)"


def draw_rank_histogram(results: Results) -> Any:
    """Rows of models, columns 95 and 99 %: how many directions an image needs, of its own and of the shared basis."""
    models = [m for m in models_of(results) if _counts(m, "95") or _counts(m, "99")]
    figure, axes = style.panels(len(models) * 2, columns=2, width=4.9, height=2.9)
    for row, model in enumerate(models):
        for column, level in enumerate(SHOWN):
            _overlay(axes[2 * row + column], model, level)
    return style.finish(figure, footer_of(results, models, "dashed: 99th percentile over images"), legend_of=axes)


def _counts(model: dict[str, Any], level: str) -> dict[str, np.ndarray]:
    """The values per image that there are, by legend text."""
    values = {
        RANK: array(pick(model, "last", "ranks", level, "values")),
        SHARED: array(pick(model, "last", "pca", "uncentred", "required_d", level, "values")),
    }
    return {text: v[np.isfinite(v)] for text, v in values.items() if np.isfinite(v).any()}


def _overlay(axis: Any, model: dict[str, Any], level: str) -> None:
    from matplotlib.ticker import MaxNLocator

    looks = {
        RANK: {"facecolor": "#9db4d8", "edgecolor": "#14285f"},
        SHARED: {"facecolor": "none", "edgecolor": "#8a3a1e", "hatch": "////"},
    }
    counts = _counts(model, level)
    width, tokens = int(number(pick(model, "last", "D"))), number(pick(model, "last", "N"))
    every = np.concatenate(list(counts.values())) if counts else np.zeros(1)
    # whole numbers: bins of equal whole width with edges between them, or the histogram would show a comb
    step = max(1, int(np.ceil((every.max() - every.min()) / 45)))
    edges = np.arange(every.min() - 0.5, every.max() + step + 0.5, step)
    said, top = [], 0.0
    for text, values in counts.items():
        weights = np.full(len(values), 100 / len(values))
        heights, _, _ = axis.hist(values, edges, weights=weights, label=text, linewidth=0.8, **looks[text])
        top = max(top, float(heights.max()))
        p99 = float(np.percentile(values, 99))
        axis.axvline(p99, color=looks[text]["edgecolor"], linestyle="--", linewidth=1.4)
        said.append(f"{'own' if text == RANK else 'shared'} {p99:.0f}")
    if np.isfinite(tokens) and tokens < width:
        axis.axvline(tokens, color="#777777", linewidth=1, label="largest possible own rank, min(N, D)")
    null = number(pick(model, "last", "nulls", "gaussian", "ranks", level))
    if np.isfinite(null):
        axis.axvline(null, color="black", linestyle=":", linewidth=1.6, label="own rank of Gaussian tokens (null)")
    axis.set_title(
        f"{style.title_of(model)} (D = {width})\n{level} % of energy; 99 of 100 images: {', '.join(said)}", fontsize=9
    )
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axis.set(xlim=(0, width * 1.03), ylim=(0, top * 1.08 or 1), xlabel="directions d", ylabel="share of images (%)")


def draw_pca(results: Results) -> Any:
    """Per model: eigenvalues of the second moment above, energy of images captured by the first d directions below."""
    models = models_with(results, "last", "pca", "uncentred", "eigenvalues")
    models += [m for m in models_with(results, "last", "pca", "centred", "eigenvalues") if m not in models]
    columns = min(3, len(models))
    blocks = -(-len(models) // columns)
    figure, axes = style.panels(2 * blocks * columns, columns=columns, width=4.2, height=3.0)
    from matplotlib.ticker import MaxNLocator

    used = []
    for place, model in enumerate(models):
        block, column = divmod(place, columns)
        upper, lower = (axes[(2 * block + k) * columns + column] for k in (0, 1))
        _draw_eigenvalues(upper, model)
        _draw_captured(lower, model)
        for axis in (upper, lower):
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        used += [upper, lower]
    for axis in axes:
        if axis not in used:
            axis.set_visible(False)
    band = "shaded: 1st to 10th percentile of the images; uncentred unless said"
    return style.finish(figure, footer_of(results, models, band), legend_of=used)


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
    said = [f"{t} %: {figure_of(pick(uncentred, 'required_d', t, 'p99'))}" for t in SHOWN]
    axis.set_title(f"d for 99 of 100 images, {', '.join(said)}", fontsize=9)
    axis.set(xlabel="directions d of the shared basis", ylabel="energy captured (%)", ylim=(None, 101))
