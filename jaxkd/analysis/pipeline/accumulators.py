"""Host side of a data-set pass: sums in float64, one row of numbers per image, and the scratch file of tokens."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from jaxkd.analysis.layer_statistics import energy_statistics
from jaxkd.analysis.lowrank import unshift
from jaxkd.analysis.sep import ImageSep, SepStatistics, sep_statistics
from jaxkd.errors import DataError, ShapeError, TapError, did_you_mean, in_words

Shapes = dict[str, tuple[int, ...]]
PERCENTS = (99, 95, 90, 80)


@dataclass
class Streamed:
    """Result of a pass over n images and L layers."""

    layers: tuple[str, ...]  # names in depth order
    shapes: dict[str, tuple[int, ...]]  # layer -> shape of one image's feature, (N, C) or (h, w, C)
    last: str  # the layer that was spooled
    images: int = 0  # n
    # statistic -> (n, L) float64, NaN where undefined; with ranks, rank_99 ... rank_80, participation_ratio and
    # stable_rank among them.
    scalars: dict[str, np.ndarray] = field(default_factory=dict)
    # (n, L) bool, False where a feature held NaN or infinity; set when the pass is over
    valid: np.ndarray = None  # type: ignore[assignment]
    # layer -> (C,) sums of the channel spectrum over valid images, and of its square
    spectrum: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    # layer -> (h, w) sum of the 2-D spatial amplitude over valid images; maps only
    spatial: dict[str, np.ndarray] = field(default_factory=dict)
    # (C, C) float64 sum of x x^T over the tokens of the last layer, (C,) sum of x, number of tokens
    moment: tuple[np.ndarray, np.ndarray, int] | None = None
    # "full" and "folded" -> mean over tokens, population sd, tokens used, tokens without energy
    sep: dict[str, SepStatistics] = field(default_factory=dict)
    # one (L, m, m) float32 array per chunk; between tokens (L, m N, m N)
    grams: list[np.ndarray] = field(default_factory=list)
    gram_tokens: int = 1  # N, rows of a Gram matrix for each image
    spool: np.memmap | None = None  # (n, N, C) float32 memory map of the last layer's tokens
    # the entropy ranges that were used, one per chunk or one
    ranges: list[tuple[float, float]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # names of images that could not be read
    correct: int | None = None  # images whose label the network predicts; None where nothing was predicted


def host_energies(gram: np.ndarray) -> np.ndarray:
    """Eigenvalues of (B, K, K) Gram matrices in float64, descending, round-off below zero clipped.

    On a CPU LAPACK's float64 eigenvalues of 24 matrices of 196 x 384 take 14 ms on two cores, XLA's eigh 51 ms (it
    also computes the vectors) and its SVD 140 ms.
    """
    fit = np.isfinite(gram).all(axis=(1, 2))
    values = np.linalg.eigvalsh(np.where(fit[:, None, None], gram, 0.0).astype(np.float64))
    return np.where(fit[:, None], np.maximum(values[:, ::-1], 0.0), np.nan)


def _merge_sep(a: SepStatistics | None, b: SepStatistics) -> SepStatistics:
    """Mean and sd over the tokens of both (Chan, Golub, LeVeque 1983), which no order of batches can change much."""
    if a is None or not a.tokens:
        return b._replace(zero_tokens=b.zero_tokens + (a.zero_tokens if a else 0))
    if not b.tokens:
        return a._replace(zero_tokens=a.zero_tokens + b.zero_tokens)
    count = a.tokens + b.tokens
    step = b.mean - a.mean
    square = a.tokens * a.sd**2 + b.tokens * b.sd**2 + step**2 * (a.tokens * b.tokens / count)
    mean = a.mean + step * (b.tokens / count)
    return SepStatistics(mean, np.sqrt(square / count), count, a.zero_tokens + b.zero_tokens)


class Accumulator:
    """Adds up what the devices hand back for one batch after the other.

    Args:
      label: of the network, for errors.
      last: layer whose tokens are kept; "" is the deepest.
      spool: file for those tokens; written anew.
      gram_energies: whether "energies" arrives as Gram matrices, to be decomposed here.
    """

    def __init__(self, label: str, last: str, spool: Path, *, gram_energies: bool):
        self.out = Streamed((), {}, last)
        self._label, self._path, self._gram_energies = label, spool, gram_energies
        self._file = spool.open("wb")
        self._rows: dict[str, list[np.ndarray]] = {}
        self._valid: list[np.ndarray] = []
        self._ranks: list[list[Future | None]] = []  # of each batch, by layer
        self._spooled = 0
        self._sums: list = [0.0, 0.0, 0]  # about `shift`
        self.shift: np.ndarray | None = None

    def start(self, shapes: Shapes) -> None:
        """Remembers the shapes of the first batch and holds every later one against them."""
        if not self.out.shapes:
            self.out.layers, self.out.shapes = tuple(shapes), shapes
            self.out.last = self.out.last or tuple(shapes)[-1]
            if self.out.last not in shapes:
                raise TapError(
                    f'last="{self.out.last}" is not among the layers of '
                    f"{self._label}.{did_you_mean(self.out.last, shapes)} Choose one of: {in_words(shapes)}."
                )
        elif shapes != self.out.shapes:
            changed = next(n for n in shapes if shapes[n] != self.out.shapes.get(n))
            raise ShapeError(
                f'The layer "{changed}" of {self._label} changed its shape from {self.out.shapes.get(changed)} to '
                f"{shapes[changed]} between batches. Return the same shapes for every batch."
            )

    def add(self, results: dict[str, dict], slopes: dict | None, good: int, pool: ThreadPoolExecutor) -> np.ndarray:
        """Adds a batch.

        Args:
          results: layer -> statistic -> (b, ...) on a device.
          slopes: layer -> (b,) gradient magnitudes, or None.
          good: how many images at the front count; the rest is padding.
          pool: for eigenvalues, while the devices go on.

        Returns:
          (good,) bool: images whose last layer is finite.
        """
        rows: dict[str, list[np.ndarray]] = {}
        valid, ranks = [], []
        for name in self.out.layers:
            got = {k: np.asarray(v)[:good] for k, v in results[name].items()}
            fit = got.pop("finite")
            valid.append(fit)
            spectrum = got.pop("spectrum").astype(np.float64)
            sums = self.out.spectrum.get(name, (0.0, 0.0))
            self.out.spectrum[name] = (sums[0] + spectrum[fit].sum(axis=0), sums[1] + (spectrum[fit] ** 2).sum(axis=0))
            if "spatial" in got:
                spatial = got.pop("spatial")[fit].astype(np.float64).sum(axis=0)
                self.out.spatial[name] = self.out.spatial.get(name, 0.0) + spatial
            raw = got.pop("energies", None)
            ranks.append(None if raw is None else pool.submit(_ranks, raw, self._gram_energies))
            for key, value in got.items():
                rows.setdefault(key, []).append(value.astype(np.float64))
            if slopes is not None:
                rows.setdefault("gradient", []).append(np.asarray(slopes[name])[:good].astype(np.float64))
        fits = np.stack(valid, axis=1)
        self._valid.append(fits)
        self._ranks.append(ranks)
        for key, columns in rows.items():
            self._rows.setdefault(key, []).append(np.where(fits, np.stack(columns, axis=1), np.nan))
        self.out.images += good
        return fits[:, self.out.layers.index(self.out.last)]

    def keep(self, tokens: np.ndarray, moment: tuple, sep: dict[str, ImageSep], mask: np.ndarray) -> None:
        """Adds the last layer of a batch.

        Args:
          tokens: (b, N, C).
          moment: sum of y y^T (C, C) and of y (C,) over the tokens of the images in `mask`, y = x - shift.
          sep: "full" and "folded" -> sums per image.
          mask: (b,) bool, images that count.
        """
        self._sums[0] += np.asarray(moment[0], np.float64)
        self._sums[1] += np.asarray(moment[1], np.float64)
        self._sums[2] += tokens.shape[1] * int(mask.sum())
        for name, part in sep.items():
            kept = jax.tree.map(lambda v: np.asarray(v)[mask], part)
            batch = sep_statistics([kept]) if mask.any() else None
            if batch is not None:
                self.out.sep[name] = _merge_sep(self.out.sep.get(name), batch)
        self._file.write(np.ascontiguousarray(tokens[mask], np.float32).tobytes())
        self._spooled += int(mask.sum())

    def finish(self) -> Streamed:
        """Closes the scratch file and returns the result."""
        self._file.close()
        out = self.out
        if not out.images:
            raise DataError(
                f"None of the images could be read ({len(out.broken)} are broken). Look at the first: "
                f"{out.broken[0] if out.broken else 'there was none'}."
            )
        out.valid = np.concatenate(self._valid)
        out.scalars = {key: np.concatenate(rows) for key, rows in self._rows.items()}
        self._add_ranks(out)
        if self._spooled:
            moment, total, count = self._sums
            out.moment = (*unshift(moment, total, count, self.shift), count)
            shape = out.shapes[out.last]
            dims = (self._spooled, int(np.prod(shape[:-1])), shape[-1])
            out.spool = np.memmap(self._path, np.float32, "r", shape=dims)
        return out

    def _add_ranks(self, out: Streamed) -> None:
        """Ranks and their like as rows beside the other statistics; NaN for layers without tokens."""
        if not any(future is not None for batch in self._ranks for future in batch):
            return
        columns: list[dict[str, np.ndarray]] = []
        for layer in range(len(out.layers)):
            parts = [batch[layer] for batch in self._ranks]
            if any(p is None for p in parts):
                columns.append({})
                continue
            found = [p.result() for p in parts if p is not None]
            columns.append({key: np.concatenate([f[key] for f in found]) for key in found[0]})
        nothing = np.full(out.images, np.nan)
        for key in next(c for c in columns if c):
            table = np.stack([c.get(key, nothing) for c in columns], axis=1)
            out.scalars[key] = np.where(out.valid, table, np.nan)


def _ranks(raw: np.ndarray, gram: bool) -> dict[str, np.ndarray]:
    return energy_statistics(host_energies(raw) if gram else np.asarray(raw, np.float64))
