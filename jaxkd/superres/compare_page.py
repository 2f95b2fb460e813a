"""A page that shows bicubic against the network, picture by picture, behind one slider each.

One file that opens from disk: style, script and pictures are inside. Of a large picture it shows the middle at full
resolution, because differences of single pixels vanish in a picture that is made to fit.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from jaxkd.data.transforms.imresize import imresize
from jaxkd.superres.image_io import replacing

SIDES = (768, 1024)  # height and width of what is shown, in pixels of the result
SUPPORT = 3  # input pixels around a crop that bicubic looks at, and one more
MOST = 50  # pictures on a page; they lie in it as text

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --soft: #55606e; --line: #d7dce2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181e; --ink: #e4e8ee; --soft: #a2adba; --line: #333c47; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; -webkit-text-size-adjust: 100%; }
main { max-width: 1056px; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: .4rem 0; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; color: var(--soft); font-size: .95rem; }
.box { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
.pair { position: relative; --x: 50%; cursor: ew-resize; touch-action: pan-y; user-select: none;
  -webkit-user-select: none; margin: 0 auto; }
.pair img { display: block; width: 100%; height: auto; -webkit-user-drag: none; }
.pair img + img { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--x)); }
.pair::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--x); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.tag { position: absolute; top: .5rem; z-index: 1; padding: 0 .5rem; border-radius: 4px; font-size: .85rem;
  color: #fff; background: #000a; pointer-events: none; }
.left { left: .5rem; } .right { right: .5rem; }
.row { display: flex; gap: .8rem 1.2rem; align-items: center; flex-wrap: wrap; margin-top: .4rem; }
.row input[type=range] { flex: 1 1 12rem; min-width: 0; height: 2rem; }
.full .pair { width: var(--w); touch-action: pan-x pan-y; }
label { white-space: nowrap; font-size: .95rem; }
"""
_SCRIPT = """
for (const figure of document.querySelectorAll("section.two")) {
  const pair = figure.querySelector(".pair"), range = figure.querySelector("[type=range]");
  const set = v => { v = Math.min(100, Math.max(0, v)); pair.style.setProperty("--x", v + "%"); range.value = v; };
  range.addEventListener("input", () => set(range.valueAsNumber));
  const at = e => { const r = pair.getBoundingClientRect(); set(100 * (e.clientX - r.left) / r.width); };
  pair.addEventListener("pointerdown", e => { pair.setPointerCapture(e.pointerId); at(e); });
  pair.addEventListener("pointermove", e => { if (e.buttons) at(e); });
  figure.querySelector("[type=checkbox]").addEventListener("change",
    e => figure.querySelector(".box").classList.toggle("full", e.target.checked));
}
"""


class ComparisonPage:
    """Collects pictures and writes them as one page.

    Args:
      title: of the page, for people: which network, which weights.
    """

    def __init__(self, title: str):
        self._title = title
        self._sections: list[str] = []
        self._left_out = 0

    def add(self, name: str, before: np.ndarray, after: Image.Image, scale: int, *, icc: bytes = b"") -> None:
        """Takes in one picture.

        Args:
          name: for people.
          before: (H, W[, C]) uint8 or uint16, alpha last where C is 2 or 4.
          after: the result, `scale` times as large.
          scale: s.
          icc: profile of both.
        """
        if len(self._sections) >= MOST:
            self._left_out += 1
            return
        height, width = after.height, after.width
        h, w = (min(n, m) // scale * scale or scale for n, m in zip((height, width), SIDES, strict=True))
        top, left = ((n - m) // 2 // scale * scale for n, m in zip((height, width), (h, w), strict=True))
        after = after.crop((left, top, left + w, top + h))
        bicubic = _bicubic(before, (top // scale, left // scale, h // scale, w // scale), scale)
        pictures = [_embedded(_rgb(np.asarray(p)), icc) for p in (bicubic, after)]
        cut = "" if (h, w) == (height, width) else f", the {w} x {h} in the middle shown"
        facts = f"{width // scale:,} x {height // scale:,} to {width:,} x {height:,} pixels{cut}"
        label = escape(name, quote=True)
        self._sections.append(
            f'<section class="two"><h2>{label}</h2><p>{facts}</p><div class="box" tabindex="0">'
            f'<div class="pair" style="--w: {w}px; max-width: {max(w, 320)}px">'
            f'<span class="tag left">bicubic</span><span class="tag right">network</span>'
            f'<img src="{pictures[0]}" width="{w}" height="{h}" alt="{label}, bicubic">'
            f'<img src="{pictures[1]}" width="{w}" height="{h}" alt="{label}, network"></div></div>'
            f'<div class="row"><input type="range" min="0" max="100" step="0.5" value="50" '
            f'aria-label="{label}: share of bicubic">'
            '<label><input type="checkbox"> one pixel to a pixel</label></div></section>'
        )

    def __len__(self) -> int:
        return len(self._sections)

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Writes the page.

        Raises:
          DataError: the file exists and is not to be replaced, or cannot be written.
        """
        more = f"<p>{self._left_out:,} more pictures are not on this page.</p>" if self._left_out else ""
        with replacing(path, overwrite=overwrite) as partial:
            partial.write_text(
                '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
                '<meta name="viewport" content="width=device-width, initial-scale=1">'
                f"<title>{escape(self._title)}</title><style>{_STYLE}</style></head><body><main>"
                f"<h1>{escape(self._title)}</h1><p>Left of the line bicubic interpolation, right of it the network. "
                f"Drag the line.</p>{''.join(self._sections)}{more}</main><script>{_SCRIPT}</script></body></html>\n",
                encoding="utf-8",
            )


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
