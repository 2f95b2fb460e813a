"""Pairs for super-resolution: a large image (HR) and the same view at 1/scale of its size (LR), whole or in parts.

Where LR is made from HR, it is MATLAB's antialiased bicubic (`resize.imresize`), as in all benchmarks of the field: HR
is cut at the right and below to multiples of the scale, then shrunk. A part of LR is made from no more of HR than its
filter sees, and equals that part of the whole LR to the last bit.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxkd.data.ordered_map import ordered_map
from jaxkd.data.sources.labels import PackedNames
from jaxkd.data.sources.pair_files import PairFiles, find_pairs
from jaxkd.data.transforms.crops import Box, Size
from jaxkd.data.transforms.decode import decode_rgb, read_file
from jaxkd.data.transforms.fast_decode import DecodeOptions, decode_crop_resize
from jaxkd.data.transforms.imresize import imresize
from jaxkd.errors import ConfigError, DataError, check_range

# In LR pixels. The bicubic filter, widened by the scale s, sees HR pixels up to 2 s from the centre of an LR pixel,
# which lies (s - 1) / 2 inside of it: less than 1.5 s + 1 beyond its edge.
_MARGIN = 2


class Pair(NamedTuple):
    """Two views of one scene.

    Attributes:
      name: path of the HR file.
      hr: (scale * h, scale * w, 3) uint8 RGB.
      lr: (h, w, 3) uint8 RGB.
    """

    name: str
    hr: np.ndarray
    lr: np.ndarray


class PairSource:
    """Pairs with random access; picklable, and may be read from many threads.

    Of a JPEG, `region` decodes only what it needs where TurboJPEG 3 is installed (the extra `turbo`); see
    `fast_decode.py`. PNG, the format of DIV2K, cannot be read in parts: each row is coded by the one above. Cut such
    images into sub-images beforehand (jaxkd subimages).

    Args:
      files: of HR, and of LR or "".
      scale: how many times larger HR is.
      multiple: HR is cut to multiples of this number of pixels; 0 is `scale`.
      region_decode: "auto", "on" or "off"; see `DecodeOptions.region`.

    Attributes:
      scale: see above.

    Raises:
      ConfigError: `scale` or `multiple` is none, or region_decode="on" without its library.
    """

    def __init__(self, files: PairFiles, scale: int, *, multiple: int = 0, region_decode: str = "auto"):
        multiple = multiple or scale
        check_range("scale", scale, 1, whole=True, hint="2, 3, 4 and 8 are usual")
        if multiple % scale or multiple < 1:
            raise ConfigError(
                f"multiple={multiple} does not divide by scale={scale}. Give {scale}, or 12 for scales 2, 3 and 4."
            )
        # Rather than lists of objects: they are pickled to every worker.
        self._hr, self._lr = PackedNames.pack(files.hr), PackedNames.pack(files.lr)
        self.scale, self._multiple = scale, multiple
        self._options = DecodeOptions(region_decode)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._hr)

    def __iter__(self) -> Iterator[Pair]:
        return (self.pair(i) for i in range(len(self)))

    def name(self, index: int) -> str:
        """Path of the HR file."""
        return self._hr[index]

    def lr_name(self, index: int) -> str:
        """Path of the LR file; "" where LR is made from HR."""
        return self._lr[index]

    def size(self, index: int) -> Size:
        """(height, width) of LR, without decoding; 0 where HR is too small.

        Raises:
          DataError: the file is gone or no image.
        """
        path = self.name(index)
        try:
            with Image.open(path) as image:  # reads no more than the header
                return self._grid((image.height, image.width))
        except Exception:  # what a damaged header leads to; `read_file` and `decode_rgb` have words for it
            return self._grid(_size(read_file(path), path))

    def sizes(self) -> np.ndarray:
        """(pairs, 2) int32: the `size` of each, -1 where it cannot be read. Opens every file, in threads."""

        def one(index: int) -> Size:
            try:
                return self.size(index)
            except DataError:
                return -1, -1

        return np.array(list(ordered_map(one, range(len(self)))), np.int32).reshape(-1, 2)

    def pair(self, index: int) -> Pair:
        """The whole pair.

        Raises:
          DataError: a file cannot be read or decoded, is smaller than the scale, or HR and LR do not fit.
        """
        return Pair(self.name(index), *self.regions(index, None)[0])

    def regions(self, index: int, boxes: Sequence[Box] | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Parts of a pair, which is decoded once for all of them.

        Args:
          index: which pair.
          boxes: (left, upper, right, lower) of each part, in LR pixels; None is the whole pair.

        Returns:
          HR (scale * h, scale * w, 3) and LR (h, w, 3) of each, uint8 RGB: what `pair` has there.

        Raises:
          DataError: as `pair`, or a box is not inside the image.
        """
        name, lr_name, s = self.name(index), self.lr_name(index), self.scale
        data = read_file(name)
        hr_size = _size(data, name)
        height, width = self._grid(hr_size)
        if not (height and width):
            raise DataError(
                f'The image "{name}" has {_words(hr_size)}, less than {self._multiple} in a direction. Remove it.'
            )
        boxes = [(0, 0, width, height)] if boxes is None else boxes
        outer = _union(boxes)
        if outer[0] < 0 or outer[1] < 0 or outer[2] > width or outer[3] > height:
            raise DataError(
                f'The image "{name}" gives {_words((height, width))} at scale {s}, and a part of {outer} lies outside. '
                "Do not change a data set while a run reads it; restart the run."
            )
        if lr_name:
            lr_data = read_file(lr_name)
            self._check_lr(lr_name, _size(lr_data, lr_name), name, hr_size)
            hr = self._decode(data, name, _times(outer, s))
            lr = self._decode(lr_data, lr_name, outer)
            return [(_cut(hr, b, outer, s), _cut(lr, b, outer, 1)) for b in boxes]
        # At the image's own border, imresize mirrors it, of a part as of the whole.
        wide = [_widened(b, (height, width)) for b in boxes]
        outer = _union(wide)
        hr = self._decode(data, name, _times(outer, s))
        return [
            (_cut(hr, b, outer, s), _cut(imresize(_cut(hr, w, outer, s), 1 / s), b, w, 1))
            for b, w in zip(boxes, wide, strict=True)
        ]

    def _grid(self, hr: Size) -> Size:
        """(height, width) of LR for the size of an HR file."""
        m, s = self._multiple, self.scale
        return hr[0] // m * m // s, hr[1] // m * m // s

    def _check_lr(self, lr_name: str, size: Size, name: str, hr_size: Size) -> None:
        s = self.scale
        if not _fits(size, hr_size, s):
            fits = [n for n in range(1, 17) if _fits(size, hr_size, n)]
            raise DataError(
                f'"{lr_name}" has {_words(size)}, but "{name}" has {_words(hr_size)}, of which scale {s} makes '
                f"{_words((hr_size[0] // s, hr_size[1] // s))}. Give the small images of these large ones"
                f"{f', or choose scale {fits[0]}, which they fit' if fits else ''}."
            )

    def _decode(self, data: bytes, name: str, box: Box) -> np.ndarray:
        size = (box[3] - box[1], box[2] - box[0])  # resized to what it is: not at all
        return np.asarray(decode_crop_resize(data, name, size, lambda _: box, options=self._options))


def _size(data: bytes, name: str) -> Size:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Exception:  # `decode_rgb` has words for it
        image = decode_rgb(data, name)
        return image.height, image.width


def _union(boxes: Sequence[Box]) -> Box:
    left, upper, right, lower = zip(*boxes, strict=True)
    return min(left), min(upper), max(right), max(lower)


def _widened(box: Box, size: Size) -> Box:
    """With `_MARGIN` around it, as far as the image goes."""
    left, upper, right, lower = box
    height, width = size
    return max(left - _MARGIN, 0), max(upper - _MARGIN, 0), min(right + _MARGIN, width), min(lower + _MARGIN, height)


def _times(box: Box, scale: int) -> Box:
    left, upper, right, lower = box
    return left * scale, upper * scale, right * scale, lower * scale


def _cut(image: np.ndarray, box: Box, of: Box, scale: int) -> np.ndarray:
    """The part `box` of `image`, which covers `of`; both boxes in LR pixels, the image is `scale` times as large."""
    left, upper, right, lower = _times((box[0] - of[0], box[1] - of[1], box[2] - of[0], box[3] - of[1]), scale)
    return image[upper:lower, left:right]


def _fits(lr: Size, hr: Size, scale: int) -> bool:
    # MATLAB rounds the size up; its pixels lie alike, so that the last row or column may go.
    return all(small in (large // scale, -(-large // scale)) for small, large in zip(lr, hr, strict=True))


def _words(size: Size) -> str:
    return f"{size[1]} x {size[0]} pixels"


def open_pairs(
    spec: str | Sequence[str], scale: int, *, split: str = "train", multiple: int = 0, region_decode: str = "auto"
) -> PairSource:
    """A set of pairs for training or scoring.

    Args:
      spec: a folder, "embedded:photos" (`photos.py`), or several of them, joined: a sequence, or a text with commas
        between them. The images of a folder are those in `<split>/HR`, `<split>`, `DIV2K_<train|valid>_HR`, `HR` or the
        folder itself, the first of these that is there, with all folders below; of a published set's layout
        (`pair_layouts.py`), its large images. LR is made from them; with "FOLDER?lr=NAME" it is read from the folder
        NAME, there or anywhere ("." where both lie in one), or from `X4` or the like in it, where files have the names
        of the HR files or, as DIV2K's, `0001x4.png`.
      scale: how many times larger HR is.
      split: "train" or "val".
      multiple: HR is cut to multiples of this; 0 is `scale`. Some papers score x2, x3 and x4 on images cut to multiples
        of 12.
      region_decode: "auto", "on" or "off"; see `DecodeOptions.region`.

    Raises:
      ConfigError: an option is out of range.
      DataError: a folder is missing or empty, small images are missing, or do not fit the scale.
    """
    source = PairSource(find_pairs(spec, scale, split), scale, multiple=multiple, region_decode=region_decode)
    first = next((i for i in range(len(source)) if source.lr_name(i)), None)
    if first is not None:  # a wrong scale fails now, and not as one broken image after the other
        source.pair(first)
    return source
