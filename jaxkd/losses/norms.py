"""Norms and unit vectors whose slope at zero is 0 instead of NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def safe_norm(x: jax.Array, axis: int | tuple[int, ...] = -1, *, keepdims: bool = False) -> jax.Array:
    """L2 norm of `x` over `axis`, with slope 0 at zero vectors, where that of `jnp.linalg.norm` is NaN.

    Squares are not rescaled: in fp32, lengths below 1e-19 count as 0 and those above 1e19 overflow.
    """
    return safe_sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims))


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root of `x` >= 0 with slope 0, not infinity, where x = 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x))


def unit(x: jax.Array, axis: int | tuple[int, ...] = -1, *, eps: float = 1e-12) -> jax.Array:
    """x / max(|x|, eps) over `axis`, the value of PyTorch's `normalize`.

    Vectors no longer than `eps` get slope 0. The formula's slope is 1 / eps there, which turns one zero token into a
    gradient of 1e8 or 1e12.
    """
    length = safe_norm(x, axis, keepdims=True)
    long = length > eps
    return jnp.where(long, x, jax.lax.stop_gradient(x)) / jnp.where(long, length, jnp.full_like(length, eps))
