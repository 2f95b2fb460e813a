"""Losses on feature maps: squared error after pooling the wider feature to the channels of the narrower one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ShapeError
from jaxkd.losses.arguments import check_features, exclude, full_precision, include

# Up to this many channels per group the mean is a sum of strided slices, which XLA fuses into what follows: 3x faster
# on CPU than a reduction over a short last axis (384 -> 192 channels). Longer sums would only be slow to compile.
_UNROLL = 16


def averaging_matrix(channels_in: int, channels_out: int) -> np.ndarray:
    """(C_in, C_out) float64 matrix of PyTorch's adaptive average pooling.

    Output i is the mean of the inputs floor(i C_in / C_out) to ceil((i + 1) C_in / C_out) - 1; where the counts do not
    divide, neighbouring windows share a channel.
    """
    i = np.arange(channels_out)
    start = i * channels_in // channels_out
    end = -(-(i + 1) * channels_in // channels_out)
    c = np.arange(channels_in)[:, None]
    return ((c >= start) & (c < end)) / (end - start)


def pool_channels(x: jax.Array, channels: int) -> jax.Array:
    """Adaptive average pooling along the last axis, as PyTorch's, for any two numbers of channels.

    Args:
      x: (..., C), any float type.
      channels: number of channels of the result, from 1 to C.

    Returns:
      (..., channels) in at least fp32.

    Raises:
      ShapeError: `channels` is not between 1 and C.
    """
    have = x.shape[-1]
    if not 1 <= channels <= have:
        raise ShapeError(
            f"{have} channels cannot be pooled to {channels}. Ask for 1 to {have}, or pool the other feature."
        )
    x = full_precision(x)
    if channels == have:
        return x
    group, rest = divmod(have, channels)
    if rest:
        matrix = jnp.asarray(averaging_matrix(have, channels), x.dtype)
        return jnp.einsum("...c,ck->...k", x, matrix, precision=jax.lax.Precision.HIGHEST)
    if group > _UNROLL:
        return jnp.mean(x.reshape(*x.shape[:-1], channels, group), axis=-1)
    return sum((x[..., i::group] for i in range(1, group)), start=x[..., ::group]) / group


def difference(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """student - teacher in at least fp32, after pooling the wider feature to the channels of the narrower one.

    The published code can only pool the teacher. Pooling the student constrains only the mean of its channel groups.
    """
    channels = min(student.shape[-1], teacher.shape[-1])
    return pool_channels(student, channels) - pool_channels(teacher, channels)


def feature_mse(student_map: jax.Array, teacher_map: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """Mean squared error between two features, without normalisation (SpectralKD code, `--use-mse-loss`).

    Args:
      student_map: (B, H, W, C_s) or any (B, ..., C_s), any float type.
      teacher_map: (B, H, W, C_t); the feature with more channels is pooled.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,), the mean over positions and min(C_s, C_t) channels.

    Raises:
      ShapeError: another rank, batch or grid.
    """
    check_features(student_map.shape, teacher_map.shape)
    d = difference(*include(where, student_map, teacher_map))
    return exclude(where, jnp.mean(jnp.square(d), axis=tuple(range(1, d.ndim))))
