"""Metadata of picture files: kept from format to format, or named where a format has no room."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jaxkd.superres import sixteen_bits
from jaxkd.superres.image_io import read_picture, replacing, write_picture
from jaxkd.superres.metadata import Metadata

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" dc:title="cat"/></x:xmpmeta>'
UPRIGHT = XMP.replace(b'"6"', b'"1"')


def rewritten(path, target):
    """(metadata of `path` as `target` holds it after reading and writing, notes)."""
    picture = read_picture(path)
    image = picture.pixels if picture.mode in sixteen_bits.MODES else Image.fromarray(picture.pixels)
    with replacing(target, overwrite=True) as partial:
        notes = write_picture(image, target, partial, about=picture.metadata)
    return read_picture(target), notes


def source(tmp_path, ending, pixels):
    """A file with everything that its format can hold."""
    path, image = tmp_path / f"in{ending}", Image.fromarray(pixels)
    if ending == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_text("Author", "me")
        info.add_itxt("Title", "キャット", lang="ja")
        info.add_itxt("XML:com.adobe.xmp", XMP)
        image.save(path, pnginfo=info, dpi=(300, 150))
    elif ending == ".jpg":
        iptc = b"\xff\xed\x00\x1cPhotoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\0"
        image.save(path, dpi=(300, 150), comment=b"seen", xmp=XMP, extra=iptc)
    elif ending == ".webp":
        exif = Image.Exif()
        exif[282], exif[283], exif[296] = 300.0, 150.0, 2
        image.save(path, exif=exif, xmp=XMP)
    else:
        image.save(path, dpi=(300, 150), tiffinfo={700: XMP})
    return path


@pytest.mark.parametrize("start", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("end", [".png", ".jpg", ".webp", ".tif"])
def test_metadata_from_format_to_format(tmp_path, start, end):
    pixels = np.full((16, 16, 3), (9, 99, 200), np.uint8)
    picture, notes = rewritten(source(tmp_path, start, pixels), tmp_path / f"out{end}")
    found, said = picture.metadata, " ".join(notes)
    assert found.dpi == pytest.approx((300, 150), abs=0.02)
    # Pillow removes the orientation from a TIFF's XMP when it turns the pixels.
    assert found.xmp == (UPRIGHT.replace(b'tiff:Orientation="1"', b"") if start == ".tif" else UPRIGHT)
    assert (dict(found.text) == {"Author": "me", "Title": "キャット"}) == (start == end == ".png")
    assert ("text (Author, Title)" in said) == (start == ".png" and end != ".png")
    if start == ".jpg":
        assert (found.comment == b"seen") == (end == ".jpg") == ("IPTC" not in said)
        assert found.text == ({"Comment": "seen"} if end == ".png" else {})
        assert ("comment" in said) == (end in (".webp", ".tif")) and (found.iptc != b"") == (end == ".jpg")


def test_sixteen_bit_files_keep_text_and_gamma(tmp_path):
    pixels = np.full((9, 8, 3), (9, 99, 20_000), np.uint16)
    chunks = [(b"gAMA", (100_000).to_bytes(4, "big")), (b"tEXt", b"Author\0me")]
    with open(tmp_path / "a.png", "wb") as file:
        sixteen_bits.write_png(file, pixels, chunks)
    picture, notes = rewritten(tmp_path / "a.png", tmp_path / "b.png")
    assert picture.metadata.text == {"Author": "me"} and picture.metadata.gamma == (chunks[0],) and notes == ()
    np.testing.assert_array_equal(picture.pixels, pixels)
    _, notes = rewritten(tmp_path / "a.png", tmp_path / "b.tif")
    assert notes == ("its text (Author), gamma is left out, because TIFF holds none",)


def test_what_a_png_loses_is_noted(tmp_path):
    chunks = [(b"cICP", bytes([1, 13, 0, 1])), (b"sBIT", b"\x0c" * 3), (b"bKGD", bytes(6))]
    chunks += [(b"tEXt", b"Author\0me"), (b"tEXt", b"Author\0you"), (b"tEXt", b"Title\0cat")]
    with open(tmp_path / "a.png", "wb") as file:
        sixteen_bits.write_png(file, np.zeros((9, 8, 3), np.uint16), chunks)
    _, notes = rewritten(tmp_path / "a.png", tmp_path / "b.png")
    assert notes == ("its cICP, sBIT, bKGD, other text (Author) is left out, because jaxkd does not keep it",)
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    grey.save(tmp_path / "c.png", icc_profile=b"\0" * 16 + b"RGB " + b"\0" * 108)
    _, notes = rewritten(tmp_path / "c.png", tmp_path / "d.png")
    assert notes == ("its ICC profile is left out, because jaxkd does not keep it",)


def test_what_does_not_fit_into_a_jpeg_is_noted(tmp_path):
    about = Metadata(xmp=b"x" * 65_510, comment=b"y" * 66_000)
    with replacing(tmp_path / "a.jpg") as partial:
        notes = write_picture(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", partial, about=about)
    assert [n.split(" is left")[0] for n in notes] == ["its XMP", "its comment"]
