"""MDBN, the multi-depth branch network (Tian et al. 2024, arXiv 2309.17334; semantics of the authors' MDBN_arch.py).

A base block sends its input through two convolutions (the deep branch, meant for fine structure) and through one (the
shallow branch, meant for smooth content), and adds the two. Two base blocks and a skip make a residual block. The
published network computes on images in [0, 1] without subtracting a mean, which are the defaults here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.contract import Features, Offsets, TapRecorder, add_offset
from jaxkd.models.layers import gelu
from jaxkd.models.sr_base import Conv3x3, Upscaler

BRANCHES = ("deep", "shallow")
BASE_BLOCKS = 2  # per residual block


class BaseBlock(nn.Module):
    """GELU(deep + shallow), with deep = conv2(GELU(conv1 x)) and shallow = dconv x, a plain convolution.

    Attributes:
      num_feat: C.
      merged: conv1 and dconv, which read the same input, are one convolution with 2 C outputs (`weights.merging`).
      dtype: of the arithmetic.
    """

    num_feat: int
    merged: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, offsets: tuple[jax.Array | None, ...]) -> tuple[jax.Array, ...]:
        """(B, H, W, C) -> output, deep and shallow branch, each (B, H, W, C), with the branches' offsets added."""
        if self.merged:
            both = Conv3x3(2 * self.num_feat, self.dtype, name="uconv1_dconv")(x)
            hidden, shallow = both[..., : self.num_feat], both[..., self.num_feat :]
        else:
            hidden = Conv3x3(self.num_feat, self.dtype, name="uconv1")(x)
            shallow = Conv3x3(self.num_feat, self.dtype, name="dconv")(x)
        deep = Conv3x3(self.num_feat, self.dtype, name="uconv2")(gelu(hidden))
        deep, shallow = (
            value if offset is None else add_offset(value, offset, name)
            for name, value, offset in zip(BRANCHES, (deep, shallow), offsets, strict=True)
        )
        return gelu(deep + shallow), deep, shallow


class ResidualBlock(nn.Module):
    """x + res_scale * base2(base1(x)).

    Attributes:
      num_feat, res_scale, merged, dtype: see `BaseBlock` and `Upscaler`.
      taps: which of "deep_0", "shallow_0", "deep_1", "shallow_1" to return.
    """

    num_feat: int
    res_scale: float
    merged: bool
    dtype: jnp.dtype
    taps: tuple[str, ...]

    @nn.compact
    def __call__(self, x: jax.Array, offsets: Offsets) -> tuple[jax.Array, Features]:
        """(B, H, W, C) -> (B, H, W, C) and the branches in `taps`."""
        y = x
        features: Features = {}
        for j in range(BASE_BLOCKS):
            names = [f"{branch}_{j}" for branch in BRANCHES]
            base = BaseBlock(self.num_feat, self.merged, self.dtype, name=f"baseblock{j + 1}")
            y, *branches = base(y, tuple(offsets.get(name) for name in names))
            features |= {name: value for name, value in zip(names, branches, strict=True) if name in self.taps}
        return x + self.res_scale * y, features


class MDBN(Upscaler):
    """The multi-depth branch network; arguments as in `Upscaler`.

    Attributes:
      merged: see `BaseBlock`; `weights.merge_branches` sets it.
    """

    merged: bool = False

    @property
    def convolutions_per_block(self) -> int:
        """Two in the deep branch of each base block."""
        return 2 * BASE_BLOCKS

    def tap_names(self) -> tuple[str, ...]:
        """For each residual block the branches of both base blocks, then its output."""
        inside = tuple(f"{branch}_{j}" for j in range(BASE_BLOCKS) for branch in BRANCHES)
        return tuple(
            name for i in range(self.num_block) for name in (*(f"block_{i}.{n}" for n in inside), f"block_{i}")
        )

    def _block(self, index: int, x: jax.Array, tap: TapRecorder) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C); records `block_i.deep_j` and `block_i.shallow_j`."""
        prefix = f"block_{index}."
        taps = tuple(sorted(name.removeprefix(prefix) for name in tap.taps if name.startswith(prefix)))
        offsets = {name.removeprefix(prefix): v for name, v in tap.offsets.items() if name.startswith(prefix)}
        block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        x, features = block(self.num_feat, self.res_scale, self.merged, self.dtype, taps, name=f"body_{index}")(
            x, offsets
        )
        tap.features.update({prefix + name: value for name, value in features.items()})
        return x
