"""ViT and DeiT, plain and with a distillation token, and the image towers of MAE, DINO, DINOv2 and CLIP.

Dosovitskiy et al. 2021 (ViT), Touvron et al. 2021 (DeiT); semantics of timm/models/vision_transformer.py and deit.py.
Legend: B batch, P prefix tokens, h w patch grid, N = P + h w tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.contract import (
    ATTENTION_TAPS,
    Features,
    Offsets,
    TapRecorder,
    require,
    require_counts,
    require_heads,
)
from jaxkd.models.layers import (
    LINEAR_INIT,
    Dropout,
    DropPath,
    LayerNorm,
    LayerScale,
    Linear,
    PatchEmbed,
    drop_path_rates,
    parameter,
)
from jaxkd.models.transformer import Transformer, TransformerBlock


class Block(TransformerBlock):
    """Attention and MLP, each with LayerScale (if any) and stochastic depth."""

    @nn.compact
    def __call__(self, x: jax.Array, offsets: Offsets | None = None) -> tuple[jax.Array, Features]:
        """(B, N, C) -> (B, N, C) and what `Attention` returns beside it."""

        def scaled(branch: jax.Array, name: str) -> jax.Array:
            return branch if not self.init_values else LayerScale(self.init_values, self.dtype, name=name)(branch)

        drop_path = DropPath(self.drop_path, self.deterministic)
        y, inner = self.attention()(self.layer_norm(1)(x), offsets)
        x = x + drop_path(scaled(y, "ls1"))
        return x + drop_path(scaled(self.feed_forward(self.layer_norm(2)(x)), "ls2")), inner


class VisionTransformer(Transformer):
    """A vision transformer with timm's arguments; those of all transformers are described in `Transformer`.

    `__call__` is the composition of `embed`, `encode` and `classify`, which a subclass can override or call one by one
    from its own compact method. Features are in `dtype`: `block_i` (B, h, w, C), `prefix_i` (B, P, C), `query_i`
    (before the scaling), `key_i` and `value_i` (B, H, N, D), and in fp32 `attn_i` (B, H, N, N) and `pre_logits` (B, C)
    (of a distilled ViT the mean of both tokens).

    Attributes:
      init_values: LayerScale's initial factor; None for no LayerScale.
      class_token: whether the network has a class token.
      reg_tokens: register tokens after the class token.
      no_embed_class: position embeddings for patches only.
      pre_norm: LayerNorm before the blocks, and a patch embedding without bias (CLIP).
      fc_norm: apply the final norm after the pooling instead of before; None: if global_pool is "avg".
      norm_eps: LayerNorm's epsilon.
      distillation_token: a second token with a head of its own (DeiT); the registered name sets it.
    """

    depth: int = 12
    num_heads: int = 12
    pos_drop_rate: float = 0.0
    init_values: float | None = None
    class_token: bool = True
    reg_tokens: int = 0
    no_embed_class: bool = False
    pre_norm: bool = False
    fc_norm: bool | None = None
    norm_eps: float = 1e-6
    distillation_token: bool = False

    class_token_std = 1e-6  # of the initial class and register tokens, timm's

    def __post_init__(self):
        require_heads(self.embed_dim, self.num_heads)
        require(
            self.class_token or self.global_pool != "token",
            'class_token=False and global_pool="token" exclude each other. Set global_pool="avg".',
        )
        require(
            not self.distillation_token or (self.global_pool == "token" and not self.reg_tokens and not self.fc_norm),
            'A distilled ViT takes only global_pool="token", reg_tokens=0 and fc_norm=None, because its two heads read '
            "the class and the distillation token. Omit those arguments, or choose a name without distilled in it.",
        )
        require_counts(depth=self.depth)
        super().__post_init__()

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return int(self.class_token) + int(self.distillation_token) + self.reg_tokens

    def tap_names(self) -> tuple[str, ...]:
        """Every name that `taps` and `offsets` accept, in depth order."""
        kinds = (*ATTENTION_TAPS, "prefix", "block") if self.num_prefix_tokens else (*ATTENTION_TAPS, "block")
        return (*(f"{kind}_{i}" for i in range(self.depth) for kind in kinds), "pre_logits")

    def embed(self, images: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, c) images -> (B, N, C) tokens for the first block, prefix tokens first."""
        x = Dropout(self.pos_drop_rate, not train)(self._tokens(images))
        return LayerNorm(self.norm_eps, self.dtype, name="norm_pre")(x) if self.pre_norm else x

    def _tokens(self, images: jax.Array) -> jax.Array:
        """(B, H, W, c) images -> (B, N, C) prefix and patch tokens with position embeddings."""
        assert isinstance(self.patch_size, tuple)  # by __post_init__
        x = PatchEmbed(self.patch_size, self.embed_dim, not self.pre_norm, None, self.dtype, name="patch_embed")(images)
        x = x.reshape(x.shape[0], -1, self.embed_dim)
        tiny = nn.initializers.normal(self.class_token_std)
        prefix = []
        if self.class_token:
            prefix.append(parameter(self, "cls_token", tiny, (1, 1, self.embed_dim)))
        if self.distillation_token:
            prefix.append(parameter(self, "dist_token", LINEAR_INIT, (1, 1, self.embed_dim)))
        if self.reg_tokens:
            prefix.append(parameter(self, "reg_token", tiny, (1, self.reg_tokens, self.embed_dim)))
        embedded = x.shape[1] + (0 if self.no_embed_class else self.num_prefix_tokens)
        pos_embed = parameter(self, "pos_embed", LINEAR_INIT, (1, embedded, self.embed_dim))
        if not prefix:
            return x + pos_embed.astype(self.dtype)
        # The sums of the (few) prefix tokens are formed in fp32 once per batch, not once per example.
        front = jnp.concatenate(prefix, axis=1)
        if not self.no_embed_class:
            front = front + pos_embed[:, : self.num_prefix_tokens]
            pos_embed = pos_embed[:, self.num_prefix_tokens :]
        front = jnp.broadcast_to(front.astype(self.dtype), (x.shape[0], *front.shape[1:]))
        return jnp.concatenate([front, x + pos_embed.astype(self.dtype)], axis=1)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        taps: tuple[str, ...] = (),
        offsets: Offsets | None = None,
        distilled: bool = False,
    ) -> tuple[jax.Array | tuple[jax.Array, jax.Array], Features]:
        """Classifies a batch of images; arguments, results and errors are those of `TappedNetwork`, and one more.

        Args:
          distilled: static; for a distilled ViT the pair (class, distillation) instead of the mean of both heads.
        """
        tap = self.recorder(images, taps, offsets)
        require(
            self.distillation_token or not distilled,
            "distilled=True, but this network has one head. Omit it, or create a distilled ViT, e.g. "
            "deit_tiny_distilled_patch16_224.",
        )
        x = self.encode(self.embed(images, train), tap, train)
        return self.classify(x, tap, train, distilled), tap.features

    def encode(self, x: jax.Array, tap: TapRecorder, train: bool) -> jax.Array:
        """(B, N, C) tokens -> (B, N, C) tokens after the last block, before the final norm."""
        return self.apply_blocks(range(self.depth), x, tap, train)

    @nn.nowrap
    def apply_blocks(self, blocks: range, x: jax.Array, tap: TapRecorder, train: bool) -> jax.Array:
        """(B, N, C) tokens before the first of `blocks` -> (B, N, C) after the last, with their features recorded."""
        for run in self.runs(blocks, tap):
            if len(run) == 1:
                x = self.apply_block(run[0], x, tap, train)
                continue
            block = partial(self._block_type(train), num_heads=self.num_heads)
            x = self.scan_run(run, block, drop_path_rates(self.drop_path_rate, self.depth), x, tap)
        return x

    def _block_type(self, train: bool) -> Callable[..., Block]:
        return self.block_type(Block, train, init_values=self.init_values, norm_eps=self.norm_eps)

    @nn.nowrap
    def apply_block(
        self, i: int, x: jax.Array, tap: TapRecorder, train: bool, *, name: str = "", num_heads: int = 0
    ) -> jax.Array:
        """(B, N, C) tokens before block `i` -> (B, N, C) after it, with its features recorded.

        Args:
          i: which block; its place decides its stochastic depth and the names of its taps.
          x: C may differ from `embed_dim`.
          tap: recorder of the call.
          train: whether dropout and stochastic depth act.
          name: of the block's parameters; "" is timm's.
          num_heads: 0 for the network's own.
        """
        block = self._block_type(train)(
            num_heads=num_heads or self.num_heads,
            drop_path=drop_path_rates(self.drop_path_rate, self.depth)[i],
            name=name or f"blocks_{i}",
        )
        x = tap.block(block, x, f"{{}}_{i}")
        return tap.tokens(i, x, self.grid_size, self.num_prefix_tokens)

    def classify(
        self, x: jax.Array, tap: TapRecorder, train: bool, distilled: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """(B, N, C) tokens after the last block -> the output of `__call__`: final norm, pooling, head."""
        norm_after_pool = self.global_pool == "avg" if self.fc_norm is None else self.fc_norm
        norm = LayerNorm(self.norm_eps, jnp.float32, name="fc_norm" if norm_after_pool else "norm")
        if self.distillation_token:
            # Only the tokens that the heads read are normalised: LayerNorm acts on each token by itself.
            x = norm(x[:, :2])
            if tap.wants("pre_logits"):
                mean = tap("pre_logits", x.mean(axis=1))
                x = x + (mean - x.mean(axis=1))[:, None] if "pre_logits" in tap.offsets else x
            x = Dropout(self.drop_rate, not train)(x)
            outputs = (x[:, 0], x[:, 1])
            if self.num_classes:
                outputs = (
                    Linear(self.num_classes, name="head")(x[:, 0]),
                    Linear(self.num_classes, name="head_dist")(x[:, 1]),
                )
            return outputs if distilled else (outputs[0] + outputs[1]) / 2
        if self.global_pool == "token":
            x = norm(x[:, 0])
        elif norm_after_pool:
            x = norm(x[:, self.num_prefix_tokens :].astype(jnp.float32).mean(axis=1) if self.global_pool else x)
        else:
            x = norm(x)
            x = x[:, self.num_prefix_tokens :].mean(axis=1) if self.global_pool else x
        return self.predict(x, tap, train)
