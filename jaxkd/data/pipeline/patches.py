"""Training batches for super-resolution: an infinite, resumable iterator over random aligned patches of pairs."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxkd.data.pipeline.broken import MAX_BROKEN, BrokenImages
from jaxkd.data.pipeline.resumable import Batch, ResumableBatches
from jaxkd.data.pipeline.sampler import EpochSampler, record_rng
from jaxkd.data.sources.pairs import Pair, PairSource
from jaxkd.data.transforms.crops import Box, Size
from jaxkd.errors import ConfigError, DataError, check_choice, check_range, first_few

_LOG = logging.getLogger(__name__)

SMALL = ("error", "skip")


@dataclass(frozen=True)
class PatchConfig:
    """Settings of the training patches; the names are those of the config's `data.patches`.

    Attributes:
      size: pixels of a side of the HR patch; must divide by the scale (256; 255 for x3).
      flips: mirror left and right with probability 1/2.
      rotations: turn by 0, 90, 180 or 270 degrees, each as often.
      per_image: patches of each image that is visited, side by side in a batch. A 2040 x 1404 PNG takes
        0.14 s to decode, a patch of it next to nothing, so 4 make batches nearly four times as fast; but a batch then
        shows a quarter of the scenes. Must divide each host's share of the batch.
      visits: how often an epoch visits each image, for sets that would otherwise give less than a batch.
      small: how images smaller than a patch are treated: "error", or "skip" to leave them out, with a warning.
      cache_mb: images are kept decoded, in each worker, if all of them together need no more than this many 10^6 bytes.
        With larger sets nothing is kept. It changes no pixel of images that are in order.

    Raises:
      ConfigError: a value is out of range.
    """

    size: int = 256
    flips: bool = True
    rotations: bool = True
    per_image: int = 1
    visits: int = 1
    small: str = "error"
    cache_mb: float = 256

    def __post_init__(self) -> None:
        for name in ("size", "per_image", "visits"):
            check_range(f"data.patches.{name}", getattr(self, name), 1, whole=True)
        check_choice("data.patches.small", self.small, SMALL)


class _Patches:
    """Random access to this host's batches, counted from 0 over all epochs; what worker processes get a copy of."""

    def __init__(
        self,
        source: PairSource,
        records: np.ndarray,
        sizes: np.ndarray,
        sampler: EpochSampler,
        config: PatchConfig,
        seed: int,
    ):
        self._source, self._records, self._sizes = source, records, sizes
        self._sampler, self._config, self._seed = sampler, config, seed
        self._side = config.size // source.scale  # of an LR patch
        lr_pixels = sizes.clip(0).prod(1, dtype=np.int64).sum()
        # All or nothing: what a damaged file becomes must not depend on what a worker has seen before.
        self._keeps = 3 * lr_pixels * (1 + source.scale**2) <= config.cache_mb * 1e6
        self._kept: dict[int, Pair] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def __getitem__(self, position: int) -> Batch:
        epoch, places, _ = self._sampler.batch(position)
        copies, side, scale = self._config.per_image, self._side, self._source.scale
        count = copies * len(places)
        batch = {
            "hr": np.zeros((count, scale * side, scale * side, 3), np.uint8),
            "lr": np.zeros((count, side, side, 3), np.uint8),
            "mask": np.ones(count, bool),
        }
        broken = {}
        for i, place in enumerate(places.tolist()):
            visit, number = divmod(place, len(self._records))
            record = int(self._records[number])
            rngs = [record_rng(self._seed, epoch, record, copies * visit + c) for c in range(copies)]
            mine = slice(copies * i, copies * (i + 1))
            try:
                batch["hr"][mine], batch["lr"][mine] = self._of_record(record, int(number), rngs)
            except DataError as error:
                batch["hr"][mine], batch["lr"][mine], batch["mask"][mine] = 0, 0, False
                broken[record] = str(error)
        return {**batch, "broken": np.array(json.dumps(broken))}

    def _of_record(
        self, record: int, number: int, rngs: list[np.random.Generator]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """HR and LR patches of one image, one for each of `rngs`."""
        height, width = self._size(record, number)
        side = self._side
        boxes = []
        for rng in rngs:
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            boxes.append((left, top, left + side, top + side))
        large, small = [], []
        for (hr, lr), rng in zip(self._regions(record, boxes), rngs, strict=True):
            mirror = self._config.flips and rng.random() < 0.5
            turns = int(rng.integers(4)) if self._config.rotations else 0
            for patch, patches in ((hr, large), (lr, small)):
                patches.append(np.rot90(patch[:, ::-1] if mirror else patch, turns))
        return large, small

    def _size(self, record: int, number: int) -> Size:
        height, width = self._sizes[number].tolist()
        if min(height, width) < 0:  # it could not be read before: the same complaint again, or it is mended
            height, width = self._source.size(record)
        if min(height, width) < self._side:
            raise DataError(_too_small(self._source, record, (height, width), self._config.size))
        return height, width

    def _regions(self, record: int, boxes: list[Box]) -> list[tuple[np.ndarray, np.ndarray]]:
        if not self._keeps:
            return self._source.regions(record, boxes)
        if record not in self._kept:
            self._kept[record] = self._source.pair(record)
        pair, s = self._kept[record], self._source.scale
        return [
            (pair.hr[s * upper : s * lower, s * left : s * right], pair.lr[upper:lower, left:right])
            for left, upper, right, lower in boxes
        ]


class PatchPipeline(ResumableBatches):
    """An infinite, resumable iterator over this host's training batches for super-resolution.

    They are `{"hr": (b, P, P, 3) uint8, "lr": (b, P / s, P / s, 3) uint8, "mask": (b,) bool}`, b patches of this host,
    P = `size`, s = the scale; `mask` is False, and the patch black, where an image cannot be read. An epoch visits
    every image `visits` times, in an order of its own, less the incomplete last batch. Where a patch lies and how it is
    turned depends on (seed, epoch, image, visit, patch) alone: the sequence is the same for any number of workers and
    hosts, and after a restart.

    Opening it reads the header of every file, to know which images are too small.

    Args:
      source: the pairs.
      batch_size: patches, over all hosts.
      seed: of the run.
      config: which patches.
      workers: processes that decode (grain); 0 decodes in this process.
      max_broken: share of the images that may be unreadable before the run fails.
      host_index: which host this is.
      host_count: how many there are.

    Attributes:
      skipped: names of the images that are smaller than a patch, with `small="skip"`.
    """

    def __init__(
        self,
        source: PairSource,
        *,
        batch_size: int,
        seed: int,
        config: PatchConfig = PatchConfig(),
        workers: int = 0,
        max_broken: float = MAX_BROKEN,
        host_index: int = 0,
        host_count: int = 1,
    ):
        scale, patch, copies = source.scale, config.size, config.per_image
        if patch % scale:
            below = patch // scale * scale
            raise ConfigError(
                f"data.patches.size={patch} does not divide by the scale {scale}. Give "
                f"{f'{below} or ' if below else ''}{below + scale}."
            )
        share = batch_size // host_count
        if share % copies:
            fits = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
            raise ConfigError(
                f"data.patches.per_image={copies} does not divide the {share} patches of a batch"
                f"{' of each host' if host_count > 1 else ''} (train.batch_size={batch_size}). Give one of: {fits}."
            )
        sizes = source.sizes()
        small = (sizes.min(1) < patch // scale) & (sizes.min(1) >= 0)
        self.skipped = _check_small(source, np.flatnonzero(small), sizes, config)
        records = np.flatnonzero(~small)
        visits = len(records) * config.visits
        if visits * copies < batch_size:
            needed = -(-batch_size // max(len(records) * copies, 1))
            raise DataError(
                f"The training set has {len(records)} images, of which an epoch shows {visits * copies} patches "
                f"(data.patches.visits={config.visits}, data.patches.per_image={copies}), less than "
                f"train.batch_size={batch_size}. "
                + (f"Set data.patches.visits to {needed} or more." if len(records) else "Give larger images.")
            )
        sampler = EpochSampler(visits, batch_size // copies, seed, host_index, host_count)
        super().__init__(
            _Patches(source, records, sizes[records], sampler, config, seed),
            steps_per_epoch=sampler.steps_per_epoch,
            identity={
                "records": len(records),
                "batch_size": batch_size,
                "seed": seed,
                "scale": scale,
                "size": patch,
                "per_image": copies,
                "visits": config.visits,
            },
            broken=BrokenImages(len(records), max_broken),
            workers=workers,
        )


def _check_small(source: PairSource, small: np.ndarray, sizes: np.ndarray, config: PatchConfig) -> list[str]:
    """Names of the images that are too small; an error unless they may be skipped."""
    if not len(small):
        return []
    names = [source.name(i) for i in small.tolist()]
    shown, side = first_few(names, 5), config.size
    if config.small == "skip":
        _LOG.warning("Left out: %d images smaller than data.patches.size=%d: %s", len(names), side, shown)
        return names
    smallest = int(sizes[small].min()) * source.scale
    usable = f"data.patches.size to {smallest} or less, or " if smallest else ""
    raise DataError(
        f"{len(names)} of {len(source)} images are smaller than data.patches.size={side} in a direction: {shown}. Set "
        f'{usable}data.patches.small="skip" to train without them.'
    )


def _too_small(source: PairSource, record: int, size: Size, side: int) -> str:
    height, width = (source.scale * n for n in size)
    return (
        f'The image "{source.name(record)}" has {width} x {height} pixels of use, less than data.patches.size={side}. '
        "Remove it, or train with smaller patches."
    )
