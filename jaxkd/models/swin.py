"""Swin Transformer: attention in (shifted) windows, and a pyramid of stages.

Liu et al. 2021; semantics of timm/models/swin_transformer.py, where a stage starts with its downsampling.
Legend: B batch, h w grid, a b window height and width, W windows per image, N = a b tokens per window, C channels,
H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd.models.contract import (
    Features,
    Offsets,
    TapRecorder,
    add_offset,
    check_images,
    require,
    require_counts,
    require_heads,
    size_pair,
)
from jaxkd.models.layers import (
    LINEAR_INIT,
    MLP,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    PatchEmbed,
    check_transformer,
    drop_path_rates,
    merge_heads,
    softmax,
    split_heads,
)
from jaxkd.models.windows import Size, merge, partition, relative_position_index, shift_mask, window_and_shift

NORM_EPS = 1e-5  # PyTorch's default, which Swin keeps


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias per relative position."""

    num_heads: int
    window: Size
    qkv_bias: bool
    attn_drop: float
    proj_drop: float
    deterministic: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: np.ndarray | None, offset: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Attends within each window.

        Args:
          x: (B, W, N, C).
          mask: (W, N, N) added to the logits, or None.
          offset: (B, W, H, N, N), added to the attention probabilities.

        Returns:
          (B, W, N, C), and the attention probabilities (B, W, H, N, N) in fp32.
        """
        *_, tokens, channels = x.shape
        a, b = self.window
        table = self.param("relative_position_bias_table", LINEAR_INIT, ((2 * a - 1) * (2 * b - 1), self.num_heads))
        bias = table[relative_position_index(self.window).reshape(-1)].reshape(tokens, tokens, self.num_heads)
        bias = bias.transpose(2, 0, 1)[None]
        if mask is not None:
            bias = bias + mask[:, None]
        qkv = Linear(3 * channels, self.qkv_bias, self.dtype, name="qkv")(x)
        q, k, v = split_heads(qkv, self.num_heads)
        probs = softmax(jnp.einsum("bwhnd,bwhmd->bwhnm", q, k, preferred_element_type=jnp.float32) + bias)
        if offset is not None:
            probs = add_offset(probs, offset, "attn")
        weights = Dropout(self.attn_drop, self.deterministic)(probs.astype(self.dtype))
        out = merge_heads(jnp.einsum("bwhnm,bwhmd->bwhnd", weights, v))
        out = Linear(channels, dtype=self.dtype, name="proj")(out)
        return Dropout(self.proj_drop, self.deterministic)(out), probs


class Block(nn.Module):
    """Swin block: window attention (shifted or not) and MLP, each with stochastic depth."""

    num_heads: int
    window: Size
    shift: Size
    mlp_ratio: float
    qkv_bias: bool
    proj_drop: float
    attn_drop: float
    drop_path: float
    act_layer: str
    deterministic: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, attn_offset: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """(B, h, w, C) -> (B, h, w, C) and attention (B, W, H, N, N)."""
        _, h, w, channels = x.shape
        drop_path = DropPath(self.drop_path, self.deterministic)
        y = LayerNorm(NORM_EPS, self.dtype, name="norm1")(x)
        if any(self.shift):
            y = jnp.roll(y, (-self.shift[0], -self.shift[1]), axis=(1, 2))
        # As in timm, padding happens after the shift, and padded tokens take part in the attention like others.
        pad_h, pad_w = -h % self.window[0], -w % self.window[1]
        if pad_h or pad_w:
            y = jnp.pad(y, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))
        padded = (h + pad_h, w + pad_w)
        y, probs = WindowAttention(
            self.num_heads,
            self.window,
            self.qkv_bias,
            self.attn_drop,
            self.proj_drop,
            self.deterministic,
            self.dtype,
            name="attn",
        )(partition(y, self.window), shift_mask(padded, self.window, self.shift), attn_offset)
        y = merge(y, self.window, padded)[:, :h, :w]
        if any(self.shift):
            y = jnp.roll(y, self.shift, axis=(1, 2))
        x = x + drop_path(y)
        y = LayerNorm(NORM_EPS, self.dtype, name="norm2")(x)
        hidden = int(channels * self.mlp_ratio)
        y = MLP(hidden, self.act_layer, self.proj_drop, self.deterministic, self.dtype, name="mlp")(y)
        return x + drop_path(y), probs


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
    """

    index: int
    features: int
    window: Size
    block: Callable[..., nn.Module]
    drop_path: tuple[float, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, tap: TapRecorder) -> jax.Array:
        """(B, h, w, C) of the stage before -> (B, h, w, C) of this one; the stage's taps go to `tap`."""
        if self.index:
            x = PatchMerging(self.features, self.dtype, name="downsample")(x)
        for j, drop_path in enumerate(self.drop_path):
            window, shift = window_and_shift(x.shape[1:3], self.window, shifted=j % 2 == 1)
            name = f"stage_{self.index}.block_{j}"
            block = self.block(window=window, shift=shift, drop_path=drop_path, name=f"blocks_{j}")
            x, probs = block(x, tap.offsets.get(f"{name}.attn"))
            tap.record(f"{name}.attn", probs)
            x = tap(name, x)
        return tap(f"stage_{self.index}", x)


class SwinTransformer(nn.Module):
    """Swin with timm's arguments.

    Attributes:
      img_size: pixels, one number or (height, width).
      patch_size: pixels, one number or (height, width).
      num_classes: 0 gives the pooled features instead of logits.
      global_pool: "avg" (mean over the grid) or "" (the grid).
      embed_dim: C of the first stage; each later one has twice the channels.
      depths: blocks per stage; num_heads: likewise.
      window_size: one number, (height, width), or one of these per stage; clamped to the grid.
      mlp_ratio: hidden width of the MLP over C.
      drop_rate: dropout before the head; proj_drop_rate, attn_drop_rate elsewhere.
      drop_path_rate: stochastic depth of the last block, growing linearly from 0; timm's default is 0.1.
      dtype: type of the arithmetic; parameters and outputs are fp32.
      remat: recompute each block in the backward pass instead of storing its activations.
    """

    img_size: int | Size = 224
    patch_size: int | Size = 4
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | Size | tuple[int | Size, ...] = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    act_layer: str = "gelu"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def __post_init__(self):
        check_transformer(self, ("avg", ""))
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
    def grid_size(self) -> Size:
        """Rows and columns of patches of the first stage; see `stage_grid` for the others."""
        return (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: 0."""
        return 0

    @property
    def stage_windows(self) -> tuple[Size, ...]:
        """(height, width) of the window of each stage before clamping; two numbers are one pair for all stages."""
        stages, given = len(self.depths), self.window_size
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
                names += [f"stage_{i}.block_{j}.attn", f"stage_{i}.block_{j}"]
            names.append(f"stage_{i}")
        return (*names, "pre_logits")

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, taps: tuple[str, ...] = (), offsets: Offsets | None = None
    ) -> tuple[jax.Array, Features]:
        """Classifies a batch of images.

        Args:
          images: (B, H, W, in_chans), normalised.
          train: static; switches dropout and stochastic depth on (key "dropout").
          taps: static; any of `tap_names()`.
          offsets: tap -> array added at that point.

        Returns:
          Logits (B, num_classes) in fp32, (B, C) for num_classes=0, with the grid for global_pool=""; and a dict of
          features in `dtype`: `stage_i` and `stage_i.block_j` (B, h, w, C) before the next downsampling and without the
          final norm, `stage_i.block_j.attn` (B, W, H, N, N) in fp32, `pre_logits` (B, C) in fp32.

        Raises:
          ShapeError: images of another size. TapError: a tap that does not exist. ConfigError: no key for dropout.
        """
        check_images(images, self.img_size, self.in_chans, "this Swin")
        tap = TapRecorder("this Swin", self.tap_names(), taps, offsets)
        embed = PatchEmbed(self.patch_size, self.embed_dim, True, NORM_EPS, self.dtype, name="patch_embed")
        x = embed(images)
        rates, start = drop_path_rates(self.drop_path_rate, sum(self.depths)), 0
        for i, depth in enumerate(self.depths):
            block = partial(
                nn.remat(Block) if self.remat else Block,
                num_heads=self.num_heads[i],
                mlp_ratio=self.mlp_ratio,
                qkv_bias=self.qkv_bias,
                proj_drop=self.proj_drop_rate,
                attn_drop=self.attn_drop_rate,
                act_layer=self.act_layer,
                deterministic=not train,
                dtype=self.dtype,
            )
            rate, features = rates[start : start + depth], self.embed_dim * 2**i
            x = Stage(i, features, self.stage_windows[i], block, rate, self.dtype, name=f"layers_{i}")(x, tap)
            start += depth
        x = LayerNorm(NORM_EPS, jnp.float32, name="norm")(x)
        x = x.mean(axis=(1, 2)) if self.global_pool else x
        x = Dropout(self.drop_rate, not train)(tap("pre_logits", x))
        return (Head(self.num_classes, name="head")(x) if self.num_classes else x), tap.features


class Head(nn.Module):
    """The classifier, one level down as in timm ("head.fc")."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., num_classes) in fp32."""
        return Linear(self.num_classes, name="fc")(x)
