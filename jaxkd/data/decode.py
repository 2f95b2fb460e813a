"""Image files to RGB pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from jaxkd.errors import DataError

# What Pillow raises for files that are no images, are cut off, or would fill the memory.
_BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read_rgb(path: Path) -> Image.Image:
    """The image in `path` as RGB, decoded; greyscale, palette, CMYK and alpha are converted as Pillow does (as timm).

    Raises:
      DataError: not an image, truncated, or unreadable.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(
            f'The image "{path}" is gone. It was there when the folder was listed. Do not change a data set while a '
            "run "
            "reads it; restart the run."
        ) from None
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f'The file "{path}" cannot be read as an image ({reason}). It is listed because of its name, but its '
            "content is "
            "damaged or something else. Remove it or fetch it again."
        ) from None
