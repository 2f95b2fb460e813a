"""Decoding only what a crop shows: Pillow's pixels where that is promised, bounds where it is not, and refusals."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxkd.data.transforms import fast_decode
from jaxkd.data.transforms.crops import random_resized_box
from jaxkd.data.transforms.fast_decode import DecodeOptions, decode_crop_resize
from jaxkd.errors import ConfigError, DataError

OFF = DecodeOptions(region="off")
REGION = DecodeOptions()
SIZES = [(97, 131), (64, 64), (16, 16), (17, 200), (203, 9), (1, 1), (8, 33)]  # height, width

needs_turbojpeg = pytest.mark.skipif(fast_decode._library()[0] is None, reason="needs the extra `turbo`")


def encode(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **{"format": "JPEG", "quality": 85, **options})
    return file.getvalue()


def by_hand(data: bytes, box, size) -> np.ndarray:
    """What all of this stands for."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.crop(box).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def fast(data: bytes, box, size, options: DecodeOptions = REGION, **more) -> np.ndarray:
    return np.asarray(decode_crop_resize(data, "a.jpg", size, lambda _: box, options=options, **more))


def boxes(height: int, width: int, count: int = 12):
    """Random ones, the whole image, its corners, and what starts or ends between two MCUs."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield random_resized_box((height, width), (0.08, 1.0), (3 / 4, 4 / 3), rng)
    w, h = max(width // 3, 1), max(height // 3, 1)
    if height > 48 and width > 48:
        yield from ((16, 16, 48, 48), (32, 8, width, 40), (8, 24, 40, height), (15, 17, 33, 31))
    yield from ((0, 0, width, height), (0, 0, w, h), (width - w, height - h, width, height), (0, height - 1, 1, height))


@pytest.fixture
def only_regions(monkeypatch):
    """Whole decoding fails, so that a test cannot pass by falling back to it."""

    def refuse(data, name, *, exif=False):
        raise AssertionError("fell back to decoding the whole image")

    monkeypatch.setattr(fast_decode, "decode_rgb", refuse)


@needs_turbojpeg
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["4:4:4", "4:2:2", "4:2:0", "grey", "restarts"])
def test_regions_are_the_pixels_of_the_whole_image(picture, only_regions, size, kind):
    options = {
        "grey": {},
        "restarts": {"subsampling": 2, "restart_marker_blocks": 2},
    }.get(kind) or {"subsampling": ("4:4:4", "4:2:2", "4:2:0").index(kind) if ":" in kind else -1}
    image = picture(*size)
    data = encode(image.convert("L") if kind == "grey" else image, **options)
    for box in boxes(*size):
        np.testing.assert_array_equal(fast(data, box, (14, 10)), by_hand(data, box, (14, 10)))


@needs_turbojpeg
def test_real_photographs(shared_data, only_regions):
    files = sorted(shared_data("imagenet_originals").glob("*.JPEG"))[:24]
    for number, path in enumerate(files):
        data = path.read_bytes()
        rng = np.random.default_rng(number)
        width, height = Image.open(io.BytesIO(data)).size
        for _ in range(2):
            box = random_resized_box((height, width), (0.08, 1.0), (3 / 4, 4 / 3), rng)
            np.testing.assert_array_equal(
                fast(data, box, (224, 224)), by_hand(data, box, (224, 224)), err_msg=path.name
            )


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"progressive": True}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
        ("RGB", {"format": "PNG"}),
        ("P", {"format": "PNG"}),
        ("RGBA", {"format": "PNG"}),
        ("RGB", {"format": "WEBP", "lossless": True}),
    ],
)
@pytest.mark.parametrize("decode", [OFF, REGION, DecodeOptions(dct_scaling=True)])
def test_everything_else_is_left_to_pillow(picture, mode, options, decode):
    data, box = encode(picture(61, 83).convert(mode), **options), (11, 5, 60, 44)
    np.testing.assert_array_equal(fast(data, box, (32, 32), decode), by_hand(data, box, (32, 32)))


@pytest.mark.parametrize("decode", [OFF, REGION, DecodeOptions(dct_scaling=True)])
def test_the_box_is_chosen_once_for_the_size_of_the_image(picture, decode):
    whole = encode(picture(61, 83))
    middle = len(whole) * 2 // 3
    spoilt = whole[:middle] + b"\xff\xd3" + whole[middle + 2 :]  # Pillow takes it as it is
    for data in (whole, spoilt):
        asked = []

        def choose(size, asked=asked):
            asked.append(size)
            return (3, 0, 43, 61)

        got = np.asarray(decode_crop_resize(data, "a.jpg", (32, 32), choose, options=decode))
        np.testing.assert_array_equal(got, by_hand(data, (3, 0, 43, 61), (32, 32)))
        assert asked == [(61, 83)]
    assert (got != by_hand(whole, (3, 0, 43, 61), (32, 32))).any()


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"not an image",
        "header only": data[:200],
        "half": data[: len(data) // 2],
        "no end": data[:-2],
        "cut, but with an end": data[:200] + b"\xff\xd9",
    }


@pytest.mark.parametrize("kind", damaged(b""))
@pytest.mark.parametrize("decode", [OFF, REGION, DecodeOptions(dct_scaling=True)])
def test_damaged_files_fare_as_with_pillow_wherever_the_crop_lies(picture, kind, decode):
    whole = encode(picture(120, 160))
    data = damaged(whole)[kind]

    def outcome(options):
        try:
            return fast(data, (0, 0, 60, 40), (16, 16), options).tobytes()
        except DataError as error:
            assert "a.jpg" in str(error)
            return str(error)

    assert outcome(decode) == outcome(OFF)
    assert isinstance(outcome(OFF), str) or kind == "no end"
    # and the next file is decoded as if nothing had been
    np.testing.assert_array_equal(
        fast(whole, (9, 9, 60, 40), (16, 16), decode), by_hand(whole, (9, 9, 60, 40), (16, 16))
    )


@needs_turbojpeg
def test_a_damaged_file_does_not_stop_region_decoding(picture, only_regions):
    whole = encode(picture(120, 160))
    middle = len(whole) // 2
    bad_header = whole[:20] + b"\xff\x00" * 20 + b"\xff\xd9"
    bad_middle = whole[:middle] + b"\xff\xd3" + whole[middle + 2 :]
    for data in (bad_header, bad_middle, bad_header, bad_middle):
        with pytest.raises(AssertionError, match="fell back"):
            fast(data, (0, 0, 60, 120), (16, 16))
        fast(whole, (0, 0, 60, 40), (16, 16))


def test_images_too_large_to_decode_are_refused(monkeypatch, picture):
    data = encode(picture(120, 160))
    monkeypatch.setattr(fast_decode, "MAX_PIXELS", 120 * 160 - 1)
    monkeypatch.setattr("jaxkd.data.transforms.decode.MAX_PIXELS", 120 * 160 - 1)
    for options in (OFF, REGION, DecodeOptions(dct_scaling=True)):
        with pytest.raises(DataError, match="160 x 120 pixels"):
            fast(data, (0, 0, 60, 40), (16, 16), options)


def test_exif_rotation_is_obeyed_if_asked(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = encode(picture(61, 83), exif=exif.tobytes())
    turned = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(turned.crop((5, 11, 44, 60)).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(fast(data, (5, 11, 44, 60), (32, 32), exif=True), expected)
    assert (fast(data, (5, 11, 44, 60), (32, 32)) == by_hand(data, (5, 11, 44, 60), (32, 32))).all()


@pytest.mark.parametrize(
    ("box", "size", "factor"),
    [
        ((0, 0, 64, 64), (32, 32), 2),
        ((0, 0, 63, 64), (32, 32), 1),
        ((0, 0, 64, 63), (32, 32), 1),
        ((10, 10, 138, 300), (32, 32), 4),
        ((10, 10, 138, 300), (33, 32), 4),
        ((10, 10, 138, 300), (32, 33), 2),
        ((0, 0, 4000, 4000), (32, 32), 8),
    ],
)
def test_dct_scaling_never_goes_below_the_output(box, size, factor):
    assert fast_decode._factor(box, size) == factor


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_dct_scaling_shifts_nothing_and_changes_little(picture, subsampling):
    smooth = picture(60, 80).resize((803, 601), Image.Resampling.BICUBIC)
    data = encode(smooth, subsampling=subsampling, quality=95)
    scaled = DecodeOptions(region="off", dct_scaling=True)
    for box in ((0, 0, 795, 601), (3, 5, 700, 599), (101, 57, 460, 411)):
        exact = by_hand(data, box, (64, 64)).astype(float)
        difference = np.abs(fast(data, box, (64, 64), scaled) - exact)
        assert 0 < difference.mean() < 2 and difference.max() < 16
        one = fast_decode._factor(box, (64, 64))  # pixel of the shrunk image
        moved = np.abs(by_hand(data, (box[0] + one, box[1], box[2] + one, box[3]), (64, 64)) - exact)
        assert difference.mean() < 0.4 * moved.mean()
    small = (100, 100, 200, 227)  # less than twice the output
    np.testing.assert_array_equal(fast(data, small, (64, 64), scaled), by_hand(data, small, (64, 64)))


@needs_turbojpeg
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_dct_scaling_is_the_same_with_and_without_regions(picture, only_regions, mode, subsampling):
    data = encode(picture(333, 421).convert(mode), subsampling=subsampling)
    for box in ((0, 0, 421, 333), (3, 5, 402, 331), (100, 57, 421, 333), (17, 200, 150, 333)):
        pillow = fast(data, box, (33, 40), DecodeOptions(region="off", dct_scaling=True))
        np.testing.assert_array_equal(fast(data, box, (33, 40), DecodeOptions(dct_scaling=True)), pillow)
        assert (pillow != by_hand(data, box, (33, 40))).any()


def test_a_library_that_is_missing(monkeypatch, picture):
    monkeypatch.setattr(fast_decode, "_library", lambda: (None, "no shared library named libturbojpeg was found"))
    with pytest.raises(ConfigError, match=r"no shared library named.*pip install 'jaxkd\[turbo\]'"):
        DecodeOptions(region="on")
    assert fast_decode.region_decoding().startswith("no shared library")
    data = encode(picture(61, 83))
    np.testing.assert_array_equal(fast(data, (11, 5, 60, 44), (32, 32)), by_hand(data, (11, 5, 60, 44), (32, 32)))


def test_a_library_with_other_pixels_is_not_used(monkeypatch, picture):
    """Pillow may have been built with another JPEG library than libjpeg-turbo."""
    if fast_decode._library()[0] is None:
        pytest.skip("needs the extra `turbo`")
    real = fast_decode.decode_rgb
    monkeypatch.setattr(fast_decode, "decode_rgb", lambda data, name: real(data, name).point(lambda v: v ^ 1))
    library, problem = fast_decode._library.__wrapped__()
    assert library is None and "other pixels than Pillow" in problem


def test_options_are_checked_and_can_be_sent_to_workers():
    with pytest.raises(ConfigError, match=r'region="of" is not possible. Did you mean "off"'):
        DecodeOptions(region="of")
    options = DecodeOptions(region="off", dct_scaling=True)
    assert pickle.loads(pickle.dumps(options)) == options


def test_the_library_is_loaded_only_when_it_is_used():
    code = (
        "from jaxkd.data.transforms import fast_decode as f; f.DecodeOptions(); f.DecodeOptions('off', True);"
        "assert f._library.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
