"""What a SEP curve shows and what it cannot, in words and numbers (encoding mismatch, reference 4.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxkd.report.results import (
    NULLS,
    Results,
    array,
    figure_of,
    has_numbers,
    label_of,
    listed,
    models_with,
    null_line,
    pick,
)

SHOWS = {
    "sep": "The energy of a token's Fourier transform along the channels, added up from frequency 0 to d - 1 of D and "
    "averaged over tokens, for the last layer. The nulls are tokens that mean nothing: Gaussian, confined to a random "
    "subspace of the same rank, one-hot (a single channel each), and the model's own with channels permuted. Below, "
    "each curve minus the straight line that random channel permutations give on average for its own share of energy "
    "at frequency 0.",
    "permutation": "The bandwidth b (the first d, as a share of D, at which an image's SEP curve reaches a % of its "
    "energy), mean over images, for channels as they are and permuted; on the right their difference.",
}
CANNOT = {
    "sep": "The 50 % point lies at D/2 by construction (only a channel mean, at frequency 0, moves it), and channels "
    "in arbitrary order give the diagonal whatever they encode: one-hot tokens, the opposite of a distributed code, "
    "give the same curve as Gaussian ones. A curve on the diagonal is therefore no evidence of distributed encoding, "
    "nor of a mismatch; look at ranks and participation ratios instead.",
    "permutation": "That permuting changes little is expected of any features, because the order of channels carries "
    "no geometry. An interval without zero says that this one order differs from a random one, by steps as small as "
    "1/D; it does not say that the difference matters.",
}
BANDS = {
    "sep": "Upper band: plus and minus one standard deviation over tokens; lower band: from the 5th to the 95th "
    "percentile of the mean curve over permutations.",
    "permutation": "Whiskers: 95 % bootstrap interval over images of the expected difference; broad bars: from the 5th "
    "to the 95th percentile over permutations.",
}


def half_point(model: dict[str, Any]) -> float | None:
    """b_50 / D of the mean full curve, or None."""
    d, size = pick(model, "last", "sep", "full", "bandwidth", "50"), pick(model, "last", "D")
    return None if d is None or not size else d / size


def worst_deviation(curve: np.ndarray) -> tuple[float, float]:
    """(percentage points, d / D) of the largest distance of a curve from its own null line, with its sign."""
    away = curve - null_line(curve)
    place = int(np.nanargmax(np.abs(away)))
    return float(away[place]), (place + 1) / len(curve)


def _sep(results: Results) -> list[str]:
    out = ["b50 is 0.50 by construction for any real features without a channel mean: E(k) = E(D - k)."]
    for model in models_with(results, "last", "sep", "full", "mean"):
        curve = array(pick(model, "last", "sep", "full", "mean"))
        away, place = worst_deviation(curve)
        half = half_point(model)
        sentence = f"{label_of(model)}: " + (f"b50 = {half:.3f}, " if half is not None else "")
        out.append(
            f"{sentence}{curve[0]:.2f} % of the energy at frequency 0, and at most {away:+.2f} percentage points from "
            f"its null line (at d/D = {place:.2f})."
        )
        nulls = {k: array(pick(model, "last", "nulls", k, "sep")) for k in NULLS}
        said = [f"{k.replace('_', '-')} {worst_deviation(c)[0]:+.2f}" for k, c in nulls.items() if has_numbers(c)]
        if said:
            out.append(f"Its nulls deviate likewise: {listed(said)}.")
        zero = pick(model, "last", "sep", "full", "zero_tokens")
        if zero:
            out.append(f"{zero} tokens without energy are left out.")
    return out


def _permutation(results: Results) -> list[str]:
    out = []
    for model in models_with(results, "last", "permutation", "original"):
        entry = model["last"]["permutation"]
        levels, delta, ci = array(entry["thresholds"]), array(entry["delta"]), array(entry["ci"])
        clear = [f"{a:.0f} %" for a, (low, high) in zip(levels, ci, strict=True) if low > 0 or high < 0]
        place = int(np.nanargmax(np.abs(delta)))
        sentence = (
            f"{label_of(model)}, {entry['permutations']} permutations and {entry['bootstrap']} bootstrap draws over "
            f"{entry['images']} images: largest difference {delta[place]:+.4f} of D at {levels[place]:.0f} %, "
        )
        out.append(sentence + (f"interval without zero at {listed(clear)}." if clear else "every interval holds zero."))
        if entry.get("curve_l1_mean") is not None:
            out.append(f"Mean distance of the curves: {figure_of(100 * entry['curve_l1_mean'])} percentage points.")
    return out


NUMBERS: dict[str, Callable[[Results], list[str]]] = {"sep": _sep, "permutation": _permutation}
