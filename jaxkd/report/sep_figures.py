"""Figures of the spectral energy pattern (SEP): the curve beside its nulls, and what permuting channels changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.plan import SEP, Plan
from jaxkd.report.results import NULLS, Results, array, has_numbers, label_of, models_with, null_line, pick


def draw_sep(results: Results) -> Any:
    """Per model: mean SEP curve with its nulls above, deviations from the line of random permutations below."""
    models = models_with(results, "last", "sep", "full", "mean")
    blocks = -(-len(models) // 3)
    ratios = {"height_ratios": (3, 2) * blocks}
    figure, pairs = style.stacked_panels(len(models), width=4.3, height=2.7, gridspec_kw=ratios)
    for (upper, lower), model in zip(pairs, models, strict=True):
        _draw_curves(upper, lower, model)
    used = [axis for pair in pairs for axis in pair]
    return style.finish(figure, results, models, SEP_BAND, legend_of=used)


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
        drawing = {"linestyle": "none", "marker": marker, "color": colour, "markersize": 6}
        label = style.plain(label_of(model))
        left.plot(place - 0.05, array(entry["original"]), label=label, **drawing)
        drawing |= {"markerfacecolor": "white"}
        left.plot(place + 0.05, array(entry["permuted"]), **drawing)
        delta, ci = array(entry["delta"]), array(entry["ci"]).reshape(-1, 2)
        p5, p95 = array(entry["delta_p5"]), array(entry["delta_p95"])
        right.vlines(place, p5, p95, color=colour, linewidth=5, alpha=0.25)
        if len(ci) == len(delta):
            bars = np.maximum(np.stack([delta - ci[:, 0], ci[:, 1] - delta]), 0)
            right.errorbar(
                place, delta, yerr=bars, capsize=4, elinewidth=1.3, **(drawing | {"markerfacecolor": colour})
            )
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
    return style.finish(figure, results, models, PERMUTATION_BAND, legend_of=[left])


SEP_BAND = "upper band: ± 1 standard deviation over tokens; lower band: 5th to 95th percentile over permutations"
PERMUTATION_BAND = (
    "right: whiskers 95 % bootstrap interval over images, broad bars 5th to 95th percentile over permutations"
)
PLANS = (
    Plan(
        "sep",
        "SEP beside its null models",
        SEP,
        draw_sep,
        (("last", "sep", "full", "mean"),),
        ("sep", "energy pattern", "null"),
        "The energy of a token's Fourier transform along the channels, added up from frequency 0 to d - 1 of D and "
        "averaged over tokens, for the last layer. The nulls are tokens that mean nothing: Gaussian, confined to a "
        "random subspace of the same rank, one-hot (a single channel each), and the model's own with channels "
        "permuted. Below, each curve minus the straight line that random channel permutations give on average for its "
        "own share of energy at frequency 0.",
        "b50 is 0.50 by construction for any real features without a channel mean: E(k) = E(D - k). Channels in "
        "arbitrary order give the diagonal whatever they encode: one-hot tokens, the opposite of a distributed code, "
        "give the same curve as Gaussian ones. A curve on the diagonal is therefore no evidence of distributed "
        "encoding, nor of a mismatch; look at ranks and participation ratios instead.",
        SEP_BAND,
    ),
    Plan(
        "permutation",
        "Permuting the channels",
        SEP,
        draw_permutation,
        (("last", "permutation", "original"),),
        ("permut",),
        "The bandwidth b (the first d, as a share of D, at which an image's SEP curve reaches a % of its energy), mean "
        "over images, for channels as they are and permuted; on the right their difference.",
        "That permuting changes little is expected of any features, because the order of channels carries no geometry. "
        "An interval without zero says that this one order differs from a random one, by steps as small as 1/D; it "
        "does not say that the difference matters.",
        PERMUTATION_BAND,
    ),
)
