"""Interpolation of position embeddings and relative-position bias tables to another image size.

Both agree with what timm does when it loads weights into a network of another image size, and need only NumPy: each
axis is multiplied by a small matrix of interpolation weights. Legend: h w grid, a b window, P prefix tokens, C
channels, H heads.
"""

from __future__ import annotations

import numpy as np

from jaxkd.errors import ShapeError, check_choice

Size = tuple[int, int]
METHODS = ("geometric", "bicubic")


def resize_position_embedding(array: np.ndarray, *, old_grid: Size, new_grid: Size, prefix: int) -> np.ndarray:
    """Position embeddings for another grid of patches: bicubic, antialiased where the grid shrinks.

    Args:
      array: (1, P + h w, C), embeddings of the prefix tokens first.
      old_grid: (h, w) that the array was made for.
      new_grid: (h, w) of the result.
      prefix: P, tokens whose embeddings have no position and stay as they are.

    Returns:
      (1, P + h' w', C) fp32; `array` itself for equal grids. Source: timm `resample_abs_pos_embed`.

    Raises:
      ShapeError: the array does not hold P + h w embeddings.
    """
    array = np.asarray(array)
    if array.ndim != 3 or array.shape[:2] != (1, prefix + old_grid[0] * old_grid[1]):
        raise ShapeError(
            f"The position embedding has shape {array.shape}, not (1, {prefix} + {old_grid[0]} * {old_grid[1]}, C). "
            "Pass the grid and prefix that it was made for."
        )
    if tuple(old_grid) == tuple(new_grid):
        return array
    # The product is formed in float64: the matrices are tiny, and fp32 sums would be the only error.
    rows, columns = (_cubic_antialiased(old, new) for old, new in zip(old_grid, new_grid, strict=True))
    grid = array[0, prefix:].reshape(*old_grid, -1)
    grid = np.einsum("yh,xw,hwc->yxc", rows, columns, grid, optimize=True).reshape(-1, array.shape[2])
    return np.concatenate([array[0, :prefix], grid])[None].astype(np.float32)


def resize_relative_bias_table(
    array: np.ndarray, *, old_window: Size, new_window: Size, method: str = "geometric"
) -> np.ndarray:
    """A table of relative-position biases for another attention window.

    Args:
      array: ((2 a - 1) (2 b - 1), H), differences in y major.
      old_window: (a, b) that the table was made for.
      new_window: (a, b) of the result.
      method: "geometric", linear interpolation between old differences that are spaced ever wider away from 0, so that
        near neighbours keep their biases (timm `resize_rel_pos_bias_table`, which timm uses for Swin; from BEiT); or
        "bicubic" on an even spacing (timm `resize_rel_pos_bias_table_simple`, Microsoft's Swin).

    Returns:
      ((2 a' - 1) (2 b' - 1), H) fp32; `array` itself for equal windows.

    Raises:
      ShapeError: the table is not of the old window.
      ConfigError: another method.
    """
    check_choice("method", method, METHODS)
    array = np.asarray(array)
    old, new = (tuple(2 * n - 1 for n in window) for window in (old_window, new_window))
    if array.ndim != 2 or array.shape[0] != old[0] * old[1]:
        raise ShapeError(
            f"The relative-bias table has shape {array.shape}, but a window of {tuple(old_window)} has {old[0]} * "
            f"{old[1]} rows. Pass the window that it was made for."
        )
    if old == new:
        return array
    weights = _geometric if method == "geometric" else _cubic
    rows, columns = (weights(o, n) for o, n in zip(old, new, strict=True))
    table = np.einsum("yh,xw,hwc->yxc", rows, columns, array.reshape(*old, -1), optimize=True)
    return table.reshape(new[0] * new[1], -1).astype(np.float32)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic kernel with slope `a` at 1."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _cubic_antialiased(old: int, new: int) -> np.ndarray:
    """(new, old) weights of PyTorch's antialiased bicubic: slope -0.5, widened where the axis shrinks, renormalised."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale
    distance = (np.arange(old)[None] + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = _keys(distance, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(old: int, new: int) -> np.ndarray:
    """(new, old) weights of PyTorch's plain bicubic: slope -0.75, four neighbours, the border repeated."""
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = np.zeros((new, old))
    for offset in range(-1, 3):
        neighbour = np.floor(centres).astype(int) + offset
        np.add.at(weights, (np.arange(new), np.clip(neighbour, 0, old - 1)), _keys(centres - neighbour, -0.75))
    return weights


def _geometric(old: int, new: int) -> np.ndarray:
    """(new, old) weights of linear interpolation from differences in geometric progression; the ends are repeated."""
    half, reach = old // 2, new // 2
    low, high = 1.01, 1.5  # bounds and tolerance of the search are timm's, and so are its rounding errors
    ratio = high
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    steps = np.cumsum(ratio ** np.arange(half))
    positions = np.concatenate([-steps[::-1], [0.0], steps])
    targets = np.arange(-reach, reach + 1)
    return np.stack([np.interp(targets, positions, one) for one in np.eye(old)], axis=1)
