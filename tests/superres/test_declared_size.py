"""Headers that declare more pixels than their file can hold are refused before memory is taken."""

from __future__ import annotations

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxkd.errors import DataError
from jaxkd.superres.image_io import inspect, read_picture

SIDE = 10_000


def png(side: int, rows: bytes, *, end: bool = True, palette: bool = False) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 3 if palette else 2, 0, 0, 0))
    head += chunk(b"PLTE", bytes(range(6))) if palette else b""
    body = head + chunk(b"IDAT", rows)
    return body + chunk(b"IEND", b"") if end else body[:-100]


def encoded(kind: str) -> bytearray:
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    image.save(file, kind, **({"save_all": True, "append_images": [image]} if kind == "MPO" else {}))
    return bytearray(file.getvalue())


def declared_large(kind: str) -> bytes:
    """A small file whose header says 10,000 x 10,000."""
    data = encoded(kind)
    if kind in ("JPEG", "MPO"):
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", SIDE, SIDE)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", SIDE, SIDE)
    else:
        at = struct.unpack("<I", data[4:8])[0] + 2
        for tag in range(at, at + 12 * 20, 12):
            if struct.unpack("<H", data[tag : tag + 2])[0] in (256, 257, 278):
                data[tag + 2 : tag + 12] = struct.pack("<HII", 4, 1, SIDE)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", png(SIDE, zlib.compress(b"\0" * 4000))),
        ("a.png", png(SIDE, np.random.default_rng(0).bytes(400_000), end=False)),
        ("a.png", png(SIDE, zlib.compress(b"\0" * 4000), palette=True)),
        ("a.jpg", declared_large("JPEG")),
        ("a.jpg", declared_large("MPO")),
        ("a.jpg", declared_large("JPEG")[:-2] + b"\0" * 300_000),
        ("a.bmp", declared_large("BMP")),
        ("a.tif", declared_large("TIFF")),
    ],
)
def test_a_header_of_100_megapixels_takes_no_memory(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert inspect(tmp_path / name).width == SIDE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"declares 10,000 x 10,000 pixels, and its [\d,]+ bytes do not hold them"):
        read_picture(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def patched(kind: str, **options) -> bytes:
    """A small file whose header says 10,000 x 10,000, in a format where a picture of one colour takes a few bytes."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, kind, **options)
    data, size = bytearray(file.getvalue()), struct.pack(">II", SIDE, SIDE)
    if kind == "WEBP":  # 14 bits each, behind the signature
        at = data.index(b"VP8L") + 9
        data[at : at + 4] = struct.pack(
            "<I", (struct.unpack("<I", data[at : at + 4])[0] >> 28 << 28) | 9999 << 14 | 9999
        )
    elif kind == "AVIF":
        at = data.index(b"ispe") + 8
        data[at : at + 8] = size
    else:
        at = data.index(b"ihdr") + 4
        data[at : at + 8] = size
    return bytes(data)


def false_progressive() -> bytes:
    """4 MB that end as a JPEG does and declare 30,000 x 30,000: coefficients of 5.4 GB."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 99, 200)).save(file, "JPEG", progressive=True)
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc2")
    data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    noise = np.random.default_rng(0).integers(0, 255, 4_000_000, np.uint8).tobytes()  # without 0xff, which is a marker
    return bytes(data[:-2]) + noise + b"\xff\xd9"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.webp", patched("WEBP", lossless=True)),
        ("a.avif", patched("AVIF")),
        ("a.jp2", patched("JPEG2000")),
        ("a.jpg", false_progressive()),
    ],
)
def test_a_large_picture_in_few_bytes_is_not_decoded(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert inspect(tmp_path / name).width >= SIDE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"is not decoded: it declares [\d,]+ x [\d,]+ pixels in [\d,]+ bytes, fewer"):
        read_picture(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@pytest.mark.parametrize(("name", "kind"), [("a.avif", "AVIF"), ("a.jp2", "JPEG2000")])
def test_a_large_picture_that_was_cut_off_takes_no_memory(tmp_path, name, kind):
    data = patched(kind)
    at = data.index(b"mdat" if kind == "AVIF" else b"jp2c") - 4
    content = np.random.default_rng(0).bytes(200_000)
    data = data[:at] + struct.pack(">I", 900_000) + data[at + 4 :] + content  # a box that is longer than the file
    (tmp_path / name).write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="do not hold them"):
        read_picture(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.png", "1", {}),
        ("a.png", "RGB", {}),
        ("a.tif", "L", {"compression": "tiff_lzw"}),
        ("a.tif", "1", {"compression": "group4"}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.jpg", "L", {"quality": 1, "optimize": True, "progressive": True}),
    ],
)
def test_blank_pictures_are_whole(tmp_path, name, mode, options):
    Image.new(mode, (3000, 3000)).save(tmp_path / name, **options)
    assert read_picture(tmp_path / name).pixels.shape[:2] == (3000, 3000)
