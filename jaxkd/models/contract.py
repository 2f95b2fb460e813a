"""The interface of all networks: named features (taps), facts about a registered name, and checks of arguments.

A network is called as `model.apply(variables, images, train=..., taps=(...), offsets={...})` and returns the pair
(output, features), where `features` maps each name in `taps` to an array.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors as flax_errors
from flax import linen as nn

from jaxkd.errors import ConfigError, ShapeError, TapError, check_range, did_you_mean, in_words

Features = dict[str, jax.Array]
Offsets = Mapping[str, jax.Array]

# Features inside a self-attention, in the order of their computation. A network adds its own index: `query_0`.
ATTENTION_TAPS = ("query", "key", "value", "attn")

PURPOSES = {
    "classification": "classifies images",
    "restoration": "enlarges images",
    "eeg_words": "embeds words of EEG",
}


@dataclass(frozen=True)
class ModelSpec:
    """Facts about a registered name that belong to its weights, not to its architecture (timm's `default_cfg`).

    Attributes:
      name: registered name without its tag.
      tag: name of the weights, e.g. "fb_in1k".
      input_size: (height, width) in pixels that the weights were trained on; the default `img_size`. Of encoders of EEG
        (words, features of a word).
      mean: per channel (R, G, B), of images in [0, 1].
      std: likewise.
      crop_pct: side of the evaluation's centre crop over the side of the resized image.
      interpolation: of that resize, "bicubic" or "bilinear".
      num_classes: outputs of the weights' head; 0 if they have no head.
      task: "classification", "restoration" (images to images) or "eeg_words" (EEG to an embedding per word).
    """

    name: str
    tag: str = ""
    input_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    num_classes: int = 1000
    task: str = "classification"

    @property
    def purpose(self) -> str:
        """Continuation of a sentence that begins with the name, such as "classifies images"."""
        return PURPOSES.get(self.task, f'is a network of the task "{self.task}"')


def add_offset(value: jax.Array, offset: jax.Array, name: str) -> jax.Array:
    """value + offset, in value's dtype."""
    if tuple(offset.shape) != tuple(value.shape):
        raise ShapeError(
            f'The offset of "{name}" has shape {tuple(offset.shape)}, the feature has {tuple(value.shape)}. Give an '
            "offset of the feature's shape, including the batch."
        )
    return value + offset.astype(value.dtype)


class TapRecorder:
    """Collects the requested features while a network is traced.

    Args:
      network: name of the network in error messages.
      existing: every tap of the network.
      taps: names to record (static).
      offsets: tap -> array that is added at that point, so that the gradient at a zero offset is the gradient of the
        layer; None for no offsets.
    """

    def __init__(self, network: str, existing: tuple[str, ...], taps: Iterable[str], offsets: Offsets | None):
        if isinstance(taps, str):
            raise TapError(f'taps="{taps}" is one string, but taps are a tuple of names. Write taps=("{taps}",).')
        self.taps = frozenset(taps)
        self.offsets: Offsets = offsets or {}
        self.features: Features = {}
        known = frozenset(existing)
        for kind, names in (("tap", taps), ("offset", self.offsets)):
            for name in names:
                if name not in known:
                    raise TapError(
                        f'The {kind} "{name}" does not exist in {network}.{did_you_mean(name, existing)} '
                        f"Use one of: {in_words(existing)}; models.tap_names(model) lists them all."
                    )

    def wants(self, *names: str) -> bool:
        """Whether one of `names` is recorded or has an offset."""
        return any(name in self.taps or name in self.offsets for name in names)

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """Adds the offset of `name`, records the sum, and returns it."""
        if name in self.offsets:
            value = add_offset(value, self.offsets[name], name)
        self.record(name, value)
        return value

    def record(self, name: str, value: jax.Array) -> None:
        """Records `value` if `name` was requested; the caller has already added the offset."""
        if name in self.taps:
            self.features[name] = value

    def block(self, block: Callable[..., tuple[jax.Array, Features]], x: jax.Array, name: str) -> jax.Array:
        """Runs a block of self-attention and records its ATTENTION_TAPS.

        Args:
          block: (x, offsets by kind, or None where no feature is asked for) -> (output, features by kind).
          x: its input.
          name: of its taps, with {} for the kind: "{}_3" or "stage_0.block_3.{}".
        """
        named = {kind: name.format(kind) for kind in ATTENTION_TAPS}
        wanted = self.wants(*named.values())
        offsets = {kind: self.offsets[tap] for kind, tap in named.items() if tap in self.offsets} if wanted else None
        x, inner = block(x, offsets)
        for kind, value in inner.items():
            self.record(named[kind], value)
        return x

    def tokens(self, index: int, x: jax.Array, grid: tuple[int, int], num_prefix: int) -> jax.Array:
        """Records `block_{index}` and `prefix_{index}` of a token sequence.

        Args:
          index: of the block that computed `x`.
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


class TappedNetwork(nn.Module):
    """A network with the interface above; a subclass defines `tap_names` and `forward`, and describes its features."""

    @property
    def title(self) -> str:
        """Name of the network in error messages."""
        return f"this {type(self).__name__}"

    def tap_names(self) -> tuple[str, ...]:
        """Every name that `taps` and `offsets` accept, in depth order."""
        raise NotImplementedError

    def forward(self, images: jax.Array, tap: TapRecorder, train: bool) -> jax.Array:
        """(B, H, W, in_chans) images -> the output of `__call__`; features go to `tap`."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, taps: tuple[str, ...] = (), offsets: Offsets | None = None
    ) -> tuple[jax.Array, Features]:
        """Runs the network on a batch of images.

        Args:
          images: (B, H, W, in_chans), fp32.
          train: static; switches dropout and stochastic depth on (key "dropout"), if the network has any.
          taps: static; any of `tap_names()`.
          offsets: tap -> array added at that point.

        Returns:
          The output in fp32, and the features at `taps`.
        """
        tap = self.recorder(images, taps, offsets)
        return self.forward(images, tap, train), tap.features

    def recorder(self, images: jax.Array, taps: tuple[str, ...], offsets: Offsets | None) -> TapRecorder:
        """The recorder of one call, after checks of its arguments."""
        check_images(images, getattr(self, "img_size", None), self.in_chans, self.title)
        return TapRecorder(self.title, self.tap_names(), taps, offsets)


def depth_taps(taps: Iterable[str]) -> tuple[str, ...]:
    """The taps that count a network's depth: `stage_i` of a network in stages, `block_i` of any other.

    The lifted map of a block (`lifted`, `lifted_i` of a Lift) stands in the place of that block. CaiT's class-attention
    blocks (`cls_block_i`) and the blocks within a stage are not among them.

    Args:
      taps: all of the network, in depth order (`models.tap_names`).

    Returns:
      Some of `taps`, in depth order; () of a network without blocks.
    """
    layers: list[str] = []
    for tap in taps:
        lifted = re.fullmatch(r"lifted(?:_(\d+))?", tap)
        if re.fullmatch(r"(?:stage|block)_\d+", tap):
            layers.append(tap)
        elif lifted and layers[-1:] == [f"block_{lifted[1] or len(layers) - 1}"]:
            layers[-1] = tap
    stages = tuple(t for t in layers if t.startswith("stage"))
    return stages or tuple(layers)


def init_variables(model: nn.Module, key: jax.Array, shape: tuple[int, ...]) -> Any:
    """`model.init` for fp32 images of `shape`, without running the network where only its parameters are computed.

    Args:
      model: with the contract above.
      key: a random key, `jax.random.key(0)`.
      shape: of the images, (B, H, W, 3).

    Returns:
      `{"params": ...}` and what other collections the network has.
    """
    try:
        return model.lazy_init(key, jax.ShapeDtypeStruct(shape, jnp.float32))
    except flax_errors.LazyInitError:  # a user's network whose parameters depend on the images
        return model.init(key, jnp.zeros(shape, jnp.float32))


def abstract_variables(model: nn.Module, shape: tuple[int, ...]) -> Any:
    """Shapes and types of the variables of `model` for fp32 images of `shape`, kept for the next call.

    Args:
      model: with the contract above.
      shape: of the images, (B, H, W, 3).

    Returns:
      The variables as a tree of `jax.ShapeDtypeStruct`.
    """
    variables, _ = abstract_call(model, shape)
    return variables


def abstract_call(model: nn.Module, shape: tuple[int, ...], **options: Any) -> tuple[Any, Any]:
    """Shapes of the variables of `model`, and of its output with `options` if any are given; nothing is computed.

    A run asks several times, and each answer is a trace of the network: they are kept.

    Args:
      model: with the contract above.
      shape: of the images, (B, H, W, 3); of EEG, (B, words, features).
      **options: of `model.apply`, such as taps=("block_0",) and train=False.

    Returns:
      (variables, result) as trees of `jax.ShapeDtypeStruct`; the result is (output, features), None without options.

    Raises:
      TapError: a tap that does not exist.
      ShapeError: images that the network does not take.
    """
    given = tuple(sorted(options.items()))
    try:
        found = _abstract_call(model, shape, given)
    except TypeError:  # a user's network, or an option, that has no hash
        found = _abstract_call.__wrapped__(model, shape, given)
    return jax.tree.map(lambda leaf: leaf, found)  # a copy: the caller may change it


@functools.lru_cache(maxsize=32)
def _abstract_call(model: nn.Module, shape: tuple[int, ...], options: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    if not options:
        return jax.eval_shape(model.init, jax.random.key(0), images), None
    variables = abstract_variables(model, shape)
    return variables, jax.eval_shape(lambda v, x: model.apply(v, x, **dict(options)), variables, images)


def size_pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """`224` or `(192, 256)` -> (height, width)."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
        raise ConfigError(
            f"{name}={value!r} is not a size. Give one positive integer or (height, width), e.g. {name}=224 or "
            f"{name}=(192, 256)."
        )
    return (pair[0], pair[1])


def check_images(images: jax.Array, img_size: tuple[int, int] | None, in_chans: int, network: str) -> None:
    """Checks (B, H, W, C) images against the size that a network was built for.

    Args:
      images: the input of the network.
      img_size: (height, width) in pixels; None for a network that takes any size of at least 1 x 1.
      in_chans: C.
      network: name of the network in error messages.
    """
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[3] == in_chans and (shape[1:3] == img_size if img_size else 0 not in shape[1:3]):
        return
    height, width = img_size or ("height", "width")
    if len(shape) != 4:
        advice = "Add or remove axes, e.g. images[None]."
    elif shape[3] != in_chans and shape[1] == in_chans:
        advice = "These look like NCHW; transpose them with images.transpose(0, 2, 3, 1)."
    elif shape[3] != in_chans and img_size:
        advice = f"Build the network with in_chans={shape[3]}."
    elif shape[3] != in_chans:
        advice = "Convert the images to RGB, without alpha."
    elif not img_size:
        advice = "Give images of at least 1 x 1 pixels."
    else:
        advice = (
            f"Resize the images, or build the network with img_size=({shape[1]}, {shape[2]}) "
            "(its weights then load with resize=True)."
        )
    raise ShapeError(
        f"The images have shape {shape}, but {network} {'was built for' if img_size else 'takes'} "
        f"(batch, {height}, {width}, {in_chans}). {advice}"
    )


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_counts(**values: int) -> None:
    """Raises ConfigError unless every value is a positive integer."""
    for name, value in values.items():
        check_range(name, value, 1, whole=True)


def require_heads(channels: int, num_heads: int, where: str = "") -> None:
    """Raises ConfigError unless `channels` divide evenly over `num_heads`."""
    require_counts(num_heads=num_heads, embed_dim=channels)
    require(
        num_heads > 0 and channels % num_heads == 0,
        f"{channels} channels do not divide by num_heads={num_heads}{where}. Change embed_dim or num_heads.",
    )
