"""Figures of the spectral energy pattern (SEP): the curve beside its nulls, and what permuting channels changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.depth_figures import footer_of
from jaxkd.report.results import NULLS, Results, array, has_numbers, label_of, models_with, null_line, pick


def draw_sep(results: Results) -> Any:
    """Per model: mean SEP curve with its nulls above, deviations from the line of random permutations below."""
    models = models_with(results, "last", "sep", "full", "mean")
    columns = min(3, len(models))
    blocks = -(-len(models) // columns)
    options = {"gridspec_kw": {"height_ratios": (3, 2) * blocks}}
    figure, axes = style.panels(2 * blocks * columns, columns=columns, width=4.3, height=2.7, **options)
    used, uppers = [], []
    for place, model in enumerate(models):
        block, column = divmod(place, columns)
        upper, lower = (axes[(2 * block + k) * columns + column] for k in (0, 1))
        _draw_curves(upper, lower, model)
        used += [upper, lower]
        uppers.append(upper)
    for axis in axes:
        if axis not in used:
            axis.set_visible(False)
    band = (
        "upper band: ± 1 standard deviation over tokens; lower band: 5th to 95th percentile over channel permutations"
    )
    return style.finish(figure, footer_of(results, models, band), legend_of=used)


def _draw_curves(upper: Any, lower: Any, model: dict[str, Any]) -> None:
    full = pick(model, "last", "sep", "full")
    mean, sd = array(full["mean"]), array(full.get("sd"))
    size = len(mean)
    x = np.arange(1, size + 1) / size
    every = max(1, size // 8)
    curves = {kind: array(pick(model, "last", "nulls", kind, "sep")) for kind in NULLS}
    curves = {kind: c for kind, c in curves.items() if has_numbers(c)}
    if has_numbers(sd):
        upper.fill_between(x, mean - sd, mean + sd, color="#9db4d8", alpha=0.35, linewidth=0)
    permuted = {k: array(pick(model, "last", "permutation", f"curve_{k}")) for k in ("mean", "p5", "p95")}
    if all(has_numbers(c) and len(c) == size for c in permuted.values()):
        line = null_line(permuted["mean"])
        lower.fill_between(
            x,
            permuted["p5"] - line,
            permuted["p95"] - line,
            color="#bbbbbb",
            alpha=0.6,
            linewidth=0,
            label="permutations",
        )
    # the model last, so that it lies on top; the markers of the nulls take turns, since the curves coincide
    for i, (kind, curve) in enumerate(curves.items()):
        options = style.style(i + 1) | {"linewidth": 1.1}
        own = np.arange(1, len(curve) + 1) / len(curve)
        start = ((i + 1) * every // 5, every)
        upper.plot(own, curve, label=f"null: {kind.replace('_', '-')}", markevery=start, **options)
        lower.plot(own, curve - null_line(curve), markevery=start, **options)
    upper.plot(x, mean, label="model", markevery=every, **(style.style(0) | {"linewidth": 2.0}))
    lower.plot(x, mean - null_line(mean), markevery=every, **(style.style(0) | {"linewidth": 2.0}))
    lower.axhline(0, color="black", linewidth=0.8)
    upper.axvline(0.5, color="#777777", linestyle=":", linewidth=1)
    upper.set(title=style.title_of(model, f"D = {size}"), xlim=(0, 1), ylim=(0, 101))
    upper.set_ylabel("cumulative energy s(d) (%)")
    lower.set(xlim=(0, 1), xlabel="d / D", ylabel="s(d) minus null line\n(percentage points)")


def draw_permutation(results: Results) -> Any:
    """Bandwidths before and after permuting channels, and their difference with its uncertainty."""
    models = models_with(results, "last", "permutation", "original")
    figure, axes = style.panels(2, columns=2, width=5.4, height=3.7)
    left, right = axes
    count = len(models)
    for i, model in enumerate(models):
        entry = model["last"]["permutation"]
        levels = array(entry["thresholds"])
        place = np.arange(len(levels)) + (i - (count - 1) / 2) * 0.6 / max(1, count)
        colour, _, marker, _ = style.STYLES[i % len(style.STYLES)]
        look = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 6}
        label = style.plain(label_of(model))
        left.plot(place - 0.05, array(entry["original"]), label=label, **look)
        look |= {"markerfacecolor": "white"}
        left.plot(place + 0.05, array(entry["permuted"]), **look)
        delta, ci = array(entry["delta"]), array(entry["ci"]).reshape(-1, 2)
        p5, p95 = array(entry["delta_p5"]), array(entry["delta_p95"])
        right.vlines(place, p5, p95, color=colour, linewidth=5, alpha=0.25)
        if len(ci) == len(delta):
            bars = np.maximum(np.stack([delta - ci[:, 0], ci[:, 1] - delta]), 0)
            right.errorbar(place, delta, yerr=bars, capsize=4, elinewidth=1.3, **(look | {"markerfacecolor": colour}))
    ticks = [f"{a:.0f}" for a in levels]
    for k, a in enumerate(levels):
        left.hlines(a / 100, k - 0.42, k + 0.42, color="#777777", linestyle=":", label="a / 100" if k == 0 else None)
    left.set(
        ylabel="bandwidth b (fraction of D)", ylim=(0, 1.05), title="filled: channels as they are, hollow: permuted"
    )
    right.set_title("difference of the two")
    right.set_ylabel("permuted minus as they are (fraction of D)")
    right.axhline(0, color="black", linewidth=0.8)
    for axis in axes:
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_xlabel("share a of the energy (%)")
    band = "right: whiskers 95 % bootstrap interval over images, broad bars 5th to 95th percentile over permutations"
    return style.finish(figure, footer_of(results, models, band), legend_of=[left])
