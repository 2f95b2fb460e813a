"""Evaluation: timm's resize and centre crop, every image exactly once on any number of hosts."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxkd.data.pipeline.broken import BrokenImages
from jaxkd.data.sources.labelled import Source
from jaxkd.data.transforms.crops import INTERPOLATIONS, Size, centre_crop, resize_to_cover
from jaxkd.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class EvalPreprocess:
    """RGB image -> (H, W, 3) uint8, pixel for pixel timm's `transforms_imagenet_eval` (before normalisation).

    Attributes:
      image_size: (height, width) that comes out.
      crop_pct: the image is resized to cover image_size / crop_pct, and its centre is cut out.
      interpolation: a name of `INTERPOLATIONS`.
    """

    image_size: Size
    crop_pct: float
    interpolation: str

    def __post_init__(self) -> None:
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(
                f"crop_pct={self.crop_pct} is out of range. It is the share of the resized image that the centre crop "
                "keeps. Give a number above 0, at most 1."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f'interpolation="{self.interpolation}" is not '
                f"possible.{did_you_mean(self.interpolation, INTERPOLATIONS)} It "
                f"is how images are resized. Use one of: {', '.join(INTERPOLATIONS)}."
            )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """See the class."""
        scaled = tuple(math.floor(side / self.crop_pct) for side in self.image_size)
        image = resize_to_cover(image, (scaled[0], scaled[1]), INTERPOLATIONS[self.interpolation])
        return np.asarray(centre_crop(image, self.image_size))


class EvalBatches:
    """This host's share of the batches of a split, in order; may be iterated again. See `eval_batches`."""

    def __init__(
        self,
        source: Source,
        preprocess: EvalPreprocess,
        batch_size: int,
        host_index: int,
        host_count: int,
        threads: int,
        max_broken: float,
    ):
        self._source, self._preprocess = source, preprocess
        self._batch_size, self._share = batch_size, batch_size // host_count
        self._host_index, self._threads = host_index, threads
        self.broken = BrokenImages(len(source), max_broken)

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size)

    def _example(self, index: int) -> tuple[np.ndarray, int] | None:
        try:
            return self._preprocess(self._source.image(index)), self._source.label(index)
        except DataError as error:
            self.broken.add({str(index): str(error)})
            return None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        # Decoding and resizing release Python's lock, so threads do; batches are prepared two ahead.
        with ThreadPoolExecutor(self._threads, thread_name_prefix="jaxkd-eval") as pool:
            ready: deque[list[Future]] = deque()
            try:
                for number in range(len(self)):
                    start = number * self._batch_size + self._host_index * self._share
                    records = range(start, min(start + self._share, len(self._source)))
                    ready.append([pool.submit(self._example, i) for i in records])
                    if len(ready) > 2:
                        yield self._collate(ready.popleft())
                while ready:
                    yield self._collate(ready.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _collate(self, futures: list[Future]) -> dict[str, np.ndarray]:
        batch = {
            "image": np.zeros((self._share, *self._preprocess.image_size, 3), np.uint8),
            "label": np.zeros(self._share, np.int32),
            "mask": np.zeros(self._share, bool),
        }
        for i, future in enumerate(futures):
            example = future.result()
            if example is not None:
                batch["image"][i], batch["label"][i] = example
                batch["mask"][i] = True
        return batch


def eval_batches(
    source: Source,
    preprocess: EvalPreprocess,
    *,
    batch_size: int,
    host_index: int = 0,
    host_count: int = 1,
    threads: int = 0,
    max_broken: float = 0.01,
) -> EvalBatches:
    """Batches `{"image": (b, H, W, 3) uint8, "label": (b,) int32, "mask": (b,) bool}` of a whole split.

    Args:
      source: the records.
      preprocess: resize and crop.
      batch_size: global; the last batch is filled up with black images whose mask is False.
      host_index: which host this is.
      host_count: how many there are; every host yields the same number of batches.
      threads: that decode; 0 takes one per core, at most 16.
      max_broken: share of the images that may be unreadable; they are masked, named in the log and kept in `broken`.

    Returns:
      An iterable with a length that can be iterated again; iterating raises DataError where more images than that
      cannot be decoded.
    """
    threads = threads or min(os.cpu_count() or 1, 16)
    return EvalBatches(source, preprocess, batch_size, host_index, host_count, threads, max_broken)
