"""PSNR and SSIM: BasicSR's values, SSIM written the long way, and values by hand."""

import math

import numpy as np
import pytest

from jaxkd import metrics
from jaxkd.errors import ConfigError, ShapeError, UnknownNameError

RNG = np.random.default_rng(7)
CONVENTIONS = [(crop, luma) for crop in (0, 2, 4) for luma in (False, True)]


def noisy(image, amplitude=12, seed=1):
    noise = np.random.default_rng(seed).integers(-amplitude, amplitude + 1, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pair():
    """(2, 40, 53, 3): a smooth, bright picture (where fp32 cancels most) and noise; and both disturbed."""
    y, x = np.mgrid[:40, :53]
    smooth = np.stack([230 + 10 * np.sin(x / 9), 240 + 8 * np.cos(y / 7), 250 - x / 20], -1).astype(np.uint8)
    images = np.stack([smooth, RNG.integers(0, 256, smooth.shape).astype(np.uint8)])
    return images, noisy(images, 3)


@pytest.mark.parametrize(("crop", "luma"), CONVENTIONS)
def test_golden(golden, crop, luma):
    g = golden("mdbn_and_sr_metrics")
    a, b = g["metric_a_bgr"][..., ::-1], g["metric_b_bgr"][..., ::-1]
    key = f"crop{crop}_y{int(luma)}"
    assert metrics.psnr(a, b, crop, luma) == pytest.approx(float(g[f"psnr_{key}"]), abs=1e-5)
    assert metrics.ssim(a, b, crop, luma) == pytest.approx(float(g[f"ssim_{key}"]), abs=1e-8)


def test_golden_luma(golden):
    g = golden("mdbn_and_sr_metrics")
    got = metrics.luma(g["metric_a_bgr"][..., ::-1])
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, 255 * g["y_channel"], rtol=0, atol=1e-4)


def test_luma_by_hand():
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    expected = [16, 235, 16 + 65.481, 16 + 128.553, 16 + 24.966]
    np.testing.assert_allclose(metrics.luma(colours), expected, rtol=0, atol=1e-12)


def test_psnr_by_hand():
    a = np.zeros((4, 5, 3), np.uint8)
    b = a.copy()
    b[1, 2] = (30, 0, 40)  # the squares sum to 2500, over 60 values
    expected = 10 * math.log10(255**2 * 60 / 2500)
    assert metrics.psnr(a, b, 0, luma=False) == pytest.approx(expected, abs=1e-12)
    luma = (30 * 65.481 + 40 * 24.966) / 255
    assert metrics.psnr(a, b, 0) == pytest.approx(10 * math.log10(255**2 * 20 / luma**2), abs=1e-10)
    assert metrics.psnr(a, b, 1, luma=False) == pytest.approx(10 * math.log10(255**2 * 18 / 2500), abs=1e-12)
    assert metrics.psnr(a[:, ::-1], b[:, ::-1], 0) == metrics.psnr(a, b, 0) == metrics.psnr(b, a, 0)


def ssim_the_long_way(a, b):
    """Wang et al. 2004 window by window, on two (H, W) float pictures."""
    d = np.arange(11) - 5
    window = np.exp(-(d[:, None] ** 2 + d[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2)))
    return np.mean(values)


def test_ssim_the_long_way(pair):
    for a, b in zip(*pair, strict=True):  # 40 rows: more than one piece of rows, the last one shorter
        a, b = a[:, :17], b[:, :17]
        expected = ssim_the_long_way(metrics.luma(a)[2:-2, 2:-2], metrics.luma(b)[2:-2, 2:-2])
        assert metrics.ssim(a, b, 2) == pytest.approx(expected, abs=1e-10)
        channels = [ssim_the_long_way(a[..., c].astype(float), b[..., c].astype(float)) for c in range(3)]
        assert metrics.ssim(a, b, 0, luma=False) == pytest.approx(np.mean(channels), abs=1e-10)


def test_a_batch_is_its_pictures_one_by_one(pair):
    for measure in (metrics.psnr, metrics.ssim):
        together = measure(*pair)
        assert together.shape == (2,) and together.dtype == np.float64
        apart = [measure(a, b) for a, b in zip(*pair, strict=True)]
        assert all(type(value) is float for value in apart)
        np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("luma", [True, False])
def test_equal_pictures(pair, luma):
    image = pair[0]
    assert metrics.psnr(image[0], image[0].copy(), luma=luma) == math.inf
    assert metrics.ssim(image[0], image[0].copy(), luma=luma) == 1.0


def test_different_colours_of_equal_luma_are_equal_on_luma():
    a = np.full((12, 12, 3), 100, np.uint8)
    b = a.copy()
    b[3, 4] = (115, 91, 107)  # 15 * 299 - 9 * 587 + 7 * 114 = 0
    assert metrics.psnr(a, b, 0) == math.inf
    assert metrics.psnr(a, b, 0, luma=False) == pytest.approx(10 * math.log10(255**2 * 432 / 355), abs=1e-10)


@pytest.mark.parametrize(
    ("convention", "name"),
    [
        (("psnr", 4, True), "psnr_y_crop4"),
        (("ssim", 0, False), "ssim_rgb_crop0"),
        (("psnr", 12, True), "psnr_y_crop12"),
    ],
)
def test_names(convention, name):
    assert metrics.name_of(*convention) == name


def test_names_that_do_not_exist():
    with pytest.raises(UnknownNameError, match='no metric "psnrr".*Did you mean "psnr".*psnr or ssim'):
        metrics.name_of("psnrr", 4, True)
    with pytest.raises(ConfigError, match="crop_border=-1"):
        metrics.name_of("psnr", -1, True)


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim])
def test_pictures_that_cannot_be_compared(measure):
    a = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ShapeError, match=r"\(20, 20, 3\) and \(20, 19, 3\)"):
        measure(a, a[:, :19])
    with pytest.raises(ShapeError, match=r"\(20, 20\).*repeat a greyscale channel"):
        measure(a[..., 0], a[..., 0])
    with pytest.raises(ShapeError, match="int32.*Pass uint8"):
        measure(a, a.astype(np.int32))
    with pytest.raises(ShapeError, match="leave 0x0 after crop_border=12"):
        measure(a, a, 12)
    with pytest.raises(ConfigError, match="crop_border=-4"):
        measure(a, a, -4)


def test_the_host_takes_8_bits_only_and_ssim_a_whole_window():
    a = np.zeros((20, 20, 3), np.uint8)
    for measure in (metrics.psnr, metrics.ssim):
        with pytest.raises(ShapeError, match="uint8 and float32"):
            measure(a, a.astype(np.float32))
    with pytest.raises(ShapeError, match="leave 10x10 after crop_border=5.*11x11"):
        metrics.ssim(a, a, 5)
    assert metrics.psnr(a, a, 9) == math.inf
    with pytest.raises(ShapeError, match="float64"):
        metrics.luma(np.zeros((2, 2, 3)))
