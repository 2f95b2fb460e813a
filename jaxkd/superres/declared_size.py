"""Check of a picture's declared size against its file, before memory is taken for its pixels.

A header of a few bytes can declare hundreds of megapixels. Decoders take the memory first and notice the end of the
file later, so that a download that broke off costs gigabytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from jaxkd.errors import DataError

LARGE = 2**26  # pixels from which a file is looked at closely
# The most that a byte of a file can stand for. Deflate reaches 1032 bytes (zlib's documentation), run lengths 255 in 2;
# LZW codes of 12 bits reach 4096 bytes in 1.5. A JPEG's block of 8 x 8 pixels takes at least a bit. Newer compressions
# of TIFF have no such limit.
_BYTES_FOR_A_BYTE = {"PNG": 1032, "JPEG": 512, "MPO": 512, "BMP": 256, "GIF": 4096, "TIFF": 4096, "TGA": 256}
# Pixels of a LARGE picture that a byte may stand for in formats where a picture of one colour takes a few bytes, and in
# progressive JPEG, whose decoder takes 9 bytes a pixel before it knows. Photographs have at most about 50.
_PIXELS_FOR_A_BYTE = {"WEBP": 1024, "AVIF": 1024, "JPEG2000": 1024}
_PIXELS_FOR_A_BYTE_PROGRESSIVE = 128
_JPEG = ("JPEG", "MPO")  # MPO: a JPEG with others behind it
_LIMITED_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate")
_STRIPS = ((273, 279), (324, 325))  # offsets and lengths of strips, and of tiles


def check_declared_size(image: Image.Image, path: Path) -> None:
    """Raises DataError if the file of an opened picture cannot hold the pixels that its header declares."""
    length = os.stat(path).st_size
    pixels = image.width * image.height
    bands = len(image.getbands()) if image.format in ("PNG", "BMP") else 1
    small = image.mode in ("1", "L", "P") and image.format not in _JPEG  # grey and palettes may have 1 bit a pixel
    bits = 1 if small else 8 * bands
    most = _BYTES_FOR_A_BYTE.get(image.format or "", 0)
    if image.format == "TIFF" and image.info.get("compression") not in _LIMITED_TIFF:
        most = 0
    possible = not most or pixels * bits <= 8 * length * most
    if possible and pixels >= LARGE:
        checks = {"PNG": _png_is_whole, "TIFF": _tiff_is_whole, "WEBP": _riff_is_whole}
        checks |= dict.fromkeys(_JPEG, _jpeg_is_whole) | dict.fromkeys(("AVIF", "JPEG2000"), _boxes_are_whole)
        if pixels > _most_pixels(image, length):
            raise DataError(
                f'"{path}" is not decoded: it declares {image.width:,} x {image.height:,} pixels in {length:,} bytes, '
                "fewer than a picture of this size takes unless it is of one colour, so it may be damaged and fill the "
                "memory. Fetch or copy it again, or convert it to PNG with another program."
            )
        possible = image.format not in checks or checks[image.format](image, path, length)
    if not possible:
        raise DataError(
            f'"{path}" cannot be read as a picture: it declares {image.width:,} x {image.height:,} pixels, and its '
            f"{length:,} bytes do not hold them (truncated or damaged). Fetch or copy it again."
        )


def _most_pixels(image: Image.Image, length: int) -> float:
    """Pixels of the largest picture of this format that a file of `length` bytes is decoded for."""
    if image.format in _JPEG and image.info.get("progressive"):
        return length * _PIXELS_FOR_A_BYTE_PROGRESSIVE
    return length * _PIXELS_FOR_A_BYTE.get(image.format or "", float("inf"))


def _png_is_whole(image: Image.Image, path: Path, length: int) -> bool:
    """Whether all chunks lie in the file, down to the last, and are long enough for the pixels."""
    coded = 0
    with open(path, "rb") as file:
        for name, size in chunks_of_png(file):
            coded += size if name == b"IDAT" else 0
            if name == b"IEND":
                return image.width * image.height <= 8 * coded * _BYTES_FOR_A_BYTE["PNG"]
    return False


def chunks_of_png(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(name, bytes of content) of the whole chunks of a PNG, down to the last; `file` then stands at the content."""
    length, at = os.fstat(file.fileno()).st_size, 8
    while at + 8 <= length:
        file.seek(at)
        size, name = struct.unpack(">I4s", file.read(8))
        at += size + 12
        if at > length and name != b"IEND":
            return
        yield name, size
        if name == b"IEND":
            return


def _tiff_is_whole(image: Image.Image, path: Path, length: int) -> bool:
    """Whether all strips or tiles lie in the file."""
    tags = image.tag_v2
    for offsets, lengths in _STRIPS:
        if offsets in tags and lengths in tags:
            starts, sizes = (v if isinstance(v, tuple) else (v,) for v in (tags[offsets], tags[lengths]))
            return all(a + n <= length for a, n in zip(starts, sizes, strict=False))
    return True


def _jpeg_is_whole(image: Image.Image, path: Path, length: int) -> bool:
    """Whether an eighth of the picture can be decoded, which reads the file to its end in a 64th of the memory."""
    try:
        with Image.open(path) as small:
            small.draft(None, (max(1, small.width // 8), max(1, small.height // 8)))
            small.load()
    except OSError:
        return False
    return True


def _riff_is_whole(image: Image.Image, path: Path, length: int) -> bool:
    """Whether a WebP file has the length that its header declares."""
    with open(path, "rb") as file:
        head = file.read(8)
    return struct.unpack("<I", head[4:])[0] + 8 <= length


def _boxes_are_whole(image: Image.Image, path: Path, length: int) -> bool:
    """Whether all boxes of an AVIF or JPEG 2000 file (ISO 14496-12, 15444-1) lie in the file."""
    at = 0
    with open(path, "rb") as file:
        while at + 8 <= length:
            file.seek(at)
            size = struct.unpack(">I4x", file.read(8))[0]
            if size == 1:  # its length follows in 8 bytes
                size = int.from_bytes(file.read(8), "big")
            if size == 0:  # to the end of the file
                return True
            if size < 8:
                return False
            at += size
    return at <= length
