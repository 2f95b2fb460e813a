"""Picture files: which pixels come out, what is kept beside them, and what is said of the rest."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxkd.errors import ConfigError, DataError
from jaxkd.superres import image_io
from jaxkd.superres.image_io import check_writable, inspect, read_picture, replacing, write_picture
from jaxkd.superres.inputs import find_pictures, place
from jaxkd.superres.metadata import Metadata
from jaxkd.superres.sixteen_bits import MODES

RNG = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF_IFD, DATE, PIXEL_WIDTH, ORIENTATION, MAKE = 0x8769, 0x9003, 0xA002, 0x0112, 0x010F


def random(*shape: int, kind=np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(kind).max, shape, endpoint=True).astype(kind)


def saved(path, image, **options):
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def png16(pixels: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends


def written(tmp_path, name, image, **options):
    target = tmp_path / name
    with replacing(target) as partial:
        notes = write_picture(image, target, partial, **options)
    return target, notes


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize(
    ("mode", "pixels"),
    [
        ("L", random(5, 7)),
        ("LA", random(5, 7, 2)),
        ("RGB", random(5, 7, 3)),
        ("RGBA", random(5, 7, 4)),
        ("I;16", random(5, 7, kind=np.uint16)),
    ],
)
def test_lossless_files_come_back_as_they_were(tmp_path, ending, mode, pixels):
    path, notes = written(
        tmp_path, f"a{ending}", Image.fromarray(pixels), about=Metadata(icc=SRGB if "RGB" in mode else b"")
    )
    info, picture = inspect(path), read_picture(path)
    assert (info.height, info.width, info.mode, info.notes, notes) == (5, 7, mode, (), ())
    assert info.alpha == mode.endswith("A") and picture.mode == mode
    assert picture.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.metadata.icc == (SRGB if "RGB" in mode else b"") and picture.metadata.exif == b""


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_lossy_files(tmp_path, name):
    y, x = np.mgrid[:40, :50]
    smooth = np.stack([4 * x, 5 * y, 2 * (x + y)], -1).astype(np.uint8)
    path, _ = written(tmp_path, name, Image.fromarray(smooth), about=Metadata(icc=SRGB))
    assert np.abs(read_picture(path).pixels.astype(int) - smooth).max() < 8 and read_picture(path).metadata.icc == SRGB
    grey, _ = written(
        tmp_path, f"grey{name}", Image.fromarray(smooth[..., 0]), about=Metadata(icc=b"\0" * 16 + b"GRAY" + b"\0" * 9)
    )
    assert inspect(grey).mode == ("L" if name == "a.jpg" else "RGB")  # WebP knows colour only


def test_webp_of_quality_100_is_lossless(tmp_path):
    pixels = random(9, 8, 4)
    pixels[..., 3] |= 1  # colour below full transparency is not kept
    path, _ = written(tmp_path, "a.webp", Image.fromarray(pixels), quality=100)
    np.testing.assert_array_equal(read_picture(path).pixels, pixels)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_the_rest_of_exif_stays(tmp_path, ending, orientation):
    upright = np.kron(np.array([[10, 200, 90], [240, 60, 150]], np.uint8), np.ones((16, 16), np.uint8))
    # what the camera stored, so that a viewer that obeys the tag shows `upright`
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "camera"
    exif.get_ifd(EXIF_IFD).update({DATE: "2020:01:02 03:04:05", PIXEL_WIDTH: stored.shape[1]})
    blob = exif.tobytes()  # with its directory, which Pillow forgets for TIFF otherwise
    colour = np.ascontiguousarray(np.repeat(stored[..., None], 3, 2))
    path = saved(tmp_path / f"a{ending}", colour, exif=blob)
    info, picture = inspect(path), read_picture(path)
    assert (info.height, info.width) == picture.pixels.shape[:2] == upright.shape
    assert np.abs(picture.pixels[..., 0].astype(int) - upright).max() < 30
    for name in ("b.jpg", "b.png", "b.webp", "b.tif"):
        target, _ = written(tmp_path, name, Image.fromarray(picture.pixels), about=picture.metadata)
        with Image.open(target) as image:
            tags = image.getexif()
            assert image.size == (48, 32) and ORIENTATION not in tags and tags[MAKE] == "camera"
            assert tags.get_ifd(EXIF_IFD).get(DATE) == "2020:01:02 03:04:05"
            assert PIXEL_WIDTH not in tags.get_ifd(EXIF_IFD)
        os.remove(target)


def test_kinds_of_greyscale_and_palette(tmp_path):
    grey = random(6, 9)
    palette = Image.fromarray(random(6, 9, 3)).quantize(16)
    cases = {
        "one": (Image.fromarray(grey > 127), "L", (grey > 127) * np.uint8(255)),
        "grey palette": (Image.fromarray(grey).convert("P"), "L", grey),
        "palette": (palette, "RGB", np.asarray(palette.convert("RGB"))),
    }
    for name, (image, mode, want) in cases.items():
        path = saved(tmp_path / f"{name}.png", image)
        assert inspect(path).mode == read_picture(path).mode == mode, name
        np.testing.assert_array_equal(read_picture(path).pixels, want)
    path = saved(tmp_path / "clear.png", palette, transparency=0)
    assert inspect(path).mode == "RGBA" and read_picture(path).pixels.shape == (6, 9, 4)
    path = saved(tmp_path / "key.png", Image.fromarray(grey), transparency=int(grey[0, 0]))
    assert inspect(path).mode == "LA"
    np.testing.assert_array_equal(read_picture(path).pixels[..., 1] == 0, grey == grey[0, 0])


def test_tiff_whose_zero_is_white_and_big_endian(tmp_path):
    pixels = random(4, 5, kind=np.uint16)
    for order, kind, photometric in (("II", "<u2", 0), ("MM", ">u2", 1)):
        sign = "<" if order == "II" else ">"
        tags = [(256, 4, 5), (257, 4, 4), (258, 3, 16), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
        tags += [(277, 3, 1), (278, 4, 4), (279, 4, 40)]
        data = pixels.astype(kind).tobytes()
        entries = b"".join(
            struct.pack(f"{sign}HHI", tag, t, 1)
            + struct.pack(f"{sign}I" if t == 4 else f"{sign}HH", *([v] if t == 4 else [v, 0]))
            for tag, t, v in tags
        )
        file = order.encode() + struct.pack(f"{sign}HI", 42, 8 + len(data)) + data
        file += struct.pack(f"{sign}H", len(tags)) + entries + struct.pack(f"{sign}I", 0)
        (tmp_path / "a.tif").write_bytes(file)
        picture = read_picture(tmp_path / "a.tif")
        assert picture.mode == "I;16" and picture.pixels.dtype == np.uint16
        np.testing.assert_array_equal(picture.pixels, 65535 - pixels if photometric == 0 else pixels)


@pytest.mark.parametrize(("mode", "channels"), MODES.items())
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_of_colour_and_alpha_come_back(tmp_path, mode, channels, ending):
    pixels = random(70, 5, channels, kind=np.uint16)
    about = Metadata(icc=SRGB if channels > 2 else b"", dpi=(300.0, 300.0), xmp=b"<x/>")
    path, notes = written(tmp_path, f"a{ending}", pixels, about=about)
    info, picture = inspect(path), read_picture(path)
    assert (info.mode, picture.mode, info.alpha, info.notes, notes) == (mode, mode, channels != 3, (), ())
    np.testing.assert_array_equal(picture.pixels, pixels)
    found = picture.metadata
    assert found.icc == about.icc and found.xmp == b"<x/>" and found.dpi == pytest.approx((300, 300), abs=0.01)
    if ending == ".png":  # another program's filters and byte order
        (tmp_path / "b.png").write_bytes(png16(pixels, {2: 4, 3: 2, 4: 6}[channels]))
        np.testing.assert_array_equal(read_picture(tmp_path / "b.png").pixels, pixels)
    else:
        tifffile = pytest.importorskip("tifffile")
        np.testing.assert_array_equal(tifffile.imread(path), pixels)
        extra = {"extrasamples": ["unassalpha"]} if channels != 3 else {}
        extra["photometric"] = "rgb" if channels > 2 else "minisblack"
        tifffile.imwrite(tmp_path / "b.tif", pixels, byteorder=">", **extra)
        np.testing.assert_array_equal(read_picture(tmp_path / "b.tif").pixels, pixels)
        apart = np.moveaxis(pixels, -1, 0)
        tifffile.imwrite(tmp_path / "c.tif", apart, planarconfig="separate", **extra)
        np.testing.assert_array_equal(read_picture(tmp_path / "c.tif").pixels, pixels)
        if channels != 3:
            premultiplied = np.full_like(apart, 20_000)
            extra["extrasamples"] = ["assocalpha"]
            tifffile.imwrite(tmp_path / "d.tif", premultiplied, planarconfig="separate", **extra)
            assert read_picture(tmp_path / "d.tif").pixels[0, 0].tolist() == [65_535] * (channels - 1) + [20_000]


def test_sixteen_bits_with_a_colour_that_is_transparent(tmp_path):
    grey = random(6, 7, kind=np.uint16)
    path = saved(tmp_path / "a.png", Image.fromarray(grey), transparency=int(grey[2, 3]))
    assert inspect(path).mode == "LA;16"
    want = np.stack([grey, (grey != grey[2, 3]) * np.uint16(65535)], -1)
    np.testing.assert_array_equal(read_picture(path).pixels, want)


def test_what_is_not_kept_is_noted(tmp_path):
    first, second = (Image.fromarray(random(4, 5, 3)) for _ in range(2))
    path = saved(tmp_path / "a.tif", first, save_all=True, append_images=[second])
    assert inspect(path).notes == ("only the first of its 2 pictures is taken",)
    np.testing.assert_array_equal(read_picture(path).pixels, np.asarray(first))
    path = saved(
        tmp_path / "b.tif", Image.new("CMYK", (5, 4), (0, 255, 0, 0)), icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 9
    )
    assert inspect(path).notes == ("its CMYK becomes RGB",)
    assert tuple(read_picture(path).pixels[0, 0]) == (255, 0, 255) and read_picture(path).metadata.icc == b""


def test_too_much_exif_for_a_jpeg_is_noted(tmp_path):
    exif = Image.Exif()
    exif[MAKE] = "x" * 70_000
    for name, noted in (("a.jpg", 1), ("a.png", 0)):
        target, notes = written(tmp_path, name, Image.fromarray(random(4, 5, 3)), about=Metadata(exif=exif.tobytes()))
        assert len(notes) == noted
        with Image.open(target) as image:
            assert (MAKE in image.getexif()) != bool(noted)


def test_damaged_files(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(random(64, 64, 3)).save(whole, "PNG")
    (tmp_path / "short.png").write_bytes(whole.getvalue()[:3000])
    assert inspect(tmp_path / "short.png").width == 64  # the header is whole
    (tmp_path / "words.png").write_bytes(b"no picture")
    (tmp_path / "empty.png").touch()
    saved(tmp_path / "lab.tif", Image.new("LAB", (4, 4)))
    saved(tmp_path / "float.tif", Image.fromarray(np.zeros((2, 2), np.float32)))
    for name, words in (
        ("short.png", "truncated"),
        ("words.png", "no picture format is recognised"),
        ("empty.png", r"is empty \(0 bytes\)"),
        ("float.tif", "its pixels are floating-point numbers"),
        ("lab.tif", "its pixels are of the kind LAB"),
        ("none.png", "cannot be read"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            read_picture(tmp_path / name)
        assert f'"{tmp_path / name}"' in str(caught.value)


def test_any_size_may_be_read_and_pillows_limit_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = tmp_path / "a.png"
    Image.fromarray(random(8, 8)).save(path)
    assert read_picture(path).pixels.shape == (8, 8) and Image.MAX_IMAGE_PIXELS == 10


def test_limits_are_known_before_the_work(tmp_path):
    def info(width, mode="RGB"):
        return image_io.PictureInfo(tmp_path / "a", 2, width, mode)

    for name, side in (("a.webp", 16_383), ("a.jpg", 65_500)):
        check_writable(info(side // 2), tmp_path / name, 2)
        with pytest.raises(DataError, match=f"holds at most {side:,} to a side"):
            check_writable(info(side // 2 + 1), tmp_path / name, 2)
        # and the limits are the libraries' own
        written(tmp_path, name, Image.new("L", (side, 1)))
        with pytest.raises((DataError, ValueError)):
            written(tmp_path, f"b{name}", Image.new("L", (side + 1, 1)))
        assert not (tmp_path / f"b{name}").exists()
    check_writable(info(65_500), tmp_path / "a.png", 4)
    with pytest.raises(DataError, match="the memory of this machine is"):
        check_writable(image_io.PictureInfo(tmp_path / "a", 10**6, 10**6, "RGB"), tmp_path / "a.tif", 4)
    with pytest.raises(DataError, match="has transparency, and JPEG holds none"):
        check_writable(info(5, "RGBA"), tmp_path / "a.jpg", 2)
    for name in ("a.jpg", "a.webp"):
        with pytest.raises(DataError, match="has 16 bits a channel"):
            check_writable(info(5, "I;16"), tmp_path / name, 2)
    with pytest.raises(ConfigError, match='ends in ".pngg".*Did you mean ".png"'):
        check_writable(info(5), tmp_path / "a.pngg", 2)


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "a.png"
    with pytest.raises(RuntimeError), replacing(target) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError
    assert not list(target.parent.iterdir())
    with replacing(target) as partial:
        partial.write_bytes(b"whole")
        assert not target.exists()
    with pytest.raises(DataError, match="exists already.*--overwrite"), replacing(target) as partial:
        pass
    with replacing(target, overwrite=True) as partial:
        partial.write_bytes(b"new")
    assert target.read_bytes() == b"new" and len(list(target.parent.iterdir())) == 1
    with pytest.raises(DataError, match="cannot be written"), replacing(target / "b.png"):
        pass


def placed(sources, out, ending=""):
    """({path of a picture: path of its result}, folder)."""
    targets, folder = place(find_pictures([str(s) for s in sources]), str(out), ending=ending)
    return {str(f): str(t) for f, t in targets.items()}, folder


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_finding_and_placing(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    touch(folder, "b.png", "a.JPG", "deep/c.webp", "deep/d.txt", ".hidden.png", ".cache/e.png", "set[1]/f.png")
    (folder / "loop").symlink_to(folder)
    found = find_pictures([str(folder)])
    names = ["a.JPG", "b.png", "deep/c.webp", "set[1]/f.png"]
    assert [str(f.relative_to(folder)) for f in found.files] == names and set(found.files.values()) == {folder}
    assert found.others == {".txt": 1} and not found.one
    assert find_pictures([f"{folder}/**/*.webp"]).files == {folder / "deep/c.webp": folder}
    assert list(find_pictures([f"{folder}/**/[ac].*"]).files) == [folder / "a.JPG", folder / "deep/c.webp"]
    assert list(find_pictures([f"{folder}/set[1]/*.png"]).files) == [folder / "set[1]/f.png"]
    one = find_pictures([str(folder / "b.png")])
    assert one.one and one.files == {folder / "b.png": folder}
    targets, where = placed([folder], out)
    assert where == out and list(targets.values()) == [f"{out}/{n}" for n in names]
    assert placed([folder], out, ".tif")[0][f"{folder}/deep/c.webp"] == f"{out}/deep/c.tif"
    assert placed([folder / "b.png"], out / "x.webp") == ({f"{folder}/b.png": f"{out}/x.webp"}, out)
    # earlier results below the folder are no originals
    assert list(placed([folder], folder / "deep")[0]) == [f"{folder}/{n}" for n in names if "deep" not in n]
    # several sources, one of them twice
    both = placed([folder / "b.png", folder / "deep", folder / "b.png"], out)[0]
    assert list(both.values()) == [f"{out}/b.png", f"{out}/c.webp"]
    (folder / "deep/loop").symlink_to(folder)  # `glob` would follow two of them for ever
    assert list(find_pictures([f"{folder}/d*/**/*.webp"]).files) == [folder / "deep/c.webp"]


def test_formats_that_are_only_read_become_png(tmp_path):
    touch(tmp_path / "in", "a.bmp", "a.png", "b.gif", "c.jfif", "d.heic")
    found = find_pictures([str(tmp_path / "in")])
    assert found.others == {".heic": 1}
    names = [os.path.basename(t) for t in placed([tmp_path / "in"], tmp_path / "out")[0].values()]
    assert names == ["a.bmp.png", "a.png", "b.png", "c.jfif"]


def test_sources_and_places_that_are_refused(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    touch(folder, "b.png", "b.jpg", "deep/b.png", "words.txt")
    touch(tmp_path, "empty/.png")
    for sources, target, ending, words in (
        ([folder], folder, "", "would replace the picture itself"),
        ([folder], out, ".png", "would both be .*Leave --format out"),
        ([folder / "b.png", folder / "deep/b.png"], out, "", "would both be .*quotation marks"),
        ([folder], folder / "words.txt", "", "is a file"),
        ([folder / "b.png"], out / "x.webp", ".png", "name different formats"),
        ([folder / "b.png"], out / "x.bmp", "", 'ends in ".bmp", which is no format that is written'),
        ([folder], out / "x.heic", "", 'ends in ".heic", which is no format that is written'),
        ([folder], out / "x.png", "", "is the name of one picture, and --in may name several"),
        ([tmp_path / "empty"], out, "", "holds no pictures"),
        ([f"{folder}/*.txt"], out, "", "matches no pictures. It has files of other kinds: 1 .txt."),
        ([f"{folder}/[xy].png"], out, "", r"write \[\[\] for a bracket"),
        ([tmp_path / "inn"], out, "", 'does not exist. Did you mean "in"'),
        ([folder, tmp_path / ("x" * 300)], out, "", "does not exist"),
    ):
        with pytest.raises((DataError, ConfigError), match=words):
            placed(sources, target, ending)


def test_portable_maps_of_sixteen_bits(tmp_path):
    grey = random(4, 5, kind=np.uint16)
    for name, head, pixels in (("a.pgm", b"P5", grey), ("a.ppm", b"P6", np.repeat(grey[..., None], 3, 2))):
        (tmp_path / name).write_bytes(head + b"\n5 4\n65535\n" + pixels.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.pgm").pixels, grey)
    assert inspect(tmp_path / "a.pgm").mode == "I;16"
    assert "more than 8 bits a channel are reduced to 8" in inspect(tmp_path / "a.ppm").notes[0]
    assert np.abs(read_picture(tmp_path / "a.ppm").pixels[..., 0] * 257.0 - grey).max() <= 257
