"""imresize: golden values, the published low-resolution files bit for bit, and the definition computed the long way."""

import math

import numpy as np
import pytest
from PIL import Image

from jaxkd import data
from jaxkd.data.transforms import imresize
from jaxkd.errors import ConfigError, ShapeError

RNG = np.random.default_rng(3)
SCALES = (1 / 2, 1 / 3, 1 / 4, 2, 3, 4)
SET5 = ("baby", "bird", "butterfly", "head", "woman")


@pytest.mark.parametrize("scale", SCALES)
def test_golden(golden, scale):
    g = golden("mdbn_and_sr_metrics")
    image, expected = g["metric_a_bgr"] / 255.0, g[f"imresize_{scale:.4f}"]
    got = data.imresize(image, scale)
    assert got.dtype == np.float64 and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(got, data.imresize(image, expected.shape[:2]))
    single = data.imresize(image.astype(np.float32), scale)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, got, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("name", SET5)
def test_the_published_low_resolution_files_bit_for_bit(shared_data, name, factor):
    folder = shared_data("sr_set5")
    image = np.asarray(Image.open(folder / "HR" / f"{name}.png").convert("RGB"))
    expected = np.asarray(Image.open(folder / "LR_bicubic" / f"X{factor}" / f"{name}x{factor}.png").convert("RGB"))
    image = image[: len(image) // factor * factor, : image.shape[1] // factor * factor]
    if factor == 8:  # made from floats, rounded once; the other factors by MATLAB from uint8
        got = np.clip(np.rint(data.imresize(image.astype(np.float64), 1 / factor)), 0, 255).astype(np.uint8)
    else:
        got = data.imresize(image, 1 / factor)
    np.testing.assert_array_equal(got, expected)


def cubic(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def pixel_the_long_way(line, j, scale):
    """Pixel j of a resized line: a sum over the mirrored line, beyond the kernel's reach of at most 19 pixels."""
    shrink, centre = min(scale, 1), (j + 0.5) / scale - 0.5
    total = weight = 0.0
    for i in range(-40, len(line) + 40):
        mirrored = i % (2 * len(line))
        value = line[mirrored if mirrored < len(line) else 2 * len(line) - 1 - mirrored]
        total += cubic(shrink * (i - centre)) * value
        weight += cubic(shrink * (i - centre))
    return total / weight


@pytest.mark.parametrize("length", [1, 2, 5, 23])
@pytest.mark.parametrize("scale", [0.11, 1 / 3, 0.7, 1, 1.37, 4])
def test_the_long_way(length, scale):
    line = RNG.random(length)
    expected = [pixel_the_long_way(line, j, scale) for j in range(max(1, math.ceil(length * scale)))]
    column = data.imresize(np.tile(line[:, None], (1, 3)), scale)  # its columns are equal and stay so
    row = data.imresize(np.tile(line[None, :, None], (2, 1, 4)), scale)
    np.testing.assert_allclose(column, np.tile(np.array(expected)[:, None], (1, column.shape[1])), atol=1e-12)
    np.testing.assert_allclose(row, np.broadcast_to(np.array(expected)[None, :, None], row.shape), atol=1e-12)


def test_integers_are_rounded_half_up_after_each_axis_the_smaller_factor_first():
    image = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)

    def rounded(values):
        return np.clip(np.floor(values + 0.5 + 1e-9), 0, 255)

    height_first = rounded(data.imresize(rounded(data.imresize(image.astype(float), (12, 40))), (12, 20)))
    width_first = rounded(data.imresize(rounded(data.imresize(image.astype(float), (24, 10))), (12, 10)))
    other = rounded(data.imresize(rounded(data.imresize(image.astype(float), (12, 40))), (12, 10)))
    assert (width_first != other).any()
    np.testing.assert_array_equal(data.imresize(image, 0.5), height_first)
    np.testing.assert_array_equal(data.imresize(image, (12, 10)), width_first)


def test_a_half_is_rounded_up():
    # The first of four weighs the eight by 70, 51, 13, -9, -3, ... 128ths; rounding half to even would give 0.
    column = np.array([[0], [1], [1], [0], [0], [0], [0], [0]])
    assert data.imresize(column.astype(float), (4, 1))[0] == 0.5
    assert data.imresize(column.astype(np.uint8), (4, 1))[0] == 1


def test_kinds_and_overshoot():
    edge = np.zeros((8, 8, 3))
    edge[:, 4:] = 1.0
    enlarged = data.imresize(edge, 2)
    assert enlarged.min() < -0.01 and enlarged.max() > 1.01  # floats are not clipped
    for kind in (np.uint8, np.uint16):
        top = np.iinfo(kind).max
        got = data.imresize((edge * top).astype(kind), 2)
        assert got.dtype == kind and got.min() == 0 and got.max() == top
    half = data.imresize(edge.astype(np.float16), 2)
    assert half.dtype == np.float16
    assert data.imresize(edge[..., 0], 2).shape == (16, 16)


def test_a_constant_stays_constant_and_a_ramp_a_ramp():
    np.testing.assert_array_equal(data.imresize(np.full((9, 7, 3), 201, np.uint8), 0.37), np.uint8(201))
    ramp = np.tile(np.arange(64.0)[:, None], (1, 64))
    inside = data.imresize(ramp, 1 / 4)[4:-4]
    np.testing.assert_allclose(inside[:, 0], np.arange(4, 12) * 4 + 1.5, atol=1e-12)


def test_the_new_side_is_rounded_up_and_not_by_a_rounding_error():
    assert data.imresize(np.zeros((25, 26)), 0.28).shape == (7, 8)
    assert data.imresize(np.zeros((1, 1)), 1 / 8).shape == (1, 1)


def test_matrices_are_cached_and_cannot_be_written_to():
    image = RNG.random((32, 48))
    data.imresize(image, 0.25)
    hits = imresize._blocks.cache_info().hits
    data.imresize(image, 0.25)
    assert imresize._blocks.cache_info().hits == hits + 2
    assert not any(block.weights.flags.writeable for block in imresize._blocks(32, 8, 0.25))


def test_wide_pictures_are_cut_into_strips_without_a_trace(monkeypatch):
    image = RNG.integers(0, 256, (40, 300, 3), dtype=np.uint8)
    expected = data.imresize(image, 1 / 3)
    monkeypatch.setattr(imresize, "PRODUCT", 5000)
    np.testing.assert_array_equal(data.imresize(image, 1 / 3), expected)


@pytest.mark.parametrize(
    ("image", "scale", "error", "match"),
    [
        (np.zeros((4, 4)), 0, ConfigError, "factor 0 .*positive"),
        (np.zeros((4, 4)), math.nan, ConfigError, "factor nan"),
        (np.zeros((4, 4)), (4, 0), ConfigError, r"size \(4, 0\)"),
        (np.zeros((4, 4)), (4, 4, 3), ConfigError, "not a height and a width"),
        (np.zeros((4, 4)), (4, 2.5), ConfigError, "two positive integers"),
        (np.zeros((2, 4, 4, 3)), 2, ShapeError, r"\(2, 4, 4, 3\).*one by one"),
        (np.zeros((0, 4, 3)), 2, ShapeError, "at least one"),
        (np.zeros((4, 4), np.int32), 2, ShapeError, "int32"),
        (np.zeros((4, 4), bool), 2, ShapeError, "bool"),
    ],
)
def test_what_cannot_be_resized(image, scale, error, match):
    with pytest.raises(error, match=match):
        data.imresize(image, scale)
