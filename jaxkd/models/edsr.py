"""EDSR-baseline, a single-branch control of MDBN's size (Lim et al. 2017; BasicSR's edsr_arch.py).

16 blocks of convolution, ReLU and convolution with 64 channels, `res_scale` 1. Like BasicSR's network, it subtracts the
mean colour of DIV2K and computes in the range of 8-bit images, so that BasicSR's weights can be used. The mean is a
constant, not a parameter: x2, x3 and x4 have 1,369,859, 1,554,499 and 1,517,571 parameters. MDBN does neither; for a
control that does not either, create it with `img_range=1.0, rgb_mean=(0.0, 0.0, 0.0)`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.errors import check_range
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
        """(B, H, W, C) -> (B, H, W, C)."""
        y = nn.relu(Conv3x3(self.num_feat, self.dtype, name="conv1")(x))
        return x + self.res_scale * Conv3x3(self.num_feat, self.dtype, name="conv2")(y)


class EDSR(Upscaler):
    """The enhanced deep residual network; arguments as in `Upscaler`, and two of BasicSR's.

    Attributes:
      img_range: the convolutions compute on images in [0, img_range].
      rgb_mean: colour in [0, 1] that is subtracted before the first convolution and added after the last.
    """

    num_block: int = 16
    img_range: float = 255.0
    rgb_mean: tuple[float, float, float] = DIV2K_MEAN

    def __post_init__(self):
        self.rgb_mean = tuple(self.rgb_mean) if isinstance(self.rgb_mean, list) else self.rgb_mean
        require(
            isinstance(self.rgb_mean, tuple) and len(self.rgb_mean) == RGB,
            f"rgb_mean={self.rgb_mean!r} is not a colour. Give three numbers in [0, 1] for R, G and B, e.g. "
            f"{DIV2K_MEAN}, or (0.0, 0.0, 0.0) for none.",
        )
        check_range("img_range", self.img_range, above=0, hint="255.0 for 8-bit images, 1.0 for no scaling")
        super().__post_init__()

    @property
    def convolutions_per_block(self) -> int:
        """conv1 and conv2."""
        return 2

    def _preprocess(self, images: jax.Array) -> jax.Array:
        return (images - jnp.asarray(self.rgb_mean, jnp.float32)) * self.img_range

    def _postprocess(self, images: jax.Array) -> jax.Array:
        return images / self.img_range + jnp.asarray(self.rgb_mean, jnp.float32)

    def _block(self, index: int, x: jax.Array, tap: TapRecorder) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C); it has no inner taps."""
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        return block(self.num_feat, self.res_scale, self.dtype, name=f"body_{index}")(x)
