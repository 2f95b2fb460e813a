"""HTML page that compares bicubic with the network, picture by picture, behind one slider each.

One file that opens from disk: style, script and pictures are inside. Of a large picture it shows the middle at full
resolution, because differences of single pixels vanish in a picture that is made to fit.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxkd.data.transforms.imresize import imresize
from jaxkd.errors import printable
from jaxkd.report.html import load_template
from jaxkd.superres.image_io import replacing

SIDES = (768, 1024)  # height and width of what is shown, in pixels of the result
SUPPORT = 3  # input pixels around a crop that bicubic looks at, and one more
MOST = 50  # pictures on a page; they lie in it as text
TEMPLATE = Path(__file__).with_suffix(".html")


class ComparisonPage:
    """Collects pictures and writes them as one page."""

    def __init__(self, title: str):
        self._title = title
        self._pictures: list[dict[str, Any]] = []
        self._left_out = 0

    def add(
        self, name: str, before: np.ndarray, after: Image.Image | np.ndarray, scale: int, *, icc: bytes = b""
    ) -> None:
        """Takes in one picture.

        Args:
          name: for people.
          before: (H, W[, C]) uint8 or uint16, alpha last where C is 2 or 4.
          after: the result, `scale` times as large.
          scale: s.
          icc: profile of both.
        """
        if len(self._pictures) >= MOST:
            self._left_out += 1
            return
        height, width = after.shape[:2] if isinstance(after, np.ndarray) else (after.height, after.width)
        h, w = (min(n, m) // scale * scale or scale for n, m in zip((height, width), SIDES, strict=True))
        top, left = ((n - m) // 2 // scale * scale for n, m in zip((height, width), (h, w), strict=True))
        if isinstance(after, Image.Image):
            after = np.asarray(after.crop((left, top, left + w, top + h)))
        else:
            after = after[top : top + h, left : left + w]
        bicubic = _bicubic(before, (top // scale, left // scale, h // scale, w // scale), scale)
        shown = "" if (h, w) == (height, width) else f", the {w} x {h} in the middle shown"
        self._pictures.append(
            {
                "name": printable(name),
                "facts": f"{width // scale:,} x {height // scale:,} to {width:,} x {height:,} pixels{shown}",
                "width": w,
                "height": h,
                "bicubic": _embedded(_rgb(bicubic), icc),
                "network": _embedded(_rgb(after), icc),
            }
        )

    def __len__(self) -> int:
        return len(self._pictures)

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Writes the page."""
        template = load_template(TEMPLATE)
        with replacing(path, overwrite=overwrite) as partial:
            page = template.render(title=self._title, pictures=self._pictures, left_out=self._left_out)
            partial.write_text(page, encoding="utf-8")


def _bicubic(image: np.ndarray, box: tuple[int, int, int, int], scale: int) -> np.ndarray:
    """(top, left, h, w) of the input, enlarged as if the whole were: with the pixels around that bicubic looks at."""
    top, left, h, w = box
    first_row, first_column = max(0, top - SUPPORT), max(0, left - SUPPORT)
    part = imresize(image[first_row : top + h + SUPPORT, first_column : left + w + SUPPORT], scale)
    y, x = scale * (top - first_row), scale * (left - first_column)
    return part[y : y + scale * h, x : x + scale * w]


def _rgb(pixels: np.ndarray) -> Image.Image:
    """As a browser shows it: 8 bits; transparency over white."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:] / np.float32(255)
        pixels = np.round(pixels[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


def _embedded(image: Image.Image, icc: bytes) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling="4:4:4", **({"icc_profile": icc} if icc else {}))
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
