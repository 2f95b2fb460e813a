"""Swin Transformer: attention in (shifted) windows, and a pyramid of stages.

Liu et al. 2021; semantics of timm/models/swin_transformer.py, where a stage starts with its downsampling.
Legend: B batch, h w grid, a b window height and width, W windows per image, N = a b tokens per window, C channels,
H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd.models.block_scan import scan_blocks
from jaxkd.models.contract import (
    ATTENTION_TAPS,
    Features,
    Offsets,
    TapRecorder,
    require,
    require_counts,
    require_heads,
    size_pair,
)
from jaxkd.models.layers import (
    LINEAR_INIT,
    Attention,
    DropPath,
    LayerNorm,
    Linear,
    PatchEmbed,
    drop_path_rates,
    parameter,
)
from jaxkd.models.transformer import Transformer, TransformerBlock
from jaxkd.models.windows import Size, merge, partition, relative_position_index, shift_mask, window_and_shift

NORM_EPS = 1e-5  # PyTorch's default, which Swin keeps


class WindowAttention(Attention, kw_only=True):
    """Self-attention within windows, with a learned bias per relative position."""

    window: Size

    @nn.compact
    def __call__(
        self, x: jax.Array, offsets: Offsets | None = None, bias: np.ndarray | None = None
    ) -> tuple[jax.Array, Features]:
        """(B, W, N, C) -> (B, W, N, C) and features (B, W, H, N, D or N); see `Attention`.

        Args:
          bias: (W, N, N) mask that is added to the learned bias, or None.
        """
        tokens, (a, b) = x.shape[-2], self.window
        table = parameter(
            self, "relative_position_bias_table", LINEAR_INIT, ((2 * a - 1) * (2 * b - 1), self.num_heads)
        )
        learned = table[relative_position_index(self.window).reshape(-1)].reshape(tokens, tokens, self.num_heads)
        learned = learned.transpose(2, 0, 1)[None]
        return super().__call__(x, offsets, learned if bias is None else learned + bias[:, None])


class Block(TransformerBlock):
    """Swin block: window attention (shifted or not) and MLP, each with stochastic depth."""

    window: Size
    shift: Size

    @nn.compact
    def __call__(self, x: jax.Array, offsets: Offsets | None = None) -> tuple[jax.Array, Features]:
        """(B, h, w, C) -> (B, h, w, C) and what `WindowAttention` returns beside it."""
        _, h, w, _ = x.shape
        drop_path = DropPath(self.drop_path, self.deterministic)
        y = self.layer_norm(1)(x)
        if any(self.shift):
            y = jnp.roll(y, (-self.shift[0], -self.shift[1]), axis=(1, 2))
        # As in timm, padding happens after the shift, and padded tokens take part in the attention like others.
        pad_h, pad_w = -h % self.window[0], -w % self.window[1]
        if pad_h or pad_w:
            y = jnp.pad(y, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))
        padded = (h + pad_h, w + pad_w)
        mask: Any = shift_mask(padded, self.window, self.shift)
        y, inner = self.attention(WindowAttention, window=self.window)(partition(y, self.window), offsets, mask)
        y = merge(y, self.window, padded)[:, :h, :w]
        if any(self.shift):
            y = jnp.roll(y, self.shift, axis=(1, 2))
        x = x + drop_path(y)
        return x + drop_path(self.feed_forward(self.layer_norm(2)(x))), inner


class PatchMerging(nn.Module):
    """Halves the grid: 2 x 2 neighbours side by side in the channels, LayerNorm, linear to `features`."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, ceil(h/2), ceil(w/2), features); an odd side is padded with zeros."""
        batch, h, w, channels = x.shape
        if h % 2 or w % 2:
            x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        rows, columns = (h + 1) // 2, (w + 1) // 2
        # Channel order (x, y, c): the column of a neighbour is major, as in the published weights.
        x = x.reshape(batch, rows, 2, columns, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = LayerNorm(NORM_EPS, self.dtype, name="norm")(x.reshape(batch, rows, columns, 4 * channels))
        return Linear(self.features, use_bias=False, dtype=self.dtype, name="reduction")(x)


class Stage(nn.Module):
    """Downsampling (except in the first stage) and the blocks of one resolution.

    Attributes:
      index: of the stage, counted from 0.
      features: C of its blocks.
      window: (a, b) before clamping.
      block: constructor of a block from its shift, window, stochastic depth and name.
      drop_path: stochastic depth per block.
      scan_blocks: compute pairs of blocks as one loop; see `Transformer`.
    """

    index: int
    features: int
    window: Size
    block: Callable[..., nn.Module]
    drop_path: tuple[float, ...]
    dtype: jnp.dtype
    scan_blocks: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, tap: TapRecorder) -> jax.Array:
        """(B, h, w, C) of the stage before -> (B, h, w, C) of this one; the stage's taps go to `tap`."""
        if self.index:
            x = PatchMerging(self.features, self.dtype, name="downsample")(x)
        kinds = []  # of the even and of the odd blocks
        for shifted in (False, True):
            window, shift = window_and_shift((x.shape[1], x.shape[2]), self.window, shifted=shifted)
            kinds.append(partial(self.block, window=window, shift=shift))
        for run in self._runs(tap):
            if len(run) == 1:
                j = run[0]
                block = kinds[j % 2](drop_path=self.drop_path[j], name=f"blocks_{j}")
                x = tap(self._tap(j), tap.block(block, x, f"{self._tap(j)}.{{}}"))
                continue
            keep = tap.wants(*map(self._tap, run))
            names, rates = [f"blocks_{j}" for j in run], [self.drop_path[j] for j in run]
            x, results = scan_blocks(self, kinds, names, rates, x, keep=keep)
            for j, result in zip(run, results, strict=False):
                tap.record(self._tap(j), result)
        return tap(f"stage_{self.index}", x)

    def _tap(self, block: int) -> str:
        return f"stage_{self.index}.block_{block}"

    @nn.nowrap
    def _runs(self, tap: TapRecorder) -> list[tuple[int, ...]]:
        """Single blocks, and neighbouring pairs of blocks that one loop computes."""
        depth = len(self.drop_path)
        if not self.scan_blocks or self.is_initializing():
            return [(j,) for j in range(depth)]

        def kind(pair: tuple[int, int]) -> Any:
            inner = any(tap.wants(*(f"{self._tap(j)}.{kind}" for kind in ATTENTION_TAPS)) for j in pair)
            if inner or any(self._tap(j) in tap.offsets for j in pair):
                return pair
            return tap.wants(*map(self._tap, pair))

        runs: list[tuple[int, ...]] = []
        for _, pairs in groupby(((j, j + 1) for j in range(0, depth - 1, 2)), kind):
            run = sum(pairs, ())
            runs += [run] if len(run) > 2 else [(j,) for j in run]
        return runs + [(j,) for j in range(depth // 2 * 2, depth)]


class SwinTransformer(Transformer):
    """Swin with timm's arguments; those of all transformers are described in `Transformer`.

    Features are in `dtype`: `stage_i` and `stage_i.block_j` (B, h, w, C) before the next downsampling and without the
    final norm, `stage_i.block_j.query` (before the scaling), `.key` and `.value` (B, W, H, N, D), and in fp32
    `stage_i.block_j.attn` (B, W, H, N, N) and `pre_logits` (B, C). global_pool="" keeps the grid.

    Attributes:
      embed_dim: C of the first stage; each later one has twice the channels.
      depths: blocks per stage; num_heads: likewise.
      window_size: one number, (height, width), or one of these per stage; clamped to the grid.
      drop_path_rate: as in `Transformer`; timm's default is 0.1.
    """

    patch_size: int | Size = 4
    global_pool: str = "avg"
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | Size | tuple[int | Size, ...] = 7
    drop_path_rate: float = 0.1

    title = "this Swin"
    pools = ("avg", "")

    def __post_init__(self):
        self.depths, self.num_heads = tuple(self.depths), tuple(self.num_heads)
        if isinstance(self.window_size, list):
            self.window_size = tuple(self.window_size)
        require(
            len(self.depths) == len(self.num_heads),
            f"depths={self.depths} and num_heads={self.num_heads} differ in length. Give one number per stage in each.",
        )
        for i, heads in enumerate(self.num_heads):
            require_heads(self.embed_dim * 2**i, heads, f" (stage {i})")
        require_counts(**{f"depths[{i}]": d for i, d in enumerate(self.depths)})
        self.stage_windows  # noqa: B018 -- raises on a wrong window_size
        super().__post_init__()

    @property
    def stage_windows(self) -> tuple[Size, ...]:
        """(height, width) of the window of each stage before clamping; two numbers are one pair for all stages."""
        stages = len(self.depths)
        given: Any = self.window_size
        if isinstance(given, int) or (len(given) == 2 and all(isinstance(v, int) for v in given)):
            given = (given,) * stages
        require(
            len(given) == stages,
            f"window_size={self.window_size} does not fit {stages} stages. Give one number, (height, width), or one of "
            "these per stage, e.g. window_size=7.",
        )
        return tuple(size_pair(window, "window_size") for window in given)

    def stage_grid(self, index: int) -> Size:
        """Rows and columns of stage `index`."""
        return (-(-self.grid_size[0] // 2**index), -(-self.grid_size[1] // 2**index))

    def block_window(self, index: int) -> Size:
        """The clamped window of stage `index`, which sets the size of the bias tables."""
        return window_and_shift(self.stage_grid(index), self.stage_windows[index], False)[0]

    def tap_names(self) -> tuple[str, ...]:
        """Every name that `taps` and `offsets` accept, in depth order."""
        names = []
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                block = f"stage_{i}.block_{j}"
                names += [*(f"{block}.{kind}" for kind in ATTENTION_TAPS), block]
            names.append(f"stage_{i}")
        return (*names, "pre_logits")

    def forward(self, images: jax.Array, tap: TapRecorder, train: bool) -> jax.Array:
        """Stages, norm, mean over the grid, head."""
        assert isinstance(self.patch_size, tuple)  # by __post_init__
        embed = PatchEmbed(self.patch_size, self.embed_dim, True, NORM_EPS, self.dtype, name="patch_embed")
        x = embed(images)
        rates, start = drop_path_rates(self.drop_path_rate, sum(self.depths)), 0
        for i, depth in enumerate(self.depths):
            block = self.block_type(Block, train, num_heads=self.num_heads[i], norm_eps=NORM_EPS)
            rate, features = rates[start : start + depth], self.embed_dim * 2**i
            stage = (i, features, self.stage_windows[i], block, rate, self.dtype, self.scan_blocks)
            x = Stage(*stage, name=f"layers_{i}")(x, tap)
            start += depth
        x = LayerNorm(NORM_EPS, jnp.float32, name="norm")(x)
        x = x.mean(axis=(1, 2)) if self.global_pool else x
        return self.predict(x, tap, train, Head)


class Head(nn.Module):
    """The classifier, one level down as in timm ("head.fc")."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., num_classes) in fp32."""
        return Linear(self.num_classes, name="fc")(x)
