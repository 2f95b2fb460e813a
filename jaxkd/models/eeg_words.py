"""Word encoders of EEG: the band powers of each fixated word -> an embedding that is compared with those of words.

The input of a word are 840 numbers, 8 frequency bands x 105 electrodes (ZuCo). The paper that they serve
(Brain-CLIPLM, arXiv 2604.16370) publishes no sizes: these are ours. All but `eeg_words_context` see one word at a time,
so that they can neither count the words of a sentence nor know places, which alone would often tell the sentence.
Legend: B sentences, W words, F features of a word, C channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ShapeError, check_range
from jaxkd.models.contract import Features, Offsets, TapRecorder, require, require_counts, require_heads
from jaxkd.models.layers import LINEAR_INIT, MLP, Dropout, LayerNorm, Linear, parameter
from jaxkd.models.transformer import TransformerBlock

NO_KEY = -1e30  # attention logit of a word that is left out; finite, because a sentence without words would be NaN


class WordBlock(nn.Module):
    """x + MLP(LayerNorm(x)), for each word alone."""

    mlp_dim: int
    drop_rate: float
    deterministic: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, W, C) -> (B, W, C)."""
        mlp = MLP(self.mlp_dim, "gelu", self.drop_rate, self.deterministic, self.dtype, name="mlp")
        return x + mlp(LayerNorm(dtype=self.dtype, name="norm")(x))


class Places(nn.Module):
    """A learned vector per place in a sentence."""

    max_words: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, position: jax.Array, channels: int) -> jax.Array:
        """(B, W) integers -> (B, W, C); NaN outside of [0, max_words)."""
        # The name keeps weight decay away, as from the position embedding of a ViT.
        table = parameter(self, "pos_embed", LINEAR_INIT, (self.max_words, channels)).astype(self.dtype)
        position = jnp.where(position < 0, self.max_words, position)  # or -1 would be the last place
        return table.at[position].get(mode="fill", fill_value=jnp.nan)


class MixingBlock(TransformerBlock):
    """A pre-norm block of attention over the words of a sentence and an MLP."""

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """(B, W, C) and a bias (B, 1, 1, W) of the attention's logits -> (B, W, C)."""
        x = x + self.attention()(self.layer_norm(1)(x), None, bias)[0]
        return x + self.feed_forward(self.layer_norm(2)(x))


class EegWords(nn.Module):
    """An embedding per word of a sentence.

    The output (B, W, out_features) is fp32, not normalised, and 0 at words that `where` leaves out. Features are token
    sequences (B, W, C) in `dtype`: `input` after the first layer, `block_i` after residual block i of single words,
    `mix_i` after block i of attention over words. The values of a word that is left out reach nothing.

    Attributes:
      in_features: F.
      out_features: width of the embedding.
      embed_dim: C; 0 maps the input to the output with one matrix (a linear network), whose one tap is `input`.
      mlp_dim: hidden width of the residual blocks.
      depth: number of residual blocks, each LayerNorm, linear, GELU, linear.
      mix_depth: number of attention blocks; 0 for a network that sees one word at a time.
      num_heads: of the attention.
      mix_ratio: hidden width of the attention blocks' MLP over C.
      max_words: number of learned places, where there is attention; the largest W.
      drop_rate: dropout of the input and in the blocks.
      dtype: type of the arithmetic; parameters and outputs are fp32.
    """

    in_features: int = 840
    out_features: int = 128
    embed_dim: int = 256
    mlp_dim: int = 512
    depth: int = 2
    mix_depth: int = 0
    num_heads: int = 4
    mix_ratio: float = 4.0
    max_words: int = 56
    drop_rate: float = 0.3
    dtype: jnp.dtype = jnp.float32

    title = "this encoder of EEG words"  # in error messages

    def __post_init__(self):
        require_counts(in_features=self.in_features, out_features=self.out_features, max_words=self.max_words)
        for name in ("embed_dim", "depth", "mix_depth"):
            check_range(name, getattr(self, name), 0, whole=True)
        check_range("drop_rate", self.drop_rate, 0, below=1)
        check_range("mix_ratio", self.mix_ratio, above=0)
        if self.embed_dim:
            require_counts(mlp_dim=self.mlp_dim)
        require(
            bool(self.embed_dim) or not (self.depth or self.mix_depth),
            f"embed_dim=0 is a linear network, but depth={self.depth} and mix_depth={self.mix_depth} are given. Set "
            "both to 0, or give embed_dim.",
        )
        if self.mix_depth:
            require_heads(self.embed_dim, self.num_heads)
        super().__post_init__()

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """Shape of the smallest input, from which parameters are made."""
        return (1, 1, self.in_features)

    def tap_names(self) -> tuple[str, ...]:
        """Every name that `taps` and `offsets` accept, in depth order."""
        blocks = tuple(f"block_{i}" for i in range(self.depth))
        return ("input", *blocks, *(f"mix_{i}" for i in range(self.mix_depth)))

    @nn.compact
    def __call__(
        self,
        eeg: jax.Array,
        train: bool = False,
        taps: tuple[str, ...] = (),
        offsets: Offsets | None = None,
        *,
        where: jax.Array | None = None,
        position: jax.Array | None = None,
    ) -> tuple[jax.Array, Features]:
        """Embeds the words of a batch of sentences.

        Args:
          eeg: (B, W, F), standardised per word; fp32.
          train: static; switches dropout on (key "dropout").
          taps: static; any of `tap_names()`.
          offsets: tap -> array added at that point.
          where: (B, W) bool, False at padding and at words that are left out, which may hold NaN; None: all count.
          position: (B, W) integers in [0, max_words), places of the words in their sentence; None: 0, 1, 2, ... Read by
            the networks with attention only; one outside gives NaN unless `where` leaves it out.

        Returns:
          (B, W, out_features) in fp32, and the features at `taps`.
        """
        self._check(eeg, where, position)
        tap = TapRecorder(self.title, self.tap_names(), taps, offsets)
        x = eeg.astype(jnp.float32)
        if where is not None:
            x = jnp.where(where[..., None], x, 0.0)
        out = Linear(self.out_features, dtype=self.dtype, name="head")
        if not self.embed_dim:
            x = tap("input", out(Dropout(self.drop_rate, not train)(x)))
        else:
            x = out(LayerNorm(dtype=self.dtype, name="norm")(self._tokens(x, tap, train, where, position)))
        x = x.astype(jnp.float32)
        return (x if where is None else jnp.where(where[..., None], x, 0.0)), tap.features

    def _tokens(
        self, x: jax.Array, tap: TapRecorder, train: bool, where: jax.Array | None, position: jax.Array | None
    ) -> jax.Array:
        """(B, W, F) -> (B, W, C), the input of the head."""
        x = LayerNorm(dtype=self.dtype, name="norm_pre")(x)
        x = Linear(self.embed_dim, dtype=self.dtype, name="input")(Dropout(self.drop_rate, not train)(x))
        x = tap("input", x)
        for i in range(self.depth):
            x = tap(f"block_{i}", WordBlock(self.mlp_dim, self.drop_rate, not train, self.dtype, name=f"blocks_{i}")(x))
        if not self.mix_depth:
            return x
        if position is None:
            position = jnp.arange(x.shape[1])[None]
        elif where is not None:
            position = jnp.where(where, position, 0)
        x = x + Places(self.max_words, self.dtype, name="places")(position, x.shape[-1])
        bias = jnp.zeros((1, 1, 1, 1)) if where is None else jnp.where(where, 0.0, NO_KEY)[:, None, None, :]
        for i in range(self.mix_depth):
            block = MixingBlock(
                num_heads=self.num_heads,
                mlp_ratio=self.mix_ratio,
                qkv_bias=True,
                act_layer="gelu",
                proj_drop=self.drop_rate,
                attn_drop=self.drop_rate,
                deterministic=not train,
                dtype=self.dtype,
                name=f"mix_{i}",
            )
            x = tap(f"mix_{i}", block(x, bias))
        return x

    def _check(self, eeg: jax.Array, where: jax.Array | None, position: jax.Array | None) -> None:
        """Raises ShapeError for arrays that do not fit."""
        if eeg.ndim != 3 or eeg.shape[2] != self.in_features:
            raise ShapeError(
                f"The EEG has shape {tuple(eeg.shape)}, but {self.title} was built for (sentences, words, "
                f"{self.in_features}). Add an axis for single words, e.g. eeg[:, None], or build it with in_features="
                f"{eeg.shape[-1] if eeg.ndim else 1}."
            )
        if self.mix_depth and position is None and eeg.shape[1] > self.max_words:
            raise ShapeError(
                f"The EEG has {eeg.shape[1]} words a sentence, but {self.title} has {self.max_words} places. Cut the "
                f"sentences, or build it with max_words={eeg.shape[1]}."
            )
        wanted = tuple(eeg.shape[:2])
        for name, array, kind in (("where", where, jnp.bool_), ("position", position, jnp.integer)):
            if array is not None and (tuple(array.shape) != wanted or not jnp.issubdtype(array.dtype, kind)):
                raise ShapeError(
                    f"{name} is {array.dtype} of shape {tuple(array.shape)}. Pass "
                    f"{'a bool' if name == 'where' else 'an integer'} for each word, of shape {wanted}."
                )
