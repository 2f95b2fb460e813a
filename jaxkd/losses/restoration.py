"""Losses between images: L1, Charbonnier, and L1 with a Fourier term."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError
from jaxkd.losses.arguments import exclude, full_precision, include
from jaxkd.losses.splitting import on_examples


def _pair(output: jax.Array, target: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    if jnp.shape(output) != jnp.shape(target) or jnp.ndim(output) != 4:
        raise ShapeError(
            f"The output has shape {jnp.shape(output)} and the target {jnp.shape(target)}. Pass two batches (B, H, W, "
            "C) of the same shape."
        )
    output, target = include(where, output, target)
    return full_precision(output), full_precision(target)


def l1(output: jax.Array, target: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """Mean absolute difference of each image, the loss of MDBN and EDSR.

    Args:
      output: (B, H, W, C), any float type.
      target: (B, H, W, C), any float type.
      where: (B,) bool, False for examples that give 0 and no gradient.

    Returns:
      (B,) in the unit of the pixels.

    Raises:
      ShapeError: the shapes differ.
    """
    output, target = _pair(output, target, where)
    return exclude(where, jnp.mean(jnp.abs(output - target), axis=(1, 2, 3)))


def charbonnier(
    output: jax.Array, target: jax.Array, *, eps: float = 1e-12, where: jax.Array | None = None
) -> jax.Array:
    """Mean of sqrt(d^2 + eps), an L1 that is smooth at 0 (Charbonnier et al. 1994; BasicSR's CharbonnierLoss).

    Args:
      output: (B, H, W, C).
      target: likewise.
      eps: squared width of the rounded corner.
      where: as in `l1`.

    Returns:
      (B,) in the unit of the pixels, at least sqrt(eps).

    Raises:
      ShapeError: the shapes differ.
    """
    output, target = _pair(output, target, where)
    return exclude(where, jnp.mean(jnp.sqrt(jnp.square(output - target) + eps), axis=(1, 2, 3)))


def fft_l1(output: jax.Array, target: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """Mean absolute difference of real and imaginary parts of the 2-D FFT over space (unnormalised).

    BasicSR-based networks such as SAFMN add 0.05 times it to L1. The mean is over the full spectrum, of which half is
    computed.

    Args:
      output: (B, H, W, C).
      target: likewise.
      where: as in `l1`.

    Returns:
      (B,) in the unit of the pixels.

    Raises:
      ShapeError: the shapes differ.
    """
    output, target = _pair(output, target, where)
    return exclude(where, on_examples(_spectral_l1, output - target))


def _spectral_l1(difference: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B,) mean absolute real and imaginary parts of the full spectrum."""
    _, height, width, channels = difference.shape
    difference = jnp.fft.rfft2(difference, axes=(1, 2))
    size = jnp.abs(difference.real) + jnp.abs(difference.imag)
    # The columns that rfft2 omits mirror the computed ones, except the first and, for even widths, the last.
    twice = jnp.full(size.shape[2], 2.0).at[0].set(1.0)
    if width % 2 == 0:
        twice = twice.at[-1].set(1.0)
    return jnp.sum(size * twice[:, None], axis=(1, 2, 3)) / (2 * height * width * channels)
