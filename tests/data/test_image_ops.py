"""The operations of the augmentation policies: by hand on tiny pictures, and pixel for pixel against timm."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jaxkd.data.transforms import image_ops
from jaxkd.data.transforms.image_ops import OPS, OpRanges
from jaxkd.errors import ConfigError

GREY = (128, 128, 128)
NEAREST, BILINEAR, BICUBIC = Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
BLACK_ON_OUR_SIDE = {("Posterize", 0), ("PosterizeIncreasing", 10)}  # no bit is kept


def grey(rows) -> Image.Image:
    """An RGB picture whose channels are all equal."""
    return Image.fromarray(np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1))


def levels(image: Image.Image) -> list:
    """The red channel, after checking that the others equal it."""
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


@pytest.mark.parametrize(
    ("apply", "argument", "expected"),
    [
        (image_ops.posterize, 8, [0, 100, 127, 128, 200, 255]),
        (image_ops.posterize, 4, [0, 96, 112, 128, 192, 240]),
        (image_ops.posterize, 1, [0, 0, 0, 128, 128, 128]),
        (image_ops.posterize, 0, [0, 0, 0, 0, 0, 0]),
        (image_ops.posterize, -3, [0, 0, 0, 0, 0, 0]),
        (image_ops.posterize, 11, [0, 100, 127, 128, 200, 255]),
        (image_ops.solarize, 256, [0, 100, 127, 128, 200, 255]),
        (image_ops.solarize, 128, [0, 100, 127, 127, 55, 0]),
        (image_ops.solarize, 0, [255, 155, 128, 127, 55, 0]),
        (image_ops.solarize_add, 60, [60, 160, 187, 128, 200, 255]),
        (image_ops.solarize_add, 128, [128, 228, 255, 128, 200, 255]),
        (image_ops.brightness, 0.5, [0, 50, 63, 64, 100, 127]),
        (image_ops.brightness, 1.5, [0, 150, 190, 192, 255, 255]),
        (image_ops.contrast, 0.0, [135] * 6),  # the mean is 135
        (image_ops.color, 0.3, [0, 100, 127, 128, 200, 255]),  # grey stays grey
    ],
)
def test_values_by_hand(apply, argument, expected):
    assert levels(apply(grey([[0, 100, 127, 128, 200, 255]]), argument)) == [expected]


def test_operations_without_a_magnitude_by_hand():
    assert levels(OPS["Invert"].apply(grey([[0, 100, 255]]))) == [[255, 155, 0]]
    assert levels(OPS["AutoContrast"].apply(grey([[50, 100, 150]]))) == [[0, 127, 255]]
    halves = [[10] * 16 + [200] * 16] * 16  # 512 pixels: enough for a step of the histogram
    assert levels(OPS["Equalize"].apply(grey(halves)))[0] == [0] * 16 + [255] * 16


def test_colour_by_hand():
    red = Image.new("RGB", (2, 1), (255, 0, 0))
    assert np.asarray(image_ops.desaturate(red, 1.0))[0, 0].tolist() == [76, 76, 76]  # 0.299 * 255
    assert np.asarray(image_ops.desaturate(red, 0.5))[0, 0].tolist() == [165, 38, 38]
    assert np.asarray(image_ops.color(red, 0.0))[0, 0].tolist() == [76, 76, 76]
    assert np.asarray(image_ops.hue(red, 1 / 3))[0, 0].tolist() == [0, 255, 0]
    assert np.asarray(image_ops.hue(red, 0.5))[0, 0].tolist() == [0, 255, 252]  # 127 of 255: not quite half
    # Pillow's circle has 255 steps but the level wraps at 256, so that backwards is one step (6 of 255) too far.
    assert np.asarray(image_ops.hue(red, -1 / 3))[0, 0].tolist() == [6, 0, 255]


def test_sharpness_by_hand():
    point = grey([[0] * 5] * 2 + [[0, 0, 130, 0, 0]] + [[0] * 5] * 2)
    smoothed = levels(image_ops.sharpness(point, 0.0))
    assert smoothed[2] == [0, 10, 50, 10, 0]  # the kernel is 1/13 around 5/13
    assert levels(image_ops.sharpness(point, 2.0))[2][2] == 130 + 80


@pytest.mark.parametrize("resample", [NEAREST, BILINEAR, BICUBIC])
def test_shifts_by_hand(resample):
    picture = grey([[10, 20, 30, 40], [50, 60, 70, 80]])
    options = {"fill": (1, 1, 1), "resample": resample}
    assert levels(image_ops.translate_x(picture, 1.0, **options)) == [[20, 30, 40, 1], [60, 70, 80, 1]]
    assert levels(image_ops.translate_x(picture, -2.0, **options)) == [[1, 1, 10, 20], [1, 1, 50, 60]]
    assert levels(image_ops.translate_y(picture, 1.0, **options)) == [[50, 60, 70, 80], [1, 1, 1, 1]]
    assert levels(image_ops.translate_x_share(picture, 0.25, **options))[0] == [20, 30, 40, 1]
    assert levels(image_ops.translate_y_share(picture, -0.5, **options)) == [[1, 1, 1, 1], [10, 20, 30, 40]]
    # The shift is taken at the centre of the row or column: 2 * (0 + 1/2) = 1 pixel for the first one.
    assert levels(image_ops.shear_x(picture, 2.0, **options)) == [[20, 30, 40, 1], [80, 1, 1, 1]]
    assert levels(image_ops.shear_y(picture, 2.0, **options)) == [[50, 1, 1, 1], [1, 1, 1, 1]]


def test_rotation_is_anticlockwise_and_fills_the_corners():
    square = grey([[10, 20], [30, 40]])
    assert levels(image_ops.rotate(square, 90, fill=GREY, resample=BICUBIC)) == [[20, 40], [10, 30]]
    turned = np.asarray(image_ops.rotate(Image.new("RGB", (21, 21)), 30, fill=(9, 8, 7), resample=BICUBIC))
    assert turned[0, 0].tolist() == [9, 8, 7] and turned[10, 10].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "expected"),  # at magnitudes 0, 5, 10; with both signs where there is one
    [
        ("Rotate", [0, 15, 30]),
        ("ShearX", [0, 0.15, 0.3]),
        ("ShearY", [0, 0.15, 0.3]),
        ("TranslateX", [0, 50, 100]),
        ("TranslateY", [0, 50, 100]),
        ("TranslateXRel", [0, 0.225, 0.45]),
        ("TranslateYRel", [0, 0.225, 0.45]),
        ("Posterize", [0, 2, 4]),
        ("PosterizeIncreasing", [4, 2, 0]),
        ("PosterizeOriginal", [4, 6, 8]),
        ("Solarize", [0, 128, 256]),
        ("SolarizeIncreasing", [256, 128, 0]),
        ("SolarizeAdd", [0, 55, 110]),
        ("Color", [0.1, 1.0, 1.9]),
        ("Contrast", [0.1, 1.0, 1.9]),
        ("Brightness", [0.1, 1.0, 1.9]),
        ("Sharpness", [0.1, 1.0, 1.9]),
        ("Desaturate", [0.5, 0.75, 1.0]),
        ("GaussianBlur", [0.1, 1.05, 2.0]),
    ],
)
def test_arguments_by_hand(name, expected):
    op, ranges = OPS[name], OpRanges(translate_const=100)
    for magnitude, value in zip((0, 5, 10), expected, strict=True):
        assert op.arguments(magnitude, 0.25, ranges) == pytest.approx((value,))
        assert op.arguments(magnitude, 0.75, ranges) == pytest.approx((-value if op.draws else value,))


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_increasing_enhancements_move_away_from_one(name):
    arguments = OPS[name + "Increasing"].arguments
    assert [arguments(m, 0.25, OpRanges())[0] for m in (0, 5, 10)] == pytest.approx([1.0, 1.45, 1.9])
    assert [arguments(m, 0.75, OpRanges())[0] for m in (0, 5, 10, 20)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_magnitudes_above_ten():
    """mmax allows them: some ranges go on, others end."""
    at = {name: OPS[name].arguments(20, 0.25, OpRanges())[0] for name in OPS if OPS[name].arguments}
    assert at["Rotate"] == 60 and at["Color"] == pytest.approx(3.7)
    assert (at["Solarize"], at["SolarizeIncreasing"], at["SolarizeAdd"]) == (256, 0, 128)
    assert (at["Desaturate"], at["GaussianBlur"]) == (1.0, 2.0)
    assert at["PosterizeIncreasing"] == -4 and at["GaussianBlurRand"] == pytest.approx(0.1 + 1.9 * 0.25)


def test_blur_radius_is_uniform_between_its_ends():
    arguments = OPS["GaussianBlurRand"].arguments
    assert [arguments(10, c, OpRanges())[0] for c in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 1.05, 2.0])
    assert [arguments(5, c, OpRanges())[0] for c in (0.0, 1.0)] == pytest.approx([0.1, 1.0])


def test_every_operation_keeps_size_and_mode_and_leaves_its_input_alone(picture):
    image = picture(20, 33)
    before = image.tobytes()
    for name, op in OPS.items():
        arguments = op.arguments(7, 0.6, OpRanges()) if op.arguments else ()
        got = op.apply(image, *arguments, **({"fill": GREY, "resample": BICUBIC} if op.moves else {}))
        assert got.size == (33, 20) and got.mode == "RGB", name
        assert got.tobytes() != before and image.tobytes() == before, name


def test_colour_jitter_is_drawn_from_its_ranges_in_any_order():
    rng = np.random.default_rng(0)
    drawn = [image_ops.draw_color_jitter((0.4, 1.5, 0.2, 0.1), rng) for _ in range(2000)]
    orders = {tuple(apply.__name__ for apply, _ in steps) for steps in drawn}
    assert len(orders) == 24
    factors = {name: np.array([dict((a.__name__, f) for a, f in s)[name] for s in drawn]) for name in min(orders)}
    for name, (low, high) in {
        "brightness": (0.6, 1.4),
        "contrast": (0.0, 2.5),
        "color": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }.items():
        width = high - low
        assert low <= factors[name].min() < low + 0.01 * width and high - 0.01 * width < factors[name].max() <= high
        assert factors[name].mean() == pytest.approx((low + high) / 2, abs=0.03 * width)


def test_colour_jitter_one_number_leaves_the_hue_alone(picture):
    rng = np.random.default_rng(0)
    assert sorted(a.__name__ for a, _ in image_ops.draw_color_jitter(0.4, rng)) == ["brightness", "color", "contrast"]
    assert [a.__name__ for a, _ in image_ops.draw_color_jitter((0, 0.4, 0), rng)] == ["contrast"]
    image = picture(9, 12)
    assert image_ops.color_jitter(image, 0.0, rng).tobytes() == image.tobytes()
    first, again, other = (image_ops.color_jitter(image, 0.4, np.random.default_rng(s)).tobytes() for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("strengths", [-0.1, (0.4, 0.4), (0.4, 0.4, 0.4, 0.6), (0.1, -0.4, 0.4), (0.1,) * 5])
def test_impossible_colour_jitter(strengths, picture):
    with pytest.raises(ConfigError, match=r"color_jitter=.* is not possible.*Give one number or three"):
        image_ops.color_jitter(picture(4, 4), strengths, np.random.default_rng(0))


class Fixed:
    """Stands for timm's `random`: always the same uniform number, always the same member."""

    def __init__(self, chance: float, member: int = 0):
        self.chance, self.member = chance, member

    def random(self) -> float:
        return self.chance

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.chance

    def choice(self, members):
        return members[self.member]


@pytest.fixture(scope="module")
def photograph(shared_data):
    """A part of a real photograph, 200 x 300."""
    path = sorted(shared_data("imagenet_originals").glob("*.JPEG"))[0]
    with Image.open(path) as image:
        return image.convert("RGB").crop((20, 30, 320, 230))


@pytest.fixture(params=["drawn", "photograph"])
def subject(request, picture):
    """A picture without symmetry: a generated one, or a photograph where there is one."""
    return picture(61, 94) if request.param == "drawn" else request.getfixturevalue("photograph")


@pytest.mark.parity
@pytest.mark.parametrize("name", OPS)
def test_operations_are_timms_pixel_for_pixel(timm, monkeypatch, subject, name):
    from timm.data import auto_augment

    op, ranges, fill = OPS[name], OpRanges(translate_const=40), (124, 116, 104)
    # timm gets one interpolation, or two of which the second (or first) is chosen.
    modes = [(NEAREST, NEAREST, 0), (BILINEAR, BILINEAR, 0), (BICUBIC, BICUBIC, 0)]
    modes += [((BILINEAR, BICUBIC), BILINEAR, 0), ((BILINEAR, BICUBIC), BICUBIC, 1)]
    for magnitude in (0, 5, 10):
        for chance in (0.25, 0.75) if op.draws else (0.25,):
            for theirs, resample, member in modes if op.moves else modes[:1]:
                hparams = {"translate_const": 40, "img_mean": fill, "interpolation": theirs}
                reference = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)
                monkeypatch.setattr(auto_augment, "random", Fixed(chance, member))
                arguments = op.arguments(magnitude, chance, ranges) if op.arguments else ()
                if reference.level_fn and name != "GaussianBlurRand":  # whose radius timm draws inside the operation
                    assert arguments == reference.level_fn(magnitude, hparams)
                got = op.apply(subject, *arguments, **({"fill": fill, "resample": resample} if op.moves else {}))
                if (name, magnitude) in BLACK_ON_OUR_SIDE:
                    with pytest.raises(ValueError, match="bits"):  # Pillow 12 and later
                        reference(subject)
                    expected = Image.new("RGB", subject.size)
                else:
                    expected = reference(subject)
                np.testing.assert_array_equal(np.asarray(got), np.asarray(expected), f"{magnitude} {chance} {theirs}")


@pytest.mark.parity
def test_our_operations_are_all_of_timms(timm):
    from timm.data import auto_augment

    assert set(OPS) == set(auto_augment.NAME_TO_OP)


@pytest.mark.parity
def test_colour_jitter_is_torchvisions_pixel_for_pixel(timm, monkeypatch, subject):
    import torch
    from torchvision.transforms import ColorJitter

    theirs, rng = ColorJitter(0.4, 0.3, 0.5, 0.2), np.random.default_rng(3)
    names = ["brightness", "contrast", "color", "hue"]
    for _ in range(12):
        steps = image_ops.draw_color_jitter((0.4, 0.3, 0.5, 0.2), rng)
        order = torch.tensor([names.index(apply.__name__) for apply, _ in steps])
        factors = [dict((a.__name__, f) for a, f in steps)[name] for name in names]
        monkeypatch.setattr(theirs, "get_params", lambda *_, o=order, f=factors: (o, *f))
        got = subject
        for apply, factor in steps:
            got = apply(got, factor)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(theirs(subject)))


@pytest.mark.parity
def test_colour_jitter_draws_as_torchvision(timm):
    import torch
    from scipy.stats import ks_2samp
    from torchvision.transforms import ColorJitter

    torch.manual_seed(0)
    theirs, rng = ColorJitter(0.4, 1.3, 0.5, 0.2), np.random.default_rng(0)
    expected = [
        theirs.get_params(theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue) for _ in range(2000)
    ]
    got = [
        dict((a.__name__, f) for a, f in image_ops.draw_color_jitter((0.4, 1.3, 0.5, 0.2), rng)) for _ in range(2000)
    ]
    for column, name in enumerate(("brightness", "contrast", "color", "hue"), start=1):
        assert ks_2samp([row[column] for row in expected], [row[name] for row in got]).pvalue > 1e-3, name


@pytest.mark.parity
@pytest.mark.parametrize("shift", [-0.5, -0.303, -0.001, 0.0, 0.25, 0.499, 0.5])
def test_hue_is_torchvisions(timm, subject, shift):
    from torchvision.transforms.functional import adjust_hue

    np.testing.assert_array_equal(np.asarray(image_ops.hue(subject, shift)), np.asarray(adjust_hue(subject, shift)))
