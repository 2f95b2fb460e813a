"""Losses on features without parameters: squared error, cosine, normalised features, attention maps, NST."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError, ShapeError, UnknownNameError, check_choice, check_range
from jaxkd.losses.arguments import check_features, check_same_width, exclude, full_precision, include
from jaxkd.losses.norms import safe_norm, unit

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


def _positions(x: jax.Array) -> tuple[int, ...]:
    """Axes between the batch and the channels."""
    return tuple(range(1, x.ndim - 1))


def feature_cosine(
    student: jax.Array, teacher: jax.Array, *, eps: float = 1e-8, where: jax.Array | None = None
) -> jax.Array:
    """Cosine distance of tokens: mean over tokens of 1 - <unit(s), unit(t)>, unit(x) = x / max(|x|, eps).

    A zero token gives 1 and no gradient. Source: tunix, distillation/strategies/feature_pooling.py (whose default is
    `optax.cosine_distance`), where the student is projected first: pass `losses.project(student, kernel, bias,
    where=where)`. That code stacks all layers and pools all axes of the teacher to the student's, the batch too.

    Args:
      student: (B, N, C), (B, H, W, C) or any (B, ..., C), any float type; computed in at least fp32.
      teacher: the same shape; the gradient is not stopped here.
      eps: least length, above 0.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in [0, 2].

    Raises:
      ConfigError: an eps that is not above 0.
      ShapeError: another batch, grid or width.
    """
    check_range("eps", eps, above=0, hint="the published code uses 1e-8")
    check_same_width("feature_cosine", student.shape, teacher.shape)
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    cosine = jnp.sum(unit(student, eps=eps) * unit(teacher, eps=eps), axis=-1)
    return exclude(where, jnp.mean(1.0 - cosine, axis=tuple(range(1, cosine.ndim))))


def _layer_norm(x: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over channels without scale and bias, biased variance."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


NORMALIZATIONS = ("layer_teacher", "layer", "l2")


def normalized_mse(
    student: jax.Array,
    teacher: jax.Array,
    *,
    normalize: str = "layer_teacher",
    eps: float = 1e-5,
    smooth_l1_beta: float | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """Squared error of normalised features of equal width.

    "layer_teacher": mean over tokens and channels of (s - LN(t))^2. "layer": the same of (LN(s) - LN(t))^2. "l2": mean
    over tokens of |unit(s) - unit(t)|^2 = 2 - 2 cos, a sum over channels. LN has no scale and no bias. With
    `smooth_l1_beta` b, d^2 / (2 b) below b and |d| - b / 2 above replaces d^2. Source: arXiv 2205.14141;
    Feature-Distillation, models/feature_distillation.py, is "layer_teacher" with `smooth_l1_beta=2.0` after a linear
    projection: pass `losses.project(student, kernel, bias, where=where)`.

    Args:
      student: (B, N, C), (B, H, W, C) or any (B, ..., C), any float type; computed in at least fp32.
      teacher: the same shape; the gradient is not stopped here.
      normalize: "layer_teacher", "layer" or "l2".
      eps: added to the variance of LN (PyTorch's default is 1e-5, that of timm's ViTs 1e-6), or the least length of
        "l2" (published: 1e-8); above 0.
      smooth_l1_beta: None for squares; above 0. Only for differences per channel, not for "l2".
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,), without unit for "layer" and "l2".

    Raises:
      UnknownNameError: another `normalize`.
      ConfigError: eps or smooth_l1_beta not above 0, or smooth_l1_beta with "l2".
      ShapeError: another batch, grid or width.
    """
    check_choice("normalize", normalize, NORMALIZATIONS, error=UnknownNameError)
    check_range("eps", eps, above=0, hint="1e-5 for layer norms, 1e-8 for l2")
    if smooth_l1_beta is not None:
        check_range("smooth_l1_beta", smooth_l1_beta, above=0, hint="the published code uses 2")
        if normalize == "l2":
            raise ConfigError(f"smooth_l1_beta={smooth_l1_beta!r} is not possible with normalize='l2'. Leave it out.")
    check_same_width("normalized_mse", student.shape, teacher.shape)
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    if normalize == "l2":
        error = jnp.sum(jnp.square(unit(student, eps=eps) - unit(teacher, eps=eps)), axis=-1)
    else:
        d = (_layer_norm(student, eps) if normalize == "layer" else student) - _layer_norm(teacher, eps)
        error = jnp.square(d)
        if smooth_l1_beta is not None:
            size = jnp.abs(d)
            error = jnp.where(size < smooth_l1_beta, error / (2 * smooth_l1_beta), size - smooth_l1_beta / 2)
    return exclude(where, jnp.mean(error, axis=tuple(range(1, error.ndim))))


def attention_transfer(
    student: jax.Array,
    teacher: jax.Array,
    *,
    p: float = 2,
    eps: float = 1e-12,
    reduction: str = "mean_square",
    where: jax.Array | None = None,
) -> jax.Array:
    """Attention transfer of Zagoruyko and Komodakis: compares where the activations of two maps are large.

    a = unit over positions of the sum over channels of |x|^p. "mean_square", the published code: mean over positions
    of (a_s - a_t)^2. "norm", the paper's Eq. 2: |a_s - a_t|, whose slope at equal maps is taken to be 0. Source: arXiv
    1612.03928; szagoruyko/attention-transfer, utils.py; torchdistill has both. The code has no absolute value, which
    differs for odd p; RepDistiller pools both maps to a square.

    Args:
      student: (B, H, W, C_s) or tokens (B, N, C_s), any float type; computed in at least fp32.
      teacher: (B, H, W, C_t), of the same grid and any width; the gradient is not stopped here.
      p: power of the activations, at least 1; 2 in the paper.
      eps: least length of a map, above 0.
      reduction: "mean_square" or "norm".
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,), without unit.

    Raises:
      UnknownNameError: another `reduction`.
      ConfigError: p below 1, eps not above 0.
      ShapeError: another batch or grid, or no positions.
    """
    check_choice("reduction", reduction, ("mean_square", "norm"), error=UnknownNameError)
    check_range("p", p, 1, hint="the paper uses 2")
    check_range("eps", eps, above=0, hint="the published code uses 1e-12")
    _check_positions("attention_transfer", student.shape, teacher.shape)
    maps = include(where, full_precision(student), full_precision(teacher))
    a_s, a_t = (
        unit(jnp.sum(jnp.square(x) if p == 2 else jnp.abs(x) ** p, axis=-1), _positions(x), eps=eps) for x in maps
    )
    axes = _positions(student)
    loss = jnp.mean(jnp.square(a_s - a_t), axis=axes) if reduction == "mean_square" else safe_norm(a_s - a_t, axes)
    return exclude(where, loss)


def nst(student: jax.Array, teacher: jax.Array, *, eps: float = 1e-12, where: jax.Array | None = None) -> jax.Array:
    """Neuron selectivity transfer: squared maximum mean discrepancy between the channels of two maps.

    K(t, t) + K(s, s) - 2 K(s, t), K(a, b) = mean over pairs of channels of (u . v)^2, where u and v are channels as
    unit vectors over the positions (not tokens over their channels). Source: arXiv 1707.01219, polynomial kernel with
    d = 2 and c = 0; RepDistiller, NST.py.

    Args:
      student: (B, H, W, C_s) or tokens (B, N, C_s), any float type; computed in at least fp32.
      teacher: (B, H, W, C_t), of the same grid and any width; the gradient is not stopped here.
      eps: least length of a channel, above 0.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,), without unit.

    Raises:
      ConfigError: an eps that is not above 0.
      ShapeError: another batch or grid, or no positions.
    """
    check_range("eps", eps, above=0, hint="the published code uses 1e-12")
    _check_positions("nst", student.shape, teacher.shape)
    maps = include(where, full_precision(student), full_precision(teacher))
    s, t = (unit(x.reshape(x.shape[0], -1, x.shape[-1]), 1, eps=eps) for x in maps)
    positions, c_s, c_t = s.shape[1], s.shape[2], t.shape[2]

    def gram(letters: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(letters, a, b, precision=jax.lax.Precision.HIGHEST)

    if positions**2 <= c_s**2 + c_s * c_t + c_t**2:
        # The sum over pairs of channels is a product of Gram matrices of the positions, so the three kernels are the
        # square of one difference: fewer numbers, and nothing cancels when the maps are alike.
        d = gram("bpc,bqc->bpq", s, s) / c_s - gram("bpc,bqc->bpq", t, t) / c_t
        return exclude(where, jnp.sum(jnp.square(d), axis=(1, 2)))
    ss, tt, st = (jnp.mean(jnp.square(gram("bpc,bpd->bcd", a, b)), axis=(1, 2)) for a, b in ((s, s), (t, t), (s, t)))
    return exclude(where, tt + ss - 2 * st)


def _check_positions(loss: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    check_features(student, teacher)
    if len(student) < 3:
        raise ShapeError(
            f"{loss} compares positions, but the features have shapes {tuple(student)} and {tuple(teacher)}. Pass maps "
            "(B, H, W, C) or tokens (B, N, C), not pooled features."
        )
