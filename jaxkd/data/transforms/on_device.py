"""Augmentation inside the compiled step: normalise, erase, mix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.data.transforms.erasing import EraseConfig, random_erase
from jaxkd.data.transforms.mixup import MixConfig
from jaxkd.data.transforms.mixup import mix as mix_images

_ERASE, _MIX = 0, 1  # streams of random numbers that must not meet; turning one on leaves the other's as they were


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


def prepare_train_images(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    erase: EraseConfig | None,
    mix: MixConfig | None,
    num_classes: int,
) -> tuple[jax.Array, jax.Array]:
    """Normalises, erases and mixes a training batch, in the order of DeiT and of timm with `--no-prefetcher`.

    There the loader hands out normalised images with their boxes erased, and the training loop mixes them: an erased
    box can show through in two images. (timm's prefetcher mixes uint8 images, rounded, in the collate function, and
    erases last.)

    Args:
      key: of this step (and micro-batch); used for nothing else. What happens to an image depends on the key and its
        index in the global batch, not on how the batch is split over devices.
      images: (B, H, W, C) uint8, cropped and augmented.
      labels: (B,) integers.
      mean: per channel, of images in [0, 1].
      std: likewise.
      erase: random erasing; None is none.
      mix: mixup and cutmix; None is none.
      num_classes: K, read only when mixing.

    Returns:
      (B, H, W, C) fp32, and the labels: untouched where `mix` is None, so that the loss smooths them; else (B, K)
      fp32 probabilities that `mix.smoothing` has smoothed, so that the loss must not.
    """
    x = normalise(images, mean, std)
    if erase is not None:
        x = random_erase(jax.random.fold_in(key, _ERASE), x, erase)
    if mix is not None:
        x, labels = mix_images(jax.random.fold_in(key, _MIX), x, labels, mix, num_classes=num_classes)
    return x, labels
