"""What every network of jaxkd promises: an output and the features that were asked for by name.

A network is called as `model.apply(variables, images, train=..., taps=(...), offsets={...})` and answers with the pair
(output, features). This module holds the words for the features (taps), the facts about a registered name (`ModelSpec`)
and the checks that turn a wrong name or size into an error that a user can act on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxkd.errors import ConfigError, ShapeError, TapError, did_you_mean, in_words

Features = dict[str, jax.Array]
Offsets = Mapping[str, jax.Array]


@dataclass(frozen=True)
class ModelSpec:
    """Facts about a registered name that belong to its weights, not to its architecture (timm's `default_cfg`).

    Attributes:
      name: registered name without its tag.
      tag: which weights, e.g. "fb_in1k".
      input_size: (height, width) in pixels that the weights were trained on; the default `img_size`.
      mean: per channel (R, G, B), of images in [0, 1].
      std: likewise.
      crop_pct: share of the resized image that the centre crop of evaluation keeps.
      interpolation: of that resize, "bicubic" or "bilinear".
      num_classes: outputs of the weights' head; 0 where they have none.
      task: what the network is for, "classification" or "restoration" (an image out for an image in).
    """

    name: str
    tag: str
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    interpolation: str
    num_classes: int
    task: str = "classification"


def add_offset(value: jax.Array, offset: jax.Array, name: str) -> jax.Array:
    """value + offset, in value's dtype.

    Raises:
      ShapeError: the shapes differ (broadcasting would hide a mistake and change the gradient's shape).
    """
    if tuple(offset.shape) != tuple(value.shape):
        raise ShapeError(
            f'The offset of "{name}" has shape {tuple(offset.shape)}, the feature has {tuple(value.shape)}. An offset '
            "is added element by element. Give one of the feature's shape, batch included."
        )
    return value + offset.astype(value.dtype)


class TapRecorder:
    """Collects the features that were asked for while a network is being traced.

    Args:
      network: what the error calls the network.
      existing: every tap of the network.
      taps: names to record (static).
      offsets: tap -> array that is added at that point, so that the gradient at a zero offset is the gradient of the
        layer; None for none.

    Raises:
      TapError: a name in `taps` or `offsets` is not in `existing`.
    """

    def __init__(self, network: str, existing: tuple[str, ...], taps: Iterable[str], offsets: Offsets | None):
        if isinstance(taps, str):
            raise TapError(
                f'taps="{taps}" is one string, but taps are a tuple of names. Python would read it letter by letter. '
                f'Write taps=("{taps}",).'
            )
        self.taps = frozenset(taps)
        self.offsets: Offsets = offsets or {}
        self.features: Features = {}
        known = frozenset(existing)
        for kind, names in (("tap", taps), ("offset", self.offsets)):
            for name in names:
                if name not in known:
                    raise TapError(
                        f'The {kind} "{name}" does not exist in {network}.{did_you_mean(name, existing)} '
                        f"A network hands out only the features it has: {in_words(existing)}. "
                        "Choose among those; models.tap_names(model) lists them all."
                    )

    def wants(self, *names: str) -> bool:
        """Whether one of `names` is recorded or offset, so that the caller has to build its value."""
        return any(name in self.taps or name in self.offsets for name in names)

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """Adds the offset of `name`, records the sum, and returns it."""
        if name in self.offsets:
            value = add_offset(value, self.offsets[name], name)
        if name in self.taps:
            self.features[name] = value
        return value

    def tokens(self, index: int, x: jax.Array, grid: tuple[int, int], num_prefix: int) -> jax.Array:
        """Taps `block_{index}` and `prefix_{index}` of a token sequence.

        Args:
          index: of the block that has just run.
          x: (B, P + h w, C) tokens, prefix tokens first.
          grid: (h, w).
          num_prefix: P.

        Returns:
          x with the offsets of the two taps added.
        """
        block, prefix = f"block_{index}", f"prefix_{index}"
        if not self.wants(block, prefix):
            return x
        head, patches = x[:, :num_prefix], x[:, num_prefix:]
        maps = self(block, patches.reshape(x.shape[0], *grid, x.shape[-1]))
        if num_prefix:
            head = self(prefix, head)
        if not (block in self.offsets or prefix in self.offsets):
            return x
        return jax.numpy.concatenate([head, maps.reshape(patches.shape)], axis=1)


def size_pair(value: int | tuple[int, int], what: str) -> tuple[int, int]:
    """`224` or `(192, 256)` -> (height, width).

    Raises:
      ConfigError: neither a positive integer nor a pair of them.
    """
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
        raise ConfigError(
            f"{what}={value!r} is not a size. It is one positive integer, or (height, width). Write e.g. {what}=224 or "
            f"{what}=(192, 256)."
        )
    return (pair[0], pair[1])


def check_images(images: jax.Array, img_size: tuple[int, int], in_chans: int, network: str) -> None:
    """Checks (B, H, W, C) images against what a network was built for.

    Raises:
      ShapeError: another rank, size or number of channels; NCHW images are recognised.
    """
    expected = f"(batch, {img_size[0]}, {img_size[1]}, {in_chans})"
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1:] == (*img_size, in_chans):
        return
    what = f"The images have shape {shape}, but {network} was built for {expected}."
    if len(shape) == 4 and shape[1:] == (in_chans, *img_size):
        why, do = "These look like NCHW; jaxkd is NHWC.", "Transpose them with images.transpose(0, 2, 3, 1)."
    elif len(shape) != 4:
        why, do = "A network takes a batch of images, channels last.", "Add or remove axes, e.g. images[None]."
    elif shape[3] != in_chans:
        why, do = "The patch embedding has one filter per input channel.", f"Build it with in_chans={shape[3]}."
    else:
        why = "Position embeddings and windows belong to one image size."
        do = (
            f"Resize the images, or build the network with img_size=({shape[1]}, {shape[2]}) "
            "(its weights then load with resize=True)."
        )
    raise ShapeError(f"{what} {why} {do}")


def check_images_of_any_size(images: jax.Array, in_chans: int, network: str) -> None:
    """Checks (B, H, W, C) images of a network that takes every size.

    Raises:
      ShapeError: another rank or number of channels, or no pixels; NCHW images are recognised.
    """
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[3] == in_chans and 0 not in shape[1:]:
        return
    what = f"The images have shape {shape}, but {network} takes (batch, height, width, {in_chans})."
    if len(shape) == 4 and shape[3] == in_chans:
        why, do = "There are no pixels in them.", "Give images of at least 1 x 1."
    elif len(shape) == 4 and shape[1] == in_chans:
        why, do = "These look like NCHW; jaxkd is NHWC.", "Transpose them with images.transpose(0, 2, 3, 1)."
    elif len(shape) != 4:
        why, do = "A network takes a batch of images, channels last.", "Add or remove axes, e.g. images[None]."
    else:
        why, do = "Its first convolution reads red, green and blue.", "Convert the images to RGB, without alpha."
    raise ShapeError(f"{what} {why} {do}")


def check_dropout_rng(module, what: str) -> None:
    """Raises ConfigError if `module` is to draw random numbers and was given no "dropout" key."""
    if not module.has_rng("dropout"):
        raise ConfigError(
            f'{what} is on and train=True, but apply got no key named "dropout". Randomness in jaxkd is an argument. '
            'Call model.apply(..., train=True, rngs={"dropout": key}).'
        )


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_grid(img_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    """Raises ConfigError unless at least one patch fits into an image."""
    require(
        img_size[0] >= patch_size[0] and img_size[1] >= patch_size[1],
        f"img_size={img_size} is smaller than patch_size={patch_size}. An image needs at least one patch. Use larger "
        "images or smaller patches.",
    )


def require_counts(**values: int) -> None:
    """Raises ConfigError unless every value is a positive integer."""
    for name, value in values.items():
        require(
            isinstance(value, int) and not isinstance(value, bool) and value > 0,
            f"{name}={value!r} is not a count. A network needs at least one of it. Give a positive whole number.",
        )


def require_rates(model: Any) -> None:
    """Raises ConfigError unless every `*drop*_rate` is a probability below 1: what is kept is divided by 1 - rate."""
    for name in (f"{what}_rate" for what in ("drop", "pos_drop", "proj_drop", "attn_drop", "drop_path")):
        value = getattr(model, name, 0.0)
        require(
            isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1,
            f"{name}={value!r} is out of range. It is the probability that something is dropped. Give a number from 0 "
            "to below 1.",
        )


def require_heads(channels: int, num_heads: int, where: str = "") -> None:
    """Raises ConfigError unless `channels` divide evenly over `num_heads`."""
    require_counts(num_heads=num_heads, embed_dim=channels)
    require(
        num_heads > 0 and channels % num_heads == 0,
        f"{channels} channels do not divide by num_heads={num_heads}{where}. Each head gets an equal share. Change "
        "embed_dim or num_heads.",
    )


def require_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ConfigError unless `value` is one of `choices`."""
    quoted = ", ".join(f'"{choice}"' for choice in choices)
    require(
        value in choices,
        f'{what}="{value}" is not known.{did_you_mean(value, choices)} Only what published weights need is built. Use '
        f"one of: {quoted}.",
    )
