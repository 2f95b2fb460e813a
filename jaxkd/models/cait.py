"""CaiT: talking heads, LayerScale and class attention.

Touvron et al. 2021, "Going deeper with Image Transformers"; Shazeer et al. 2020 for the talking heads; semantics of
timm/models/cait.py. Legend: B batch, h w patch grid, N = h w tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.contract import ATTENTION_TAPS, Features, Offsets, TapRecorder, require_counts, require_heads
from jaxkd.models.layers import (
    LINEAR_INIT,
    MLP,
    Attention,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    PatchEmbed,
    parameter,
    softmax,
)
from jaxkd.models.talking_heads import mix_heads, talking_heads
from jaxkd.models.transformer import Transformer, TransformerBlock


class MixHeads(nn.Module):
    """Parameters of a linear map over the heads of an attention matrix: "talking heads"."""

    @nn.compact
    def __call__(self, heads: int) -> tuple[jax.Array, jax.Array]:
        """(H, H) kernel, from the head of its row to that of its column, and (H,) bias."""
        kernel = parameter(self, "kernel", LINEAR_INIT, (heads, heads))
        return kernel, parameter(self, "bias", nn.initializers.zeros, (heads,))


class TalkingHeadAttention(Attention):
    """Self-attention whose heads are mixed before and after the softmax; what it returns is from between the two."""

    def attend(self, qkv: jax.Array, bias: jax.Array | None) -> jax.Array:
        """(B, N, 3C) -> (B, N, C) by the kernel; there is no bias."""
        return talking_heads(qkv, *(MixHeads(name=name)(self.num_heads) for name in ("proj_l", "proj_w")))

    def mix_logits(self, logits: jax.Array) -> jax.Array:
        """(B, H, N, N) -> the same, in fp32."""
        return mix_heads(logits, *MixHeads(name="proj_l")(self.num_heads))

    def mix_probs(self, probs: jax.Array) -> jax.Array:
        """(B, H, N, N) -> the same, in `dtype`."""
        return mix_heads(probs, *MixHeads(name="proj_w")(self.num_heads)).astype(self.dtype)


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


class Block(TransformerBlock):
    """LayerScale block: talking-head attention over the patch tokens, then an MLP."""

    def factors(self, channels: int) -> list[jax.Array]:
        """LayerScale's factors of the two branches, each (C,)."""
        scale = nn.initializers.constant(cast(float, self.init_values))
        return [parameter(self, f"gamma_{i}", scale, (channels,)).astype(self.dtype) for i in (1, 2)]

    @nn.compact
    def __call__(self, x: jax.Array, offsets: Offsets | None = None) -> tuple[jax.Array, Features]:
        """(B, N, C) -> (B, N, C) and what `Attention` returns beside it."""
        gamma_1, gamma_2 = self.factors(x.shape[-1])
        drop_path = DropPath(self.drop_path, self.deterministic)
        y, inner = self.attention(TalkingHeadAttention)(self.layer_norm(1)(x), offsets)
        x = x + drop_path(gamma_1 * y)
        return x + drop_path(gamma_2 * self.feed_forward(self.layer_norm(2)(x))), inner


class ClassBlock(Block):
    """Class-attention block: only the class token changes; no dropout and no stochastic depth act, as in timm."""

    @nn.compact
    def __call__(self, cls_token: jax.Array, x: jax.Array) -> jax.Array:
        """Class token (B, 1, C) and patch tokens (B, N, C) -> class token (B, 1, C)."""
        channels = x.shape[-1]
        gamma_1, gamma_2 = self.factors(channels)
        tokens = self.layer_norm(1)(jnp.concatenate([cls_token, x], axis=1))
        y = ClassAttention(self.num_heads, self.qkv_bias, self.dtype, name="attn")(tokens)
        cls_token = cls_token + gamma_1 * y
        mlp = MLP(int(channels * self.mlp_ratio), self.act_layer, dtype=self.dtype, name="mlp")
        return cls_token + gamma_2 * mlp(self.layer_norm(2)(cls_token))


class Cait(Transformer):
    """CaiT with timm's arguments; those of all transformers are described in `Transformer`.

    Features are in `dtype`: `block_i` (B, h, w, C), `query_i` (before the scaling), `key_i` and `value_i` (B, H, N, D),
    `attn_i` (B, H, N, N) in fp32 (the softmax' result, between the two mixings of heads), `cls_block_i` (B, C),
    `pre_logits` (B, C) in fp32. global_pool="" keeps 1 + N tokens.

    Attributes:
      depth: blocks over the patch tokens; depth_token_only: class-attention blocks after them.
      mlp_ratio_token_only: `mlp_ratio` of the class-attention blocks.
      init_values: LayerScale's initial factor.
      drop_path_rate: stochastic depth, the same for every block (as in timm).
    """

    depth: int = 12
    num_heads: int = 12
    pos_drop_rate: float = 0.0
    init_values: float = 1e-4
    depth_token_only: int = 2
    mlp_ratio_token_only: float = 4.0

    title = "this CaiT"

    def __post_init__(self):
        require_heads(self.embed_dim, self.num_heads)
        require_counts(depth=self.depth)
        super().__post_init__()

    def tap_names(self) -> tuple[str, ...]:
        """Every name that `taps` and `offsets` accept, in depth order."""
        blocks = (f"{kind}_{i}" for i in range(self.depth) for kind in (*ATTENTION_TAPS, "block"))
        return (*blocks, *(f"cls_block_{i}" for i in range(self.depth_token_only)), "pre_logits")

    def forward(self, images: jax.Array, tap: TapRecorder, train: bool) -> jax.Array:
        """Blocks over the patch tokens, then class attention, then the head."""
        assert isinstance(self.patch_size, tuple)  # by __post_init__
        x = PatchEmbed(self.patch_size, self.embed_dim, dtype=self.dtype, name="patch_embed")(images)
        x = x.reshape(x.shape[0], -1, self.embed_dim)
        x = x + parameter(self, "pos_embed", LINEAR_INIT, (1, x.shape[1], self.embed_dim)).astype(self.dtype)
        x = Dropout(self.pos_drop_rate, not train)(x)
        block_type = self.block_type(Block, train, num_heads=self.num_heads, init_values=self.init_values)
        for i, *others in self.runs(range(self.depth), tap):
            if others:
                x = self.scan_run((i, *others), block_type, (self.drop_path_rate,) * self.depth, x, tap)
                continue
            block = block_type(drop_path=self.drop_path_rate, name=f"blocks_{i}")
            x = tap.block(block, x, f"{{}}_{i}")
            x = tap.tokens(i, x, self.grid_size, 0)
        cls_token = parameter(self, "cls_token", LINEAR_INIT, (1, 1, self.embed_dim)).astype(self.dtype)
        cls_token = jnp.broadcast_to(cls_token, (x.shape[0], 1, self.embed_dim))
        class_block_type: Callable[..., Any] = self.block_type(
            ClassBlock,
            train,
            num_heads=self.num_heads,
            init_values=self.init_values,
            mlp_ratio=self.mlp_ratio_token_only,
        )
        for i in range(self.depth_token_only):
            class_block = class_block_type(name=f"blocks_token_only_{i}")
            cls_token = tap(f"cls_block_{i}", class_block(cls_token, x)[:, 0])[:, None]
        norm = LayerNorm(dtype=jnp.float32, name="norm")  # of what the head reads, and of nothing else
        if self.global_pool == "token":
            x = norm(cls_token[:, 0])
        elif self.global_pool == "avg":
            x = norm(x).mean(axis=1)
        else:
            x = norm(jnp.concatenate([cls_token, x], axis=1))
        return self.predict(x, tap, train)
