"""Llama, a decoder-only language model (Touvron et al., arXiv 2302.13971), with a key-value cache and decoding.

Pre-norm blocks of rotary, grouped-query attention and SwiGLU, RMSNorm, no biases. It reads token ids, not images, and
so it is not in the registry. Legend: B sequences, T tokens, S places of the cache, C channels, H query heads, K heads
of keys and values, D channels of a head.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import ConfigError, check_range
from jaxkd.models.layers import LINEAR_INIT, Linear, parameter

Variables = dict[str, Any]
Cache = tuple[tuple[jax.Array, jax.Array], ...]
NO_PLACE = -1e30  # attention logit of a later place


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama.

    Attributes:
      vocab_size: number of tokens.
      embed_dim: C.
      mlp_dim: hidden width of SwiGLU.
      depth: number of blocks.
      num_heads, num_kv_heads: H and K; H is a multiple of K.
      context: longest sequence, in tokens.
      head_dim: D; 0 for C / H.
      rope_theta: base of the rotary wavelengths.
      norm_eps: of RMSNorm.
      tied: whether the output matrix is the token embedding.
    """

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    depth: int
    num_heads: int
    num_kv_heads: int
    context: int
    head_dim: int = 0
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "embed_dim", "mlp_dim", "depth", "num_heads", "num_kv_heads", "context"):
            check_range(name, getattr(self, name), 1, whole=True)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}. Choose one that is."
            )
        if not self.head_dim:
            if self.embed_dim % self.num_heads:
                raise ConfigError(
                    f"embed_dim={self.embed_dim} does not divide by num_heads={self.num_heads}. Give head_dim."
                )
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} is odd, and rotary places turn pairs. Choose an even number.")


def empty_cache(config: LlamaConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32) -> Cache:
    """Keys and values (B, S, K, D) of each block, zero; `length` is S, the most tokens that will be read."""
    shape = (batch, length, config.num_kv_heads, config.head_dim)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.depth))


def rotate(x: jax.Array, places: jax.Array, theta: float) -> jax.Array:
    """Rotary places (Su et al., arXiv 2104.09864); channel i is paired with channel i + D/2, as Hugging Face does.

    Args:
      x: (B, T, heads, D).
      places: (T,) integers.
      theta: base of the wavelengths.
    """
    half = x.shape[-1] // 2
    angle = places[:, None].astype(jnp.float32) * theta ** (-jnp.arange(half, dtype=jnp.float32) / half)  # (T, D/2)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) times a learned scale, in fp32 (Zhang and Sennrich, arXiv 1910.07467)."""

    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C)."""
        scale = parameter(self, "scale", nn.initializers.ones, x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32)).astype(self.dtype)


class LlamaBlock(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    config: LlamaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, start: jax.Array, cache: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """(B, T, C) at the places start ... start + T - 1 -> (B, T, C) and the cache with their keys and values."""
        c = self.config
        linear = functools.partial(Linear, use_bias=False, dtype=self.dtype)
        y = RMSNorm(c.norm_eps, self.dtype, name="norm1")(x)
        places = start + jnp.arange(x.shape[1])
        heads = (*x.shape[:2], -1, c.head_dim)
        query = rotate(linear(c.num_heads * c.head_dim, name="query")(y).reshape(heads), places, c.rope_theta)
        key = rotate(linear(c.num_kv_heads * c.head_dim, name="key")(y).reshape(heads), places, c.rope_theta)
        value = linear(c.num_kv_heads * c.head_dim, name="value")(y).reshape(heads)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis=1)
            for old, new in zip(cache, (key, value), strict=True)
        )
        # Query head h shares the keys and values of head h // (H / K).
        query = query.reshape(*x.shape[:2], c.num_kv_heads, -1, c.head_dim)
        logits = jnp.einsum("btkgd,bskd->bkgts", query, keys, preferred_element_type=jnp.float32) * c.head_dim**-0.5
        seen = jnp.arange(keys.shape[1]) <= places[:, None]  # (T, S)
        weights = jax.nn.softmax(jnp.where(seen, logits, NO_PLACE), axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bkgts,bskd->btkgd", weights, values)
        x = x + linear(c.embed_dim, name="out")(mixed.reshape(*x.shape[:2], -1))
        y = RMSNorm(c.norm_eps, self.dtype, name="norm2")(x)
        y = jax.nn.silu(linear(c.mlp_dim, name="gate")(y)) * linear(c.mlp_dim, name="up")(y)
        return x + linear(c.embed_dim, name="down")(y), (keys, values)


class Llama(nn.Module):
    """Logits of the next token at each place.

    Attributes:
      config: sizes.
      dtype: of the computation; normalising, attention weights and logits are fp32.
    """

    config: LlamaConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        cache: Cache | None = None,
        start: jax.Array | int = 0,
        only: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Reads tokens that follow those in the cache.

        Args:
          tokens: (B, T) ids.
          cache: of `empty_cache`, or as an earlier call returned it; None for a sequence from its beginning.
          start: number of tokens that the cache holds; what lies behind them is not read. start + T is at most S.
          only: the one of the T tokens that logits are wanted of; None for all.

        Returns:
          fp32 logits (B, T, vocab_size), or (B, 1, vocab_size) with `only`, and the cache with these tokens.
        """
        c = self.config
        if cache is None:
            batch, length = tokens.shape
            cache = empty_cache(c, batch, length, self.dtype)
        table = parameter(self, "embedding", LINEAR_INIT, (c.vocab_size, c.embed_dim)).astype(self.dtype)
        x, filled, start = table[tokens], [], jnp.asarray(start)
        for i in range(c.depth):
            x, pair = LlamaBlock(c, self.dtype, name=f"blocks_{i}")(x, start, cache[i])
            filled.append(pair)
        if only is not None:  # the logits of a long prompt would be larger than the network
            x = jax.lax.dynamic_slice_in_dim(x, only, 1, axis=1)
        x = RMSNorm(c.norm_eps, self.dtype, name="norm")(x)
        if not c.tied:
            table = parameter(self, "output", LINEAR_INIT, (c.vocab_size, c.embed_dim)).astype(self.dtype)
        return jnp.einsum("btc,vc->btv", x, table, preferred_element_type=jnp.float32), tuple(filled)


@functools.partial(jax.jit, static_argnames=("model", "room"))
def generate(
    model: Llama,
    variables: Variables,
    prompt: jax.Array,
    length: jax.Array,
    limit: jax.Array,
    *,
    room: int,
    stop: jax.Array | None = None,
    temperature: jax.Array | float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Continues one sequence: the most probable token each time, or one drawn at random. One compiled loop.

    Args:
      model, variables: the network.
      prompt: (T,) ids, padded at the end with any id.
      length: how many of them count, at least 1.
      limit: most tokens to make, at most `room`.
      room: places for new tokens; programs are compiled for each pair of T and `room`.
      stop: (N,) ids after which the sequence ends; None for none.
      temperature: 0 for the most probable token, ties to the smallest id.
      key: of the draws; needed for a temperature above 0.

    Returns:
      (room,) new ids, -1 where none was made, and their number. A stop token is the last of them.
    """
    stop = jnp.full(1, -1) if stop is None else stop
    key = jax.random.key(0) if key is None else key
    cache = empty_cache(model.config, 1, len(prompt) + room, model.dtype)
    # Keys behind `length` belong to the padding: the new tokens overwrite each before it is read.
    prompted: Any = model.apply(variables, prompt[None], cache, only=length - 1)
    logits, cache = prompted

    def choose(logits: jax.Array, count: jax.Array) -> jax.Array:
        drawn = jax.random.categorical(jax.random.fold_in(key, count), logits / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, drawn, jnp.argmax(logits)).astype(jnp.int32)

    def goes_on(carry: tuple) -> jax.Array:
        _, made, count = carry
        return (count < limit) & ~jnp.any(made[count - 1] == stop)

    def step(carry: tuple) -> tuple:
        cache, made, count = carry
        last = made[count - 1]
        logits, cache = model.apply(variables, last[None, None], cache, length + count - 1)
        return cache, made.at[count].set(choose(logits[0, 0], count)), count + 1

    made = jnp.full(room, -1, jnp.int32).at[0].set(choose(logits[0, 0], jnp.zeros((), jnp.int32)))
    _, made, count = jax.lax.while_loop(goes_on, step, (cache, made, jnp.ones((), jnp.int32)))
    return made, count
