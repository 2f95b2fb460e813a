"""Figures of one number per layer against depth: intensity, entropy, activations, gradients, ranks, outliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.results import (
    NULLS,
    THRESHOLDS,
    Results,
    array,
    images_in_words,
    label_of,
    models_of,
    models_with,
    number,
    pick,
    seed_in_words,
)

SD_BAND = "line: mean, band: ± 1 standard deviation over images"
SHAPES = {
    "participation_ratio": "participation ratio\n(effective directions per image)",
    "stable_rank": "stable rank (directions per image)",
    "kurtosis": "kurtosis of activations (Gaussian 3)",
    "massive_share": "largest channel's share of a token's\nenergy (0 to 1)",
}


def footer_of(results: Results, models: Sequence[dict[str, Any]], band: str) -> str:
    """The line below a figure: number of images, seed, and what the band is."""
    return f"{images_in_words(results, models)}, {seed_in_words(results)}; {band}"


def profile(axis: Any, results: Results, statistic: str, label: str, relative: bool) -> None:
    """Draws mean and standard deviation over images of one statistic for every model that has it."""
    everything = []
    for i, model in enumerate(models_of(results)):
        mean, sd = (array(pick(model, "per_layer", statistic, k)) for k in ("mean", "sd"))
        if not np.isfinite(mean).any():
            continue
        sd = sd if len(sd) == len(mean) else np.zeros_like(mean)
        x = style.positions(model, relative)
        style.banded(axis, x, mean, mean - sd, mean + sd, i, style.plain(label_of(model)))
        everything.append(mean)
    style.log_if_wide(axis, np.concatenate(everything) if everything else np.zeros(0))
    axis.set_ylabel(label)
    style.label_depth(axis, relative)


def draw_profiles(results: Results, labels: dict[str, str], band: str = SD_BAND) -> Any:
    """One panel for each statistic that any model has."""
    shown = {s: text for s, text in labels.items() if models_with(results, "per_layer", s, "mean")}
    models = [m for m in models_of(results) if any(m in models_with(results, "per_layer", s, "mean") for s in shown)]
    relative = style.relative_depth(models)
    figure, axes = style.panels(len(shown), columns=2, width=5.2)
    for axis, (statistic, text) in zip(axes, shown.items(), strict=True):
        profile(axis, results, statistic, text, relative)
    return style.finish(figure, footer_of(results, models, band), legend_of=axes)


def draw_intensity(results: Results) -> Any:
    """Model-wise spectral intensity by depth (SpectralKD, eq. 5), every model in one axis."""
    return draw_profiles(results, {"intensity": "intensity: mean spectral amplitude\n(activation units)"})


def draw_entropy(results: Results) -> Any:
    """Shannon entropy by depth in bits: over the common range, and over each layer's own."""
    kinds = {"chunk": "range of each chunk", "given": "given range", "exact": "range of the whole set"}
    kind = kinds.get(pick(results, "settings", "entropy_range"), "global range")
    labels = {
        "entropy": f"entropy over channels (bits)\nbins over the {kind}, all layers",
        "entropy_own_range": "entropy over channels (bits)\nbins over each layer's own range",
    }
    return draw_profiles(results, labels)


def draw_activation(results: Results) -> Any:
    """Mean and largest |activation| by depth."""
    labels = {
        "activation_mean": "mean |activation| (activation units)",
        "activation_max": "largest |activation| of an image\n(activation units)",
    }
    return draw_profiles(results, labels)


def draw_gradient(results: Results) -> Any:
    """Mean |gradient| by depth, of the class score or of the loss, as the results say."""
    of = {m.get("gradient_of") for m in models_with(results, "per_layer", "gradient", "mean")} - {None}
    score = {"class": "class score", "loss": "training loss"}.get(of.pop(), "score") if len(of) == 1 else "score"
    return draw_profiles(results, {"gradient": f"mean |gradient of the {score}|\n({score} per activation unit)"})


def draw_ranks_by_layer(results: Results) -> Any:
    """Per model: directions that hold 99, 95, 90 and 80 % of an image's energy, in every layer."""
    models = [m for m in models_of(results) if any(pick(m, "per_layer", f"rank_{t}", "mean") for t in THRESHOLDS)]
    figure, axes = style.panels(len(models), width=4.2, height=3.5)
    for axis, model in zip(axes, models, strict=True):
        x = style.positions(model, relative=False)
        for i, level in enumerate(THRESHOLDS):
            stats = pick(model, "per_layer", f"rank_{level}") or {}
            mean, sd, low, high = (array(stats.get(k)) for k in ("mean", "sd", "q25", "q75"))
            if not np.isfinite(mean).any():
                continue
            style.banded(axis, x, mean, low, high, i, f"{level} % of the energy")
            colour = style.STYLES[i][0]
            axis.errorbar(x, mean, yerr=sd, fmt="none", ecolor=colour, elinewidth=0.8, capsize=2)
        limit = np.minimum(array(model["tokens"]), array(model["channels"]))
        axis.step(x, limit, where="mid", color="#777777", linewidth=1.0, label="largest possible, min(N, C)")
        axis.set(title=style.title_of(model), ylabel="directions (per-image rank)", ylim=(0, None))
        style.label_depth(axis, relative=False)
    band = "line: mean, band: quartiles, bars: ± 1 standard deviation, all over images"
    return style.finish(figure, footer_of(results, models, band), legend_of=axes)


def draw_shape(results: Results) -> Any:
    """Participation ratio, stable rank, kurtosis and massive share by layer, with the null levels of the last layer."""
    from matplotlib.figure import Figure

    shown = {s: text for s, text in SHAPES.items() if models_with(results, "per_layer", s, "mean")}
    models = [m for m in models_of(results) if any(pick(m, "per_layer", s, "mean") for s in shown)]
    relative = style.relative_depth(models)
    rows, columns = (len(shown) + 1) // 2, min(2, len(shown))
    figure = Figure(figsize=(5.6 * columns, 3.3 * rows + 0.6), layout="constrained")
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=(5, 1.25) * columns)
    axes = []
    for place, (statistic, text) in enumerate(shown.items()):
        row, column = divmod(place, columns)
        axis = figure.add_subplot(grid[row, 2 * column])
        profile(axis, results, statistic, text, relative)
        strip = figure.add_subplot(grid[row, 2 * column + 1], sharey=axis)
        _draw_null_levels(strip, results, statistic)
        axes.append(axis)
        levels = [number(pick(m, "last", "nulls", k, statistic)) for m in models for k in NULLS]
        means = [v for m in models for v in array(pick(m, "per_layer", statistic, "mean"))]
        if not style.log_if_wide(axis, np.asarray(means + levels)):
            axis.autoscale(axis="y")
    band = f"{SD_BAND}; narrow strips: levels of the null models at the size of the last layer"
    return style.finish(figure, footer_of(results, models, band), legend_of=axes)


def _draw_null_levels(strip: Any, results: Results, statistic: str) -> None:
    """Markers of the models over the names of the nulls; "none" where no null has this statistic."""
    strip.set_xticks(range(len(NULLS)), [k.replace("_", "-") for k in NULLS], rotation=90, fontsize=8)
    strip.set_xlim(-0.6, len(NULLS) - 0.4)
    strip.tick_params(labelleft=False)
    strip.set_title("nulls", fontsize=8.5)
    drawn = False
    for i, model in enumerate(models_of(results)):
        levels = [number(pick(model, "last", "nulls", kind, statistic)) for kind in NULLS]
        # a little aside, so that equal levels of several models do not hide one another
        aside = 0.2 * (i - (len(models_of(results)) - 1) / 2) / max(1, len(models_of(results)) - 1) * 2
        if np.isfinite(levels).any():
            drawing_style = style.style(i) | {"linestyle": "none"}
            strip.plot(np.arange(len(NULLS)) + aside, levels, **drawing_style)
            drawn = True
    if not drawn:
        strip.text(0.5, 0.5, "none", transform=strip.transAxes, ha="center", fontsize=8, color="#555555")
