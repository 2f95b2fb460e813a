"""The handwritten digits that scikit-learn ships: labelled images without a download."""

from __future__ import annotations

import numpy as np
from PIL import Image


class DigitsSource:
    """The 1,797 handwritten 8x8 digits of scikit-learn (test part of the UCI set, Alpaydin and Kaynak 1998).

    Every fifth image is held out as "val" (359 images), the others train (1,438). Neighbours come from the same writer,
    so held-out digits are by known hands: accuracies here compare methods and do not measure generalisation to new
    writers.
    """

    def __init__(self, split: str):
        from sklearn.datasets import load_digits

        digits = load_digits()
        held_out = np.arange(len(digits.target)) % 5 == 4
        chosen = held_out if split == "val" else ~held_out
        self.class_names = self.class_words = tuple(str(n) for n in digits.target_names)
        self.exif = False
        self.split = split
        self._images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self._labels = digits.target[chosen].astype(np.int32)

    @property
    def class_counts(self) -> np.ndarray:
        """See `Source`."""
        return np.bincount(self._labels, minlength=len(self.class_names)).astype(np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """See `Source`."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """See `Source`."""
        return f"embedded:digits/{self.split}:{range(len(self))[index]}"

    def bytes(self, index: int) -> None:
        """See `Source`: digits are arrays, there is no file."""
        return None

    def image(self, index: int) -> Image.Image:
        """See `Source`."""
        return Image.fromarray(self._images[index]).convert("RGB")
