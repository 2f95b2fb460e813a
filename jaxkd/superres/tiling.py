"""Tiled inference: enlarges a picture of any size piece by piece, with the pixels of one pass over the whole.

The network sees windows. Of each only those pixels are kept that nothing outside of the window can influence: they are
`receptive_field` or further away from the window's sides, except where a side is the border of the picture itself.
There the network's own zero padding is what a pass over the whole picture would see too, so a window is never padded
and never crosses the border. All windows of a picture have one size: one compiled program, and any number in a batch.

Legend: B batch, H W height and width of a picture, h w of a window, s scale.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError, ShapeError, check_range
from jaxkd.models.sr_base import Upscaler

PyTree = Any
ROUND = 16  # windows have sides that are multiples of it where they can, so that pictures share compiled programs
REUSE = 1.25  # a compiled window is taken again if it costs at most so much more than one made to measure
# Sides of windows by scale, in input pixels, for about 450 MB of feature maps (64 channels, fp32, by the compiler's
# count for MDBN). Smaller ones are mostly overlap: x4 in windows of 224 computes 1.78 pixels for each that is kept, in
# windows of 448 it computes 1.31.
SIDES = {2: 576, 3: 576, 4: 448, 8: 224}
# Pixels of the last small map that are enlarged at a time (`Upscaler.strip_pixels`). On a CPU strips that fit into the
# caches make x4 1.1 times as fast (2 cores of an EPYC) and leave a quarter of the memory. Accelerators get more work in
# one piece; that number is a guess, none was measured.
STRIPS = {"cpu": 4096}
STRIP = 65_536
VARIANTS = 8  # of the self-ensemble: flips of either axis, and the transpose
LUMA = (0.299, 0.587, 0.114)  # BT.601


class Span(NamedTuple):
    """A window [start, stop) along one axis, of which [first, last) is kept; both in pixels of the picture."""

    start: int
    stop: int
    first: int
    last: int


class Tile(NamedTuple):
    """A window of (h, w) of a picture, along both axes."""

    rows: Span
    columns: Span


class Layout(NamedTuple):
    """Windows of an image: size `side` (h, w), and the part of each that is kept; the kept parts cover it once."""

    side: tuple[int, int]
    tiles: tuple[Tile, ...]


def window_side(length: int, tile: int, overlap: int) -> int:
    """The shortest side of equal windows, at most `tile`, that cover an axis with as few of them as `tile` allows.

    Args:
      length: of the axis, in pixels.
      tile: the longest side allowed; more than 2 `overlap`, or at least `length`.
      overlap: how far the network sees, in pixels per side.
    """
    if length <= tile:
        return length
    count = -(-(length - 2 * overlap) // (tile - 2 * overlap))
    even = -(-(length + 2 * overlap * (count - 1)) // count)
    return min(tile, -(-even // ROUND) * ROUND)


def spans(length: int, side: int, overlap: int) -> list[Span]:
    """Windows of `side` that cover an axis of `length`; what is kept begins and ends halfway between neighbours.

    Neighbours share at least 2 `overlap` pixels, so that at least `overlap` of them lie beyond what is kept.
    """
    if side >= length:
        return [Span(0, length, 0, length)]
    count = -(-(length - 2 * overlap) // (side - 2 * overlap))
    starts = [i * (length - side) // (count - 1) for i in range(count)]
    cuts = [0, *((after + before + side) // 2 for before, after in pairwise(starts)), length]
    return [Span(start, start + side, cuts[i], cuts[i + 1]) for i, start in enumerate(starts)]


def _vary(x: jax.Array, variant: int) -> jax.Array:
    """(B, h, w, C) flipped by the first two bits of `variant`, then transposed by the third."""
    x = jnp.flip(x, [axis for axis in (1, 2) if variant & axis])
    return x.swapaxes(1, 2) if variant & 4 else x


def _unvary(y: jax.Array, variant: int) -> jax.Array:
    """The inverse of `_vary`."""
    y = y.swapaxes(1, 2) if variant & 4 else y
    return jnp.flip(y, [axis for axis in (1, 2) if variant & axis])


@jax.jit
def _preprocess(windows: jax.Array) -> jax.Array:
    """(B, h, w) or (B, h, w, 3), integers or floats in [0, 1] -> (B, h, w, 3) fp32 in [0, 1]."""
    if jnp.issubdtype(windows.dtype, jnp.integer):
        top = jnp.iinfo(windows.dtype).max
        # A table, because XLA turns a division by a constant into a product, which rounds differently.
        x = jnp.asarray(np.arange(top + 1, dtype=np.float32) / np.float32(top))[windows]
    else:
        x = windows.astype(jnp.float32)
    return x if x.ndim == 4 else jnp.broadcast_to(x[..., None], (*x.shape, 3))


def by_strips(model: Upscaler) -> Upscaler:
    """The same network as inference runs it on this backend: same variables, and same pixels to rounding."""
    return model.clone(strip_pixels=STRIPS.get(jax.default_backend(), STRIP))


class Enlarger:
    """A network that enlarges pictures of any size in bounded memory.

    Args:
      model: a super-resolution network of `jaxkd.models`.
      variables: its `{"params": ...}`.
      tile: longest side of a window in input pixels, overlap included; 0 takes the scale's entry of `SIDES`. Memory
        grows with its square, and work that is done twice with its inverse.
      batch_size: windows at once; 0 takes 1 on a CPU, where more gain nothing, and 4 elsewhere.
      ensemble: the mean over the eight flips and rotations of the input ("x8 self-ensemble", Timofte et al. 2016):
        slightly better, eight times the work.
    """

    def __init__(
        self, model: Upscaler, variables: PyTree, *, tile: int = 0, batch_size: int = 0, ensemble: bool = False
    ):
        self.scale = model.scale
        self.overlap = model.receptive_field
        least = 2 * self.overlap + 1
        if tile and tile < least:
            raise ConfigError(
                f"tile={tile} is too small: windows overlap by {self.overlap} pixels on each side, which the network "
                f"sees. Give at least {least}; {2 * least} or more wastes less work."
            )
        check_range("batch_size", batch_size, least=0)
        self.tile = tile or max(SIDES[self.scale], 2 * least)
        on_cpu = jax.default_backend() == "cpu"
        self.batch_size = batch_size or (1 if on_cpu else 4)
        self.ensemble = ensemble
        # One batch computes while the next is cut; on a CPU two would share its cores and need twice the memory.
        self._ahead = 0 if on_cpu else 1
        self._params = jax.device_put(variables)
        model = by_strips(model)
        self._network = jax.jit(lambda params, x: model.apply(params, x)[0])
        self._postprocess = jax.jit(_postprocess, static_argnames=("dtype", "grey"))
        self._compiled: set[tuple[int, int]] = set()

    def use(self, variables: PyTree) -> None:
        """Takes other weights of the same network; nothing is compiled again."""
        self._params = jax.device_put(variables)

    def layout(self, height: int, width: int) -> Layout:
        """Windows of an image of H x W pixels."""
        lengths = (height, width)
        side = tuple(window_side(n, self.tile, self.overlap) for n in lengths)
        best = min((self._cost(lengths, c), c) for c in {side, *self._compiled} if self._fits(lengths, c))
        if best[0] <= REUSE * self._cost(lengths, side):
            side = best[1]
        rows, columns = (spans(n, d, self.overlap) for n, d in zip(lengths, side, strict=True))
        return Layout(side, tuple(Tile(r, c) for r in rows for c in columns))

    def _fits(self, lengths: tuple[int, int], side: tuple[int, int]) -> bool:
        """Whether windows of `side` can cover the picture."""
        return all(d == n or 2 * self.overlap < d < n for n, d in zip(lengths, side, strict=True))

    def _cost(self, lengths: tuple[int, int], side: tuple[int, int]) -> int:
        """Input pixels that the network sees."""
        counts = [len(spans(n, d, self.overlap)) for n, d in zip(lengths, side, strict=True)]
        return counts[0] * side[0] * counts[1] * side[1]

    def parts(self, image: np.ndarray) -> Iterator[tuple[Tile, np.ndarray]]:
        """Enlarged pieces of a picture, which cover it once, in the order of rows.

        Args:
          image: (H, W) greyscale or (H, W, 3) RGB; uint8, uint16, or float in [0, 1]. The network sees greyscale as
            three equal channels, and the luma (BT.601) of its output is kept.

        Yields:
          Where a piece came from, and its pixels (s (last - first), ...) of the kind of `image`; integers are clipped
          and rounded, floats are fp32 and neither.
        """
        _check(image)
        side, tiles = self.layout(*image.shape[:2])
        self._compiled.add(side)
        waiting: deque[tuple[list[Tile], jax.Array]] = deque()
        for batch in self._batches(tiles):
            windows = [image[t.rows.start : t.rows.stop, t.columns.start : t.columns.stop] for t in batch]
            waiting.append((batch, self._enlarged(np.stack(windows), side)))
            if len(waiting) > self._ahead:
                yield from self._finished(*waiting.popleft(), side)
        while waiting:
            yield from self._finished(*waiting.popleft(), side)

    def _batches(self, tiles: tuple[Tile, ...]) -> Iterator[list[Tile]]:
        """Full batches, then what is left one by one: padding a batch would cost more than a second program."""
        full = len(tiles) // self.batch_size * self.batch_size
        yield from (list(tiles[i : i + self.batch_size]) for i in range(0, full, self.batch_size))
        yield from ([tile] for tile in tiles[full:])

    def _enlarged(self, windows: np.ndarray, side: tuple[int, int]) -> jax.Array:
        """(B, h, w[, 3]) -> (B, s h, s w[, 3]) of the same kind, still on the device."""
        try:
            x = _preprocess(windows)
            y = self._network(self._params, x)
            if self.ensemble:
                for variant in range(1, VARIANTS):
                    y = y + _unvary(self._network(self._params, _vary(x, variant)), variant)
                    y.block_until_ready()  # one variant's memory at a time
                y = y / VARIANTS
            return self._postprocess(y, dtype=windows.dtype.name, grey=windows.ndim == 3)
        except jax.errors.JaxRuntimeError as error:
            raise self._explained(error, side) from error

    def _finished(self, tiles: list[Tile], y: jax.Array, side: tuple[int, int]) -> Iterator[tuple[Tile, np.ndarray]]:
        try:
            windows = np.asarray(y)
        except jax.errors.JaxRuntimeError as error:
            raise self._explained(error, side) from error
        for (rows, columns), window in zip(tiles, windows, strict=True):
            r, c = (slice(self.scale * (a.first - a.start), self.scale * (a.last - a.start)) for a in (rows, columns))
            yield Tile(rows, columns), window[r, c]

    def _explained(self, error: Exception, side: tuple[int, int]) -> Exception:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            return error
        return ConfigError(
            f"The memory of the device is too small for {self.batch_size} window{'s' if self.batch_size > 1 else ''} "
            f"of {side[0]}x{side[1]} pixels. Give a smaller tile than {self.tile}, or a smaller batch."
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W[, 3]) -> (s H, s W[, 3]); see `parts`."""
        _check(image)
        kind = image.dtype if np.issubdtype(image.dtype, np.integer) else np.dtype(np.float32)
        height, width = image.shape[:2]
        out = np.empty((self.scale * height, self.scale * width, *image.shape[2:]), kind)
        for (rows, columns), part in self.parts(image):
            y, x = self.scale * rows.first, self.scale * columns.first
            out[y : y + part.shape[0], x : x + part.shape[1]] = part
        return out


def _postprocess(y: jax.Array, *, dtype: str, grey: bool) -> jax.Array:
    """(B, H, W, 3) fp32 -> `dtype`, (B, H, W) if `grey`; integers clipped and rounded as BasicSR does, half to even."""
    if grey:
        y = sum(weight * y[..., i] for i, weight in enumerate(LUMA))
    if not jnp.issubdtype(dtype, jnp.integer):
        return y
    return jnp.round(jnp.clip(y, 0, 1) * jnp.iinfo(dtype).max).astype(dtype)


def _check(image: np.ndarray) -> None:
    kinds = image.dtype in (np.uint8, np.uint16) or np.issubdtype(image.dtype, np.floating)
    if not kinds or image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ShapeError(
            f"The picture to enlarge is {image.dtype} of shape {image.shape}. Give one of uint8, uint16 or float in "
            "[0, 1], (height, width) or (height, width, 3), with at least one pixel; enlarge transparency by "
            "data.imresize."
        )
