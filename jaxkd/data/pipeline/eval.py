"""Evaluation batches: timm's resize and centre crop, each image exactly once on any number of hosts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from jaxkd.data.ordered_map import ordered_map
from jaxkd.data.pipeline.broken import MAX_BROKEN, BrokenImages
from jaxkd.data.sources.registry import Source, fetch_records
from jaxkd.data.transforms.crops import INTERPOLATIONS, Size, centre_crop, resize_to_cover
from jaxkd.errors import DataError, check_choice, check_range


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
        check_range("crop_pct", self.crop_pct, above=0, most=1)
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """See the class."""
        scaled = tuple(math.floor(side / self.crop_pct) for side in self.image_size)
        image = resize_to_cover(image, (scaled[0], scaled[1]), INTERPOLATIONS[self.interpolation])
        return np.asarray(centre_crop(image, self.image_size))


def eval_preprocess(
    spec: Any, image_size: Size, crop_pct: float | None = 0, interpolation: str | None = ""
) -> EvalPreprocess:
    """The evaluation crop of a network.

    Args:
      spec: the network's own `crop_pct` and `interpolation`.
      image_size: (height, width) of its input.
      crop_pct: replaces the network's, unless 0 or None.
      interpolation: replaces the network's, unless "" or None.
    """
    return EvalPreprocess(image_size, crop_pct or spec.crop_pct, interpolation or spec.interpolation)


class EvalBatches:
    """This host's share of the batches of a whole split, in order; may be iterated again.

    They are `{"image": (b, H, W, 3) uint8, "label": (b,) int32, "mask": (b,) bool}`. Iterating raises DataError where
    more images than `max_broken` allows cannot be decoded.

    Args:
      source: the records.
      preprocess: resize and crop.
      batch_size: global; the last batch is filled up with black images whose mask is False.
      host_index: which host this is.
      host_count: how many there are; every host yields the same number of batches.
      max_broken: share of the images that may be unreadable; they are masked, named in the log and kept in `broken`.
    """

    def __init__(
        self,
        source: Source,
        preprocess: EvalPreprocess,
        *,
        batch_size: int,
        host_index: int = 0,
        host_count: int = 1,
        max_broken: float = MAX_BROKEN,
    ):
        self._source, self._preprocess = source, preprocess
        self._batch_size, self._share = batch_size, batch_size // host_count
        self._host_index = host_index
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
        starts = range(self._host_index * self._share, len(self) * self._batch_size, self._batch_size)
        batches = [range(start, min(start + self._share, len(self._source))) for start in starts]
        # Decoding and resizing release Python's lock, so that threads are enough. Two batches are prepared ahead.
        examples = ordered_map(self._example, self._read_ahead(batches), ahead=3 * self._share)
        try:
            for records in batches:
                yield self._collate(islice(examples, len(records)))
        finally:
            examples.close()

    def _read_ahead(self, batches: Iterable[range]) -> Iterator[int]:
        for records in batches:
            fetch_records(self._source, records)
            yield from records

    def _collate(self, examples: Iterable[tuple[np.ndarray, int] | None]) -> dict[str, np.ndarray]:
        batch = {
            "image": np.zeros((self._share, *self._preprocess.image_size, 3), np.uint8),
            "label": np.zeros(self._share, np.int32),
            "mask": np.zeros(self._share, bool),
        }
        for i, example in enumerate(examples):
            if example is not None:
                batch["image"][i], batch["label"][i] = example
                batch["mask"][i] = True
        return batch
