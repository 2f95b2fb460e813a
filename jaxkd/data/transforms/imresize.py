"""Bicubic resizing with the pixels of MATLAB's `imresize`, which made the low-resolution side of every SR benchmark.

Shrinking by s stretches the cubic kernel by 1/s (antialiasing), pixels beyond the border are the picture mirrored with
its edge pixel repeated, and weights sum to one. Pillow, OpenCV and `jax.image.resize` each differ in one of the three.

Integer pictures are resized one axis after the other with rounding in between, half up, as MATLAB does: the X2, X3 and
X4 files of Set5 come out bit for bit only so. A picture of floats is not rounded; some files, such as the X8 of
Set5, were made from floats and rounded once at the end.

A resize of one axis is a matrix with few entries beside its diagonal. It is applied in blocks of rows, each a small
dense product: several times faster than gathering the taps. The products are kept below the size from which OpenBLAS
starts threads, because on a machine that is busy, with data workers say, waiting for those costs ten times the sum.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxkd.errors import ConfigError, ShapeError

SUPPORT = 4.0  # width of the cubic kernel, in pixels of the coarser of the two grids
BLOCK = 16  # output rows per dense product: more wastes work beside the band, fewer leaves BLAS idle
PRODUCT = 2**18 - 1  # multiplications per dense product; OpenBLAS takes threads from 2^18
TIE = 1e-9  # a value this far below a half is a half: makes rounding independent of the order of summation
INTEGERS = (np.dtype(np.uint8), np.dtype(np.uint16))


class _Block(NamedTuple):
    """Output rows [start, stop) are `weights` (stop - start, last - first) times the input rows [first, last)."""

    start: int
    stop: int
    first: int
    last: int
    weights: np.ndarray


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -1/2, zero beyond 2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@lru_cache(maxsize=64)
def _blocks(inputs: int, outputs: int, scale: float) -> tuple[_Block, ...]:
    """The matrix (outputs, inputs) that resizes an axis, fp64, cut into blocks of rows without their zeros."""
    shrink = min(scale, 1.0)
    width = SUPPORT / shrink
    centre = (np.arange(outputs) + 0.5) / scale - 0.5  # where the middle of each output pixel lies on the input
    taps = np.floor(centre - width / 2)[:, None].astype(np.int64) + np.arange(math.ceil(width) + 2)
    weights = shrink * _cubic(shrink * (centre[:, None] - taps))
    weights /= weights.sum(1, keepdims=True)
    taps %= 2 * inputs  # the mirrored picture has twice the period
    taps = np.minimum(taps, 2 * inputs - 1 - taps)
    blocks = []
    for start in range(0, outputs, BLOCK):
        stop = min(start + BLOCK, outputs)
        rows, used = taps[start:stop], weights[start:stop] != 0
        first, last = rows[used].min(), rows[used].max() + 1
        dense = np.zeros((stop - start, last - first))
        where = np.broadcast_to(np.arange(stop - start)[:, None], rows.shape)
        np.add.at(dense, (where[used], rows[used] - first), weights[start:stop][used])
        dense.flags.writeable = False  # shared by every caller
        blocks.append(_Block(start, stop, int(first), int(last), dense))
    return tuple(blocks)


def _first_axis(image: np.ndarray, outputs: int, scale: float) -> np.ndarray:
    """(h, ...) -> (outputs, ...): integers rounded and of their own kind, floats in fp64."""
    rounded = image.dtype in INTEGERS
    rows = image.reshape(len(image), -1)
    out = np.empty((outputs, rows.shape[1]), image.dtype if rounded else np.float64)
    blocks = _blocks(len(image), outputs, scale)
    wide = max(1, PRODUCT // max(block.weights.size for block in blocks))
    for column in range(0, rows.shape[1], wide):
        strip = rows[:, column : column + wide].astype(np.float64)
        for block in blocks:
            values = block.weights @ strip[block.first : block.last]
            if rounded:
                values += 0.5 + TIE  # and what is stored into integers is cut off: half up
                np.clip(values, 0, np.iinfo(image.dtype).max, out=values)
            out[block.start : block.stop, column : column + wide] = values
    return out.reshape(outputs, *image.shape[1:])


def _target(image: np.ndarray, scale: float | tuple[int, int]) -> tuple[tuple[int, int], tuple[float, float]]:
    """(size, scales) of the two axes, from a factor or a size."""
    height, width = image.shape[:2]
    if isinstance(scale, tuple | list):
        size = tuple(scale)
        if len(size) != 2 or any(int(n) != n or n < 1 for n in size):
            raise ConfigError(
                f"The size {scale} to resize to is not a height and a width. "
                "Pass two positive integers, or one number as the factor."
            )
        return (int(size[0]), int(size[1])), (size[0] / height, size[1] / width)
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(
            f"The factor {scale} to resize by is out of range. Pass a positive number, "
            "such as 1 / 4 to shrink or 4 to enlarge."
        )
    # MATLAB rounds the size up; the slack keeps 0.28 * 25 = 7.000000000000001 from becoming 8.
    return tuple(max(1, math.ceil(n * scale - 1e-9)) for n in (height, width)), (float(scale), float(scale))


def imresize(image: np.ndarray, scale: float | tuple[int, int]) -> np.ndarray:
    """Bicubic resizing, antialiased where it shrinks, as MATLAB's `imresize(image, scale)`.

    To make the low-resolution side of a pair, crop its sides to multiples of the factor first; otherwise the last
    pixels of both pictures do not show the same thing.

    Args:
      image: (H, W) or (H, W, C), uint8, uint16 or float in any range.
      scale: a factor for both sides, the new side being rounded up; or the new (height, width).

    Returns:
      (h, w) or (h, w, C) of the same kind. Integers are rounded half up and clipped, after each axis; floats are
      computed in fp64, neither rounded nor clipped (a cubic overshoots at edges), and returned in their own precision.

    Raises:
      ConfigError: a factor that is not positive, or a size that is not two positive integers.
      ShapeError: another rank, an empty picture, or another kind of number.

    Source: MATLAB's documented behaviour; agreement checked on published files (module docstring).
    """
    image = np.asarray(image)
    integer = image.dtype in INTEGERS
    if image.ndim not in (2, 3) or image.size == 0 or not (integer or np.issubdtype(image.dtype, np.floating)):
        raise ShapeError(
            f"The image to resize is {image.dtype} of shape {image.shape}. Pass uint8, uint16 or float of shape "
            "(height, width) or (height, width, channels) with at least one pixel; resize the images of a batch one by "
            "one."
        )
    size, scales = _target(image, scale)
    out = image
    # The axis that shrinks more goes first; with equal factors the height. MATLAB's order, which its rounding shows.
    for axis in sorted((0, 1), key=lambda axis: scales[axis]):
        out = np.ascontiguousarray(np.swapaxes(out, 0, axis))
        out = np.swapaxes(_first_axis(out, size[axis], scales[axis]), 0, axis)
    return np.ascontiguousarray(out, dtype=image.dtype)
