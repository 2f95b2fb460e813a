"""Every kind of image file: what it becomes, and what it says when it cannot become anything."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jaxkd.data.transforms.decode import MAX_PIXELS, decode_rgb, read_file
from jaxkd.errors import DataError

ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: `colour` 0 is grey, 2 is RGB, 4 grey and alpha; each row starts with a zero byte."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def pixels(data: bytes, **options) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_rgb(data, "x", **options)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def message(data: bytes) -> str:
    with warnings.catch_warnings(), pytest.raises(DataError) as caught:
        warnings.simplefilter("ignore")
        decode_rgb(data, "folder/x.jpg")
    text = str(caught.value)
    assert 'The file "folder/x.jpg" cannot be read as an image' in text and "\n" not in text
    return text


def test_grey_and_black_and_white():
    assert pixels(encoded(Image.fromarray(np.array([[0, 77, 255]], np.uint8)))) == [[[0] * 3, [77] * 3, [255] * 3]]
    assert pixels(encoded(Image.fromarray(np.array([[True, False]])))) == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_upper_byte(kind):
    wide = np.array([[0, 255, 256, 0x80FF, 0xFFFF]], np.uint16)
    assert pixels(encoded(Image.fromarray(wide), kind)) == [[[v] * 3 for v in (0, 0, 1, 0x80, 255)]]


def test_16_bit_colour_keeps_its_upper_byte():
    rgb = np.array([0x12FF, 0x80FF, 0xFFFF, 1, 2, 300], ">u2").tobytes()
    assert pixels(png(2, 1, 16, 2, b"\0" + rgb)) == [[[0x12, 0x80, 255], [0, 0, 1]]]
    grey_alpha = np.array([0x12FF, 0x80FF, 0xFFFF, 0], ">u2").tobytes()
    assert pixels(png(2, 1, 16, 4, b"\0" + grey_alpha)) == [[[0x12] * 3, [255] * 3]]


@pytest.mark.parametrize("values", [np.array([[1.0, 2.0]], np.float32), np.array([[1, 70000]], np.int32)])
def test_pixels_without_a_defined_white_are_refused(values):
    text = message(encoded(Image.fromarray(values), "TIFF"))
    assert "do not say what is white" in text and "Convert it to 8 or 16 bits" in text


def test_alpha_is_dropped_not_composited():
    assert pixels(encoded(Image.new("RGBA", (1, 1), (200, 100, 50, 0)))) == [[[200, 100, 50]]]
    assert pixels(encoded(Image.new("LA", (1, 1), (90, 0)))) == [[[90, 90, 90]]]


@pytest.mark.parametrize("transparency", [{}, {"transparency": 1}, {"transparency": bytes([0, 128])}])
def test_a_palette_gives_its_colours_transparent_or_not(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, **transparency)) == [[[1, 2, 3], [200, 100, 50]]]


def test_cmyk():
    # 255 - ink, times what black leaves: (255-10)(255-40)/255, ...
    tiff = encoded(Image.new("CMYK", (1, 1), (10, 200, 30, 40)), "TIFF")
    np.testing.assert_allclose(pixels(tiff), [[[206.6, 46.4, 189.7]]], atol=1)
    np.testing.assert_allclose(
        pixels(encoded(Image.new("CMYK", (8, 8), (10, 200, 30, 40)), "JPEG", quality=100))[0][0],
        [206.6, 46.4, 189.7],
        atol=3,
    )


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0][0] == [255, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, np.array), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (6, lambda x: np.rot90(x, -1))],
)
@pytest.mark.parametrize("kind", ["grey", "16 bits", "colour"])
def test_exif_rotation_is_ignored_unless_asked_for(orientation, turn, kind):
    plain = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    values = {"grey": plain, "16 bits": plain.astype(np.uint16) * 256, "colour": np.stack([plain] * 3, -1)}[kind]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.fromarray(values), exif=exif)
    np.testing.assert_array_equal(np.asarray(pixels(data))[..., 0], plain)
    np.testing.assert_array_equal(np.asarray(pixels(data, exif=True))[..., 0], turn(plain))


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1)])
def test_images_of_one_pixel(picture, size):
    assert decode_rgb(encoded(picture(*size), "JPEG"), "x").size == size[::-1]


@pytest.mark.parametrize("side", [9_600, 20_000])  # Pillow warns of the first and refuses the second
def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch, side):
    assert side * side > MAX_PIXELS
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    text = message(png(side, side, 8, 0, b""))
    assert "89,478,485 pixels" in text and "scale it down" in text


def test_an_image_just_below_the_limit_is_none_of_them(monkeypatch):
    monkeypatch.setattr("jaxkd.data.transforms.decode.MAX_PIXELS", 12)
    assert decode_rgb(encoded(Image.new("L", (4, 3))), "x").size == (4, 3)
    assert "it has 13 x 1 pixels" in message(encoded(Image.new("L", (13, 1))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_a_truncated_file(picture, kind):
    data = encoded(picture(60, 80), kind)
    decode_rgb(data, "x")
    for length in (len(data) // 2, 30, 1, 0):
        assert "cannot be read as an image" in message(data[:length])


def test_what_pillow_calls_a_value_error_is_ours_too(picture):
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (2 << 20), zip=True)  # decompresses to more than Pillow takes
    assert "Decompressed data too large" in message(encoded(picture(4, 4), pnginfo=text))
    assert "invalid literal" in message(b"P6\n2* 20\n255\n")


def test_damaged_files_raise_nothing_but_our_error(picture):
    rng = np.random.default_rng(0)
    refused = 0
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"):
        good = encoded(picture(20, 30), kind)
        for _ in range(60):
            data = bytearray(good)
            for place in rng.integers(0, min(len(data), 200), 5):
                data[place] = rng.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    decode_rgb(bytes(data), "x", exif=True)
                except DataError:
                    refused += 1
    assert refused > 60


def test_files_that_cannot_be_opened_are_not_called_damaged(tmp_path):
    with pytest.raises(DataError, match="is gone"):
        read_file(tmp_path / "x.jpg")
    with pytest.raises(DataError, match="cannot be read from the disk"):
        read_file(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "RGBA", "P", "LA", "1"])
def test_ordinary_files_are_what_timm_makes_of_them(timm, picture, tmp_path, mode):
    from timm.data import ImageDataset

    kind = "jpg" if mode in ("L", "RGB", "CMYK") else "png"
    (tmp_path / "a").mkdir()
    picture(30, 40).convert(mode).save(tmp_path / "a" / f"x.{kind}")
    theirs, _ = ImageDataset(str(tmp_path))[0]
    np.testing.assert_array_equal(
        np.asarray(decode_rgb(read_file(tmp_path / "a" / f"x.{kind}"), "x")), np.asarray(theirs)
    )
