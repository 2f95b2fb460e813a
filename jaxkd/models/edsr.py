"""EDSR-baseline, a single-branch control of MDBN's size (Lim et al. 2017; BasicSR's edsr_arch.py).

16 blocks of convolution, ReLU and convolution with 64 channels, `res_scale` 1. Like BasicSR's network, it subtracts the
mean colour of DIV2K and computes in the range of 8-bit images, so that BasicSR's weights can be used. The mean is a
constant, not a parameter: x2, x3 and x4 have 1,369,859, 1,554,499 and 1,517,571 parameters. The published MDBN does
neither, which slows its start: compare the two only with the same `img_range` and `rgb_mean`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.contract import TapRecorder
from jaxkd.models.sr_base import Conv3x3, Upscaler

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class ResidualBlock(nn.Module):
    """x + res_scale * conv2(ReLU(conv1 x))."""

    num_feat: int
    res_scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        y = nn.relu(Conv3x3(self.num_feat, self.dtype, name="conv1")(x))
        return x + self.res_scale * Conv3x3(self.num_feat, self.dtype, name="conv2")(y)


class EDSR(Upscaler):
    """The enhanced deep residual network; arguments as in `Upscaler`, with BasicSR's range and mean colour."""

    num_block: int = 16
    img_range: float = 255.0
    rgb_mean: tuple[float, float, float] = DIV2K_MEAN

    @property
    def convolutions_per_block(self) -> int:
        """conv1 and conv2."""
        return 2

    def _block(self, index: int, x: jax.Array, tap: TapRecorder) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C); it has no inner taps."""
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        return block(self.num_feat, self.res_scale, self.dtype, name=f"body_{index}")(x)
