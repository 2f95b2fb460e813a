"""Base classes of the vision transformers: a network with timm's arguments, and a pre-norm block.

Legend: B batch, h w grid of patches, N tokens, C channels, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import check_choice, check_range
from jaxkd.models.block_scan import scan_blocks
from jaxkd.models.contract import ATTENTION_TAPS, TappedNetwork, TapRecorder, require, size_pair
from jaxkd.models.layers import MLP, Attention, Dropout, LayerNorm, Linear, activation
from jaxkd.models.target import target_platform

REMAT = (False, True, "attention", "dots")


class TransformerBlock(nn.Module, kw_only=True):
    """Arguments and parts of a pre-norm block; a subclass joins the parts.

    Attributes:
      mlp_ratio: hidden width of the MLP over C.
      drop_path: probability that an example loses a residual branch.
      init_values: LayerScale's initial factor; None for no LayerScale.
      deterministic: True outside training.
      fused_attention: see `Transformer`.
      remat_attention: recompute the attention matrix in the backward pass.
    """

    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    act_layer: str
    proj_drop: float
    attn_drop: float
    drop_path: float | jax.Array = 0.0
    init_values: float | None = None
    norm_eps: float = 1e-6
    deterministic: bool
    dtype: jnp.dtype
    fused_attention: bool = False
    remat_attention: bool = False

    def layer_norm(self, index: int) -> LayerNorm:
        """The norm before the attention (1) or before the MLP (2)."""
        return LayerNorm(self.norm_eps, self.dtype, name=f"norm{index}")

    def attention(self, kind: type[Attention] = Attention, **fields: Any) -> Attention:
        """The attention; `fields` are those that `kind` adds to `Attention`."""
        drops = (self.attn_drop, self.proj_drop, self.deterministic)
        shared = (self.num_heads, self.qkv_bias, *drops, self.dtype, self.fused_attention, self.remat_attention)
        return kind(*shared, name="attn", **fields)

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C) by the MLP."""
        hidden = int(x.shape[-1] * self.mlp_ratio)
        return MLP(hidden, self.act_layer, self.proj_drop, self.deterministic, self.dtype, name="mlp")(x)


AnyBlock = TypeVar("AnyBlock", bound=TransformerBlock)


class Transformer(TappedNetwork):
    """A vision transformer with timm's arguments; a subclass adds its own.

    The output is logits (B, num_classes), (B, C) for num_classes=0, with the axes of the tokens for global_pool="".

    Attributes:
      img_size: pixels, one number or (height, width).
      patch_size: pixels, one number or (height, width).
      num_classes: 0 gives the pooled features instead of logits.
      global_pool: one of the class's `pools`: "token" (class token), "avg" (mean over the patches) or "" (all tokens).
      mlp_ratio: hidden width of the MLP over C.
      drop_rate: dropout before the head; pos_drop_rate, proj_drop_rate, attn_drop_rate elsewhere.
      drop_path_rate: stochastic depth of the last block, growing linearly from 0.
      act_layer: "gelu", "quick_gelu" or "gelu_tanh".
      dtype: type of the arithmetic; parameters and outputs are fp32.
      remat: what the backward pass recomputes instead of storing it: True, each block; "attention", the attention
        matrices; "dots", all but the results of linear layers; False, nothing, and on a TPU the attention matrices.
      scan_blocks: compute runs of equal blocks as one loop, whose body is compiled once; blocks inside which a feature
        is asked for stand alone, and a run ends where features after blocks begin or end. Same results and parameters.
      fused_attention: on a TPU, computes the attention of a block in one kernel, outside training and where none of
        its query, key, value or attn features is asked for; results differ by rounding. XLA does not split the kernel:
        with several devices, apply the network inside `shard_map`.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "token"
    embed_dim: int = 768
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    act_layer: str = "gelu"
    dtype: jnp.dtype = jnp.float32
    remat: bool | str = False
    scan_blocks: bool = False
    fused_attention: bool = False

    title = "this vision transformer"  # in error messages
    pools: ClassVar[tuple[str, ...]] = ("token", "avg", "")

    def __post_init__(self):
        self.img_size = size_pair(self.img_size, "img_size")
        self.patch_size = size_pair(self.patch_size, "patch_size")
        require(
            all(size >= patch for size, patch in zip(self.img_size, self.patch_size, strict=True)),
            f"img_size={self.img_size} is smaller than patch_size={self.patch_size}. Use larger images or smaller "
            "patches.",
        )
        left = tuple(size % patch for size, patch in zip(self.img_size, self.patch_size, strict=True))
        smaller = tuple(size - rest for size, rest in zip(self.img_size, left, strict=True))
        require(
            not any(left),
            f"img_size={self.img_size} is not a multiple of patch_size={self.patch_size}, so the last pixels would "
            f"belong to no patch. Use img_size={smaller}, or another multiple.",
        )
        check_choice("global_pool", self.global_pool, self.pools, hint='"" keeps the tokens')
        for name in ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):
            check_range(name, getattr(self, name, 0.0), 0, below=1)
        check_range("mlp_ratio", self.mlp_ratio, above=0)
        activation(self.act_layer)
        check_choice("remat", self.remat, REMAT)
        super().__post_init__()

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        assert isinstance(self.img_size, tuple) and isinstance(self.patch_size, tuple)  # by __post_init__
        return (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches in the blocks."""
        return 0

    def block_type(self, kind: type[AnyBlock], train: bool, **fields: Any) -> Callable[..., AnyBlock]:
        """Constructor of blocks of `kind`, with `fields` and the arguments that all blocks of the network share."""
        shared: dict[str, Any] = {
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": self.qkv_bias,
            "act_layer": self.act_layer,
            "proj_drop": self.proj_drop_rate,
            "attn_drop": self.attn_drop_rate,
            "deterministic": not train,
            "dtype": self.dtype,
            "fused_attention": self.fused_attention,
            # By the count of a TPU's compiler, matrices that are stored cost more than those that are computed again.
            "remat_attention": self.remat == "attention" or (not self.remat and target_platform() == "tpu"),
        }
        return partial(self._recomputed(kind), **(shared | fields))

    def _recomputed(self, kind: type[AnyBlock]) -> type[AnyBlock]:
        """`kind`, perhaps with a backward pass that computes more and stores less."""
        if self.remat == "dots":
            # Products of activations with one another, which are those of the attention, have batch dimensions.
            return nn.remat(kind, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        return nn.remat(kind) if self.remat is True else kind

    @nn.nowrap
    def runs(self, blocks: Sequence[int], tap: TapRecorder) -> list[tuple[int, ...]]:
        """Neighbouring blocks that `scan_run` may compute together; a run of one is computed like any block."""

        def kind(i: int) -> Any:
            after = (f"block_{i}", f"prefix_{i}")
            if tap.wants(*(f"{inner}_{i}" for inner in ATTENTION_TAPS)) or any(name in tap.offsets for name in after):
                return (i,)
            return tap.wants(*after)

        if not self.scan_blocks or self.is_initializing():
            return [(i,) for i in blocks]
        return [tuple(run) for _, run in groupby(blocks, kind)]

    @nn.nowrap
    def scan_run(
        self,
        run: Sequence[int],
        block: Callable[..., nn.Module],
        rates: Sequence[float],
        x: jax.Array,
        tap: TapRecorder,
    ) -> jax.Array:
        """(B, N, C) tokens before the blocks of a run -> (B, N, C) after them, with their features recorded.

        Args:
          run: of `runs`.
          block: constructor, from drop_path and parent.
          rates: stochastic depth of all blocks of the network.
          x: tokens.
          tap: recorder of the call.
        """
        keep = tap.wants(f"block_{run[0]}", f"prefix_{run[0]}")
        names, depths = [f"blocks_{i}" for i in run], [rates[i] for i in run]
        x, results = scan_blocks(self, (block,), names, depths, x, keep=keep)
        for i, result in zip(run, results, strict=False):
            tap.tokens(i, result, self.grid_size, self.num_prefix_tokens)
        return x

    def predict(
        self, x: jax.Array, tap: TapRecorder, train: bool, head: Callable[..., nn.Module] = Linear
    ) -> jax.Array:
        """(..., C) pooled features in fp32 -> (..., num_classes), or the features themselves without classes."""
        x = Dropout(self.drop_rate, not train)(tap("pre_logits", x))
        return head(self.num_classes, name="head")(x) if self.num_classes else x
