"""Self-attention without an attention matrix in memory: one Pallas kernel for the forward pass on a TPU.

All heads of a group of sequences (windows, or one image) are computed on the chip from one block of the fused qkv
product. Channels stay on the lanes: the channels of a head are neither cut out nor moved, where D is no multiple of the
128 lanes, but those of other heads on the same lanes are set to zero in the queries and left out of the result. A
matrix unit pads the D channels of a head to its own width anyway.

Legend: W windows per image or 1, N tokens of a window, C channels, H heads, D = C / H channels per head, G sequences of
a block, T rows of a tile.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxkd.models.target import target_platform

TILE = 256  # rows of queries whose scores are in on-chip memory at a time; of N tokens up to this number, all
LANES = 128  # the last axis of a TPU's tiles
SUBLANES = 8  # the last axis but one
MEMORY = 14 * 2**20  # bytes of on-chip memory for the arrays of a block; the compiler's own limit is 16 MiB
PRODUCTS = 64  # heads times sequences of a block: the compiler writes each product out


def product(left: jax.Array, right: jax.Array, *, contract: int) -> jax.Array:
    """Over the last axis of `left` and the axis `contract` of `right`, in fp32; axes before the last two are shared."""
    # Products of bfloat16 are exact in fp32; a higher precision that the caller has set is an error of the compiler.
    precision = None if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    lead = tuple(range(left.ndim - 2))
    dimensions = (((left.ndim - 1,), (contract,)), (lead, lead))
    return jax.lax.dot_general(left, right, dimensions, precision, preferred_element_type=jnp.float32)


def row_softmax(scores: jax.Array) -> jax.Array:
    """Softmax over the last axis, in fp32, of what a kernel holds."""
    powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return powers / jnp.sum(powers, axis=-1, keepdims=True)


def attention(qkv: jax.Array, heads: int, bias: jax.Array | None = None) -> jax.Array:
    """Self-attention of each sequence, by the kernel where the program is for a TPU and a block fits there.

    Args:
      qkv: (..., N, 3C) queries, keys and values; queries are not yet scaled. With a bias of W windows (..., W, N, 3C).
      heads: H.
      bias: (1 or W, H, N, N) fp32, added to the scaled logits of every image, or None.

    Returns:
      (..., N, C) in the dtype of `qkv`. The kernel has no derivative.
    """
    if target_platform() == "tpu" and fits(qkv.shape[-2], qkv.shape[-1], heads, qkv.dtype, biased=bias is not None):
        return fused(qkv, heads, bias)
    return reference(qkv, heads, bias)


def reference(qkv: jax.Array, heads: int, bias: jax.Array | None = None) -> jax.Array:
    """The result of `attention`, computed with the attention matrices in memory."""
    *lead, tokens, channels3 = qkv.shape
    head_dim = channels3 // 3 // heads
    q, k, v = jnp.moveaxis(qkv.reshape(*lead, tokens, 3, heads, head_dim), (-3, -2), (0, -3))
    scaled = q * jnp.asarray(head_dim**-0.5, q.dtype)
    scores = jnp.einsum("...nd,...md->...nm", scaled, k, preferred_element_type=jnp.float32)
    probs = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1).astype(qkv.dtype)
    out = jnp.einsum("...nm,...md->...nd", probs, v)
    return out.swapaxes(-3, -2).reshape(*lead, tokens, heads * head_dim)


def fits(tokens: int, channels3: int, heads: int, dtype: jnp.dtype, *, biased: bool = False) -> bool:
    """Whether one sequence, its bias (if any) and one tile of scores fit into on-chip memory."""
    return _block_bytes(1, tokens, channels3, heads, dtype, biased) <= MEMORY


def fused(qkv: jax.Array, heads: int, bias: jax.Array | None = None, *, interpret: bool = False) -> jax.Array:
    """The kernel itself; see `attention`.

    Args:
      interpret: runs it step by step on any device, for tests.
    """
    *lead, tokens, channels3 = qkv.shape
    channels, windows = channels3 // 3, 1 if bias is None else bias.shape[0]
    # Blocks that follow each other have the same bias, which is fetched once: the images of a group of windows.
    flat = qkv.reshape(-1, windows, tokens, channels3) if windows > 1 else qkv.reshape(1, -1, tokens, channels3)
    images, sequences = flat.shape[:2]
    group = _group(sequences, tokens, channels3, heads, qkv.dtype, bias is not None)
    grid = (sequences // group, images)
    in_specs = [pl.BlockSpec((1, group, tokens, channels3), lambda g, i: (i, g, 0, 0))]
    if bias is not None:
        shape = (group if windows > 1 else 1, heads, tokens, tokens)
        in_specs.append(pl.BlockSpec(shape, lambda g, i: (g if windows > 1 else 0, 0, 0, 0)))
    out = pl.pallas_call(
        partial(_kernel, heads=heads) if bias is not None else partial(_kernel_without_bias, heads=heads),
        grid=grid,
        in_specs=in_specs,
        out_specs=pl.BlockSpec((1, group, tokens, channels), lambda g, i: (i, g, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((images, sequences, tokens, channels), qkv.dtype),
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=4 * images * sequences * tokens**2 * channels,
            bytes_accessed=4 * images * sequences * tokens * channels * qkv.dtype.itemsize,
            transcendentals=images * sequences * heads * tokens**2,
        ),
        name="attention",
    )(flat, *(() if bias is None else (bias.astype(jnp.float32),)))
    return out.reshape(*lead, tokens, channels)


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _block_bytes(group: int, tokens: int, channels3: int, heads: int, dtype: jnp.dtype, biased: bool) -> int:
    """On-chip memory of a block of `group` sequences, each with a bias of its own if there is one."""
    size, rows = jnp.dtype(dtype).itemsize, min(_padded(tokens, SUBLANES), TILE)
    keys = _padded(tokens, LANES)
    channels = _padded(channels3, LANES) + _padded(channels3 // 3, LANES)
    arrays = 2 * size * _padded(tokens, 2 * SUBLANES) * channels  # the next block is fetched while one is computed
    bias = 2 * 4 * heads * _padded(tokens, SUBLANES) * keys if biased else 0
    return group * (arrays + bias + 3 * 4 * rows * keys + 4 * rows * LANES)


def _group(sequences: int, tokens: int, channels3: int, heads: int, dtype: jnp.dtype, biased: bool) -> int:
    """Sequences of a block: the largest divisor of their number that fits."""
    return max(
        size
        for size in range(1, min(sequences, max(1, PRODUCTS // heads)) + 1)
        if sequences % size == 0
        and (size == 1 or _block_bytes(size, tokens, channels3, heads, dtype, biased) <= MEMORY)
    )


def _kernel_without_bias(qkv_ref, out_ref, *, heads: int) -> None:
    _kernel(qkv_ref, None, out_ref, heads=heads)


def _kernel(qkv_ref, bias_ref, out_ref, *, heads: int) -> None:
    """qkv (1, G, N, 3C), bias (1 or G, H, N, N) -> out (1, G, N, C)."""
    tokens, channels = out_ref.shape[2:]
    head_dim = channels // heads
    width = math.lcm(head_dim, LANES)  # lanes after which heads and tiles begin together
    for row in range(0, tokens, TILE):
        rows = slice(row, min(row + TILE, tokens))
        for low in range(0, channels, width):
            high = min(low + width, channels)
            queries = qkv_ref[0, :, rows, low:high]
            queries *= jnp.asarray(head_dim**-0.5, queries.dtype)
            keys = qkv_ref[0, :, :, channels + low : channels + high]
            values = qkv_ref[0, :, :, 2 * channels + low : 2 * channels + high]
            lane = low + jax.lax.broadcasted_iota(jnp.int32, queries.shape, 2)
            total = jnp.zeros(queries.shape, jnp.float32)
            for head in range(low // head_dim, high // head_dim):
                mine = (lane >= head * head_dim) & (lane < (head + 1) * head_dim)
                scores = product(jnp.where(mine, queries, jnp.zeros_like(queries)), keys, contract=2)
                if bias_ref is not None:
                    scores += bias_ref[:, head, rows, :]
                total = jnp.where(mine, product(row_softmax(scores).astype(values.dtype), values, contract=1), total)
            out_ref[0, :, rows, low:high] = total.astype(out_ref.dtype)
