"""Cumulative power spectrum along channels, SEP (arXiv 2511.15572; "ECG" in the authors' code).

It shows little, because the spectra of real-valued tokens are mirrored: the curve is at 50 % in the middle by
construction (50 % (1 + (E_0 - E_{D/2}) / sum E), even D), and its mean over permutations of the channels is the
straight line rho0 + (1 - rho0) (d - 1) / (D - 1) for any token, where rho0 is the share of E_0. Compare it with a null
model.

Sizes: B, M images, N tokens, C channels, D bins: C of the two-sided ("full") spectrum, C // 2 + 1 of the "folded" one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.analysis.lowrank import blocks, check_tokens, required_d
from jaxkd.errors import check_range

THRESHOLDS = (50, 60, 70, 80, 90)
# A curve that fp32 leaves this many percentage points below a threshold has reached it. Spikes and all tokens with
# equal E_0 and E_{D/2} are at 50 % in the middle, and rounding would decide. One bin is 0.08 points up to D = 1280.
TIE = 5e-5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageSep:
    """Sums over the tokens of each image; `sep_statistics` merges images."""

    curve_sum: jax.Array  # (B, D) fp32 sum of the curves, percent
    # (B, D) fp32 sum of squared deviations from the image's own mean curve. Sums of squares would lose the digits
    # of a standard deviation in fp32: the curve is near 100, the deviation is not.
    deviation_sum: jax.Array
    used: jax.Array  # (B,) tokens with energy
    zero: jax.Array  # (B,) tokens that are exactly zero, left out


class SepStatistics(NamedTuple):
    """Over all tokens of all images: mean (D,) and population sd (D,), percent, float64; numbers of tokens."""

    mean: np.ndarray
    sd: np.ndarray
    tokens: int
    zero_tokens: int


def _unit_tokens(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(tokens of norm 1, fp32; (B, N) bool whether the token has energy). Zero tokens stay zero, NaN stays NaN."""
    x = jnp.asarray(tokens).astype(jnp.float32)
    # By the largest entry first, so that no square over- or underflows and "zero" means exactly zero.
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    x = x / jnp.where(largest == 0, 1.0, largest)
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
    return x / jnp.where(norm == 0, 1.0, norm), largest[..., 0] != 0


def _half_power(x: jax.Array) -> jax.Array:
    """(..., C) real -> (..., C // 2 + 1) power of the non-negative frequencies over C; the full one sums to |x|^2."""
    spectrum = jnp.fft.rfft(x, axis=-1)
    return (jnp.square(spectrum.real) + jnp.square(spectrum.imag)) / x.shape[-1]


def _bins(half: Any, channels: int, folded: bool, xp: Any) -> Any:
    """Half spectrum -> all D bins: mirrored to the two-sided order, or the interior ones doubled."""
    if folded:
        interior = np.ones(half.shape[-1], np.float32)
        interior[1 : (channels + 1) // 2] = 2.0
        return half * interior
    return xp.concatenate([half, half[..., 1 : (channels + 1) // 2][..., ::-1]], axis=-1)


def image_sep(tokens: jax.Array, folded: bool = False) -> ImageSep:
    """SEP of each image (arXiv 2511.15572): per token, cumulative |FFT over channels|^2, DC first. Traceable.

    Args:
      tokens: (B, N, C), any float type, computed in fp32.
      folded: one-sided bins, all but DC and Nyquist doubled; False is the two-sided spectrum of the published numbers.

    Returns:
      ImageSep of fp32 sums. NaN features make their image's sums NaN.
    """
    check_tokens(tokens)
    unit, used = _unit_tokens(tokens)
    cumulative = jnp.cumsum(_bins(_half_power(unit), unit.shape[-1], folded, jnp), axis=-1)
    weight = used.astype(jnp.float32)[..., None]
    # In this order the last entry is 100 exactly, and so is its sum: no spread there.
    curves = 100.0 * (cumulative / jnp.where(used[..., None], cumulative[..., -1:], 1.0))
    number = jnp.sum(used, axis=1)
    curve_sum = jnp.sum(curves, axis=1)
    mean = curve_sum / jnp.maximum(number, 1)[:, None]
    deviation_sum = jnp.sum(weight * jnp.square(curves - mean[:, None]), axis=1)
    return ImageSep(curve_sum, deviation_sum, number, jnp.sum(~used, axis=1))


def sep_statistics(parts: Iterable[ImageSep]) -> SepStatistics:
    """Mean and sd over all tokens, every token with equal weight, from the `image_sep` of any batches. Float64.

    NaN curves where no token has energy.
    """
    sums = []
    for part in parts:
        fields = (part.curve_sum, part.deviation_sum, part.used, part.zero)
        curves, deviations, used, zero = (np.asarray(v, np.float64) for v in fields)
        squares = deviations + curves**2 / np.maximum(used, 1.0)[:, None]
        sums.append([v.sum(axis=0) for v in (curves, squares, used, zero)])
    curve_sum, square_sum, used, zero = (sum(v) for v in zip(*sums, strict=True))
    count = used if used else np.nan
    mean = curve_sum / count
    return SepStatistics(mean, np.sqrt(np.maximum(square_sum / count - mean**2, 0.0)), int(used), int(zero))


_image_sep = jax.jit(image_sep, static_argnames="folded")


def sep_curve(tokens: jax.Array | np.ndarray, folded: bool = False) -> np.ndarray:
    """Mean cumulative energy over all tokens with energy, of all images (arXiv 2511.15572).

    Args:
      tokens: (M, N, C), an array or a NumPy memory map; 32 images at a time are on the device.
      folded: one-sided bins, see `image_sep`.

    Returns:
      (C,) or (C // 2 + 1,) float64 percent, ending at 100; NaN if every token is zero. `sep_statistics` has the sd and
      the numbers of tokens too.

    Raises:
      ShapeError: tokens not (M, N, C). DataError: an empty axis.
    """
    check_tokens(tokens)
    return sep_statistics(_image_sep(b, folded=folded) for b in blocks(tokens)).mean


def bandwidths(curve: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> np.ndarray:
    """The first bin count d at which a curve reaches each threshold.

    Args:
      curve: (..., D) percent.
      thresholds: A percentages.

    Returns:
      (..., A) int64 in 1..D; D if it stays below, 0 for a NaN curve. Up to 5e-5 points below counts as reached, because
      fp32 cannot tell (the middle of a spike's curve is at 50 exactly).
    """
    return required_d(curve, [t - TIE for t in thresholds])


# ------------------------------------------------------------------------------------------- permutations


class SepTrials(NamedTuple):
    """Every single result of `sep_permutation_trials`: R permutations, M images with energy, A thresholds, D bins.

    Bandwidths are per image and divided by D; curves are percent, means over images of the images' own mean curves.

    Attributes:
      original: (M, A) bandwidths as the channels stand.  permuted: (R, M, A).
      original_curve, original_curve_sd: (D,) mean and sd over images.  permuted_curves: (R, D).
      images: M; 0 if no token has energy, and the arrays are then NaN with M = 1.  zero_tokens: tokens left out.
    """

    original: np.ndarray
    permuted: np.ndarray
    original_curve: np.ndarray
    original_curve_sd: np.ndarray
    permuted_curves: np.ndarray
    images: int
    zero_tokens: int

    @property
    def curve_l1(self) -> np.ndarray:
        """(R,) mean over bins of |permuted - original curve| / 100."""
        return np.mean(np.abs(self.permuted_curves - self.original_curve), axis=-1) / 100.0

    @property
    def delta(self) -> np.ndarray:
        """(R, A) change of the mean bandwidth, permuted minus original."""
        return self.permuted.mean(axis=1) - self.original.mean(axis=0)


@dataclass(frozen=True)
class SepPermutation:
    """Summary of SEP under channel permutations; A thresholds, D bins, sd of the population.

    Attributes:
      permutations, bootstrap: draws of each.  images: with energy.  zero_tokens: tokens left out.
      thresholds: (A,) percent.  folded: one-sided bins.
      original, permuted: (A,) mean bandwidths, divided by D, over images (and permutations).
      delta, delta_sd, delta_p5, delta_p95: (A,) permuted minus original, mean and spread over permutations.
      ci: (A, 2) 2.5 and 97.5 % of the bootstrap over images, paired, of the expected delta.
      curve_l1_mean, curve_l1_sd: over permutations, of the mean |permuted - original curve| / 100.
      original_curve, original_curve_sd: (D,) percent, over images.
      curve_mean, curve_p5, curve_p95: (D,) percent, over permutations, of the permuted mean curves.
    """

    permutations: int
    bootstrap: int
    images: int
    zero_tokens: int
    thresholds: tuple[float, ...]
    folded: bool
    original: np.ndarray
    permuted: np.ndarray
    delta: np.ndarray
    delta_sd: np.ndarray
    delta_p5: np.ndarray
    delta_p95: np.ndarray
    ci: np.ndarray
    curve_l1_mean: float
    curve_l1_sd: float
    original_curve: np.ndarray
    original_curve_sd: np.ndarray
    curve_mean: np.ndarray
    curve_p5: np.ndarray
    curve_p95: np.ndarray


def draw_permutations(channels: int, permutations: int, seed: int = 2026) -> np.ndarray:
    """(R, C) int64: drawn one after the other from NumPy's `default_rng(seed)`, as the authors do."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(channels) for _ in range(permutations)])


@jax.jit
def _permuted_power(tokens: jax.Array, orders: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(b, N, C), (R, C) -> (R, b, C // 2 + 1) sum over tokens of their normalised half power; (b,) tokens with energy.

    A curve is linear in the power, so it is enough to add the tokens' powers up before accumulating over bins, and a
    permutation leaves a token's norm alone.
    """
    unit, used = _unit_tokens(tokens)
    power = jax.lax.map(lambda order: jnp.sum(_half_power(unit[..., order]), axis=1), orders)
    return power, jnp.sum(used, axis=1)


def sep_permutation_trials(
    tokens: jax.Array | np.ndarray,
    permutations: int = 100,
    seed: int = 2026,
    folded: bool = False,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    block: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> SepTrials:
    """The single results behind `sep_permutation`, which has the other arguments, errors and special cases.

    Args:
      block: images per compiled call; the result does not depend on it.
      progress: called with (images done, images) after each block.
    """
    check_tokens(tokens)
    for name, value in (("permutations", permutations), ("block", block)):
        check_range(name, value, 1, whole=True)
    m, n, c = np.shape(tokens)
    # The identity goes through the same arithmetic, so that an order that changes nothing has a delta of 0.
    orders = jnp.asarray(np.concatenate([np.arange(c)[None], draw_permutations(c, permutations, seed)]))
    widths, original_curves, curve_sum, zero_tokens = [], [], np.zeros(()), 0
    for i, part in enumerate(blocks(tokens, block)):
        power, used = (np.asarray(a) for a in _permuted_power(part, orders))
        kept = used > 0
        cumulative = np.cumsum(_bins(power[:, kept].astype(np.float64), c, folded, np), axis=-1)
        curves = 100.0 * cumulative / cumulative[..., -1:]
        d = bandwidths(curves, thresholds)
        widths.append(np.where(d == 0, np.nan, d) / curves.shape[-1])
        curve_sum = curve_sum + curves.sum(axis=1)
        original_curves.append(curves[0])
        zero_tokens += int((n - used).sum())
        if progress is not None:
            progress(min((i + 1) * block, m), m)
    width, original = np.concatenate(widths, axis=1), np.concatenate(original_curves)
    images = len(original)
    if not images:  # no energy anywhere
        width, original = np.full((len(width), 1, width.shape[2]), np.nan), np.full((1, original.shape[1]), np.nan)
        curve_sum = np.full_like(curve_sum, np.nan)
    mean_curves = curve_sum / len(original)
    return SepTrials(width[0], width[1:], mean_curves[0], original.std(axis=0), mean_curves[1:], images, zero_tokens)


def bootstrap_ci(trials: SepTrials, bootstrap: int = 2000, seed: int = 2027) -> np.ndarray:
    """(A, 2) percentiles 2.5 and 97.5 of the mean delta, images drawn from NumPy's `default_rng(seed)`."""
    changes = trials.permuted.mean(axis=0) - trials.original
    draws = np.random.default_rng(seed).integers(0, len(changes), (bootstrap, len(changes)))
    return np.percentile(changes[draws].mean(axis=1), [2.5, 97.5], axis=0).T


def sep_permutation(
    tokens: jax.Array | np.ndarray,
    permutations: int = 100,
    seed: int = 2026,
    bootstrap: int | None = 2000,
    folded: bool = False,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    **options: Any,
) -> SepPermutation:
    """SEP under global permutations of the channels (arXiv 2511.15572, permutation robustness).

    Every permutation is applied to all tokens of all images. Expect robustness: the mean over permutations is a
    straight line for any token at all (see the top of this file). Its cost grows with images x
    permutations (about 5 s for 100 x 100 at 196 tokens of 384 channels on two cores in use).

    Args:
      tokens: (M, N, C), an array or a NumPy memory map; `block` images at a time are read and held.
      permutations: R >= 1.
      seed: permutations from `default_rng(seed)`, bootstrap from `default_rng(seed + 1)`.
      bootstrap: resamples of the images; None for no intervals (NaN).
      folded: one-sided bins, see `image_sep`.
      thresholds: percentages.
      **options: block and progress of `sep_permutation_trials`.

    Returns:
      SepPermutation. Zero tokens are left out and counted, and so are images with no other. An image with NaN makes the
      means NaN. If no token has energy, every number is NaN and `images` 0.

    Raises:
      ConfigError: fewer than one permutation, resample or image per block.
      ShapeError: tokens not (M, N, C). DataError: an empty axis.
    """
    if bootstrap is not None:
        check_range("bootstrap", bootstrap, 1, whole=True)
    trials = sep_permutation_trials(tokens, permutations, seed, folded, thresholds=thresholds, **options)
    return SepPermutation(
        permutations=permutations,
        bootstrap=bootstrap or 0,
        images=trials.images,
        zero_tokens=trials.zero_tokens,
        thresholds=tuple(thresholds),
        folded=folded,
        original=trials.original.mean(axis=0),
        permuted=trials.permuted.mean(axis=(0, 1)),
        delta=trials.delta.mean(axis=0),
        delta_sd=trials.delta.std(axis=0),
        delta_p5=np.percentile(trials.delta, 5, axis=0),
        delta_p95=np.percentile(trials.delta, 95, axis=0),
        ci=bootstrap_ci(trials, bootstrap, seed + 1) if bootstrap else np.full((len(thresholds), 2), np.nan),
        curve_l1_mean=float(trials.curve_l1.mean()),
        curve_l1_sd=float(trials.curve_l1.std()),
        original_curve=trials.original_curve,
        original_curve_sd=trials.original_curve_sd,
        curve_mean=trials.permuted_curves.mean(axis=0),
        curve_p5=np.percentile(trials.permuted_curves, 5, axis=0),
        curve_p95=np.percentile(trials.permuted_curves, 95, axis=0),
    )
