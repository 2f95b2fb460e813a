"""Base class of the super-resolution networks: 3x3 convolutions, PixelShuffle, everything but the residual blocks.

MDBN and EDSR-baseline differ only in their blocks. Both consist of a convolution to `num_feat` channels, the blocks, a
convolution and a skip over all of them, upsampling by PixelShuffle (Shi et al. 2016) and a convolution to RGB.
All convolutions are 3x3 with bias and zero padding. Legend: B batch, H W height and width, C channels, s scale, r the
factor of one upsampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxkd.errors import check_choice, check_range
from jaxkd.models import bicubic
from jaxkd.models.contract import TappedNetwork, TapRecorder, require, require_counts
from jaxkd.models.layers import parameter, patch_init

RGB = 3
BLACK = (0.0, 0.0, 0.0)
GLOBAL_SKIPS = ("", "bicubic")
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

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, K)."""
        return self.function(x.shape[-1])(x)

    @nn.compact
    def function(self, channels: int) -> Callable[..., jax.Array]:
        """The convolution as a function of the image alone, which may be called inside of `lax.scan`.

        Args:
          channels: C.

        Returns:
          (B, H, W, C), rows=1 -> (B, H - 2 + 2 rows, W, K), with `rows` rows of zeros above and below.
        """
        init = patch_init(9 * channels)
        kernel = parameter(self, "kernel", init, (3, 3, channels, self.features)).astype(self.dtype)
        out_dtype = self.out_dtype or self.dtype
        bias = parameter(self, "bias", init, (self.features,)).astype(out_dtype)

        def convolve(x: jax.Array, rows: int = 1) -> jax.Array:
            y = lax.conv_general_dilated(
                x.astype(self.dtype),
                kernel,
                window_strides=(1, 1),
                padding=((rows, rows), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                preferred_element_type=out_dtype,
            )
            return y + bias

        return convolve


def enlarge_by_strips(
    x: jax.Array, enlarge: Callable[..., jax.Array], finish: Callable[..., jax.Array], factor: int, rows: int
) -> jax.Array:
    """finish(pixel_shuffle(enlarge(x))), strip by strip: same pixels to rounding, no large map between.

    Of what `enlarge` made of one strip the last two rows are kept for the first rows of the next, so that nothing is
    computed twice. Half of the time of x4 goes into these two convolutions on a CPU, where maps of hundreds of
    megabytes do not fit into any cache.

    Args:
      x: (B, H, W, C).
      enlarge: a 3x3 convolution to C' r^2 channels, from `Conv3x3.function`.
      finish: a 3x3 convolution from C' channels, likewise.
      factor: r.
      rows: of x in a strip; what is left at the bottom is a strip of its own.

    Returns:
      (B, H r, W r, K).
    """
    batch, height, width, _ = x.shape
    rows = min(rows, height)
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))

    def strip(above: jax.Array, start: jax.Array | int, size: int) -> tuple[jax.Array, jax.Array]:
        """Two rows of the large map above, first row of x -> the strip's own two, and rows of the result one higher."""
        part = lax.dynamic_slice_in_dim(padded, start, size + 2, axis=1)
        large = jnp.concatenate([above, pixel_shuffle(enlarge(part, rows=0), factor)], axis=1)
        return large[:, -2:], finish(large, rows=0)

    count, left = divmod(height, rows)
    shape = jax.eval_shape(lambda: pixel_shuffle(enlarge(padded[:, :3], rows=0), factor))
    above = jnp.zeros((batch, 2, width * factor, shape.shape[-1]), shape.dtype)
    above, strips = lax.scan(lambda carry, i: strip(carry, i * rows, rows), above, jnp.arange(count))
    parts = [strips.swapaxes(0, 1).reshape(batch, count * rows * factor, width * factor, -1)]
    if left:
        above, part = strip(above, count * rows, left)
        parts.append(part)
    parts.append(finish(jnp.pad(above, ((0, 0), (0, 1), (0, 0), (0, 0))), rows=0))
    return jnp.concatenate(parts, axis=1)[:, 1:]  # the first row is of the zeros above the image


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Upscaler(TappedNetwork):
    """A network that enlarges images; a subclass defines the residual blocks.

    Images are RGB in [0, 1] of any size from 1 x 1. The output (B, s H, s W, 3) is not clipped to [0, 1]; features are
    (B, H, W, num_feat) in `dtype`.

    Attributes:
      scale: s, one of `SCALES`; the registered name sets it.
      num_feat: channels inside.
      num_block: residual blocks.
      res_scale: factor on the branch of a residual block.
      dtype: type of the arithmetic; parameters, input and output are fp32.
      remat: recompute each block in the backward pass instead of storing it.
      strip_pixels: number of input pixels that the last upsampling and the last convolution process at a time (see
        `enlarge_by_strips`); 0: all. For inference, where `superres.tiling` sets it; a backward pass would store the
        maps anyway.
      img_range: the convolutions compute on images in [0, img_range].
      rgb_mean: colour in [0, 1] that is subtracted before the first convolution and added after the last.
      global_skip: "bicubic" adds the bicubic enlargement of the input to the output (in the place of `rgb_mean`, which
        the enlargement holds), so that the convolutions learn what it lacks. An option of jaxkd, in neither paper.
    """

    scale: int = 4
    num_feat: int = 64
    num_block: int = 6
    res_scale: float = 1.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    strip_pixels: int = 0
    img_range: float = 1.0
    rgb_mean: tuple[float, float, float] = BLACK
    global_skip: str = ""

    def __post_init__(self):
        require(
            self.scale in SCALES,
            f"scale={self.scale!r} is not implemented. Use one of: {', '.join(map(str, SCALES))}.",
        )
        require_counts(num_feat=self.num_feat, num_block=self.num_block)
        check_range("strip_pixels", self.strip_pixels, 0, whole=True)
        require(
            _is_finite(self.res_scale),
            f"res_scale={self.res_scale!r} is not a finite number. Use e.g. 1.0.",
        )
        self.rgb_mean = tuple(self.rgb_mean) if isinstance(self.rgb_mean, list) else self.rgb_mean
        require(
            isinstance(self.rgb_mean, tuple) and len(self.rgb_mean) == RGB and all(map(_is_finite, self.rgb_mean)),
            f"rgb_mean={self.rgb_mean!r} is not a colour. Give three numbers in [0, 1] for R, G and B, e.g. "
            f"(0.4488, 0.4371, 0.404), or {BLACK} for none.",
        )
        check_range("img_range", self.img_range, above=0, hint="255.0 for 8-bit images, 1.0 for no scaling")
        check_choice("global_skip", self.global_skip, GLOBAL_SKIPS)
        check_choice("remat", self.remat, (False, True), hint="this network has no attention")
        super().__post_init__()

    @property
    def shifts_colours(self) -> bool:
        """Whether the convolutions see other numbers than the images."""
        return self.img_range != 1 or any(self.rgb_mean)

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
        """Exact radius of the receptive field in input pixels.

        Output pixel (y, x) has its source at (y // s, x // s). An input pixel can change it only if its row and its
        column are at most this far from the source; at this distance some of the s x s outputs do change.
        """
        # conv_first, the blocks, conv_after_body and the first upsampling reach one input pixel each. All later ones
        # together reach one more: each sees one pixel further on a grid at least twice as fine, and half of (one pixel
        # plus what the finer grids see, again at most one) is one whole pixel at the edge of a source pixel. The global
        # skip reads less, 2.
        return 3 + self.num_block * self.convolutions_per_block + 1

    def tap_names(self) -> tuple[str, ...]:
        """Every name that `taps` and `offsets` accept, in depth order."""
        return tuple(f"block_{i}" for i in range(self.num_block))

    def _preprocess(self, images: jax.Array) -> jax.Array:
        """Images in fp32 -> the input of the first convolution."""
        if not self.shifts_colours:
            return images
        return (images - jnp.asarray(self.rgb_mean, jnp.float32)) * self.img_range

    def _postprocess(self, y: jax.Array, images: jax.Array) -> jax.Array:
        """Output of the last convolution, and the images that went in, both in fp32 -> enlarged images."""
        if self.shifts_colours:
            y = y / self.img_range
        if self.global_skip:
            return y + bicubic.enlarge(images, self.scale)
        return y + jnp.asarray(self.rgb_mean, jnp.float32) if self.shifts_colours else y

    def _block(self, index: int, x: jax.Array, tap: TapRecorder) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C) through residual block `index`, whose inner features it records."""
        raise NotImplementedError

    def forward(self, images: jax.Array, tap: TapRecorder, train: bool) -> jax.Array:
        """(B, H, W, 3) -> (B, s H, s W, 3) in fp32; `train` has no effect."""
        images = images.astype(jnp.float32)
        first = Conv3x3(self.num_feat, self.dtype, name="conv_first")(self._preprocess(images))
        x = first
        for i in range(self.num_block):
            x = tap(f"block_{i}", self._block(i, x, tap))
        x = first + Conv3x3(self.num_feat, self.dtype, name="conv_after_body")(x)
        # Named as in BasicSR, where every second entry of the sequence is a PixelShuffle without parameters.
        *others, last = [
            (Conv3x3(self.num_feat * factor**2, self.dtype, name=f"upsample_{2 * i}"), factor)
            for i, factor in enumerate(SCALES[self.scale])
        ]
        for convolution, factor in others:
            x = pixel_shuffle(convolution(x), factor)
        enlarge, factor = last[0].function(self.num_feat), last[1]
        # The sums of the last convolution stay in fp32: bf16 has fewer levels between 0.5 and 1 than an 8-bit image.
        finish = Conv3x3(RGB, self.dtype, jnp.float32, name="conv_last").function(self.num_feat)
        if self.strip_pixels and self.strip_pixels < x.shape[1] * x.shape[2]:
            x = enlarge_by_strips(x, enlarge, finish, factor, rows=max(1, self.strip_pixels // x.shape[2]))
        else:
            x = finish(pixel_shuffle(enlarge(x), factor))
        return self._postprocess(x, images)
