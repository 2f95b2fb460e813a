"""Lift, WideLast and UniformWide: students of the encoding-mismatch paper (arXiv 2511.15572) over DeiT.

A narrow student copies late features of a wide teacher badly. Lift keeps a projector to the teacher's width after its
last block, also at inference; WideLast widens the last block; UniformWide, the control, widens all blocks a little.
Semantics, initial values and parameter counts are those of the authors' code, which differs from the text in places:
Lift reads the mean over the patches instead of the class token, WideLast has a projection before the wide block.

Legend: B batch, h w patch grid, N tokens, C channels of the narrow blocks, D channels of the wide map.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError, check_choice, check_range
from jaxkd.models.contract import Features, Offsets, TapRecorder, require, require_counts, require_heads
from jaxkd.models.layers import LayerNorm, Linear, patch_init
from jaxkd.models.vit import VisionTransformer

LIFT_SCHEDULES = ("step", "linear", "exponential")
WIDE_SCHEDULES = ("heads_step", "fixed_step", "heads_linear", "fixed_linear")
GRADUAL_BLOCKS = 3  # last blocks that a gradual schedule widens
HEAD_DIM_MULTIPLE = 8  # of the wide heads of "fixed_linear"

# Parameters of a Lift that no gradient reaches: the final norm and classifier of its DeiT, which the authors' code
# keeps as well (193,384 of 6,176,912 in DeiT-Tiny). Here weight decay still shrinks the kernel; PyTorch skips it.
LIFT_UNUSED = ("base/norm/scale", "base/norm/bias", "base/head/kernel", "base/head/bias")


def gradual_count(blocks: int | None, depth: int, is_step: bool, argument: str) -> int:
    """Number of last blocks that a schedule widens: 1 for a step, else `blocks`, by default 3.

    Raises:
      ConfigError: a step over several blocks, or more blocks than `depth`.
    """
    if is_step:
        require(
            blocks in (None, 1),
            f"{argument}={blocks}, but a step schedule widens the last block alone. Leave {argument} out, or choose a "
            "gradual schedule.",
        )
        return 1
    if blocks is None:
        return min(GRADUAL_BLOCKS, depth)
    check_range(argument, blocks, 1, depth, whole=True, hint=f"the network has {depth} blocks")
    return blocks


def lift_widths(schedule: str, width: int, target: int, count: int) -> tuple[int, ...]:
    """Channels of the lifted maps of the last `count` blocks, `target` last; fractions are cut off.

    For 192 to 384 over three blocks: "linear" 256, 320, 384; "exponential" 241, 304, 384.
    """
    parts = [(i + 1) / count for i in range(count - 1)]
    if schedule == "exponential":
        return (*(int(width * (target / width) ** part) for part in parts), target)
    return (*(int(width + (target - width) * part) for part in parts), target)


def wide_sizes(
    schedule: str, width: int, num_heads: int, wide_dim: int, wide_heads: int, count: int
) -> tuple[tuple[int, int], ...]:
    """(channels, heads) of the last `count` blocks, (`wide_dim`, `wide_heads`) last.

    For 192 channels and 3 heads to 384: "heads_linear" (256, 4), (320, 5), (384, 6), heads and channels per head grow
    linearly; "fixed_linear" (240, 3), (312, 3), (384, 3), channels per head are cut to a multiple of 8.
    """
    sizes = []
    for i in range(1, count):
        if schedule == "heads_linear":
            heads = num_heads + (wide_heads - num_heads) * i // count
            head_dim = width // num_heads + (wide_dim // wide_heads - width // num_heads) * i // count
        else:
            heads = num_heads
            head_dim = (width + (wide_dim - width) * i // count) // heads
            head_dim = max(head_dim // HEAD_DIM_MULTIPLE * HEAD_DIM_MULTIPLE, width // heads)
        sizes.append((heads * head_dim, heads))
    return (*sizes, (wide_dim, wide_heads))


class LiftBase(VisionTransformer):
    """The DeiT inside a Lift, which gives the output of its last blocks; its own norm and head exist, unused."""

    @nn.compact
    def __call__(self, images: jax.Array, tap: TapRecorder, train: bool, first: int) -> dict[int, jax.Array]:
        """(B, H, W, c) images -> the (B, N, C) tokens after block `first` and each later one; features go to `tap`."""
        x = self.apply_blocks(range(first + 1), self.embed(images, train), tap, train)
        outputs = {first: x}
        for i in range(first + 1, self.depth):
            x = outputs[i] = self.apply_block(i, x, tap, train)
        if self.is_initializing():  # the parameters of LIFT_UNUSED
            self.classify(x, TapRecorder(self.title, (), (), None), train=False)
        return outputs


class Lift(VisionTransformer):
    """A DeiT and a retained projector from its last block to the teacher's width.

    Linear without bias and LayerNorm (epsilon 1e-5) act on every token after the last block; the head reads the result.
    The feature to distil is the tap `lifted` (B, h, w, D); `block_i` (B, h, w, C) is before the projector. With a
    gradual schedule the last blocks have projectors of their own, taps `lifted_i`, that only the objective reads.

    The parameters in `LIFT_UNUSED` get no gradient, as in the authors' code; nor do projectors of `lifted_i` without a
    term that reads them. Those of the DeiT are below `base`.

    Attributes:
      target_dim: D, the teacher's width.
      readout: "gap", the mean over the lifted patch tokens (the authors' code), or "cls", the lifted class token.
      layer_norm: whether a LayerNorm follows each projector.
      schedule: "step" (the last block alone), "linear" or "exponential"; see `lift_widths`.
      lifted_blocks: how many blocks a gradual schedule lifts; None is 3.
    """

    target_dim: int = 384
    readout: str = "gap"
    layer_norm: bool = True
    schedule: str = "step"
    lifted_blocks: int | None = None

    title = "this Lift"
    fixed_arguments = ("global_pool", "fc_norm", "class_token")  # `readout` takes their place
    projector_norm_eps = 1e-5  # PyTorch's default, unlike every other norm

    def __post_init__(self):
        require_counts(target_dim=self.target_dim)
        check_choice("readout", self.readout, ("gap", "cls"))
        check_choice("schedule", self.schedule, LIFT_SCHEDULES)
        super().__post_init__()
        self.lifted_widths()

    def lifted_widths(self) -> dict[int, int]:
        """Block -> channels of its lifted map."""
        count = gradual_count(self.lifted_blocks, self.depth, self.schedule == "step", "lifted_blocks")
        widths = lift_widths(self.schedule, self.embed_dim, self.target_dim, count)
        return dict(zip(range(self.depth - count, self.depth), widths, strict=True))

    def lifted_tap(self, block: int) -> str:
        """The tap of a block's lifted map."""
        return "lifted" if block == self.depth - 1 else f"lifted_{block}"

    def tap_names(self) -> tuple[str, ...]:
        """Every name that `taps` and `offsets` accept, in depth order."""
        names: list[str] = []
        widths = self.lifted_widths()
        for name in super().tap_names():
            names.append(name)
            kind, _, block = name.partition("_")
            if kind == "block" and int(block) in widths:
                names.append(self.lifted_tap(int(block)))
        return tuple(names)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, taps: tuple[str, ...] = (), offsets: Offsets | None = None
    ) -> tuple[jax.Array, Features]:
        """Classifies a batch of images; arguments, results and errors are those of `TappedNetwork`."""
        tap = self.recorder(images, taps, offsets)
        shared = [f.name for f in dataclasses.fields(VisionTransformer) if f.name not in ("parent", "name")]
        base = LiftBase(**{name: getattr(self, name) for name in shared}, name="base")
        widths = self.lifted_widths()
        outputs = base(images, tap, train, min(widths))
        for block in list(widths)[:-1]:
            if tap.wants(self.lifted_tap(block)) or self.is_initializing():
                self._lift(outputs[block], block, widths[block], tap)
        x = self._lift(outputs[self.depth - 1], self.depth - 1, self.target_dim, tap)
        prefix = self.num_prefix_tokens
        if self.readout == "cls":
            pooled = x[:, 0].astype(jnp.float32)
        else:
            pooled = x[:, prefix:].astype(jnp.float32).mean(axis=1)
        init = patch_init(self.target_dim)
        head = partial(Linear, kernel_init=init, bias_init=init)
        return self.predict(pooled, tap, train, head), tap.features

    def _lift(self, x: jax.Array, block: int, width: int, tap: TapRecorder) -> jax.Array:
        """(B, N, C) tokens after `block` -> (B, N, width), recorded without the prefix tokens."""
        suffix = "" if len(self.lifted_widths()) == 1 else f"_{block}"
        projector, norm = ("projector", "projector_norm") if not suffix else ("projectors", "projector_norms")
        init = patch_init(x.shape[-1])
        x = Linear(width, use_bias=False, dtype=self.dtype, kernel_init=init, name=projector + suffix)(x)
        if self.layer_norm:
            x = LayerNorm(self.projector_norm_eps, self.dtype, name=norm + suffix)(x)
        name = self.lifted_tap(block)
        if not tap.wants(name):
            return x
        prefix, patches = jnp.split(x, [self.num_prefix_tokens], axis=1)
        maps = tap(name, patches.reshape(x.shape[0], *self.grid_size, width))
        return jnp.concatenate([prefix, maps.reshape(patches.shape)], axis=1) if name in tap.offsets else x


class WideLast(VisionTransformer):
    """A DeiT whose last block (or blocks) is wide.

    Before a wide block all tokens pass a Linear without bias and a LayerNorm, whose result replaces them: no skip leads
    around it. The feature to distil is the last `block_i` (B, h, w, wide_dim), before the final norm. All linear maps,
    the class token and the position embedding start from a normal of 0.02, unlike timm's class token.

    Attributes:
      wide_dim: channels of the last block.
      wide_heads: its heads; None gives the wide heads the channels of the narrow ones, and with "fixed_*" is num_heads.
      schedule: "heads_step" (WideLast of the paper), "fixed_step" (the narrow blocks' number of heads), "heads_linear"
        or "fixed_linear"; see `wide_sizes`.
      wide_blocks: how many blocks a linear schedule widens; None is 3.
    """

    wide_dim: int = 384
    wide_heads: int | None = None
    schedule: str = "heads_step"
    wide_blocks: int | None = None

    title = "this WideLast"
    class_token_std = 0.02

    def __post_init__(self):
        require_heads(self.embed_dim, self.num_heads)
        check_choice("schedule", self.schedule, WIDE_SCHEDULES)
        require_counts(wide_dim=self.wide_dim)
        require_heads(self.wide_dim, self._last_heads(), " of the wide block")
        super().__post_init__()
        self.sizes()

    def _last_heads(self) -> int:
        """Heads of the last block."""
        if self.schedule.startswith("fixed"):
            require(
                self.wide_heads in (None, self.num_heads),
                f'wide_heads={self.wide_heads}, but schedule="{self.schedule}" keeps num_heads={self.num_heads} in the '
                'wide blocks. Leave wide_heads out, or choose "heads_step" or "heads_linear".',
            )
            return self.num_heads
        return self.wide_heads or max(1, self.wide_dim * self.num_heads // self.embed_dim)

    def sizes(self) -> dict[int, tuple[int, int]]:
        """Wide block -> (channels, heads)."""
        count = gradual_count(self.wide_blocks, self.depth, self.schedule.endswith("step"), "wide_blocks")
        sizes = wide_sizes(self.schedule, self.embed_dim, self.num_heads, self.wide_dim, self._last_heads(), count)
        return dict(zip(range(self.depth - count, self.depth), sizes, strict=True))

    def encode(self, x: jax.Array, tap: TapRecorder, train: bool) -> jax.Array:
        """(B, N, C) tokens -> (B, N, wide_dim) tokens after the last block, before the final norm."""
        sizes = self.sizes()
        x = self.apply_blocks(range(min(sizes)), x, tap, train)
        for i, (channels, heads) in sizes.items():
            names = ("widen", "widen_norm", "wide_block")
            if len(sizes) > 1:
                names = (f"widens_{i}", f"widen_norms_{i}", f"wide_blocks_{i}")
            x = Linear(channels, use_bias=False, dtype=self.dtype, name=names[0])(x)
            x = LayerNorm(self.norm_eps, self.dtype, name=names[1])(x)
            x = self.apply_block(i, x, tap, train, name=names[2], num_heads=heads)
        return x


def uniform_wide(
    *,
    embed_dim: int,
    published_heads: int,
    num_heads: int | None = None,
    head_dim: int | None = None,
    **args: Any,
) -> VisionTransformer:
    """A DeiT of another width in all blocks; the network is a plain VisionTransformer with timm's initial values.

    Args:
      embed_dim: channels; the authors use 204 and 219.
      published_heads: heads where nothing else is said: as many as the narrow DeiT, at any width (the authors' code).
      num_heads: another number of heads.
      head_dim: instead of `num_heads`: channels of a head.
      **args: those of VisionTransformer.

    Raises:
      ConfigError: both num_heads and head_dim, or channels that do not divide by them.
    """
    if head_dim is not None:
        if num_heads is not None:
            raise ConfigError(f"num_heads={num_heads} and head_dim={head_dim} are both set. Leave one of them out.")
        require_counts(head_dim=head_dim, embed_dim=embed_dim)
        require(
            embed_dim % head_dim == 0,
            f"embed_dim={embed_dim} does not divide into heads of head_dim={head_dim} channels. Change one of them.",
        )
        num_heads = embed_dim // head_dim
    heads = published_heads if num_heads is None else num_heads
    return VisionTransformer(embed_dim=embed_dim, num_heads=heads, **args)
