"""Crops of training and evaluation, by hand and against timm."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxkd.data import AugmentConfig, EvalPreprocess, TrainTransform
from jaxkd.data.transforms.crops import centre_crop, random_resized_box, resize_to_cover
from jaxkd.data.transforms.on_device import normalise
from jaxkd.errors import ConfigError


def test_random_boxes_lie_inside_and_fill_the_ranges():
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(4000):
        left, top, right, bottom = random_resized_box((300, 400), (0.2, 0.5), (0.5, 2.0), rng)
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / (300 * 400))
        ratios.append(math.log((right - left) / (bottom - top)))
    # Uniform in area, log-uniform in ratio (a few wide boxes do not fit and are drawn again).
    assert 0.199 < min(shares) < 0.205 and 0.495 < max(shares) < 0.503
    assert abs(np.mean(shares) - 0.35) < 0.01
    assert abs(np.mean(ratios)) < 0.05 and np.std(ratios) == pytest.approx(2 * math.log(2) / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize(
    ("size", "box"), [((10, 100), (43, 0, 57, 10)), ((100, 10), (0, 43, 10, 56)), ((1, 90), (44, 0, 45, 1))]
)
def test_boxes_that_cannot_fit_fall_back_to_the_centre(size, box):
    # A whole-image area of an extreme image never fits: width 100 x height 10, ratio at most 4/3 -> 13 or 14 x 10.
    got = random_resized_box(size, (1.0, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0))
    assert abs(np.subtract(got, box)).max() <= 1
    width, height = got[2] - got[0], got[3] - got[1]
    assert height == size[0] or width == size[1]


@pytest.mark.parametrize("target", [(32, 32), (24, 40)])
def test_resize_covers_and_crop_is_central(picture, target):
    image = resize_to_cover(picture(50, 91), target, 3)
    assert image.height >= target[0] and image.width >= target[1]
    assert image.height == target[0] or image.width == target[1]
    assert centre_crop(image, target).size == target[::-1]


def test_a_crop_larger_than_the_image_is_filled_with_black(picture):
    pixels = np.asarray(centre_crop(picture(10, 30), (16, 16)))
    assert pixels.shape == (16, 16, 3)
    assert pixels[:3].max() == 0 and pixels[13:].max() == 0 and pixels[3:13].min() > 0


def test_augmentation_is_a_function_of_its_random_numbers(picture):
    augment = TrainTransform(AugmentConfig(), (16, 24))
    a, b, c = (augment(picture(60, 80), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert a.shape == (16, 24, 3) and a.dtype == np.uint8
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_flips_have_their_probability(picture):
    image = picture(8, 8)
    plain = np.asarray(image)
    augment = TrainTransform(AugmentConfig(kind="none", hflip=0.25), (8, 8))
    results = [augment(image, np.random.default_rng(s)) for s in range(400)]
    flipped = [bool((r == plain[:, ::-1]).all()) for r in results]
    assert all(f or (r == plain).all() for f, r in zip(flipped, results, strict=True))
    assert 70 <= sum(flipped) <= 130


def test_pad_crop_shifts_by_at_most_its_padding(picture):
    plain = np.asarray(picture(8, 8))
    padded = np.pad(plain, ((2, 2), (2, 2), (0, 0)))
    windows = {(i, j): padded[i : i + 8, j : j + 8] for i in range(5) for j in range(5)}
    augment = TrainTransform(AugmentConfig(kind="pad_crop", pad=2, hflip=0), (8, 8))
    seen = set()
    for seed in range(300):
        result = augment(picture(8, 8), np.random.default_rng(seed))
        where = [k for k, v in windows.items() if (v == result).all()]
        assert len(where) == 1
        seen.add(where[0])
    assert len(seen) == 25


def test_impossible_ranges_and_interpolations_are_refused():
    with pytest.raises(ConfigError, match=r"data.augment.scale=\(0.5, 1.5\) is not a range"):
        AugmentConfig(scale=(0.5, 1.5))
    with pytest.raises(ConfigError, match=r"data.augment.ratio=\(2, 1\)"):
        AugmentConfig(ratio=(2, 1))
    with pytest.raises(ConfigError, match=r"color_jitter=0.4 with .* would never act"):
        AugmentConfig(auto_augment="rand-m9", color_jitter=0.4)
    with pytest.raises(ConfigError, match='Did you mean "bicubic"'):
        EvalPreprocess((8, 8), 0.9, "bicubik")
    with pytest.raises(ConfigError, match="crop_pct=1.5"):
        EvalPreprocess((8, 8), 1.5, "bicubic")


def test_normalise_by_hand():
    images = np.array([[[[0, 128, 255]]]], np.uint8)
    got = normalise(images, (0.5, 0.4, 0.0), (0.5, 0.2, 2.0))
    np.testing.assert_allclose(got[0, 0, 0], [-1.0, (128 / 255 - 0.4) / 0.2, 0.5], rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(375, 500), (500, 375), (256, 256), (180, 640), (225, 223), (31, 57)])
@pytest.mark.parametrize(
    ("target", "crop_pct", "interpolation"),
    [
        ((224, 224), 0.9, "bicubic"),
        ((224, 224), 0.875, "bilinear"),
        ((384, 384), 1.0, "bicubic"),
        ((96, 160), 0.9, "bicubic"),
    ],
)
def test_evaluation_is_timms_pixel_for_pixel(timm, picture, size, target, crop_pct, interpolation):
    from timm.data.transforms_factory import transforms_imagenet_eval

    side = target[0] if target[0] == target[1] else target
    theirs = transforms_imagenet_eval(side, crop_pct=crop_pct, interpolation=interpolation, use_prefetcher=True)
    image = picture(*size)
    expected = theirs(image).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(EvalPreprocess(target, crop_pct, interpolation)(image), expected)


@pytest.mark.parity
def test_the_fallback_box_is_timms(timm):
    from PIL import Image
    from timm.data.transforms import RandomResizedCropAndInterpolation

    for height, width in ((10, 100), (100, 10), (7, 90), (50, 51)):
        i, j, h, w = RandomResizedCropAndInterpolation.get_params(
            Image.new("RGB", (width, height)), (4.0, 4.0), (3 / 4, 4 / 3)
        )
        got = random_resized_box((height, width), (4.0, 4.0), (3 / 4, 4 / 3), np.random.default_rng(0))
        assert got == (j, i, j + w, i + h)


def test_the_policy_acts_after_the_crop_and_fills_with_its_colour(picture):
    plain = TrainTransform(AugmentConfig(kind="none", hflip=0), (32, 32))
    policy = TrainTransform(
        AugmentConfig(kind="none", hflip=0, auto_augment="rand-m9-p1.0-inc1"), (32, 32), (1, 250, 3)
    )
    results = [policy(picture(32, 32), np.random.default_rng(seed)) for seed in range(60)]
    still = plain(picture(32, 32), np.random.default_rng(0))
    assert all(r.shape == (32, 32, 3) and r.dtype == np.uint8 for r in results)
    assert sum((r != still).any() for r in results) > 50
    assert any((r == (1, 250, 3)).all(axis=-1).sum() > 20 for r in results)


def test_colour_jitter_and_random_interpolation_act(picture):
    jitter = TrainTransform(AugmentConfig(kind="none", hflip=0, color_jitter=0.4), (16, 16))
    image = picture(16, 16)
    a, b = (jitter(image, np.random.default_rng(seed)) for seed in (1, 2))
    assert (a != np.asarray(image)).any() and (a != b).any()
    options = {"kind": "none", "hflip": 0}
    one = {
        n: TrainTransform(AugmentConfig(interpolation=n, **options), (9, 9))(image, np.random.default_rng(0))
        for n in ("bilinear", "bicubic")
    }
    either = TrainTransform(AugmentConfig(interpolation="random", **options), (9, 9))
    drawn = [either(image, np.random.default_rng(seed)).tobytes() for seed in range(30)]
    assert {v.tobytes() for v in one.values()} == set(drawn)


@pytest.mark.parametrize(("height", "width"), [(10_000, 1), (1, 10_000)])
def test_an_image_one_pixel_wide_does_not_fill_the_memory(height, width):
    from PIL import Image

    line = np.arange(10_000, dtype=np.uint8).reshape(height, width)
    image = Image.fromarray(np.repeat(line[..., None], 3, axis=-1))
    pixels = EvalPreprocess((224, 224), 0.9, "bicubic")(image)
    assert pixels.shape == (224, 224, 3)
    assert abs(int(pixels[112, 112, 0]) - 5000 % 256) <= 2
    assert TrainTransform(AugmentConfig(), (32, 32))(image, np.random.default_rng(0)).shape == (32, 32, 3)
