"""Size and unevenness of activations and gradients: magnitude, maximum, kurtosis, massive activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ShapeError


def _images(x: jax.Array | np.ndarray, what: str) -> jax.Array:
    """(B, ..., C) -> (B, N, C) in at least fp32."""
    if x.ndim < 2 or 0 in x.shape:
        raise ShapeError(
            f"The {what} have shape {x.shape}. Pass (batch, tokens, channels) or (batch, height, width, "
            "channels), none of them empty."
        )
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)).reshape(x.shape[0], -1, x.shape[-1])


def activation_mean(features: jax.Array) -> jax.Array:
    """(B, ..., C) -> (B,) mean |x| over all positions and channels, in the unit of the features.

    Source: activation magnitude of Distillation Dynamics (arXiv 2511.06848).

    Args:
      features: (B, ..., C), any real type; computed in at least fp32.

    Returns:
      (B,) in the unit of the features.
    """
    return jnp.mean(jnp.abs(_images(features, "features")), axis=(1, 2))


def activation_max(features: jax.Array) -> jax.Array:
    """(B, ..., C) -> (B,) max |x|.

    Args:
      features: (B, ..., C), any real type; computed in at least fp32.

    Returns:
      (B,) in the unit of the features.
    """
    return jnp.max(jnp.abs(_images(features, "features")), axis=(1, 2))


def kurtosis(features: jax.Array | np.ndarray) -> jax.Array:
    """(B, ..., C) -> (B,) mean (x - m)^4 / (mean (x - m)^2)^2 over all entries of an image, m their mean.

    Not the excess: 3 for a Gaussian, 1 at least (two equally likely values), about the number of entries for a single
    spike. A constant image, which has none, gets 0, a value that nothing else has.

    Args:
      features: (B, ..., C), any real type; computed in at least fp32.

    Returns:
      (B,) without unit.
    """
    x = _images(features, "features").reshape(features.shape[0], -1)
    deviation = x - jnp.mean(x, axis=1, keepdims=True)
    largest = jnp.max(jnp.abs(deviation), axis=1, keepdims=True)
    # Moments of deviations in [-1, 1]: the fourth power of a massive activation would leave fp32. A constant is found
    # by its extremes, as its mean may round and leave a deviation.
    constant = jnp.max(x, axis=1) == jnp.min(x, axis=1)
    squares = jnp.square(deviation / jnp.where(largest == 0, 1, largest))
    variance = jnp.where(constant, 1, jnp.mean(squares, axis=1))
    return jnp.where(constant, 0, jnp.mean(jnp.square(squares), axis=1) / jnp.square(variance))


def massive_share(features: jax.Array) -> jax.Array:
    """(B, ..., C) -> (B,) max_c x_c^2 / sum_c x_c^2, mean over the tokens of an image that are not all zero.

    1 / C for tokens with |x| the same in all channels, 1 for tokens with one spike; an image of zeros gets 0. It tells
    a distributed code from a few huge channels, which a spectrum cannot (a spike has a flat spectrum).

    Args:
      features: (B, ..., C), any real type; computed in at least fp32.

    Returns:
      (B,) between 1 / C and 1, or 0.
    """
    magnitudes = jnp.abs(_images(features, "features"))
    largest = jnp.max(magnitudes, axis=2, keepdims=True)
    zero = largest[..., 0] == 0
    # 1 / sum (x / max)^2 is the same share, without a square that can overflow or vanish.
    total = jnp.sum(jnp.square(magnitudes / jnp.where(largest == 0, 1, largest)), axis=2)
    share = jnp.where(zero, 0, 1 / jnp.where(zero, 1, total))
    return jnp.sum(share, axis=1) / jnp.maximum(jnp.sum(~zero, axis=1), 1)


def gradient_magnitude(gradients: jax.Array) -> jax.Array:
    """Mean |g| of each image.

    Args:
      gradients: (B, ..., C) of one number per image (a class score, a loss) with respect to a layer's features.

    Returns:
      (B,) in the unit of that number per unit of the features; NaN for an image with a NaN.

    Raises:
      ShapeError: fewer than two axes, or an empty one.

    Source: gradient magnitude of Distillation Dynamics (arXiv 2511.06848).
    """
    return jnp.mean(jnp.abs(_images(gradients, "gradients")), axis=(1, 2))
