"""Random erasing of normalised images (Zhong et al. 2017), with timm's rules, inside the compiled step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, check_choice, check_range

ERASE_MODES = ("const", "rand", "pixel")
_ATTEMPTS = 10  # timm's: after so many boxes that do not fit, none is erased
_PER_BOX = 2 * _ATTEMPTS + 2  # uniform numbers


@dataclass(frozen=True)
class EraseConfig:
    """Settings of random erasing; the defaults are timm's (data/random_erasing.py).

    The published DeiT recipe is `EraseConfig(probability=0.25, mode="pixel")`. timm's `num_splits`, which spares the
    first part of a batch, belongs to AugMix and is not here.

    Attributes:
      probability: that an image is erased.
      mode: what fills a box: "const" 0, which is the mean colour; "rand" one normal colour a box; "pixel" a normal
        colour for every pixel.
      min_area: smallest box as a share of the image, before rounding; shared out evenly where there are several boxes.
      max_area: largest, likewise.
      min_aspect: smallest height over width; its logarithm is drawn uniformly.
      max_aspect: largest; None is 1 / min_aspect.
      min_count: fewest boxes in an erased image.
      max_count: most; None is min_count. timm's `--recount n` is min_count=1, max_count=n.
    """

    probability: float = 0.5
    mode: str = "const"
    min_area: float = 0.02
    max_area: float = 1 / 3
    min_aspect: float = 0.3
    max_aspect: float | None = None
    min_count: int = 1
    max_count: int | None = None

    def __post_init__(self) -> None:
        check_range("data.erase.probability", self.probability, 0, 1, hint="published recipes use 0.25")
        check_choice("data.erase.mode", self.mode, ERASE_MODES)
        if not 0 < self.min_area <= self.max_area <= 1:
            raise ConfigError(
                f"min_area={self.min_area}, max_area={self.max_area} is not a range of shares of the image's area. "
                "Give 0 < min_area <= max_area <= 1, for example 0.02 and 0.333."
            )
        low, high = self.aspects
        if not 0 < low <= high:
            raise ConfigError(
                f"min_aspect={self.min_aspect}, max_aspect={self.max_aspect} is not a range of height over width. Give "
                "0 < min_aspect <= max_aspect, for example 0.3 and None; max_aspect=None stands for 1 / min_aspect."
            )
        if not 1 <= self.min_count <= self.most:
            raise ConfigError(
                f"min_count={self.min_count}, max_count={self.max_count} is not a range of numbers of boxes. Give "
                "1 <= min_count <= max_count; max_count=None stands for min_count."
            )

    @property
    def aspects(self) -> tuple[float, float]:
        """Smallest and largest height over width."""
        if self.max_aspect is not None:
            return self.min_aspect, self.max_aspect
        return self.min_aspect, 1 / self.min_aspect if self.min_aspect else math.inf

    @property
    def most(self) -> int:
        """Most boxes in an image."""
        return self.min_count if self.max_count is None else self.max_count


class EraseBox(NamedTuple):
    """Integers; height and width are 0 where no box fitted."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def choose_box(uniforms: jax.Array, size: tuple[int, int], parts: jax.Array | int, config: EraseConfig) -> EraseBox:
    """One box: the first of ten that is smaller than the image, at a uniform position; none if all are too large.

    timm stops drawing at the first that fits. Here all ten are drawn, because a compiled program has a fixed length;
    the distribution is the same.

    Args:
      uniforms: (22,) in [0, 1): ten for the area, ten for the aspect ratio, one each for top and left.
      size: (height, width) of the image.
      parts: boxes of this image; the area of one is divided by it.
      config: its ranges.
    """
    height, width = size
    log_low, log_high = (math.log(a) for a in config.aspects)
    area = config.min_area + uniforms[:_ATTEMPTS] * (config.max_area - config.min_area)
    area = area * (height * width) / parts
    aspect = jnp.exp(log_low + uniforms[_ATTEMPTS : 2 * _ATTEMPTS] * (log_high - log_low))
    # Half to even, as Python's round in timm.
    heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    h, w = (jnp.where(fits[first], sides[first], 0) for sides in (heights, widths))
    top, left = (
        (u * (free + 1)).astype(jnp.int32) for u, free in zip(uniforms[-2:], (height - h, width - w), strict=True)
    )
    return EraseBox(top, left, h, w)


def random_erase(key: jax.Array, images: jax.Array, config: EraseConfig) -> jax.Array:
    """Erases boxes of some of the images, as timm's RandomErasing.

    What happens to an image depends on the key and its place in the global batch alone, so a batch that is split over
    devices gives the same numbers as one that is not, and no device talks to another. (That needs JAX's default
    generator, threefry: with `jax_default_prng_impl="rbg"` a vmapped draw depends on the whole batch.)

    Args:
      key: one key for the whole batch.
      images: (B, H, W, C) float, normalised: erased pixels are 0 or standard normal.
      config: how often, how large, filled with what.

    Returns:
      (B, H, W, C), the same dtype.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0]))
    return jax.vmap(lambda k, image: _erase(k, image, config))(keys, images)


def _erase(key: jax.Array, image: jax.Array, config: EraseConfig) -> jax.Array:
    """(H, W, C) -> (H, W, C)."""
    height, width, channels = image.shape
    number_key, fill_key = jax.random.split(key)
    # One call for all numbers of an image: every call is code of its own, which takes its time to compile.
    uniforms = jax.random.uniform(number_key, (2 + config.most * _PER_BOX,))
    erased = uniforms[0] < config.probability
    count = config.min_count + (uniforms[1] * (config.most + 1 - config.min_count)).astype(jnp.int32)
    if config.mode == "pixel":
        # One field serves all boxes: where two overlap, the later one's pixels would be as random as the earlier one's.
        fills = [jax.random.normal(fill_key, image.shape, image.dtype)] * config.most
    elif config.mode == "rand":
        fills = jax.random.normal(fill_key, (config.most, channels), image.dtype)
    else:
        fills = jnp.zeros(config.most, image.dtype)
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    for i in range(config.most):
        box = choose_box(uniforms[2 + i * _PER_BOX :][:_PER_BOX], (height, width), count, config)
        inside = (rows >= box.top) & (rows < box.top + box.height)
        inside &= (columns >= box.left) & (columns < box.left + box.width)
        image = jnp.where(inside & erased & (i < count), fills[i], image)
    return image
