"""Losses that generate the teacher's feature from a masked student feature: MGD and ViTKD's generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError, check_choice, check_range
from jaxkd.losses.arguments import check_features, check_parameters, exclude, full_precision, include
from jaxkd.losses.projected import project

# Parameters of the generator G after the alignment: two 3x3 convolutions with a ReLU between them.
_CONVOLUTIONS = ("conv_0", "conv_1")


def mgd(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    params: Mapping[str, jax.Array],
    *,
    alpha: float = 7e-5,
    where: jax.Array | None = None,
) -> jax.Array:
    """Masked generative distillation: alpha times the sum of (G(mask (s align)) - t)^2.

    The sum is over positions and channels of the whole map, not only the masked part, so it grows with H W C. G is
    conv 3x3, ReLU, conv 3x3. What remains is not rescaled by 1 / (1 - ratio), and the bias of the alignment is masked
    too. Source: arXiv 2205.01529; yzd-v/MGD, cls/ and det/ mgd.py. The classification code drops whole channels
    (ratio 0.15, alpha 7e-5), the paper and the detection code drop positions (0.65, 2e-5); `mgd_mask` draws both.

    Args:
      student: (B, H, W, C_s), any float type; computed in at least fp32.
      teacher: (B, H, W, C_t); the gradient is not stopped here.
      mask: (B, 1, 1, C_t) or (B, H, W, 1), bool or number: 0 is dropped, 1 is kept.
      params: align_kernel (C_s, C_t) and align_bias (C_t,), which may be absent together where C_s = C_t; conv_0_kernel
        and conv_1_kernel (3, 3, C_t, C_t), conv_0_bias and conv_1_bias (C_t,).
      alpha: factor of the sum.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,), squared units of the teacher's feature times alpha.

    Raises:
      ShapeError: features, mask or parameters that do not fit.
    """
    check_features(student.shape, teacher.shape, rank=4)
    size, height, width, channels = teacher.shape
    if tuple(mask.shape) not in ((size, 1, 1, channels), (size, height, width, 1)):
        raise ShapeError(
            f"The mask of mgd has shape {tuple(mask.shape)}. Pass {(size, 1, 1, channels)} to drop channels or "
            f"{(size, height, width, 1)} to drop positions."
        )
    _check_generator("mgd", student, teacher, params)
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    masked = _align(student, params) * full_precision(mask)
    error = jnp.square(_generate(masked, params) - teacher)
    return exclude(where, alpha * jnp.sum(error, axis=(1, 2, 3)))


def vitkd_generation(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    params: Mapping[str, jax.Array],
    *,
    beta: float = 3e-6,
    ratio: float = 0.5,
    grid: tuple[int, int] | None = None,
    where: jax.Array | None = None,
) -> jax.Array:
    """ViTKD's generation of late tokens: beta / ratio times the sum over removed tokens of (G(x) - t)^2.

    x is `mask_token` where the mask is 1 and the aligned student elsewhere; G is conv 3x3, ReLU, conv 3x3 on the grid
    of the patches. Unlike MGD, only the removed tokens count, and 1 in the mask means removed. Source: arXiv
    2209.02432; cls_KD, dis_losses/vitkd.py, which leaves the class token out, keeps int(N (1 - ratio)) tokens and
    divides by `ratio` rather than by the removed share; `vitkd_mask` draws such masks.

    Args:
      student: (B, H, W, C_s), or tokens (B, N, C_s) without prefix tokens; any float type, computed in at least fp32.
      teacher: (B, H, W, C_t) or (B, N, C_t); the gradient is not stopped here.
      mask: (B, N), or (B, H, W); bool or number: 1 is removed.
      params: as in `mgd`, and mask_token (C_t,).
      beta: factor of the sum.
      ratio: share of the tokens that are removed, above 0 and below 1.
      grid: (H, W) of tokens (B, N, C); None for a square, as the published code has it.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,), squared units of the teacher's feature times beta / ratio.

    Raises:
      ConfigError: a ratio outside (0, 1).
      ShapeError: features, mask, grid or parameters that do not fit.
    """
    check_range("ratio", ratio, above=0, below=1, hint="the published code uses 0.5")
    check_features(student.shape, teacher.shape)
    size, channels = teacher.shape[0], teacher.shape[-1]
    grid = _grid(teacher.shape, grid)
    tokens = math.prod(grid)
    if mask.shape[0] != size or math.prod(mask.shape[1:]) != tokens:
        raise ShapeError(
            f"The mask of vitkd_generation has shape {tuple(mask.shape)}, but {size} examples of {tokens} tokens need "
            f"({size}, {tokens})."
        )
    _check_generator("vitkd_generation", student, teacher, params)
    check_parameters("vitkd_generation", params, {"mask_token": (channels,)})
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    aligned = _align(student, params).reshape(size, *grid, channels)
    removed = full_precision(mask).reshape(size, *grid, 1)
    x = aligned * (1.0 - removed) + full_precision(params["mask_token"]) * removed
    error = jnp.square(_generate(x, params) - teacher.reshape(x.shape))
    return exclude(where, beta / ratio * jnp.sum(error * removed, axis=(1, 2, 3)))


def mgd_mask(
    key: jax.Array, shape: tuple[int, ...], *, ratio: float | None = None, drop: str = "channels"
) -> jax.Array:
    """Draws a mask for `mgd`; each channel or position is dropped on its own, so the dropped share varies.

    Args:
      key: a JAX key.
      shape: (B, H, W, C) of the teacher's map.
      ratio: chance of being dropped, from 0 to 1; None for the published 0.15 of channels and 0.65 of positions.
      drop: "channels" (the classification code) or "positions" (the paper, the detection code).

    Returns:
      (B, 1, 1, C) or (B, H, W, 1) float32: 0 is dropped, 1 is kept.

    Raises:
      ConfigError: another `drop`, a ratio outside [0, 1].
    """
    check_choice("drop", drop, ("channels", "positions"))
    ratio = (0.15 if drop == "channels" else 0.65) if ratio is None else ratio
    check_range("ratio", ratio, 0, 1, hint="the published code uses 0.15 for channels and 0.65 for positions")
    size, height, width, channels = shape
    size_of_mask = (size, 1, 1, channels) if drop == "channels" else (size, height, width, 1)
    return (jax.random.uniform(key, size_of_mask) >= ratio).astype(jnp.float32)


def vitkd_mask(key: jax.Array, batch: int, tokens: int, *, ratio: float = 0.5) -> jax.Array:
    """Draws a mask for `vitkd_generation`: every example keeps int(N (1 - ratio)) random tokens.

    Args:
      key: a JAX key.
      batch: B.
      tokens: N.
      ratio: share of the tokens that are removed, above 0 and below 1.

    Returns:
      (B, N) float32: 1 is removed, 0 is kept.

    Raises:
      ConfigError: a ratio outside (0, 1).
    """
    check_range("ratio", ratio, above=0, below=1, hint="the published code uses 0.5")
    order = jnp.argsort(jax.random.uniform(key, (batch, tokens)), axis=1)  # a random permutation of 0 .. N - 1
    return (order >= int(tokens * (1.0 - ratio))).astype(jnp.float32)


def _grid(shape: tuple[int, ...], grid: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) of a map (B, H, W, C) or of tokens (B, N, C)."""
    if len(shape) == 4:
        if grid is not None and tuple(grid) != shape[1:3]:
            raise ShapeError(f"grid={tuple(grid)}, but the maps have {shape[1:3]} positions. Leave grid out.")
        return shape[1:3]
    if len(shape) != 3:
        raise ShapeError(f"The teacher's feature has shape {shape}. Pass maps (B, H, W, C) or tokens (B, N, C).")
    tokens = shape[1]
    side = math.isqrt(tokens)
    grid = (side, side) if grid is None else cast(tuple[int, int], tuple(grid))
    if math.prod(grid) != tokens:
        raise ShapeError(
            f"{tokens} tokens do not fill a grid of {grid}. Pass grid=(height, width), or maps (B, H, W, C); class and "
            "register tokens have no place on the grid."
        )
    return grid


def _check_generator(loss: str, student: jax.Array, teacher: jax.Array, params: Mapping[str, jax.Array]) -> None:
    narrow, wide = student.shape[-1], teacher.shape[-1]
    shapes: dict[str, tuple[int | None, ...]] = {}
    if "align_kernel" in params or narrow != wide:
        shapes |= {"align_kernel": (narrow, wide), "align_bias": (wide,)}
    for name in _CONVOLUTIONS:
        shapes |= {f"{name}_kernel": (3, 3, wide, wide), f"{name}_bias": (wide,)}
    check_parameters(loss, params, shapes)


def _align(student: jax.Array, params: Mapping[str, jax.Array]) -> jax.Array:
    return project(student, params["align_kernel"], params["align_bias"]) if "align_kernel" in params else student


def _generate(x: jax.Array, params: Mapping[str, jax.Array]) -> jax.Array:
    """(B, H, W, C) -> (B, H, W, C), the generator G."""
    for i, name in enumerate(_CONVOLUTIONS):
        x = jax.nn.relu(x) if i else x
        kernel, bias = full_precision(params[f"{name}_kernel"]), full_precision(params[f"{name}_bias"])
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
    return x
