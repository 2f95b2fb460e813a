"""What the super-resolution networks share: 3x3 convolutions, PixelShuffle, and the way from an image to a larger one.

MDBN and the EDSR baseline differ only in their blocks. Around them both are: a convolution to `num_feat` channels, the
blocks, a convolution and a skip over all of it, upsampling by PixelShuffle (Shi et al. 2016) and a convolution to RGB.
All convolutions are 3x3 with bias and zero padding. Legend: B batch, H W height and width, C channels, s scale, r the
factor of one upsampling.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxkd.models.contract import Features, Offsets, TapRecorder, check_images_of_any_size, require, require_counts
from jaxkd.models.layers import patch_init

RGB = 3
SCALES = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}  # scale -> the upsamplings that make it, as in BasicSR


def pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    """(B, H, W, C r^2) -> (B, H r, W r, C), reading channels as PyTorch's PixelShuffle does: c, row, column."""
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, -1, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, height * factor, width * factor, -1)


class Conv3x3(nn.Module):
    """A 3x3 convolution with zero padding and bias, initialised as PyTorch's Conv2d.

    Attributes:
      features: K.
      dtype: of the arithmetic.
      out_dtype: of the result; None: `dtype`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    out_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, K)."""
        init = patch_init(9 * x.shape[-1])
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        out_dtype = self.out_dtype or self.dtype
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=out_dtype,
        )
        return y + bias.astype(out_dtype)


class Upscaler(nn.Module):
    """A network from an image to a larger one; its blocks are the subclass's.

    Attributes:
      scale: s, one of `SCALES`; set by the name, not by the user.
      num_feat: channels inside.
      num_block: residual blocks.
      res_scale: factor on the branch of a residual block.
      dtype: type of the arithmetic; parameters, input and output are fp32.
      remat: recompute each block in the backward pass instead of storing it.
    """

    scale: int = 4
    num_feat: int = 64
    num_block: int = 6
    res_scale: float = 1.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def __post_init__(self):
        require(
            self.scale in SCALES,
            f"scale={self.scale!r} is not built. Upsampling goes by 3, or by 2 once, twice or three times. Use one of: "
            f"{', '.join(map(str, SCALES))}.",
        )
        require_counts(num_feat=self.num_feat, num_block=self.num_block)
        require(
            isinstance(self.res_scale, int | float) and math.isfinite(self.res_scale),
            f"res_scale={self.res_scale!r} is not a finite number. It multiplies the branch of every residual block. "
            "Use 1.0.",
        )
        super().__post_init__()

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return RGB

    @property
    def convolutions_per_block(self) -> int:
        """Convolutions on the longest way through a block."""
        raise NotImplementedError

    @property
    def receptive_field(self) -> int:
        """How far influence reaches, in pixels of the input, per side and exactly.

        Output pixel (y, x) has its source at (y // s, x // s). An input pixel can change it only if neither its row nor
        its column is further away from there than this; at this distance some of the s x s outputs do change.
        """
        # conv_first, the blocks, conv_after_body and the first upsampling reach one input pixel each. All later ones
        # together reach one more: each sees one pixel further on a grid at least twice as fine, and half of (one pixel
        # plus what the finer grids see, again at most one) is one whole pixel at the edge of a source pixel.
        return 3 + self.num_block * self.convolutions_per_block + 1

    def tap_names(self) -> tuple[str, ...]:
        """Every name that `taps` and `offsets` accept, in depth order."""
        return tuple(f"block_{i}" for i in range(self.num_block))

    def _entered(self, images: jax.Array) -> jax.Array:
        """Images as the first convolution wants them, fp32."""
        return images

    def _left(self, images: jax.Array) -> jax.Array:
        """What the last convolution gives, fp32 -> images."""
        return images

    def _block(self, index: int, x: jax.Array, tap: TapRecorder) -> jax.Array:
        """(B, H, W, C) -> the same through residual block `index`; records what lies inside it."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, taps: tuple[str, ...] = (), offsets: Offsets | None = None
    ) -> tuple[jax.Array, Features]:
        """Enlarges a batch and hands out the features that `taps` names.

        Args:
          images: (B, H, W, 3), RGB in [0, 1], fp32; any H and W from 1.
          train: accepted for the contract's sake: nothing in here differs in training.
          taps: static; any of `tap_names()`.
          offsets: tap -> array added at that point.

        Returns:
          Images (B, s H, s W, 3) in fp32, not clipped to [0, 1]; and a dict of features (B, H, W, num_feat) in `dtype`.

        Raises:
          ShapeError: no batch of RGB images. TapError: a tap that does not exist.
        """
        network = f"this {type(self).__name__}"
        check_images_of_any_size(images, RGB, network)
        tap = TapRecorder(network, self.tap_names(), taps, offsets)
        first = Conv3x3(self.num_feat, self.dtype, name="conv_first")(self._entered(images.astype(jnp.float32)))
        x = first
        for i in range(self.num_block):
            x = tap(f"block_{i}", self._block(i, x, tap))
        x = first + Conv3x3(self.num_feat, self.dtype, name="conv_after_body")(x)
        for i, factor in enumerate(SCALES[self.scale]):
            # Named as in BasicSR, where every second entry of the sequence is a PixelShuffle without parameters.
            x = pixel_shuffle(Conv3x3(self.num_feat * factor**2, self.dtype, name=f"upsample_{2 * i}")(x), factor)
        # The sums of the last convolution stay in fp32: bf16 has fewer levels between 0.5 and 1 than an 8-bit image.
        x = Conv3x3(RGB, self.dtype, jnp.float32, name="conv_last")(x)
        return self._left(x), tap.features
