"""EDSR-baseline, the control of MDBN's size with one branch per block (Lim et al. 2017; BasicSR's edsr_arch.py).

16 blocks of convolution, ReLU and convolution with 64 channels, `res_scale` 1. Like BasicSR's, it subtracts the mean
colour of DIV2K and computes in the range of 8-bit images, so that BasicSR's weights mean the same here. The mean is a
constant: x2, x3 and x4 have 1,369,859, 1,554,499 and 1,517,571 parameters with it or without. MDBN does neither; for a
control without them too, create it with `img_range=1.0, rgb_mean=(0.0, 0.0, 0.0)`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.contract import TapRecorder, require
from jaxkd.models.sr_base import RGB, Conv3x3, Upscaler

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class ResidualBlock(nn.Module):
    """x + res_scale * conv2(ReLU(conv1 x))."""

    num_feat: int
    res_scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> the same."""
        y = nn.relu(Conv3x3(self.num_feat, self.dtype, name="conv1")(x))
        return x + self.res_scale * Conv3x3(self.num_feat, self.dtype, name="conv2")(y)


class EDSR(Upscaler):
    """The enhanced deep residual network; arguments as in `Upscaler`, and BasicSR's two.

    Attributes:
      img_range: the network inside computes on images in [0, img_range].
      rgb_mean: subtracted before and added after, for images in [0, 1].
    """

    num_block: int = 16
    img_range: float = 255.0
    rgb_mean: tuple[float, float, float] = DIV2K_MEAN

    def __post_init__(self):
        self.rgb_mean = tuple(self.rgb_mean) if isinstance(self.rgb_mean, list) else self.rgb_mean
        require(
            isinstance(self.rgb_mean, tuple) and len(self.rgb_mean) == RGB,
            f"rgb_mean={self.rgb_mean!r} is not a colour. It holds one number in [0, 1] for each of R, G and B. Use "
            f"{DIV2K_MEAN}, or (0.0, 0.0, 0.0) for none.",
        )
        require(
            isinstance(self.img_range, int | float) and math.isfinite(self.img_range) and self.img_range > 0,
            f"img_range={self.img_range!r} is no range. The output is divided by it. Use 255.0, or 1.0 for none.",
        )
        super().__post_init__()

    @property
    def convolutions_per_block(self) -> int:
        """conv1 and conv2."""
        return 2

    def _entered(self, images: jax.Array) -> jax.Array:
        return (images - jnp.asarray(self.rgb_mean, jnp.float32)) * self.img_range

    def _left(self, images: jax.Array) -> jax.Array:
        return images / self.img_range + jnp.asarray(self.rgb_mean, jnp.float32)

    def _block(self, index: int, x: jax.Array, tap: TapRecorder) -> jax.Array:
        """(B, H, W, C) -> the same; there is nothing to record inside."""
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        return block(self.num_feat, self.res_scale, self.dtype, name=f"body_{index}")(x)
