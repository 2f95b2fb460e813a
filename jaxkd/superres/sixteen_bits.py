"""Pictures of 16 bits a channel with colour or transparency, which Pillow reads as 8 bits and does not write.

Reading: Pillow's decoders unpack 16 bits to the upper or the lower byte, by the byte order that they are told. Decoded
once in each order, a file gives both bytes, whatever its compression. Grey with alpha has four bytes a pixel, and is
decoded once as if it were RGBA of 8 bits. Writing: PNG and TIFF, deflated.

Legend: H W height and width, C channels (2 grey and alpha, 3 RGB, 4 RGBA).
"""

from __future__ import annotations

import contextlib
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

MODES = {"LA;16": 2, "RGB;16": 3, "RGBA;16": 4}  # with their channels
TOP = 65535
ROWS = 64  # of a PNG's chunk or a TIFF's strip
LEVEL = 3  # of zlib; 6, the default, takes twice as long for a few percent
_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_GREY_ALPHA_TIFF = {  # header of a TIFF -> mode and raw mode; Pillow knows none of 16 bits with alpha
    (order, 1, (1,), 1, (16, 16), (extra,)): ("RGBA", "RGBA") for order in (b"II", b"MM") for extra in (0, 1, 2)
}
_ASSOCIATED = 1  # of ExtraSamples: colours are premultiplied by alpha
_EXTRA_SAMPLES, _DIFFERENCES, _DEFLATE = 338, 2, 8


@contextlib.contextmanager
def grey_alpha_tiff() -> Iterator[None]:
    """Context in which Pillow opens a TIFF of 16-bit grey with alpha, as RGBA of its bytes."""
    known = TiffImagePlugin.OPEN_INFO
    known.update(_GREY_ALPHA_TIFF)
    try:
        yield
    finally:
        for key in _GREY_ALPHA_TIFF:
            known.pop(key, None)


def raw_mode(image: Image.Image) -> str:
    """The storage of the pixels in Pillow's words, e.g. "RGB;16B"; "" once they are loaded."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def sixteen_bit_mode(image: Image.Image) -> str:
    """The key of `MODES` for an opened file, "" for any other picture."""
    raw, bits = raw_mode(image), getattr(image, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE, ())
    if image.mode.startswith("I;16") and "transparency" in image.info:
        return "LA;16"
    if raw.startswith("LA;16") or (bits == (16, 16) and image.mode == "RGBA"):
        return "LA;16"
    if (";16" not in raw and set(bits) != {16}) or image.mode not in ("RGB", "RGBA"):
        return ""
    return "RGBA;16" if image.mode == "RGBA" or "transparency" in image.info else "RGB;16"


def loses_bits(image: Image.Image) -> bool:
    """Whether an opened file has more bits a channel than Pillow reads of it: CMYK, PPM, AVIF, JPEG 2000."""
    if image.mode == "CMYK":
        return ";16" in raw_mode(image)
    if image.format == "PPM":
        args = image.tile[0].args
        return image.mode == "RGB" and isinstance(args, tuple) and args[-1] > 255
    if image.format not in ("AVIF", "JPEG2000") or image.mode.startswith("I") or not hasattr(image.fp, "seek"):
        return False
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(4096)
    image.fp.seek(place)
    if image.format == "AVIF":  # the AV1 codec's configuration: its third byte has the flag
        at = head.find(b"av1C")
        return at >= 0 and bool(head[at + 6] & 0x40)
    at = head.find(b"ihdr")  # height, width and channels, then bits - 1
    return at >= 0 and head[at + 14] & 0x7F > 7


def read(open_again: Callable[[], Image.Image]) -> tuple[np.ndarray, Image.Image]:
    """Decodes a picture of a mode of `MODES`.

    Args:
      open_again: opens the file; called once or twice.

    Returns:
      (H, W, C) uint16, with transparency by a key colour as an alpha channel, and the loaded image of Pillow.

    Raises:
      Whatever Pillow's decoders raise for a damaged file.
    """
    image = open_again()
    mode, raw, key = sixteen_bit_mode(image), raw_mode(image), image.info.get("transparency")
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)[..., None]
    elif mode == "LA;16":
        pixels = _grey_alpha(image)
    else:
        order = raw[-1]
        image.tile = [_with_raw_mode(t, raw.replace("RGBa", "RGBA")) for t in image.tile]
        upper = np.asarray(image)
        with open_again() as second:
            other = raw.replace("RGBa", "RGBA")[:-1] + _OTHER_ORDER[order]
            second.tile = [_with_raw_mode(t, other) for t in second.tile]
            pixels = upper.astype(np.uint16) << 8 | np.asarray(second)
    if key is not None:
        opaque = (pixels != np.asarray(key, np.uint16)).any(axis=-1, keepdims=True)
        return np.concatenate([pixels, opaque * np.uint16(TOP)], axis=-1), image
    return unassociated(pixels) if is_associated(image) else pixels, image


def is_associated(image: Image.Image) -> bool:
    """Whether an opened file is a TIFF whose colours are premultiplied by alpha."""
    return getattr(image, "tag_v2", {}).get(_EXTRA_SAMPLES) in (_ASSOCIATED, (_ASSOCIATED,))


def unassociated(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) uint16 whose colours are premultiplied by alpha, the last channel -> the same with plain colours."""
    alpha = np.maximum(pixels[..., -1:], 1).astype(np.float32)
    colour = np.minimum(np.round(pixels[..., :-1] / alpha * TOP), TOP).astype(np.uint16)
    return np.concatenate([colour, pixels[..., -1:]], axis=-1)


def _grey_alpha(image: Image.Image) -> np.ndarray:
    """(H, W, 2) uint16 of a picture whose four bytes a pixel are decoded as RGBA."""
    native = image.tile[0].codec_name == "libtiff"  # which turns the bytes to the order of this machine
    big = image.format == "PNG" or (sys.byteorder == "big" if native else image.tag_v2.prefix == b"MM")
    if image.format == "PNG":
        image.tile = [t._replace(args="RGBA") for t in image.tile]
    return np.ascontiguousarray(np.asarray(image)).view(">u2" if big else "<u2").astype(np.uint16)


def _with_raw_mode(tile: Any, raw: str) -> Any:
    return tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))


def write_png(file: BinaryIO, pixels: np.ndarray, chunks: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Writes (H, W, C) uint16, C from 1 to 4, as a PNG; `chunks` (name, data) stand before the pixels.

    Source: W3C, Portable Network Graphics, third edition. Rows are filtered by Paeth's predictor.
    """
    height, width, channels = pixels.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR[channels], 0, 0, 0))
    for name, data in chunks:
        _chunk(file, name, data)
    deflate = zlib.compressobj(LEVEL)
    above = np.zeros((1, width * channels * 2), np.uint8)
    for first in range(0, height, ROWS):
        part = pixels[first : first + ROWS].astype(">u2")
        rows = part.reshape(len(part), -1).view(np.uint8)
        filtered = _paeth(np.concatenate([above, rows]), 2 * channels)
        _chunk(file, b"IDAT", deflate.compress(np.insert(filtered, 0, 4, axis=1).tobytes()))
        above = rows[-1:]
    _chunk(file, b"IDAT", deflate.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


def _paeth(rows: np.ndarray, step: int) -> np.ndarray:
    """(n + 1, bytes) -> (n, bytes): differences to Paeth's predictor; the first row is the one above the others."""
    wide = np.pad(rows, ((0, 0), (step, 0))).astype(np.int16)
    left, above, corner = wide[1:, :-step], wide[:-1, step:], wide[:-1, :-step]
    guess = left + above - corner
    to_left, to_above, to_corner = (np.abs(guess - x) for x in (left, above, corner))
    nearest = np.where(to_above <= to_corner, above, corner)
    predicted = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
    return (rows[1:] - predicted.astype(np.uint8)).astype(np.uint8)


def write_tiff(file: BinaryIO, pixels: np.ndarray, tags: Any, *, big: bool = False) -> None:
    """Writes (H, W, C) uint16, C from 1 to 4, as a little-endian TIFF.

    Args:
      file: to write to, at its start.
      pixels: see above; the last of 2 or 4 channels is alpha.
      tags: {tag: value} of the directory, a dict for a directory of its own (EXIF, GPS).
      big: BigTIFF, for more than 4 GB.

    Source: TIFF 6.0 and Adobe's technical notes on deflate and predictors.
    """
    height, width, channels = pixels.shape
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    directory._bigtiff = big  # as Pillow's own writer sets it
    for tag, value in tags.items():
        directory[tag] = value
    strips = [zlib.compress(_differences(pixels[i : i + ROWS]), LEVEL) for i in range(0, height, ROWS)]
    ends = np.cumsum([0, *map(len, strips)]).tolist()
    layout = {
        TiffImagePlugin.IMAGEWIDTH: width,
        TiffImagePlugin.IMAGELENGTH: height,
        TiffImagePlugin.BITSPERSAMPLE: (16,) * channels,
        TiffImagePlugin.COMPRESSION: _DEFLATE,
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 2 if channels > 2 else 1,
        TiffImagePlugin.SAMPLESPERPIXEL: channels,
        TiffImagePlugin.ROWSPERSTRIP: ROWS,
        TiffImagePlugin.STRIPBYTECOUNTS: tuple(map(len, strips)),
        TiffImagePlugin.STRIPOFFSETS: tuple(ends[:-1]),  # Pillow adds where the directory ends
        TiffImagePlugin.PREDICTOR: _DIFFERENCES,
        TiffImagePlugin.PLANAR_CONFIGURATION: 1,
    }
    for tag in (TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.STRIPOFFSETS):
        directory.tagtype[tag] = 16 if big else 4  # LONG8, LONG
    if channels in (2, 4):
        layout[_EXTRA_SAMPLES] = (2,)  # alpha, colours not multiplied by it
    for tag, value in layout.items():
        directory[tag] = value
    directory.save(file)
    for strip in strips:
        file.write(strip)


def _differences(rows: np.ndarray) -> bytes:
    """(h, W, C) uint16 -> little-endian bytes of the differences to the pixel on the left."""
    out = rows.astype("<u2")
    out[:, 1:] -= rows[:, :-1].astype("<u2")
    return out.tobytes()
