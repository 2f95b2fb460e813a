"""Figures of one number per layer against depth: intensity, entropy, activations, gradients, ranks, outliers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxkd.analysis.layer_statistics import LAYER_STATISTICS
from jaxkd.report import style
from jaxkd.report.plan import LAYERS, RANKS, Plan, per_layer
from jaxkd.report.results import NULLS, THRESHOLDS, Results, array, label_of, models_of, models_with, number, pick

SHAPES = ("participation_ratio", "stable_rank", "kurtosis", "massive_share")
SD_BAND = Plan.band


def statistic_title(name: str) -> tuple[str, str]:
    """(label, unit) of a per-layer statistic; of an unknown one, its name."""
    known = LAYER_STATISTICS.get(name)
    return (known.label, known.unit) if known else (name.replace("_", " "), "")


def profile(axis: Any, results: Results, statistic: str, relative: bool) -> None:
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
    label, unit = statistic_title(statistic)
    axis.set_ylabel(f"{label}\n({unit})" if unit else label)
    style.label_depth(axis, relative)


def draw_profiles(results: Results, statistics: Sequence[str]) -> Any:
    """One panel for each of `statistics` that any model has."""
    shown = [s for s in statistics if models_with(results, "per_layer", s, "mean")]
    models = [m for m in models_of(results) if any(m in models_with(results, "per_layer", s, "mean") for s in shown)]
    relative = style.relative_depth(models)
    figure, axes = style.panels(len(shown), columns=2, width=5.2)
    for axis, statistic in zip(axes, shown, strict=True):
        profile(axis, results, statistic, relative)
    footer = SD_BAND
    if "entropy" in shown:
        footer += f"; entropy range: {pick(results, 'settings', 'entropy_range') or 'not recorded'}"
    if "gradient" in shown:
        of = {m.get("gradient_of") for m in models} - {None}
        footer += f"; gradient of the {' or '.join(sorted(of)) or 'score'}"
    return style.finish(figure, results, models, footer, legend_of=axes)


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
            axis.errorbar(x, mean, yerr=sd, fmt="none", ecolor=style.STYLES[i][0], elinewidth=0.8, capsize=2)
        limit = np.minimum(array(model["tokens"]), array(model["channels"]))
        axis.step(x, limit, where="mid", color="#777777", linewidth=1.0, label="largest possible, min(N, C)")
        axis.set(title=style.title_of(model), ylabel="directions (per-image rank)", ylim=(0, None))
        style.label_depth(axis, relative=False)
    return style.finish(figure, results, models, RANKS_BAND, legend_of=axes)


def draw_shape(results: Results) -> Any:
    """Participation ratio, stable rank, kurtosis and massive share by layer, with the null levels of the last layer."""
    from matplotlib.figure import Figure

    shown = [s for s in SHAPES if models_with(results, "per_layer", s, "mean")]
    models = [m for m in models_of(results) if any(pick(m, "per_layer", s, "mean") for s in shown)]
    relative = style.relative_depth(models)
    rows, columns = (len(shown) + 1) // 2, min(2, len(shown))
    figure = Figure(figsize=(5.6 * columns, 3.3 * rows + 0.6), layout="constrained")
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=(5, 1.25) * columns)
    axes = []
    for place, statistic in enumerate(shown):
        row, column = divmod(place, columns)
        axis = figure.add_subplot(grid[row, 2 * column])
        profile(axis, results, statistic, relative)
        strip = figure.add_subplot(grid[row, 2 * column + 1], sharey=axis)
        _draw_null_levels(strip, results, statistic)
        axes.append(axis)
        levels = [number(pick(m, "last", "nulls", k, statistic)) for m in models for k in NULLS]
        means = [v for m in models for v in array(pick(m, "per_layer", statistic, "mean"))]
        if not style.log_if_wide(axis, np.asarray(means + levels)):
            axis.autoscale(axis="y")
    band = f"{SD_BAND}; narrow strips: levels of the null models at the size of the last layer"
    return style.finish(figure, results, models, band, legend_of=axes)


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


def _profiles(
    name: str, title: str, statistics: tuple[str, ...], words: tuple[str, ...], shows: str, cannot: str
) -> Plan:
    """A figure of one panel per statistic."""
    draw = partial(draw_profiles, statistics=statistics)
    return Plan(name, title, LAYERS, draw, per_layer(*statistics), words, shows, cannot)


def other_plans(results: Results) -> tuple[Plan, ...]:
    """One figure of the statistics in `results` that no other figure shows, if there are any."""
    shown = {keys[1] for plan in PLANS for keys in plan.needs}
    others = tuple(dict.fromkeys(s for m in models_of(results) for s in m.get("per_layer") or {} if s not in shown))
    if not others:
        return ()
    shows, cannot = "Registered statistics of each layer.", "Their meaning is that of the functions that compute them."
    return (_profiles("other_statistics", "Other statistics by depth", others, others, shows, cannot),)


RANKS_BAND = "line: mean, band: quartiles, bars: ± 1 standard deviation, all over images"
PLANS = (
    _profiles(
        "intensity",
        "Spectral intensity by depth",
        ("intensity",),
        ("intensity", "spectrum"),
        "Mean amplitude of the Fourier transform along the channels (divided by C), averaged over positions and "
        "frequencies: SpectralKD's model-wise profile.",
        "Intensity grows with the scale of the features; the level says nothing about information, and levels of "
        "different models are not comparable without their scales. By itself it does not say which layers to distil.",
    ),
    _profiles(
        "entropy",
        "Entropy by depth",
        ("entropy", "entropy_own_range"),
        ("entropy",),
        "Shannon entropy of the histogram of the C channel values at each position, averaged over positions. High: the "
        "channels spread over many bins. Low: most values share a few bins.",
        "With a range shared by all layers, one outlier in any layer lowers the entropy of all of them, so levels are "
        "comparable within one network and hardly between networks or checkpoints; the range of each layer removes "
        "that, but not an outlier of the layer itself. It is no measure of information about the image.",
    ),
    _profiles(
        "activation",
        "Activation magnitude by depth",
        ("activation_mean", "activation_max"),
        ("activation",),
        "Mean and largest absolute activation of an image.",
        "Scale alone: a layer norm behind the layer removes it. The largest value is that of a single entry.",
    ),
    _profiles(
        "gradient",
        "Gradient magnitude by depth",
        ("gradient",),
        ("gradient",),
        "Mean absolute gradient at each layer: how much the score moves, to first order, when one activation moves by "
        "one unit.",
        "A small gradient may mean large activations rather than an unimportant layer, since it is per unit of "
        "activation. Patch tokens behind the last block of a network that reads its class token do not reach the "
        "score: their gradient is exactly 0.",
    ),
    Plan(
        "feature_shape",
        "Effective directions and outliers by depth",
        LAYERS,
        draw_shape,
        per_layer(*SHAPES),
        ("participation", "stable rank", "kurtosis", "massive"),
        "Participation ratio and stable rank count directions of an image's token matrix (the first weighs all of "
        "them, the second compares all with the strongest); kurtosis and the share of a token's energy in its largest "
        "channel show outliers. The narrow strips give the levels of null models.",
        "Uncentred: a shared mean direction or one massive activation pushes both counts towards 1, however rich the "
        "rest is. The null levels hold for the size of the last layer, not for layers of another size.",
    ),
    Plan(
        "ranks_by_layer",
        "Per-image rank by depth",
        RANKS,
        draw_ranks_by_layer,
        per_layer(*(f"rank_{t}" for t in THRESHOLDS)),
        ("rank",),
        "Number of directions that hold 99, 95, 90 and 80 % of the energy of one image's tokens (uncentred).",
        "A rank cannot exceed min(N, C), the grey line; few tokens make a low rank by themselves. Energies are "
        "uncentred: one strong mean direction makes the rank small.",
        RANKS_BAND,
    ),
)
