"""Spectra of features: along channels (SpectralKD, Distillation Dynamics) and over space, with its radial profile.

The papers use the word spectrum for two things. The analysis transforms the *channels* of each position, the SpectralKD
loss transforms *space*. Channels have no natural order, so a frequency along them has no meaning of its own (permuting
the channels changes the spectrum but not the information); the papers compare the mean over frequencies, the intensity,
across layers. The spatial spectrum has units: cycles per pixel of the feature grid.

All functions compute in at least fp32 and image by image. XLA gathers a sharded batch before an FFT, so with several
devices call these functions inside `shard_map`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ShapeError

_MATRIX_SIDE = 64  # grids up to this side are transformed by matrix products


def _channel_amplitudes(features: jax.Array) -> jax.Array:
    """(..., C) -> (..., C // 2 + 1) |FFT along channels| / C; the other frequencies mirror these, the input is real."""
    if features.ndim < 2 or 0 in features.shape:
        raise ShapeError(
            f"The features have shape {features.shape}. Pass (batch, tokens, channels) or (batch, height, width, "
            "channels) with at least one position."
        )
    x = jnp.asarray(features, jnp.promote_types(features.dtype, jnp.float32))
    # Half the transform and half the moduli; twice as fast as the full one, to the same numbers.
    return jnp.abs(jnp.fft.rfft(x, axis=-1)) / x.shape[-1]


def _mirror(half: jax.Array, size: int) -> jax.Array:
    """(..., size // 2 + 1) amplitudes of a real input -> all `size` of them: k and size - k are equal."""
    k = np.arange(size)
    return half[..., np.minimum(k, size - k)]


def channel_spectrum(features: jax.Array) -> jax.Array:
    """Mean amplitude spectrum along channels, S[k] = mean over positions of |sum_c x_c exp(-2 pi i k c / C)| / C.

    A token with one spike of height a has |a| / C at every k; a constant token a has |a| at k = 0 and 0 elsewhere. A
    position with a NaN or inf makes the whole spectrum non-finite.

    Args:
      features: (..., C), channels last, at least one axis before them; any real type.

    Returns:
      (C,) in the unit of the features; k counts cycles over all channels, and S[k] = S[C - k].

    Raises:
      ShapeError: no axis before the channels, or an empty one.

    Source: SpectralKD (arXiv 2412.19055) and Distillation Dynamics (arXiv 2511.06848), layer-wise spectrum.
    """
    half = _channel_amplitudes(features)
    return _mirror(jnp.mean(half, axis=tuple(range(half.ndim - 1))), features.shape[-1])


def image_channel_spectrum(maps: jax.Array) -> jax.Array:
    """`channel_spectrum` of each image by itself; the mean over images of equal size is the `channel_spectrum` of all.

    Args:
      maps: (B, ..., C), images first and channels last; any real type.

    Returns:
      (B, C); its mean over the last axis is the intensity of the image (L[l] of SpectralKD for one image).

    Raises:
      ShapeError: no axis before the channels, or an empty one.
    """
    half = _channel_amplitudes(maps)
    return _mirror(jnp.mean(half, axis=tuple(range(1, half.ndim - 1))), maps.shape[-1])


def frequency_grid(h: int, w: int) -> np.ndarray:
    """(h, w) distance of each place of a centred spectrum from frequency zero, in cycles per pixel."""
    u, v = np.arange(h)[:, None] - h // 2, np.arange(w)[None] - w // 2
    return np.hypot(u / h, v / w)


def spatial_spectrum(maps: jax.Array) -> jax.Array:
    """Mean amplitude over channels of the orthonormal 2-D FFT over space, with frequency zero in the middle.

    A map that is constant in space has all its amplitude at [h // 2, w // 2]; one that is zero but at one position is
    flat.

    Args:
      maps: (B, h, w, C), any real type.

    Returns:
      (B, h, w) in the unit of the features; [h // 2 + u, w // 2 + v] holds u cycles per height and v per width.

    Raises:
      ShapeError: another rank, or an empty axis.
    """
    if maps.ndim != 4 or 0 in maps.shape:
        raise ShapeError(
            f"The feature map has shape {maps.shape}. Pass (batch, height, width, channels); reshape tokens to their "
            "grid."
        )
    _, h, w, _ = maps.shape
    x = jnp.asarray(maps, jnp.promote_types(maps.dtype, jnp.float32))
    half = _half_amplitudes(x)
    # A real map has |F[u, v]| = |F[-u, -v]|: the columns that rfft2 leaves out are those it has, upside down.
    u, v = np.arange(h)[:, None] - h // 2, np.arange(w)[None] - w // 2
    kept = v % w <= w // 2
    return half[:, np.where(kept, u, -u) % h, np.where(kept, v, -v) % w]


def _half_amplitudes(x: jax.Array) -> jax.Array:
    """(B, h, w, C) -> (B, h, w // 2 + 1) mean over channels of |rfft2|, orthonormal.

    Grids of a transformer are small: two products with the matrices of the transform take half of the FFT's time on CPU
    (14 x 14, 384 channels), which would first have to move the channels out of the way.
    """
    _, h, w, _ = x.shape
    if max(h, w) > _MATRIX_SIDE:
        return jnp.mean(jnp.abs(jnp.fft.rfft2(x.transpose(0, 3, 1, 2), norm="ortho")), axis=1)
    k = w // 2 + 1
    rows, columns = (
        np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(m)) / m) / m**0.5 for n, m in ((h, h), (k, w))
    )
    einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    y = einsum("pkw,bhwc->bhpkc", jnp.asarray(np.stack([columns.real, columns.imag]), x.dtype), x)
    both = np.stack([np.stack([rows.real, -rows.imag]), np.stack([rows.imag, rows.real])])  # (out, in, u, h), re and im
    z = einsum("qpuh,bhpkc->bqukc", jnp.asarray(both, x.dtype), y)
    return jnp.mean(jnp.sqrt(jnp.square(z[:, 0]) + jnp.square(z[:, 1])), axis=-1)


def _side(h: int, w: int) -> int:
    """The side that the rings are counted in: the shorter one, unless it is one pixel and has no frequency but zero."""
    return min(h, w) if min(h, w) > 1 else max(h, w)


def rings(h: int, w: int) -> np.ndarray:
    """(h, w) int: the ring of each place of a centred spectrum, corners included; see `radial_profile`."""
    u, v = np.arange(h)[:, None] - h // 2, np.arange(w)[None] - w // 2
    side = _side(h, w)
    return np.floor(np.hypot(u * side / h, v * side / w) + 0.5).astype(int)


def radial_frequencies(h: int, w: int) -> np.ndarray:
    """Frequency in the middle of each ring of `radial_profile`.

    Returns:
      (R,) float64, r / side in cycles per pixel of the feature grid, r = 0 ... side // 2 and side = min(h, w) (the
      longer one where the shorter is a single pixel): up to 0.5, the Nyquist frequency.
    """
    if h < 1 or w < 1:
        raise ShapeError(f"The grid is {h} x {w}. Pass the height and width of a map, at least 1 x 1.")
    side = _side(h, w)
    return np.arange(side // 2 + 1) / side


def radial_profile(spectrum: jax.Array) -> jax.Array:
    """Mean of a centred spatial spectrum over rings of equal frequency.

    Ring r holds the frequencies (u / h, v / w) whose distance from zero is r / side cycles per pixel, rounded to the
    nearest ring (halves go outwards). On a square map that is the usual integer radius; on another one rings are
    circles in cycles per pixel, as wide as the shorter side can resolve, so that each holds both directions. Corners
    beyond the Nyquist frequency, where only diagonals are left, belong to no ring.

    Args:
      spectrum: (..., h, w) with frequency zero at [h // 2, w // 2], such as `spatial_spectrum` gives.

    Returns:
      (..., R), R = len(radial_frequencies(h, w)), in the unit of the input. A non-finite value anywhere makes all rings
      of its map non-finite.

    Raises:
      ShapeError: fewer than two axes, or an empty grid.
    """
    if spectrum.ndim < 2:
        raise ShapeError(f"The spectrum has shape {spectrum.shape}. Pass (..., height, width).")
    h, w = spectrum.shape[-2:]
    count = len(radial_frequencies(h, w))
    ring = rings(h, w)
    member = ring.reshape(-1, 1) == np.arange(count)
    weights = member / member.sum(axis=0)
    x = jnp.asarray(spectrum, jnp.promote_types(spectrum.dtype, jnp.float32))
    flat = x.reshape(*x.shape[:-2], h * w)
    return jnp.einsum("...p,pr->...r", flat, jnp.asarray(weights, x.dtype), precision=jax.lax.Precision.HIGHEST)
