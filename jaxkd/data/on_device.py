"""What happens to images inside the compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 pixels -> (x / 255 - mean) / std, as torchvision's ToTensor and Normalize.

    Args:
      images: (B, H, W, C) uint8.
      mean: per channel, of images in [0, 1].
      std: likewise.

    Returns:
      (B, H, W, C) fp32.
    """
    x = images.astype(jnp.float32) / 255.0
    return (x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
