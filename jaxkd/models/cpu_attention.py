"""Self-attention for CPUs: the same matrix products, and fewer passes over the attention matrix.

Exponentials are divided by their sum after the product with the values, on (N, D) instead of (N, N) numbers, and the
derivative takes the row sums that the softmax' needs from the result (Dao et al. 2022, appendix B.2): over the
attention matrix forwards there are a maximum, an exponential and a sum, and backwards one product.

Legend: N tokens, H heads, D channels per head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Arrays = tuple[jax.Array, ...]


@jax.custom_vjp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v over the last two axes.

    Args:
      q: (..., N, D) queries, already scaled.
      k: (..., N, D).
      v: (..., N, D).

    Returns:
      (..., N, D). The derivative is in reverse mode only.
    """
    return _forward(q, k, v)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Arrays]:
    logits = jnp.einsum("...nd,...md->...nm", q, k)
    powers = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    factor = 1 / powers.sum(axis=-1, keepdims=True)
    out = jnp.einsum("...nm,...md->...nd", powers, v) * factor
    return out, (q, k, v, powers, factor, out)


def _backward(saved: Arrays, cotangent: jax.Array) -> Arrays:
    q, k, v, powers, factor, out = saved
    scaled = cotangent * factor
    of_powers = jnp.einsum("...nd,...md->...nm", scaled, v)
    rows = jnp.sum(scaled * out, axis=-1, keepdims=True)  # of the probabilities times their cotangents
    of_logits = powers * (of_powers - rows)
    return (
        jnp.einsum("...nm,...md->...nd", of_logits, k),
        jnp.einsum("...nm,...nd->...md", of_logits, q),
        jnp.einsum("...nm,...nd->...md", powers, scaled),
    )


attention.defvjp(_forward, _backward)
