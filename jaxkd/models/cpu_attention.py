"""Self-attention for CPUs: the same matrix products, and fewer passes over the attention matrix.

Exponentials are divided by their sum after the product with the values, on (N, D) instead of (N, N) numbers, and the
derivative takes the row sums that the softmax' needs from the result (Dao et al. 2022, appendix B.2): over the
attention matrix forwards there are a maximum, an exponential and a sum, and backwards one product.

Legend: N tokens, H heads, D channels per head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_jvp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v over the last two axes.

    Args:
      q: (..., N, D) queries, already scaled.
      k: (..., N, D).
      v: (..., N, D).

    Returns:
      (..., N, D).
    """
    return _forward(q, k, v)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The result, exponentials (..., N, N), and one over their sums (..., N, 1)."""
    logits = jnp.einsum("...nd,...md->...nm", q, k)
    powers = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    factor = 1 / powers.sum(axis=-1, keepdims=True)
    return jnp.einsum("...nm,...md->...nd", powers, v) * factor, powers, factor


@attention.defjvp
def _derivative(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    q, k, v = primals
    of_q, of_k, of_v = tangents
    out, powers, factor = _forward(q, k, v)
    of_logits = jnp.einsum("...nd,...md->...nm", of_q, k) + jnp.einsum("...nd,...md->...nm", q, of_k)
    of_powers = powers * of_logits
    values = jnp.einsum("...nm,...md->...nd", of_powers, v) + jnp.einsum("...nm,...md->...nd", powers, of_v)
    return out, (values - out * of_powers.sum(axis=-1, keepdims=True)) * factor
