"""Building blocks of the vision transformers (flax.linen, channels last).

Parameter names are timm's, with flax's `kernel` and `scale` for PyTorch's `weight`. Parameters are fp32; `dtype` is the
type of the arithmetic. Softmax and the statistics of LayerNorm are fp32 whatever `dtype` says.

Legend: B batch, N tokens, C channels, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd.errors import check_choice
from jaxkd.models import cpu_attention, fused_attention
from jaxkd.models.block_scan import dropout_key
from jaxkd.models.contract import ATTENTION_TAPS, Features, Offsets, add_offset
from jaxkd.models.target import target_platform

Initializer = Callable[..., jax.Array]

# timm truncates at +-2 in absolute terms, which is a hundred standard deviations: a plain normal.
LINEAR_INIT: Initializer = nn.initializers.normal(0.02)


def patch_init(fan_in: int) -> Initializer:
    """PyTorch's default initialiser of Conv2d and Linear, kernel and bias: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def parameter(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> jax.Array:
    """`module.param(name, init, shape)`, in a third of the time where the parameter exists.

    Flax traces `init` for its shape whenever a network is applied.
    """
    if module.has_variable("params", name):
        value: Any = module.get_variable("params", name)
        if getattr(value, "shape", None) == shape:
            return value
    return module.param(name, init, shape)  # also says which shape is wrong


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Phi(x), with Phi from erf (Hendrycks and Gimpel 2016); any shape, same dtype.

    `lax.erf` and not `jax.nn.gelu`, whose erfc is several times slower on a CPU.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * np.float32(np.sqrt(0.5)).astype(x.dtype)))


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP; any shape, same dtype."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by its tanh approximation; any shape, same dtype."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "gelu_tanh": gelu_tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation called `name` (timm's `act_layer`)."""
    check_choice("act_layer", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """Stochastic depth that grows linearly from 0 to `rate` over `depth` blocks (timm/layers/drop.py)."""
    return tuple(float(r) for r in np.linspace(0.0, rate, depth))


@partial(jax.jit, static_argnames="epsilon")
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(..., C) with mean 0 and variance 1 over C, times `scale` plus `bias`; all in the dtype of `x`.

    The function has its own jit so that the gradient of `x` is summed here and reaches the residual stream as one
    array. Without it, XLA on a CPU recomputes the gradient of every block from the parts of all blocks above it
    (DeiT-Tiny: 9 % of forward and backward).
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * (jax.lax.rsqrt(variance + epsilon) * scale) + bias


class LayerNorm(nn.Module):
    """Normalises the last axis: statistics in fp32, biased variance, result in `dtype`."""

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = parameter(self, "scale", nn.initializers.ones, (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        return normalise(x.astype(jnp.float32), scale, bias, epsilon=self.epsilon).astype(self.dtype)


class Dropout(nn.Module):
    """Zeroes elements with probability `rate` and rescales the others; draws from the key "dropout" in training."""

    rate: float | jax.Array
    deterministic: bool

    def _kept(self, shape: tuple[int, ...], what: str) -> jax.Array | None:
        """Mask of what stays, or None where everything does; `what` names the layer in the error, with its {rate}."""
        traced = isinstance(self.rate, jax.Array)  # in a loop over blocks
        if self.deterministic or (not traced and self.rate == 0.0):
            return None
        key = dropout_key(self, what if traced else what.format(rate=self.rate))
        return jax.random.bernoulli(key, 1.0 - self.rate, shape)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        keep = self._kept(x.shape, "Dropout (rate {rate})")
        return x if keep is None else jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


class DropPath(Dropout):
    """Stochastic depth: drops a residual branch of whole examples (Huang et al. 2016; timm/layers/drop.py)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = self._kept(shape, "Stochastic depth (drop_path_rate, here {rate:g})")
        return x if keep is None else x * (keep / (1.0 - self.rate)).astype(x.dtype)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021, eq. 4)."""

    init_values: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = parameter(self, "gamma", nn.initializers.constant(self.init_values), (x.shape[-1],))
        return x * gamma.astype(self.dtype)


class Linear(nn.Module):
    """x @ kernel + bias over the last axis, initialised as timm does (normal 0.02, zero bias)."""

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = LINEAR_INIT
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        # One matrix product over all tokens: with the axes kept apart, XLA transposes both operands of the kernel's
        # gradient in memory first. A TPU pads the tokens of each example to a multiple of 8, so that joining the axes
        # copies the array, and keeps them apart without a transposition.
        joined = x if target_platform() == "tpu" else x.reshape(-1, x.shape[-1])
        y = joined.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            y = y + parameter(self, "bias", self.bias_init, (self.features,)).astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class PatchProjection(nn.Module):
    """Convolution of a patch embedding (stride equals kernel size), computed as one matrix product.

    Attributes:
      patch_size: (ph, pw) pixels; pixels left over at the right and lower edge are ignored, as in a convolution.
      features: C.
    """

    patch_size: tuple[int, int]
    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, c) images -> (B, h, w, C)."""
        (ph, pw), (batch, height, width, chans) = self.patch_size, images.shape
        h, w = height // ph, width // pw
        init = patch_init(ph * pw * chans)
        kernel = parameter(self, "kernel", init, (ph, pw, chans, self.features)).astype(self.dtype)
        x = images[:, : h * ph, : w * pw].astype(self.dtype).reshape(batch, h, ph, w, pw, chans)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch * h * w, ph * pw * chans)
        x = x @ kernel.reshape(ph * pw * chans, self.features)  # two axes, as in `Linear`
        if self.use_bias:
            x = x + parameter(self, "bias", init, (self.features,)).astype(self.dtype)
        return x.reshape(batch, h, w, self.features)


class PatchEmbed(nn.Module):
    """Images to a map of patch embeddings, with an optional LayerNorm (Swin)."""

    patch_size: tuple[int, int]
    features: int
    use_bias: bool = True
    norm_epsilon: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, c) -> (B, h, w, C)."""
        x = PatchProjection(self.patch_size, self.features, self.use_bias, self.dtype, name="proj")(images)
        if self.norm_epsilon is not None:
            x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x)
        return x


class MLP(nn.Module):
    """Linear, activation, linear, with dropout after each (timm/layers/mlp.py)."""

    hidden: int
    act_layer: str = "gelu"
    drop: float = 0.0
    deterministic: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        x = activation(self.act_layer)(Linear(self.hidden, dtype=self.dtype, name="fc1")(x))
        x = Dropout(self.drop, self.deterministic)(x)
        x = Linear(channels, dtype=self.dtype, name="fc2")(x)
        return Dropout(self.drop, self.deterministic)(x)


def split_heads(qkv: jax.Array, num_heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(..., N, 3C) of one fused product -> queries, keys and values, each (..., H, N, D).

    The heads become a batch axis here and return in `merge_heads`, so that the products in between are plain batched
    ones, forwards and backwards.
    """
    *lead, tokens, channels3 = qkv.shape
    head_dim = channels3 // 3 // num_heads
    q, k, v = jnp.moveaxis(qkv.reshape(*lead, tokens, 3, num_heads, head_dim), (-3, -2), (0, -3))
    return q, k, v


def merge_heads(x: jax.Array) -> jax.Array:
    """(..., H, N, D) -> (..., N, H D)."""
    *lead, heads, tokens, head_dim = x.shape
    return x.swapaxes(-3, -2).reshape(*lead, tokens, heads * head_dim)


def softmax(logits: jax.Array) -> jax.Array:
    """Softmax over the last axis, computed and returned in fp32."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017; timm/layers/attention.py) with one fused qkv product.

    Attributes:
      fused: by a kernel for TPUs, outside training and where no feature is asked for; returns no more than the result.
      remat: compute the attention matrix again in the backward pass, where nothing is added to it.
    """

    num_heads: int
    qkv_bias: bool = True
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    deterministic: bool = True
    dtype: jnp.dtype = jnp.float32
    fused: bool = False
    remat: bool = False

    def attend(self, qkv: jax.Array, bias: jax.Array | None) -> jax.Array:
        """(..., N, 3C) -> (..., N, C) by the kernel; see `__call__` for the bias."""
        return fused_attention.attention(qkv, self.num_heads, bias)

    def mix_logits(self, logits: jax.Array) -> jax.Array:
        """(..., H, N, N) in fp32 -> the same, before the softmax; CaiT mixes the heads here."""
        return logits

    def mix_probs(self, probs: jax.Array) -> jax.Array:
        """(..., H, N, N) in `dtype` -> the same, after the softmax; likewise."""
        return probs

    def _suits_cpu(self) -> bool:
        """Whether `cpu_attention` computes this attention, of which no feature is asked for, on the target platform."""
        kind, drops = type(self), self.attn_drop > 0 and not self.deterministic
        mixes = kind.mix_logits is not Attention.mix_logits or kind.mix_probs is not Attention.mix_probs
        return self.dtype == jnp.float32 and target_platform() == "cpu" and not (drops or mixes or self.remat)

    @nn.compact
    def __call__(
        self, x: jax.Array, offsets: Offsets | None = None, bias: jax.Array | None = None
    ) -> tuple[jax.Array, Features]:
        """Attends within the last axis but one, that is within each example or window.

        Args:
          x: (..., N, C).
          offsets: any of the names below -> array of its shape, added to it; None where no feature is asked for.
          bias: (1 or W, H, N, N) fp32, added to the logits (..., H, N, N) of an example or of each of its windows.

        Returns:
          (..., N, C), and by the names ATTENTION_TAPS: "query" (before the scaling by D^-1/2), "key" and "value",
          (..., H, N, D) in `dtype`, and "attn", the softmax' result (..., H, N, N) in fp32, whose rows sum to one.
        """
        channels = x.shape[-1]
        qkv = Linear(3 * channels, self.qkv_bias, self.dtype, name="qkv")(x)
        if self.fused and offsets is None and self.deterministic:
            return Linear(channels, dtype=self.dtype, name="proj")(self.attend(qkv, bias)), {}
        plain = offsets is None and bias is None and self._suits_cpu()
        offsets = offsets or {}

        def shifted(value: jax.Array, name: str) -> jax.Array:
            return add_offset(value, offsets[name], name) if name in offsets else value

        def weigh(self: Attention, qkv: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            # Of qkv and not of q, k and v, because the argument is what a backward pass stores that computes the rest
            # again: a TPU pads the D channels of a head to 128, and the 3C channels of all hardly.
            q, k, v = map(shifted, split_heads(qkv, self.num_heads), ("query", "key", "value"))
            scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
            logits = jnp.einsum("...nd,...md->...nm", scaled, k, preferred_element_type=jnp.float32)
            probs = shifted(softmax(self.mix_logits(logits if bias is None else logits + bias)), "attn")
            weights = Dropout(self.attn_drop, self.deterministic)(self.mix_probs(probs.astype(self.dtype)))
            return merge_heads(jnp.einsum("...nm,...md->...nd", weights, v)), (q, k, v, probs)

        if plain:
            q, k, v = split_heads(qkv, self.num_heads)
            out = merge_heads(cpu_attention.attention(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, v))
            inner: Features = {}
        else:
            out, parts = (nn.remat(weigh) if self.remat and not offsets else weigh)(self, qkv, bias)
            inner = dict(zip(ATTENTION_TAPS, parts, strict=True))
        out = Linear(channels, dtype=self.dtype, name="proj")(out)
        return Dropout(self.proj_drop, self.deterministic)(out), inner
