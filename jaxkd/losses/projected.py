"""Losses on student features that a trained projector maps to the teacher's channels: hint, VID, ViTKD mimic, SimKD.

The functions are pure: they take the trained parameters as arguments. Learned products run in fp32 at JAX's default
matmul precision, like the layers of a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError, check_range
from jaxkd.losses.arguments import check_features, check_parameters, exclude, full_precision, include


def project(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, where: jax.Array | None = None
) -> jax.Array:
    """x kernel + bias at every position, in at least fp32: a linear layer, or a 1x1 convolution of a map.

    Args:
      x: (B, ..., C_in), any float type.
      kernel: (C_in, C_out).
      bias: (C_out,), or None.
      where: (B,) bool, that of the loss which follows. An example with False counts as zeros, so that one that holds
        NaN does not reach the gradient of the kernel.

    Returns:
      (B, ..., C_out).

    Raises:
      ShapeError: a `where` of another shape.
    """
    (x,) = include(where, x)
    x = jnp.einsum("...c,cd->...d", full_precision(x), full_precision(kernel))
    return x if bias is None else x + full_precision(bias)


def hint(
    student: jax.Array, teacher: jax.Array, kernel: jax.Array, bias: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """FitNet's hint: mean over positions and channels of (s kernel + bias - t)^2.

    Source: arXiv 1412.6550, with half the sum instead of the mean; RepDistiller, FitNet.py. mdistiller's regressor is a
    3x3 convolution with BatchNorm and ReLU where the sizes ask for it. `feature_mse` needs no kernel, as it pools
    channels.

    Args:
      student: (B, H, W, C_s) or any (B, ..., C_s), any float type; computed in at least fp32.
      teacher: (B, H, W, C_t); the gradient is not stopped here.
      kernel: (C_s, C_t).
      bias: (C_t,).
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,), squared units of the teacher's feature.

    Raises:
      ShapeError: another batch or grid, parameters that do not fit.
    """
    check_features(student.shape, teacher.shape)
    narrow, wide = student.shape[-1], teacher.shape[-1]
    check_parameters("hint", {"kernel": kernel, "bias": bias}, {"kernel": (narrow, wide), "bias": (wide,)})
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    error = jnp.square(project(student, kernel, bias) - teacher)
    return exclude(where, jnp.mean(error, axis=tuple(range(1, error.ndim))))


def vid_variance(log_scale: jax.Array, *, eps: float = 1e-5) -> jax.Array:
    """Variance of `vid` per channel, softplus(log_scale) + eps.

    softplus does not overflow, while the published log(1 + exp(x)) does from 89 in fp32. The published start of
    `log_scale` is log(exp(5 - eps) - 1), a variance of 5.

    Args:
      log_scale: (C_t,).
      eps: least variance, above 0.

    Returns:
      (C_t,) in at least fp32.
    """
    return jax.nn.softplus(full_precision(log_scale)) + eps


def vid(
    student: jax.Array,
    teacher: jax.Array,
    kernels: Sequence[jax.Array],
    log_scale: jax.Array,
    *,
    eps: float = 1e-5,
    where: jax.Array | None = None,
) -> jax.Array:
    """Variational information distillation: mean over positions and channels of ((mu - t)^2 / v + log v) / 2.

    mu is the student after 1x1 products with a ReLU between them and no bias; v = `vid_variance` is trained, one per
    channel. May be negative. Source: arXiv 1904.05835; RepDistiller, VID.py (eps 1e-5). mdistiller keeps `log_scales`
    in a plain list and never trains them; AberHu's code has eps 1e-6.

    Args:
      student: (B, H, W, C_s) or any (B, ..., C_s), any float type; computed in at least fp32.
      teacher: (B, H, W, C_t); the gradient is not stopped here.
      kernels: (C_s, D), (D, E), ..., (F, C_t); the published ones are three of (C_s, C_t), (C_t, C_t), (C_t, C_t).
      log_scale: (C_t,).
      eps: least variance, above 0.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats, without the constant log(2 pi) / 2.

    Raises:
      ConfigError: an eps that is not above 0.
      ShapeError: another batch or grid, parameters that do not fit.
    """
    check_range("eps", eps, above=0, hint="the published code uses 1e-5")
    check_features(student.shape, teacher.shape)
    wide = teacher.shape[-1]
    if not kernels:
        raise ShapeError(f"vid has no kernels. Pass one or more; ({student.shape[-1]}, {wide}) is the simplest.")
    sizes = [student.shape[-1], *(jnp.shape(kernel)[-1] for kernel in kernels[:-1]), wide]
    named = {f"kernels[{i}]": kernel for i, kernel in enumerate(kernels)}
    check_parameters("vid", named, {name: pair for name, *pair in zip(named, sizes, sizes[1:], strict=False)})
    check_parameters("vid", {"log_scale": log_scale}, {"log_scale": (wide,)})
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    mean = student
    for i, kernel in enumerate(kernels):
        mean = project(jax.nn.relu(mean) if i else mean, kernel)
    variance = vid_variance(log_scale, eps=eps)
    loss = (jnp.square(mean - teacher) / variance + jnp.log(variance)) / 2
    return exclude(where, jnp.mean(loss, axis=tuple(range(1, loss.ndim))))


def vitkd_mimic(
    student: jax.Array,
    teacher: jax.Array,
    kernel: jax.Array | None,
    bias: jax.Array | None,
    *,
    alpha: float = 3e-5,
    where: jax.Array | None = None,
) -> jax.Array:
    """ViTKD's mimicking of early layers: alpha times the sum over layers, tokens, channels of (s kernel + bias - t)^2.

    Each layer has a projector of its own. Source: arXiv 2209.02432; cls_KD, dis_losses/vitkd.py, which uses the first
    two layers without the class token and no projector where the widths agree. A sum, so it grows with N C.

    Args:
      student: (B, L, N, C_s), the L layers stacked, any float type; computed in at least fp32. Grids (B, L, H, W, C_s)
        are possible.
      teacher: (B, L, N, C_t); the gradient is not stopped here.
      kernel: (L, C_s, C_t); None, with `bias`, for features of equal width without a projector.
      bias: (L, C_t), or None.
      alpha: factor of the sum.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,), squared units of the teacher's feature times alpha.

    Raises:
      ShapeError: other layers, tokens or batch; parameters that do not fit.
    """
    check_features(student.shape, teacher.shape)
    if student.ndim < 4:
        raise ShapeError(f"The student's features have shape {student.shape}. Stack them: (batch, layers, tokens, C).")
    layers, narrow, wide = student.shape[1], student.shape[-1], teacher.shape[-1]
    if kernel is not None or bias is not None or narrow != wide:
        given = {name: x for name, x in (("kernel", kernel), ("bias", bias)) if x is not None}
        check_parameters("vitkd_mimic", given, {"kernel": (layers, narrow, wide), "bias": (layers, wide)})
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    if kernel is not None:
        assert bias is not None  # checked above
        student = jnp.einsum("bl...c,lcd->bl...d", student, full_precision(kernel))
        student = student + jnp.reshape(full_precision(bias), (layers,) + (1,) * (student.ndim - 3) + (wide,))
    error = jnp.square(student - teacher)
    return exclude(where, alpha * jnp.sum(error, axis=tuple(range(1, error.ndim))))


# Window of the convolutions of SimKD's bottleneck projector.
_BOTTLENECK = (1, 3, 1)


def simkd_project(
    student: jax.Array,
    projector: Mapping[str, jax.Array],
    *,
    statistics: Mapping[str, jax.Array] | None = None,
    eps: float = 1e-5,
    last_relu: bool = True,
    where: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """SimKD's projector P: the student's map at the teacher's width.

    Args:
      student: (B, H, W, C_s), any float type; computed in at least fp32. The pooled projector takes any (B, ..., C_s).
      projector: as in `simkd`, which describes both kinds.
      statistics: bn_j_mean and bn_j_var, to be used instead of those of the batch, as at test time.
      eps: of BatchNorm.
      last_relu: whether the bottleneck ends with a ReLU.
      where: (B,) bool; False leaves an example out of the statistics.

    Returns:
      The projected feature, (B, H, W, C_t) of a bottleneck and (B, C_t) of a pooled projector; and the statistics that
      were used, bn_j_mean and bn_j_var (biased), none of a pooled projector.

    Raises:
      ShapeError: parameters that do not fit.
    """
    _check_projector(student.shape, projector)
    (x,) = include(where, full_precision(student))
    if "conv_0_kernel" not in projector:
        return project(jnp.mean(x, axis=tuple(range(1, x.ndim - 1))), projector["kernel"], projector["bias"]), {}
    used: dict[str, jax.Array] = {}
    for j in range(len(_BOTTLENECK)):
        kernel = full_precision(projector[f"conv_{j}_kernel"])
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        mean, variance = _moments(x, where)
        if statistics is not None:
            mean, variance = (full_precision(statistics[f"bn_{j}_{name}"]) for name in ("mean", "var"))
        used |= {f"bn_{j}_mean": mean, f"bn_{j}_var": variance}
        scale, shift = (full_precision(projector[f"bn_{j}_{name}"]) for name in ("scale", "bias"))
        x = (x - mean) * (jax.lax.rsqrt(variance + eps) * scale) + shift
        x = jax.nn.relu(x) if last_relu or j < len(_BOTTLENECK) - 1 else x
    return x, used


def simkd(
    student: jax.Array,
    teacher: jax.Array,
    projector: Mapping[str, jax.Array],
    *,
    eps: float = 1e-5,
    last_relu: bool = True,
    where: jax.Array | None = None,
) -> jax.Array:
    """SimKD: squared error of the projected student, which then uses the teacher's classifier (`simkd_logits`).

    A bottleneck projector P is conv 1x1, 3x3, 1x1 without bias, each followed by BatchNorm and ReLU, and the loss is
    the mean over positions and channels of (P(s) - t)^2. BatchNorm uses the statistics of the (global) batch, which
    makes the loss batch-level. A pooled projector compares avgpool(s) kernel + bias with avgpool(t); it is a variant of
    jaxkd for ViTs, not the paper's. Source: arXiv 2203.14001; SimKD, models/util.py and helper/loops.py. The published
    recipe has neither cross-entropy nor KL (`-c 0 -d 0 -b 1`): the classifier is used at test time only.

    Args:
      student: (B, H, W, C_s), any float type; computed in at least fp32. The pooled projector takes any (B, ..., C_s).
      teacher: (B, H, W, C_t) of the same grid; the published code pools it to a square. The gradient is not stopped.
      projector: conv_0_kernel (1, 1, C_s, D), conv_1_kernel (3, 3, D, D), conv_2_kernel (1, 1, D, C_t), bn_j_scale and
        bn_j_bias for j = 0, 1, 2, with D = C_t / 2 in the paper; or kernel (C_s, C_t) and bias (C_t,).
      eps: of BatchNorm.
      last_relu: whether the bottleneck ends with a ReLU, which suits teacher maps after a ReLU; those of a ViT have
        negative values and need False.
      where: (B,) bool; False gives exactly 0 and no gradient, and leaves the example out of the statistics.

    Returns:
      (B,), squared units of the teacher's feature.

    Raises:
      ShapeError: features or parameters that do not fit.
    """
    check_features(student.shape, teacher.shape, rank=4 if "conv_0_kernel" in projector else None)
    _check_projector(student.shape, projector, teacher.shape[-1])
    projected, _ = simkd_project(student, projector, eps=eps, last_relu=last_relu, where=where)
    (teacher,) = include(where, full_precision(teacher))
    if projected.ndim == 2:
        teacher = jnp.mean(teacher, axis=tuple(range(1, teacher.ndim - 1)))
    error = jnp.square(projected - teacher)
    return exclude(where, jnp.mean(error, axis=tuple(range(1, error.ndim))))


def simkd_logits(projected: jax.Array, head_kernel: jax.Array, head_bias: jax.Array) -> jax.Array:
    """The student's logits by the teacher's classifier: avgpool(P(s)) head_kernel + head_bias.

    Args:
      projected: (B, ..., C_t), first result of `simkd_project`.
      head_kernel: (C_t, K) of the teacher.
      head_bias: (K,) of the teacher.

    Returns:
      (B, K).

    Raises:
      ShapeError: a classifier of another width.
    """
    check_parameters(
        "the teacher's classifier",
        {"kernel": head_kernel, "bias": head_bias},
        {"kernel": (projected.shape[-1], None), "bias": (jnp.shape(head_kernel)[-1],)},
    )
    return project(jnp.mean(projected, axis=tuple(range(1, projected.ndim - 1))), head_kernel, head_bias)


def _moments(x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """(C,) mean and biased variance over all axes but the last, of the examples with True."""
    axes = tuple(range(x.ndim - 1))
    if where is None:
        return jnp.mean(x, axis=axes), jnp.var(x, axis=axes)
    counted = jnp.reshape(jnp.asarray(where, x.dtype), (-1,) + (1,) * (x.ndim - 1))
    count = jnp.maximum(jnp.sum(counted) * math.prod(x.shape[1:-1]), 1.0)
    mean = jnp.sum(x * counted, axis=axes) / count
    return mean, jnp.sum(jnp.square(x - mean) * counted, axis=axes) / count


def _check_projector(student: tuple[int, ...], projector: Mapping[str, jax.Array], wide: int | None = None) -> None:
    if "conv_0_kernel" not in projector:
        check_parameters("simkd", projector, {"kernel": (student[-1], wide), "bias": (wide,)})
        return
    if len(student) != 4:
        raise ShapeError(f"SimKD's bottleneck takes maps (batch, height, width, channels), not features {student}.")
    middle = jnp.shape(projector["conv_0_kernel"])[-1]
    sizes = (student[-1], middle, middle, wide)
    for j, window in enumerate(_BOTTLENECK):
        shapes: dict[str, tuple[int | None, ...]] = {f"conv_{j}_kernel": (window, window, sizes[j], sizes[j + 1])}
        shapes |= {f"bn_{j}_scale": (sizes[j + 1],), f"bn_{j}_bias": (sizes[j + 1],)}
        check_parameters("simkd", projector, shapes)
