"""Windows of a feature map: partition and merge, cyclic shift, attention mask, relative positions.

Liu et al. 2021, section 3.2; semantics of timm/models/swin_transformer.py. Everything except the two reshapes is
computed in NumPy while a network is traced. Legend: B batch, h w grid, a b window height and width, W windows per
image, N = a b tokens per window, C channels.
"""

from __future__ import annotations

import jax
import numpy as np

Size = tuple[int, int]
MASKED = -100.0  # added to logits between regions that are neighbours only because of the cyclic shift


def window_and_shift(grid: Size, window: Size, shifted: bool) -> tuple[Size, Size]:
    """Window and shift of a block, clamped to the grid axis by axis (timm: `_calc_window_shift`).

    Returns:
      The window, at most as large as the grid, and the shift: half the unclamped window, or 0 along an axis that one
      window spans.
    """
    clamped = (min(grid[0], window[0]), min(grid[1], window[1]))
    shift = tuple(w // 2 if shifted and g > c else 0 for g, c, w in zip(grid, clamped, window, strict=True))
    return clamped, (shift[0], shift[1])


def relative_position_index(window: Size) -> np.ndarray:
    """(N, N) indices into the bias table, which has one row per difference (dy, dx) of positions, dy major."""
    a, b = window
    y, x = (axis.reshape(-1) for axis in np.mgrid[:a, :b])
    dy, dx = y[:, None] - y[None, :] + a - 1, x[:, None] - x[None, :] + b - 1
    return dy * (2 * b - 1) + dx


def _regions(length: int, window: int, shift: int) -> np.ndarray:
    """(length,) index of the region, 0 to 2, that each position of a shifted axis belongs to; 0 without a shift."""
    region = np.zeros(length, np.int64)
    if shift:
        region[-window:] = 1
        region[-shift:] = 2
    return region


def partition(x: jax.Array, window: Size) -> jax.Array:
    """(B, h, w, C) -> (B, W, N, C); the window divides the grid."""
    batch, h, w, channels = x.shape
    a, b = window
    x = x.reshape(batch, h // a, a, w // b, b, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, (h // a) * (w // b), a * b, channels)


def merge(windows: jax.Array, window: Size, grid: Size) -> jax.Array:
    """(B, W, N, C) -> (B, h, w, C), the inverse of `partition`."""
    (batch, _, _, channels), (a, b), (h, w) = windows.shape, window, grid
    x = windows.reshape(batch, h // a, w // b, a, b, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, h, w, channels)


def shift_mask(grid: Size, window: Size, shift: Size) -> np.ndarray | None:
    """(W, N, N): 0 within a region of the shifted grid, -100 between regions; None where nothing is shifted."""
    if not any(shift):
        return None
    rows, columns = (_regions(g, w, s) for g, w, s in zip(grid, window, shift, strict=True))
    region = (3 * rows[:, None] + columns[None, :]).reshape(
        grid[0] // window[0], window[0], grid[1] // window[1], window[1]
    )
    region = region.transpose(0, 2, 1, 3).reshape(-1, window[0] * window[1])
    return np.where(region[:, :, None] == region[:, None, :], 0.0, MASKED).astype(np.float32)
