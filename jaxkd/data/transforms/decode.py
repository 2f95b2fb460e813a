"""Decoding of image files to RGB.

As timm's `Image.open(file).convert("RGB")`, with two differences, both for files that are rare in training sets:

| file                            | becomes                                                                      |
| ------------------------------- | ---------------------------------------------------------------------------- |
| greyscale, black and white      | three equal channels                                                         |
| CMYK, YCbCr                     | Pillow's conversion, without colour profiles                                 |
| palette                         | the palette's colours; a transparent entry keeps its colour                  |
| alpha channel                   | dropped, not composited: the colour below full transparency shows            |
| 16 bits a channel, greyscale    | the upper 8 bits; Pillow would clip at 255 and give white (first difference) |
| 16 bits a channel, colour       | the upper 8 bits, as Pillow                                                  |
| 32-bit integers, floating point | `DataError`: no value is white by definition (Pillow would clip at 255)      |
| animation                       | the first frame                                                              |
| EXIF rotation                   | ignored, as timm; obeyed with `exif=True`                                    |
| more than `MAX_PIXELS`          | `DataError` before a pixel is decoded (second difference)                    |
| truncated, damaged, no image    | `DataError`                                                                  |
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxkd.errors import DataError

# Pillow warns from here on and refuses from twice here on. A quarter of a GiB as RGB; the largest of ImageNet has 52e6.
MAX_PIXELS = 89_478_485
_BITS, _PLANAR, _SEPARATE = 258, 284, 2  # tags of TIFF


def read_file(path: str | Path) -> bytes:
    """The bytes of an image file."""
    try:
        # Not pathlib: this runs once an image, and a Path costs as much as reading a small file.
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(
            f'The image "{path}" is gone. Do not change a data set while a run reads it; restart the run.'
        ) from None
    except OSError as error:
        raise DataError(
            f'The file "{path}" cannot be read from the disk ({error.strerror or error}). Check its permissions and '
            "the disk."
        ) from None


def decode_rgb(data: bytes, name: str, *, exif: bool = False) -> Image.Image:
    """The image that an encoded file holds, as RGB; see the table of the module."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _bomb(name, f"{image.width} x {image.height} pixels")
            if exif:
                ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image, name)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _bomb(name, f"more than {2 * MAX_PIXELS:,} pixels") from None
    # Pillow's readers raise whatever their parsing of a damaged file leads to: OSError, ValueError, struct.error, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if reason.startswith("cannot identify image file"):  # goes on with the address of a buffer
            reason = "Pillow does not know this format"
        raise DataError(
            f'The file "{name}" cannot be read as an image ({reason}). Remove it or fetch it again.'
        ) from None


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """An open image as RGB; see the table of the module."""
    mode = image.mode
    # Pillow widens a grey PGM of more than 8 bits to 0 ... 65535, in 32-bit integers.
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        raise DataError(
            f'The file "{name}" cannot be read as an image of 8 bits (its pixels are '
            f"{'32-bit integers' if mode == 'I' else 'floating-point numbers'}, which do not say what is white). "
            "Convert it to 8 or 16 bits a channel, or remove it."
        )
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR) == _SEPARATE and 16 in tags.get(_BITS, ()):
        raise DataError(
            f'The file "{name}" cannot be read as an image (each of its 16-bit channels is kept apart, which Pillow '
            "reads wrongly). Save it with interleaved channels, or remove it."
        )
    image.load()  # some readers know a palette's transparency only now
    if image.mode == "P":
        image.info.pop("transparency", None)  # changes no pixel of the conversion, but Pillow would warn about it
    return image.convert("RGB")


def _bomb(name: str, size: str) -> DataError:
    return DataError(
        f'The file "{name}" cannot be read as an image for training: it has {size}, and more than '
        f"{MAX_PIXELS:,} pixels are refused. Remove it or scale it down."
    )
