"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch with its mirror image, with timm's rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, ShapeError, check_choice, check_range

MIX_MODES = ("batch", "pair", "elem")


@dataclass(frozen=True)
class MixConfig:
    """Settings of mixup and CutMix, named as in the config's `data.mix`; the defaults are timm's (data/mixup.py).

    DeiT's own recipe is `MixConfig(mixup=0.8, cutmix=1.0)`. The recipes of SpectralKD and its relatives
    carry these numbers as flags, but their code never mixes.

    Attributes:
      mixup: lambda of mixup is Beta(alpha, alpha); 0 turns mixup off.
      cutmix: lambda of CutMix, whose box has the share 1 - lambda of the image; 0 turns CutMix off.
      cutmix_minmax: instead, height and width of the box are each drawn between these shares of the image's; turns
        CutMix on and leaves cutmix unread.
      prob: that a batch, pair or element is mixed at all.
      switch_prob: that it is CutMix, where both are on.
      mode: what shares one lambda and box: the "batch", a "pair" of images that are mixed into each other, or nothing
        ("elem").
      correct_lam: the label follows the area of the box after it was clipped at the image's border, not the drawn
        lambda. Always so with cutmix_minmax.
      smoothing: label smoothing of both images' labels, before they are mixed. Mixing and smoothing commute, so it
        may be left to the loss instead, but must not be in both.
    """

    mixup: float = 1.0
    cutmix: float = 0.0
    cutmix_minmax: tuple[float, float] | None = None
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: str = "batch"
    correct_lam: bool = True
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_range("data.mix.mixup", self.mixup, 0, hint="0 turns it off, DeiT uses 0.8")
        check_range("data.mix.cutmix", self.cutmix, 0, hint="0 turns it off, DeiT uses 1")
        check_range("data.mix.prob", self.prob, 0, 1)
        check_range("data.mix.switch_prob", self.switch_prob, 0, 1)
        check_range("smoothing", self.smoothing, 0, below=1, hint="published recipes use 0.1")
        check_choice("data.mix.mode", self.mode, MIX_MODES)
        if self.cutmix_minmax is None:
            if not (self.mixup or self.cutmix):
                raise ConfigError(
                    "data.mix.mixup=0 and data.mix.cutmix=0 mix nothing. Set one above 0, or leave mixing out "
                    "(mix=None)."
                )
            return
        low, high = self.cutmix_minmax
        if not 0 <= low < high <= 1:
            raise ConfigError(
                f"data.mix.cutmix_minmax={self.cutmix_minmax} is not a range of shares of the image's height and "
                "width. Give 0 <= low < high <= 1, for example (0.2, 0.8)."
            )
        if self.cutmix not in (0, 1):
            raise ConfigError(
                f"data.mix.cutmix={self.cutmix} has no effect, because data.mix.cutmix_minmax={self.cutmix_minmax} "
                "sets the size of the box. Set data.mix.cutmix=0, or data.mix.cutmix_minmax=()."
            )


class Mixing(NamedTuple):
    """Random draws for n images; n = 1 holds for the whole batch."""

    lam: jax.Array  # (n,) fp32, weight of the image's own label, and of its pixels where it is mixup
    cutmix: jax.Array  # (n,) bool, True where a box is pasted
    box: jax.Array  # (n, 4) ints: top, bottom, left, right of what the other image covers; empty where cutmix is False


def mix(
    key: jax.Array, images: jax.Array, labels: jax.Array, config: MixConfig, *, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Mixes image i with image B - 1 - i, as timm's Mixup.

    Args:
      key: one key for the whole batch. What happens to image i depends on it and on i in the global batch alone.
      images: (B, H, W, C) float, B even. A batch that is split over devices stays split; the mirrored batch comes from
        the opposite device by one collective-permute that XLA inserts (no device ever holds the whole batch).
      labels: (B,) integers in [0, num_classes); one outside makes its row NaN, never a wrong number.
      config: how.
      num_classes: K.

    Returns:
      (B, H, W, C) of the same dtype, and (B, K) fp32 probabilities, smoothed by `config.smoothing`.
    """
    batch = images.shape[0]
    if labels.shape != (batch,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ShapeError(
            f"The labels are {labels.dtype} of shape {labels.shape} beside images of shape {images.shape}. Pass "
            "(batch,) integers."
        )
    if batch % 2:
        raise ShapeError(
            f"The batch has {batch} images, and mixing needs pairs. Use an even batch size (per micro-batch, where "
            "gradients are accumulated)."
        )
    drawn = draw_mixing(key, batch, images.shape[1:3], config)
    return apply_mixing(images, smooth_one_hot(labels, num_classes, config.smoothing), drawn)


def smooth_one_hot(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """(B,) ints -> (B, K) fp32: 1 - smoothing + smoothing / K at the label, smoothing / K elsewhere."""
    off = smoothing / num_classes
    labels = labels[:, None]
    one_hot = jnp.where(labels == jnp.arange(num_classes), 1.0 - smoothing + off, off).astype(jnp.float32)
    return jnp.where((labels >= 0) & (labels < num_classes), one_hot, jnp.nan)


def apply_mixing(images: jax.Array, targets: jax.Array, drawn: Mixing) -> tuple[jax.Array, jax.Array]:
    """Mixes (B, H, W, C) images and (B, K) targets with their mirrored batch, as `drawn` says."""
    rows, columns = jnp.arange(images.shape[1])[:, None], jnp.arange(images.shape[2])
    top, bottom, left, right = (side[:, None, None] for side in drawn.box.T)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    lam = drawn.lam[:, None]
    # Weights of exactly 1 and 0 leave CutMix's pixels bit for bit what they were.
    own = jnp.where(drawn.cutmix[:, None, None], ~inside, lam[:, :, None]).astype(images.dtype)[..., None]
    # The reversed batch axis crosses devices: see `mix`.
    return own * images + (1 - own) * images[::-1], lam * targets + (1 - lam) * targets[::-1]


def draw_mixing(key: jax.Array, batch: int, size: tuple[int, int], config: MixConfig) -> Mixing:
    """Draws what `config` leaves to chance for a batch of images of `size` (height, width)."""
    index = jnp.arange(1 if config.mode == "batch" else batch)
    if config.mode == "pair":
        index = jnp.minimum(index, index[::-1])  # both of a pair use the key of the first
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(lambda k: _draw(k, size, config))(keys)


def _draw(key: jax.Array, size: tuple[int, int], config: MixConfig) -> Mixing:
    """One lambda and one box, without the leading axis."""
    number_key, gamma_key = jax.random.split(key)
    # One call each: every call of the generator is code of its own, which takes its time to compile.
    uniforms = jax.random.uniform(number_key, (6,))
    can_mixup = config.mixup > 0
    can_cutmix = config.cutmix > 0 or config.cutmix_minmax is not None
    active = uniforms[0] < config.prob
    cutmix = active & can_cutmix & (uniforms[1] < config.switch_prob if can_mixup else True)
    # With cutmix_minmax nobody reads CutMix's lambda; its alpha is 1 then, as in timm.
    alpha = jnp.where(cutmix, config.cutmix or 1.0, config.mixup or 1.0)
    # Beta(a, a) is the share that the first of two equal gamma variables has in their sum.
    log_gammas = jax.random.loggamma(gamma_key, alpha, (2,))
    lam = jax.nn.sigmoid(log_gammas[0] - log_gammas[1])
    box = jnp.zeros(4, jnp.int32)
    if can_cutmix:
        if config.cutmix_minmax is None:
            covered = cutmix_box(uniforms[2:4], size, lam)
        else:
            covered = minmax_box(uniforms[2:], size, config.cutmix_minmax)
        box = jnp.where(cutmix, covered, box)
        if config.correct_lam or config.cutmix_minmax is not None:
            lam = jnp.where(cutmix, kept_share(covered, size), lam)
    return Mixing(jnp.where(active, lam, 1.0), cutmix, box)


def kept_share(box: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Share of an image of `size` that a box (top, bottom, left, right) leaves uncovered."""
    return 1.0 - ((box[1] - box[0]) * (box[3] - box[2])).astype(jnp.float32) / (size[0] * size[1])


def cutmix_box(uniforms: jax.Array, size: tuple[int, int], lam: jax.Array) -> jax.Array:
    """A box of the image's own proportions and area 1 - lam around a uniform pixel, clipped.

    Returns:
      (4,) ints: top, bottom, left, right; bottom and right are the first row and column that stay.
    """
    ratio = jnp.sqrt(1.0 - lam)
    edges = []
    for u, side in zip(uniforms, size, strict=True):
        cut, centre = (side * ratio).astype(jnp.int32), (side * u).astype(jnp.int32)
        edges += [jnp.clip(centre - cut // 2, 0, side), jnp.clip(centre + (cut + 1) // 2, 0, side)]
    return jnp.stack(edges)


def minmax_box(uniforms: jax.Array, size: tuple[int, int], minmax: tuple[float, float]) -> jax.Array:
    """A box inside the image whose sides are uniform between `minmax` shares of the image's (the upper excluded).

    Returns:
      (4,) ints: top, bottom, left, right.
    """
    edges = []
    for (for_cut, for_start), side in zip(uniforms.reshape(2, 2), size, strict=True):
        low, high = int(side * minmax[0]), int(side * minmax[1])
        if low >= high:
            raise ConfigError(
                f"data.mix.cutmix_minmax={minmax} leaves no box for images {side} pixels high or wide: its sides are "
                f"whole pixels from {low} to below {high}. Set the two further apart."
            )
        cut = low + (for_cut * (high - low)).astype(jnp.int32)
        start = (for_start * (side - cut + 1)).astype(jnp.int32)
        edges += [start, start + cut]
    return jnp.stack(edges)
