"""Talking-heads attention without an attention matrix in memory: one Pallas kernel for the forward pass on a TPU.

Both mixings of heads are matrix products over channels, so that no array has an axis of heads. With logits
s_h = q_h k_h^T, the mixed logits of head g are sum_h w_hg s_h = (q * w_g) k^T, where w_g has w_hg at the channels of
head h; and with probabilities p_h the mixed result is sum_h p_h (v * u_h), where u_h has u_hg at the channels of head
g. Both products are over all C channels, which fills a matrix unit better than the D channels of one head.

Legend: B batch, N tokens, C channels, H heads, D = C / H channels per head, T rows of a tile.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxkd.models.fused_attention import LANES, MEMORY, TILE, product, row_softmax
from jaxkd.models.target import target_platform

Mixer = tuple[jax.Array, jax.Array]


def mix_heads(attention: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A linear map over heads: (B, H, N, N), (H, H) and (H,) -> (B, H, N, N) in fp32."""
    batch, heads, *_ = attention.shape
    # One (H, H) x (H, N N) product per example: "bhnm,hg->bgnm" with one kernel for all would transpose the batch of
    # attention matrices before and after, which costs more than the product.
    mixers = jnp.broadcast_to(kernel.astype(attention.dtype).T, (batch, heads, heads))
    flat = attention.reshape(batch, heads, -1)
    mixed = jnp.einsum("bgh,bhx->bgx", mixers, flat, preferred_element_type=jnp.float32)
    return mixed.reshape(attention.shape) + bias[:, None, None]


def talking_heads(qkv: jax.Array, logits: Mixer, probs: Mixer) -> jax.Array:
    """Self-attention whose heads are mixed before and after the softmax (Shazeer et al. 2020), by the kernel.

    Args:
      qkv: (B, N, 3C) queries, keys and values; queries are not yet scaled.
      logits: (H, H) kernel and (H,) bias of the mixing before the softmax, from head h to head g.
      probs: likewise, after it.

    Returns:
      (B, N, C) in the dtype of `qkv`. The backward pass is that of `reference`, which computes everything again.
    """
    return _with_gradient(qkv, logits, probs)


def reference(qkv: jax.Array, logits: Mixer, probs: Mixer) -> jax.Array:
    """The result of `talking_heads`, computed with the attention matrices in memory."""
    batch, tokens, channels3 = qkv.shape
    heads = logits[1].shape[0]
    head_dim = channels3 // 3 // heads
    q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, heads, head_dim), (-3, -2), (0, -3))
    scaled = q * jnp.asarray(head_dim**-0.5, q.dtype)
    scores = jnp.einsum("bhnd,bhmd->bhnm", scaled, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(mix_heads(scores, *logits), axis=-1).astype(qkv.dtype)
    mixed = mix_heads(weights, *probs).astype(qkv.dtype)
    out = jnp.einsum("bhnm,bhmd->bhnd", mixed, v)
    return out.swapaxes(1, 2).reshape(batch, tokens, heads * head_dim)


def fits(tokens: int, channels: int, dtype: jnp.dtype) -> bool:
    """Whether keys, values and one tile of queries, logits and probabilities fit into on-chip memory."""
    rows, size = min(tokens, TILE), jnp.dtype(dtype).itemsize
    inputs = 2 * size * channels * (2 * tokens + 2 * rows)  # the next tile is fetched while one is computed
    return inputs + 3 * 4 * rows * tokens + 4 * tokens * channels <= MEMORY


def fused(qkv: jax.Array, logits: Mixer, probs: Mixer, *, interpret: bool = False) -> jax.Array:
    """The kernel itself; see `talking_heads`.

    Args:
      interpret: runs it step by step on any device, for tests.
    """
    batch, tokens, channels3 = qkv.shape
    channels, heads = channels3 // 3, logits[1].shape[0]
    head_dim, rows = channels // heads, min(tokens, TILE)
    over_channels = partial(jnp.repeat, repeats=head_dim, axis=-1)
    before = over_channels(logits[0].T) * head_dim**-0.5  # (H, C): row g is w_g
    after = over_channels(probs[0])  # (H, C): row h is u_h
    if channels % LANES:  # a block's last axis is a multiple of the lanes or the whole axis
        parts, column = jnp.split(qkv, 3, axis=-1), (0, 0, 0)
    else:  # three views of one array
        parts, column = [qkv] * 3, (0, 1, 2)
    tile = pl.BlockSpec((1, rows, channels), lambda b, i: (b, i, column[0]))
    whole = [pl.BlockSpec((1, tokens, channels), lambda b, i, c=c: (b, 0, c)) for c in column[1:]]
    small = [pl.BlockSpec(shape, lambda b, i: (0, 0)) for shape in ((heads, channels), (1, heads), (1, channels))]
    result = jax.ShapeDtypeStruct((batch, tokens, channels), qkv.dtype)
    return pl.pallas_call(
        partial(_kernel, heads=heads),
        grid=(batch, pl.cdiv(tokens, rows)),
        in_specs=[tile, *whole, small[0], small[1], small[0], small[2]],
        out_specs=pl.BlockSpec((1, rows, channels), lambda b, i: (b, i, 0)),
        out_shape=result,
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * heads * tokens**2 * channels,
            bytes_accessed=(qkv.size + math.prod(result.shape)) * qkv.dtype.itemsize,
            transcendentals=batch * heads * tokens**2,
        ),
        name="talking_heads",
    )(*parts, before, logits[1][None], after, over_channels(probs[1])[None])


def _kernel(q_ref, k_ref, v_ref, before_ref, bias_ref, after_ref, after_bias_ref, out_ref, *, heads: int) -> None:
    """q (1, T, C), k and v (1, N, C), factors (H, C), biases (1, H) and (1, C) -> out (1, T, C)."""
    keys, dtype = k_ref[0], k_ref.dtype
    queries, values = q_ref[0].astype(jnp.float32), v_ref[0].astype(jnp.float32)
    total = after_bias_ref[...] * jnp.sum(values, axis=0, keepdims=True)  # a constant times every value
    total = jnp.broadcast_to(total, out_ref.shape[1:])
    for head in range(heads):
        weighted = (queries * before_ref[head : head + 1, :]).astype(dtype)
        scores = product(weighted, keys, contract=1) + bias_ref[0:1, head : head + 1]
        probs = row_softmax(scores).astype(dtype)
        total += product(probs, (values * after_ref[head : head + 1, :]).astype(dtype), contract=0)
    out_ref[0] = total.astype(out_ref.dtype)


def _forward(qkv: jax.Array, logits: Mixer, probs: Mixer) -> jax.Array:
    if target_platform() == "tpu" and fits(qkv.shape[1], qkv.shape[2] // 3, qkv.dtype):
        return fused(qkv, logits, probs)
    return reference(qkv, logits, probs)


@jax.custom_vjp
def _with_gradient(qkv: jax.Array, logits: Mixer, probs: Mixer) -> jax.Array:
    return _forward(qkv, logits, probs)


def _save(qkv: jax.Array, logits: Mixer, probs: Mixer) -> tuple[jax.Array, tuple]:
    return _forward(qkv, logits, probs), (qkv, logits, probs)


def _backward(saved: tuple, cotangent: jax.Array) -> tuple:
    return jax.vjp(reference, *saved)[1](cotangent)


_with_gradient.defvjp(_save, _backward)
