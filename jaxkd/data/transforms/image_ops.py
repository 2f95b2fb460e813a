"""The image operations of AutoAugment and RandAugment, on Pillow RGB images, with timm's arguments and timm's pixels.

An operation has two halves. `Op.arguments` turns a magnitude into the numbers the picture is changed by; it is pure:
the one random number that some operations need (a sign, a blur radius) is handed in. `Op.apply` changes the picture
and draws nothing. So a policy can decide everything first, and the decisions can be recorded or forced.

Source: timm/data/auto_augment.py, whose names and ranges these are. At the end, torchvision's colour jitter,
which timm's training transform applies where no policy is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from jaxkd.errors import ConfigError

Arguments = tuple[float, ...]
Colour = tuple[int, int, int]

FULL_MAGNITUDE = 10.0  # where an operation reaches the end of its range
BLUR_RADII = (0.1, 2.0)  # pixels, what GaussianBlurRand draws from at full magnitude


@dataclass(frozen=True)
class OpRanges:
    """The ranges that depend on the picture or the policy."""

    translate_const: int = 250  # pixels that TranslateX and TranslateY move at magnitude 10
    translate_pct: float = 0.45  # share of the side that TranslateXRel and TranslateYRel move at magnitude 10


# Magnitude -> arguments. `chance` is one uniform number in [0, 1), for the operations that need one.


def _signed(value: float, chance: float) -> float:
    return -value if chance > 0.5 else value


def _either_way(magnitude: float, chance: float, ranges: OpRanges, *, most: float | str) -> Arguments:
    """Up to `most` either way: degrees, pixels of shift per pixel of shear, or a field of `ranges`."""
    most = float(getattr(ranges, most)) if isinstance(most, str) else most
    return (_signed(magnitude / FULL_MAGNITUDE * most, chance),)


def _enhance(magnitude: float, chance: float, ranges: OpRanges) -> Arguments:
    """Blend factor from 0.1 to 1.9; 1 (at magnitude 5) changes nothing."""
    return (magnitude / FULL_MAGNITUDE * 1.8 + 0.1,)


def _enhance_increasing(magnitude: float, chance: float, ranges: OpRanges) -> Arguments:
    """Blend factor 1 at magnitude 0, moving away either way to 0.1 or 1.9."""
    return (max(0.1, 1.0 + _signed(magnitude / FULL_MAGNITUDE * 0.9, chance)),)


def _whole(magnitude: float, chance: float, ranges: OpRanges, *, start: int, step: int, most: int = 256) -> Arguments:
    """From `start` at magnitude 0 to `start` + `step` at 10 and beyond, to at most `most` away."""
    moved = min(most, int(magnitude / FULL_MAGNITUDE * abs(step)))
    return (start + moved if step > 0 else start - moved,)


def _between(magnitude: float, chance: float, ranges: OpRanges, *, low: float, high: float) -> Arguments:
    """From `low` at magnitude 0 to `high` at 10, and no further."""
    return (max(low, min(high, low + (high - low) * (magnitude / FULL_MAGNITUDE))),)


def _blur_radius(magnitude: float, chance: float, ranges: OpRanges) -> Arguments:
    """Radius in pixels, uniform from 0.1 to 2 at magnitude 10; a smaller magnitude lowers the upper end."""
    low, high = BLUR_RADII
    factor = max(0.0, min(1.0, magnitude / FULL_MAGNITUDE))
    return (low + (high * factor - low) * chance,)


# Operations. Those that move pixels take what fills the uncovered corners and how values between pixels are found.


def shear_x(image: Image.Image, factor: float, **how: Any) -> Image.Image:
    """Shifts row y to the left by factor * y pixels."""
    return _affine(image, (1, factor, 0, 0, 1, 0), **how)


def shear_y(image: Image.Image, factor: float, **how: Any) -> Image.Image:
    """Shifts column x upwards by factor * x pixels."""
    return _affine(image, (1, 0, 0, factor, 1, 0), **how)


def translate_x(image: Image.Image, pixels: float, **how: Any) -> Image.Image:
    """Shifts to the left by `pixels`."""
    return _affine(image, (1, 0, pixels, 0, 1, 0), **how)


def translate_y(image: Image.Image, pixels: float, **how: Any) -> Image.Image:
    """Shifts upwards by `pixels`."""
    return _affine(image, (1, 0, 0, 0, 1, pixels), **how)


def translate_x_share(image: Image.Image, share: float, **how: Any) -> Image.Image:
    """Shifts to the left by `share` of the width."""
    return translate_x(image, share * image.width, **how)


def translate_y_share(image: Image.Image, share: float, **how: Any) -> Image.Image:
    """Shifts upwards by `share` of the height."""
    return translate_y(image, share * image.height, **how)


def _affine(image: Image.Image, matrix: tuple[float, ...], *, fill: Colour, resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill)


def rotate(image: Image.Image, degrees: float, *, fill: Colour, resample: Image.Resampling) -> Image.Image:
    """Rotates anticlockwise about the centre; the size stays."""
    return image.rotate(degrees, resample=resample, fillcolor=fill)


@cache
def _posterize_table(bits: int) -> bytes:
    return bytes(value & (0xFF00 >> bits) & 0xFF for value in range(256)) * 3


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the `bits` highest bits of each channel and clears the rest.

    So 8 or more change nothing, and 0 or fewer leave black. Pillow before 12 did the same; from 12 on its own posterize
    refuses 0 bits, and timm 1.0.31 therefore fails where a magnitude asks for them.
    """
    return image if bits >= 8 else image.point(_posterize_table(max(bits, 0)))


@cache
def _solarize_table(threshold: int) -> bytes:
    return bytes(value if value < threshold else 255 - value for value in range(256)) * 3


def solarize(image: Image.Image, threshold: int) -> Image.Image:
    """Inverts the values of at least `threshold`."""
    return image.point(_solarize_table(threshold))


@cache
def _solarize_add_table(add: int) -> bytes:
    return bytes(min(255, value + add) if value < 128 else value for value in range(256)) * 3


def solarize_add(image: Image.Image, add: int) -> Image.Image:
    """Adds `add` grey levels to the values below 128."""
    return image.point(_solarize_add_table(add))


def color(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the grey picture: 0 is grey, 1 changes nothing, more is more colourful."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the mean grey: 0 is flat, 1 changes nothing."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with black: 0 is black, 1 changes nothing."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with a 3 x 3 smoothed picture: 0 is smoothed, 1 changes nothing."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def desaturate(image: Image.Image, amount: float) -> Image.Image:
    """Removes that share of the colour: 1 is grey."""
    return color(image, min(1.0, max(0.0, 1.0 - amount)))


def gaussian_blur(image: Image.Image, radius: float) -> Image.Image:
    """Pillow's approximation of a Gaussian blur with a standard deviation of `radius` pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius))


class Op(NamedTuple):
    """One operation."""

    apply: Callable[..., Image.Image]  # (image, *arguments) -> image; with fill=, resample= where `moves`
    # (magnitude 0..10, chance in [0, 1), ranges) -> arguments; None where the magnitude means nothing
    arguments: Callable[[float, float, OpRanges], Arguments] | None = None
    draws: bool = False  # whether `arguments` uses its `chance`: it negates above one half, or chooses a radius
    moves: bool = False  # whether pixels move, so that corners are filled and values interpolated


OPS: dict[str, Op] = {
    "AutoContrast": Op(ImageOps.autocontrast),
    "Equalize": Op(ImageOps.equalize),
    "Invert": Op(ImageChops.invert),  # ImageOps.invert gives the same through a table, ten times slower
    "Rotate": Op(rotate, partial(_either_way, most=30.0), draws=True, moves=True),
    # Bits kept, thresholds from which values are inverted, and grey levels to add.
    "Posterize": Op(posterize, partial(_whole, start=0, step=4)),
    "PosterizeIncreasing": Op(posterize, partial(_whole, start=4, step=-4)),
    "PosterizeOriginal": Op(posterize, partial(_whole, start=4, step=4)),
    "Solarize": Op(solarize, partial(_whole, start=0, step=256)),
    "SolarizeIncreasing": Op(solarize, partial(_whole, start=256, step=-256)),
    "SolarizeAdd": Op(solarize_add, partial(_whole, start=0, step=110, most=128)),
    "Color": Op(color, _enhance),
    "ColorIncreasing": Op(color, _enhance_increasing, draws=True),
    "Contrast": Op(contrast, _enhance),
    "ContrastIncreasing": Op(contrast, _enhance_increasing, draws=True),
    "Brightness": Op(brightness, _enhance),
    "BrightnessIncreasing": Op(brightness, _enhance_increasing, draws=True),
    "Sharpness": Op(sharpness, _enhance),
    "SharpnessIncreasing": Op(sharpness, _enhance_increasing, draws=True),
    "ShearX": Op(shear_x, partial(_either_way, most=0.3), draws=True, moves=True),
    "ShearY": Op(shear_y, partial(_either_way, most=0.3), draws=True, moves=True),
    "TranslateX": Op(translate_x, partial(_either_way, most="translate_const"), draws=True, moves=True),
    "TranslateY": Op(translate_y, partial(_either_way, most="translate_const"), draws=True, moves=True),
    "TranslateXRel": Op(translate_x_share, partial(_either_way, most="translate_pct"), draws=True, moves=True),
    "TranslateYRel": Op(translate_y_share, partial(_either_way, most="translate_pct"), draws=True, moves=True),
    "Desaturate": Op(desaturate, partial(_between, low=0.5, high=1.0)),
    "GaussianBlur": Op(gaussian_blur, partial(_between, low=0.1, high=2.0)),
    "GaussianBlurRand": Op(gaussian_blur, _blur_radius, draws=True),
}


def hue(image: Image.Image, shift: float) -> Image.Image:
    """Turns the colour circle by `shift` of a full turn (-0.5 to 0.5), in 255ths as torchvision counts them."""
    steps = int(shift * 255)
    channel, saturation, value = image.convert("HSV").split()
    channel = channel.point([(level + steps) & 0xFF for level in range(256)])
    return Image.merge("HSV", (channel, saturation, value)).convert("RGB")


_JITTERS = (brightness, contrast, color, hue)


def draw_color_jitter(
    strengths: float | Sequence[float], rng: np.random.Generator
) -> list[tuple[Callable[[Image.Image, float], Image.Image], float]]:
    """The operations of one colour jitter in their random order, each with its factor; see `color_jitter`."""
    given = (strengths,) * 3 if isinstance(strengths, int | float) else tuple(strengths)
    if len(given) not in (3, 4) or min(given) < 0 or (len(given) == 4 and given[3] > 0.5):
        raise ConfigError(
            f"color_jitter={strengths} is not possible. Give one number or three (brightness, contrast, saturation), "
            "none negative, and at most 0.5 as fourth (hue), for example 0.4 or (0.4, 0.4, 0.4, 0.1)."
        )
    steps = []
    for index in rng.permutation(len(given)).tolist():
        strength = float(given[index])
        if strength:
            centre, lowest = (0.0, -0.5) if index == 3 else (1.0, 0.0)
            steps.append((_JITTERS[index], float(rng.uniform(max(lowest, centre - strength), centre + strength))))
    return steps


def color_jitter(image: Image.Image, strengths: float | Sequence[float], rng: np.random.Generator) -> Image.Image:
    """Changes brightness, contrast, saturation and hue, in random order (torchvision's ColorJitter).

    Args:
      image: RGB.
      strengths: s, or (brightness, contrast, saturation), or with a fourth number for the hue. A factor is uniform in
        [max(0, 1 - s), 1 + s], the hue's in [-s, s] of a turn. One number holds for the first three; 0 leaves that
        property alone.
      rng: where the numbers come from.
    """
    for apply, factor in draw_color_jitter(strengths, rng):
        image = apply(image, factor)
    return image
