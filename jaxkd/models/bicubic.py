"""Bicubic enlargement inside a network, with the pixels of MATLAB's `imresize` (`data.imresize` on floats).

Keys' cubic kernel with a = -1/2, pixels beyond the border being the picture mirrored with its edge pixel repeated. An
output pixel reads at most two input pixels to each side, so windows that overlap by the receptive field of any network
here fit together. The arithmetic is fp32 additions and products, which no accelerator rounds to fewer bits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

REACH = 2  # input pixels to each side of the source pixel that an output pixel reads


def phase_weights(scale: int) -> np.ndarray:
    """(s, 5) fp64: weights of input pixels i - 2 ... i + 2 for the output pixels s i ... s i + s - 1 of one axis."""
    centre = (np.arange(scale) + 0.5) / scale - 0.5  # where the middle of an output pixel lies, from input pixel i
    x = np.abs(centre[:, None] - np.arange(-REACH, REACH + 1))
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


def enlarge(images: jax.Array, scale: int) -> jax.Array:
    """(B, H, W, C) fp32 -> (B, s H, s W, C) fp32, not clipped; H and W may be symbolic."""
    weights = phase_weights(scale).astype(np.float32)
    return _enlarge_axis(_enlarge_axis(images, 1, weights), 2, weights)


def _enlarge_axis(x: jax.Array, axis: int, weights: np.ndarray) -> jax.Array:
    length = x.shape[axis]

    def part(y: jax.Array, start: int, stop: int) -> jax.Array:
        return lax.slice_in_dim(y, start, stop, axis=axis)

    # Mirrored by one pixel, then by another: so a picture of one pixel has enough of them.
    y = jnp.concatenate([part(x, 0, 1), x, part(x, length - 1, length)], axis)
    y = jnp.concatenate([part(y, 2, 3), y, part(y, length - 1, length)], axis)
    phases: Any = weights.reshape(-1, weights.shape[1], *(1,) * (x.ndim - axis - 1))
    taps = [phases[:, k] * jnp.expand_dims(part(y, k, length + k), axis + 1) for k in range(weights.shape[1])]
    out = sum(taps[1:], taps[0])
    return out.reshape(*x.shape[:axis], length * len(weights), *x.shape[axis + 1 :])
