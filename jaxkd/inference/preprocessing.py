"""Photographs as the input of a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxkd.data import EvalPreprocess
from jaxkd.data.transforms.decode import decode_rgb, read_file, to_rgb
from jaxkd.errors import DataError, ShapeError
from jaxkd.weights import Network

Photo = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Preprocessing:
    """Photograph -> (H, W, 3) fp32 input of a classifier: resize, centre crop, normalisation; as timm's evaluation.

    Attributes:
      image_size: (height, width) of the input.
      crop_pct: the photograph is resized to cover image_size / crop_pct, and its centre is cut out.
      interpolation: of the resize, "bicubic" or "bilinear".
      mean: per channel (R, G, B), of pixels in [0, 1].
      std: likewise.
    """

    image_size: tuple[int, int]
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, photo: Photo) -> np.ndarray:
        """(pixels - mean) / std of the crop; see `read_photo` for what a photograph may be."""
        return self.normalise(self.crop(photo))

    def crop(self, photo: Photo) -> np.ndarray:
        """Photograph -> (H, W, 3) uint8."""
        return EvalPreprocess(self.image_size, self.crop_pct, self.interpolation)(read_photo(photo))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 3) uint8 -> fp32 of the same shape."""
        scaled = pixels.astype(np.float32) / np.float32(255)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def preprocessing_of(network: Network) -> Preprocessing | None:
    """The preprocessing of a classifier of images, or None of another network."""
    spec = network.spec
    if spec.task != "classification":
        return None
    return Preprocessing(network.image_size, spec.crop_pct, spec.interpolation, tuple(spec.mean), tuple(spec.std))


def read_photo(photo: Photo) -> Image.Image:
    """A photograph as an RGB image of Pillow, with its EXIF rotation applied.

    Args:
      photo: path of an image file, image of Pillow, or uint8 array, (H, W, 3) RGB or (H, W) greyscale.

    Raises:
      DataError: a path that holds no image. ShapeError: an array of another kind.
    """
    if isinstance(photo, Image.Image):
        return to_rgb(ImageOps.exif_transpose(photo), "the given image")
    if isinstance(photo, str | Path):
        path = Path(photo).expanduser()
        if not path.is_file():
            reason = "is a folder" if path.is_dir() else "does not exist"
            raise DataError(f'The photograph "{photo}" {reason}. Give the path of an image file, or a list of them.')
        return decode_rgb(read_file(path), str(photo), exif=True)
    array = np.asarray(photo)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise ShapeError(
            f"A photograph was given as {array.dtype} of shape {array.shape}. Give a path, an image of Pillow, or "
            "uint8 of shape (height, width, 3), not normalised."
        )
    return Image.fromarray(array).convert("RGB")


def is_one_photo(photos: Any) -> bool:
    """Whether an argument is one photograph and no sequence of them."""
    return isinstance(photos, str | Path | Image.Image) or (isinstance(photos, np.ndarray) and photos.ndim < 4)


def in_batches(photos: list[Photo], preprocessing: Preprocessing, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches (b, H, W, 3) uint8 of one size, and how many photographs of each count; the rest are black."""
    size = min(size, len(photos))
    for start in range(0, len(photos), size):
        chosen = photos[start : start + size]
        pixels = np.zeros((size, *preprocessing.image_size, 3), np.uint8)
        for row, photo in zip(pixels, chosen, strict=False):
            row[:] = preprocessing.crop(photo)
        yield pixels, len(chosen)
