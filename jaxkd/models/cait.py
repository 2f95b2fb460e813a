"""CaiT: talking heads, LayerScale and class attention.

Touvron et al. 2021, "Going deeper with Image Transformers"; Shazeer et al. 2020 for the talking heads; semantics of
timm/models/cait.py. Legend: B batch, h w patch grid, N = h w tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.contract import (
    Features,
    Offsets,
    TapRecorder,
    add_offset,
    check_images,
    require_counts,
    require_heads,
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
    merge_heads,
    softmax,
    split_heads,
)


class MixHeads(nn.Module):
    """A linear map over the heads of an attention matrix: "talking heads"."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, attention: jax.Array) -> jax.Array:
        """(B, H, N, N) -> (B, H, N, N) in fp32."""
        batch, heads, *_ = attention.shape
        kernel = self.param("kernel", LINEAR_INIT, (heads, heads)).astype(attention.dtype)
        bias = self.param("bias", nn.initializers.zeros, (heads,))
        # One (H, H) x (H, N N) product per example: "bhnm,hg->bgnm" with one kernel for all would transpose the batch
        # of attention matrices before and after, which costs more than the product.
        mixers = jnp.broadcast_to(kernel.T, (batch, heads, heads))
        flat = attention.reshape(batch, heads, -1)
        mixed = jnp.einsum("bgh,bhx->bgx", mixers, flat, preferred_element_type=jnp.float32)
        return mixed.reshape(attention.shape) + bias[:, None, None]


class TalkingHeadAttention(nn.Module):
    """Self-attention whose heads are mixed before and after the softmax."""

    num_heads: int
    qkv_bias: bool
    attn_drop: float
    proj_drop: float
    deterministic: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, offset: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Attends within each example.

        Args:
          x: (B, N, C).
          offset: (B, H, N, N), added to the softmax' result.

        Returns:
          (B, N, C), and the softmax' result (B, H, N, N) in fp32, before the second mixing: its rows sum to one.
        """
        channels = x.shape[-1]
        qkv = Linear(3 * channels, self.qkv_bias, self.dtype, name="qkv")(x)
        q, k, v = split_heads(qkv, self.num_heads)
        logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
        probs = softmax(MixHeads(self.dtype, name="proj_l")(logits))
        if offset is not None:
            probs = add_offset(probs, offset, "attn")
        weights = MixHeads(self.dtype, name="proj_w")(probs.astype(self.dtype)).astype(self.dtype)
        weights = Dropout(self.attn_drop, self.deterministic)(weights)
        out = merge_heads(jnp.einsum("bhnm,bhmd->bhnd", weights, v))
        out = Linear(channels, dtype=self.dtype, name="proj")(out)
        return Dropout(self.proj_drop, self.deterministic)(out), probs


class ClassAttention(nn.Module):
    """Attention of one query, the class token, over all tokens (Touvron et al. 2021, eq. 6-9)."""

    num_heads: int
    qkv_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, 1 + N, C) with the class token first -> (B, 1, C)."""
        batch, _, channels = tokens.shape
        head_dim = channels // self.num_heads

        def heads(x: jax.Array, name: str) -> jax.Array:
            y = Linear(channels, self.qkv_bias, self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], self.num_heads, head_dim)

        q, k, v = heads(tokens[:, 0], "q"), heads(tokens, "k"), heads(tokens, "v")
        q = q * jnp.asarray(head_dim**-0.5, q.dtype)
        probs = softmax(jnp.einsum("bhd,bmhd->bhm", q, k, preferred_element_type=jnp.float32))
        out = jnp.einsum("bhm,bmhd->bhd", probs.astype(self.dtype), v).reshape(batch, 1, channels)
        return Linear(channels, dtype=self.dtype, name="proj")(out)


class Block(nn.Module):
    """LayerScale block: talking-head attention over the patch tokens, then an MLP."""

    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    init_values: float
    act_layer: str
    proj_drop: float
    attn_drop: float
    drop_path: float
    deterministic: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, attn_offset: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """(B, N, C) -> (B, N, C) and attention (B, H, N, N)."""
        channels = x.shape[-1]
        scale = nn.initializers.constant(self.init_values)
        gamma_1 = self.param("gamma_1", scale, (channels,)).astype(self.dtype)
        gamma_2 = self.param("gamma_2", scale, (channels,)).astype(self.dtype)
        drop_path = DropPath(self.drop_path, self.deterministic)
        y, probs = TalkingHeadAttention(
            self.num_heads, self.qkv_bias, self.attn_drop, self.proj_drop, self.deterministic, self.dtype, name="attn"
        )(LayerNorm(dtype=self.dtype, name="norm1")(x), attn_offset)
        x = x + drop_path(gamma_1 * y)
        y = MLP(
            int(channels * self.mlp_ratio), self.act_layer, self.proj_drop, self.deterministic, self.dtype, name="mlp"
        )(LayerNorm(dtype=self.dtype, name="norm2")(x))
        return x + drop_path(gamma_2 * y), probs


class ClassBlock(nn.Module):
    """Class-attention block: only the class token changes; no dropout and no stochastic depth act, as in timm."""

    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    init_values: float
    act_layer: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, cls_token: jax.Array, x: jax.Array) -> jax.Array:
        """Class token (B, 1, C) and patch tokens (B, N, C) -> class token (B, 1, C)."""
        channels = x.shape[-1]
        scale = nn.initializers.constant(self.init_values)
        gamma_1 = self.param("gamma_1", scale, (channels,)).astype(self.dtype)
        gamma_2 = self.param("gamma_2", scale, (channels,)).astype(self.dtype)
        tokens = LayerNorm(dtype=self.dtype, name="norm1")(jnp.concatenate([cls_token, x], axis=1))
        y = ClassAttention(self.num_heads, self.qkv_bias, self.dtype, name="attn")(tokens)
        cls_token = cls_token + gamma_1 * y
        y = LayerNorm(dtype=self.dtype, name="norm2")(cls_token)
        y = MLP(int(channels * self.mlp_ratio), self.act_layer, dtype=self.dtype, name="mlp")(y)
        return cls_token + gamma_2 * y


class Cait(nn.Module):
    """CaiT with timm's arguments.

    Attributes:
      img_size: pixels, one number or (height, width).
      patch_size: pixels, one number or (height, width).
      num_classes: 0 gives the pooled features instead of logits.
      global_pool: "token" (class token), "avg" (mean of the patch tokens) or "" (all tokens).
      depth: blocks over the patch tokens; depth_token_only: class-attention blocks after them.
      mlp_ratio: hidden width of the MLP over C; mlp_ratio_token_only in the class-attention blocks.
      init_values: LayerScale's initial factor.
      drop_rate: dropout before the head; pos_drop_rate, proj_drop_rate, attn_drop_rate elsewhere.
      drop_path_rate: stochastic depth, the same for every block (as in timm).
      act_layer: "gelu", "quick_gelu" or "gelu_tanh".
      dtype: type of the arithmetic; parameters and outputs are fp32.
      remat: recompute each block in the backward pass instead of storing its activations.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "token"
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    act_layer: str = "gelu"
    init_values: float = 1e-4
    depth_token_only: int = 2
    mlp_ratio_token_only: float = 4.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def __post_init__(self):
        check_transformer(self, ("token", "avg", ""))
        require_heads(self.embed_dim, self.num_heads)
        require_counts(depth=self.depth)
        super().__post_init__()

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches in the blocks: 0, as the class token joins after them."""
        return 0

    def tap_names(self) -> tuple[str, ...]:
        """Every name that `taps` and `offsets` accept, in depth order."""
        blocks = (f"{kind}_{i}" for i in range(self.depth) for kind in ("attn", "block"))
        return (*blocks, *(f"cls_block_{i}" for i in range(self.depth_token_only)), "pre_logits")

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
          Logits (B, num_classes) in fp32, (B, C) for num_classes=0, with an axis of 1 + N tokens for global_pool="";
          and a dict of features in `dtype`: `block_i` (B, h, w, C), `attn_i` (B, H, N, N) in fp32 (the softmax' result,
          between the two mixings of heads), `cls_block_i` (B, C), `pre_logits` (B, C) in fp32.

        Raises:
          ShapeError: images of another size. TapError: a tap that does not exist. ConfigError: no key for dropout.
        """
        check_images(images, self.img_size, self.in_chans, "this CaiT")
        tap = TapRecorder("this CaiT", self.tap_names(), taps, offsets)
        x = PatchEmbed(self.patch_size, self.embed_dim, dtype=self.dtype, name="patch_embed")(images)
        x = x.reshape(x.shape[0], -1, self.embed_dim)
        x = x + self.param("pos_embed", LINEAR_INIT, (1, x.shape[1], self.embed_dim)).astype(self.dtype)
        x = Dropout(self.pos_drop_rate, not train)(x)
        block_type = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            block = block_type(
                self.num_heads,
                self.mlp_ratio,
                self.qkv_bias,
                self.init_values,
                self.act_layer,
                self.proj_drop_rate,
                self.attn_drop_rate,
                self.drop_path_rate,
                not train,
                self.dtype,
                name=f"blocks_{i}",
            )
            x, probs = block(x, tap.offsets.get(f"attn_{i}"))
            tap.record(f"attn_{i}", probs)
            x = tap.tokens(i, x, self.grid_size, 0)
        cls_token = self.param("cls_token", LINEAR_INIT, (1, 1, self.embed_dim)).astype(self.dtype)
        cls_token = jnp.broadcast_to(cls_token, (x.shape[0], 1, self.embed_dim))
        block_type = nn.remat(ClassBlock) if self.remat else ClassBlock
        for i in range(self.depth_token_only):
            block = block_type(
                self.num_heads,
                self.mlp_ratio_token_only,
                self.qkv_bias,
                self.init_values,
                self.act_layer,
                self.dtype,
                name=f"blocks_token_only_{i}",
            )
            cls_token = tap(f"cls_block_{i}", block(cls_token, x)[:, 0])[:, None]
        return self._head(cls_token, x, tap, train), tap.features

    def _head(self, cls_token: jax.Array, x: jax.Array, tap: TapRecorder, train: bool) -> jax.Array:
        """Class token (B, 1, C) and patch tokens (B, N, C) -> output; only what the head reads is normalised."""
        norm = LayerNorm(dtype=jnp.float32, name="norm")
        if self.global_pool == "token":
            x = norm(cls_token[:, 0])
        elif self.global_pool == "avg":
            x = norm(x).mean(axis=1)
        else:
            x = norm(jnp.concatenate([cls_token, x], axis=1))
        x = Dropout(self.drop_rate, not train)(tap("pre_logits", x))
        return Linear(self.num_classes, name="head")(x) if self.num_classes else x
