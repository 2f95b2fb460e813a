"""Saliency maps of images and layers: gradients, SmoothGrad, integrated gradients.

All functions take a pure function instead of a network: `score(images, classes) -> (B,)` for maps of the image, and
`forward(images, offsets) -> outputs` for maps of the layers. The score of an image must depend on that image alone, as
it does for any network in evaluation; one backward pass through the sum over the batch then gives the gradient of every
image. Functions are traceable; wrap repeated calls in `jax.jit`.

Legend: B images, H W pixels, C channels, h w grid of a layer.
NaN in an image or a gradient stays NaN in the result of that image and of no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ShapeError, check_choice, check_range

Score = Callable[[jax.Array, jax.Array], jax.Array]
Forward = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]

REDUCTIONS = ("max", "mean", "none")
RULES = ("gauss", "trapezoid", "midpoint", "left", "right")
IMAGES_PER_PASS = 64
# A difference of scores below this share of them is rounding: eight units in the last place of fp32.
_NO_DIFFERENCE = 1e-6


def class_score(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """(B, K) logits and (B,) integer classes -> (B,) logit of each image's class."""
    if logits.ndim != 2 or tuple(classes.shape) != (logits.shape[0],):
        raise ShapeError(
            f"The outputs have shape {tuple(logits.shape)} and the classes {tuple(classes.shape)}. Give (B, classes) "
            "and (B,), or another score function with one number per image."
        )
    return jnp.take_along_axis(logits, classes[:, None], axis=1)[:, 0]


def reduce_channels(gradient: jax.Array, reduction: str = "max") -> jax.Array:
    """Signed gradients to a map of magnitudes.

    Args:
      gradient: (..., C).
      reduction: "max" (largest |gradient| of a pixel's channels, Simonyan et al. 2014, section 3.1), "mean" (mean of
        them) or "none" (the gradient as it is).

    Returns:
      (...), or (..., C) for "none".
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "none":
        return gradient
    return (jnp.max if reduction == "max" else jnp.mean)(jnp.abs(gradient), axis=-1)


def vanilla_gradient(score: Score, images: jax.Array, classes: jax.Array, *, reduction: str = "max") -> jax.Array:
    """The gradient map of Simonyan et al. 2014, "Deep Inside Convolutional Networks" (arXiv 1312.6034).

    Args:
      score: (images, classes) -> (B,).
      images: (B, H, W, C), normalised; computed in at least fp32.
      classes: (B, ...), handed on to `score`.
      reduction: over channels, see `reduce_channels`; "none" gives the raw gradient.

    Returns:
      (B, H, W) >= 0, or (B, H, W, C) signed for "none"; score per unit of the normalised input.

    Raises:
      ShapeError: `score` does not return one number per image. ConfigError: another reduction.
    """
    gradient = jax.grad(lambda x: _checked_score(score, x, classes).sum())(_floating(images))
    return reduce_channels(gradient, reduction)


def smooth_grad(
    score: Score,
    images: jax.Array,
    classes: jax.Array,
    key: jax.Array,
    *,
    samples: int = 25,
    noise: float = 0.15,
    reduction: str = "max",
    batch: int = IMAGES_PER_PASS,
) -> jax.Array:
    """Mean gradient over noisy copies of each image: Smilkov et al. 2017, "SmoothGrad" (arXiv 1706.03825), eq. 2.

    The signed gradients are averaged and reduced over channels afterwards.

    Args:
      score: (images, classes) -> (B,).
      images: (B, H, W, C), normalised.
      classes: (B, ...), handed on to `score`.
      key: one key, or (B,) keys. With one, every image gets the same draws, scaled to its own range, so that an image's
        map does not depend on what else is in the batch; (B,) keys give each image its own draws.
      samples: noisy copies per image.
      noise: standard deviation of the Gaussian noise as a share of the image's largest minus smallest value. An image
        whose values are all equal has no range, hence no noise: its map is the vanilla gradient's.
      reduction: over channels, see `reduce_channels`; "none" gives the raw mean gradient.
      batch: most images in one pass through the network (at least B); memory follows it, the result does not.

    Returns:
      (B, H, W) >= 0, or (B, H, W, C) signed for "none"; score per unit of the normalised input.

    Raises:
      ConfigError: no samples, negative noise, another reduction. ShapeError: wrong `score`, or wrong number of keys.
    """
    check_range("samples", samples, 1, whole=True)
    check_choice("reduction", reduction, REDUCTIONS)
    if isinstance(noise, int | float):
        check_range("noise", noise, 0, hint="it is a share of each image's range, e.g. 0.15")
    images = _floating(images)
    # Keys of the old kind (plain uint32) have one more axis.
    keys = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    if keys.shape not in ((), images.shape[:1]):
        raise ShapeError(
            f"{keys.shape[0]} keys came with {images.shape[0]} images. Give one key, jax.random.key(seed), or one per "
            "image, jax.random.split(key, B)."
        )
    axes = tuple(range(1, images.ndim))
    sigma = noise * (images.max(axis=axes, keepdims=True) - images.min(axis=axes, keepdims=True))

    def draws(one: jax.Array, index: jax.Array) -> jax.Array:
        # One after the other: under vmap, keys of XLA's own generator ("rbg") would draw what the block size says.
        draw = lambda i: jax.random.normal(jax.random.fold_in(one, i), images.shape[1:], images.dtype)  # noqa: E731
        return jax.lax.map(draw, index)

    def points(index: jax.Array) -> jax.Array:
        unit = draws(keys, index)[None] if keys.ndim == 0 else jax.lax.map(lambda one: draws(one, index), keys)
        return images[:, None] + sigma[:, None] * unit

    weights = np.full(samples, 1 / samples)
    return reduce_channels(_weighted_gradients(score, images, classes, points, weights, batch), reduction)


def integrated_gradients(
    score: Score,
    images: jax.Array,
    classes: jax.Array,
    *,
    baseline: jax.Array | np.ndarray | float = 0.0,
    steps: int = 50,
    rule: str = "gauss",
    batch: int = IMAGES_PER_PASS,
) -> tuple[jax.Array, jax.Array]:
    """Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks" (arXiv 1703.01365), eq. 1-3.

    Args:
      score: (images, classes) -> (B,).
      images: (B, H, W, C), normalised.
      classes: (B, ...), handed on to `score`.
      baseline: what an absent image looks like, in normalised values: a number, or an array that broadcasts to the
        images, e.g. (C,) or (B, H, W, C). 0 is the mean colour of the data set; -mean / std is black.
      steps: gradients along the straight path from baseline to image; of the trapezoid rule, intervals.
      rule: how the path is integrated: "gauss" (Gauss-Legendre), "trapezoid" (steps + 1 gradients, both ends included),
        "midpoint", "left" or "right" (the paper's sum). On two images and a DeiT-Tiny of random weights, 20 Gauss
        points left an error below 5e-5, 50 of any other rule 2e-3 and more.
      batch: most images in one pass through the network (at least 2 B); memory follows it, the result does not.

    Returns:
      Attributions (B, H, W, C), signed, in units of the score; `attribution_map` makes a picture of them.
      Completeness error (B,): |sum of attributions - d| / |d| with d = score(image) - score(baseline), which exact
      integration makes 0. Where |d| is at most 1e-6 of the larger |score|, so that d is rounding, the numerator alone,
      in units of the score; an image that is its own baseline thus has attributions 0 and error 0. NaN for a NaN score.

    Raises:
      ConfigError: no steps or another rule. ShapeError: wrong `score`, or a baseline that does not broadcast.
    """
    check_range("steps", steps, 1, whole=True)
    check_choice("rule", rule, RULES)
    images = _floating(images)
    try:
        baseline = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
    except ValueError:
        raise ShapeError(
            f"The baseline has shape {np.shape(baseline)} and the images {images.shape}. Give a number, (C,) channels, "
            "or an image of the same size."
        ) from None
    positions, weights = _quadrature(steps, rule)
    difference = images - baseline
    shares = jnp.asarray(positions, images.dtype)

    def points(index: jax.Array) -> jax.Array:
        return baseline[:, None] + shares[index].reshape(-1, *[1] * (images.ndim - 1)) * difference[:, None]

    attributions = difference * _weighted_gradients(score, images, classes, points, weights, batch)
    # Both ends in one pass: alone, a constant baseline would have XLA fold the whole network while compiling.
    ends = jnp.stack([images, baseline], axis=1).reshape(-1, *images.shape[1:])
    at_image, at_baseline = _checked_score(score, ends, jnp.repeat(classes, 2, axis=0)).reshape(-1, 2).T
    change = at_image - at_baseline
    gap = jnp.abs(attributions.sum(axis=tuple(range(1, images.ndim))) - change)
    rounding = jnp.abs(change) <= _NO_DIFFERENCE * jnp.maximum(jnp.abs(at_image), jnp.abs(at_baseline))
    return attributions, gap / jnp.where(rounding, 1, jnp.abs(change))


def attribution_map(attributions: jax.Array) -> jax.Array:
    """(B, H, W, C) signed attributions -> (B, H, W): |sum over channels|, how much a pixel moved the score."""
    return jnp.abs(attributions.sum(axis=-1))


def zero_offsets(features: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Features, or their shapes from `jax.eval_shape`, -> fp32 zeros of these shapes, for `layer_gradients`."""
    return {name: jnp.zeros(value.shape, jnp.float32) for name, value in features.items()}


def layer_gradients(
    forward: Forward,
    images: jax.Array,
    classes: jax.Array,
    zeros: Mapping[str, jax.Array],
    *,
    score: Score = class_score,
) -> dict[str, jax.Array]:
    """Gradient of each image's score with respect to features, for all of them in one backward pass.

    An offset of zero that is added to a feature has the feature's gradient. That of `block_i` is the total derivative,
    through everything that comes after; positions that nothing reads have an exact 0, such as the patch tokens of the
    last block of a DeiT, whose head reads the class token.

    Args:
      forward: (images, offsets) -> outputs, e.g. `lambda x, o: model.apply(variables, x, offsets=o)[0]`.
      images: (B, H, W, C), normalised.
      classes: (B, ...), handed on to `score`.
      zeros: tap -> zeros of the feature's shape, batch included; see `zero_offsets`.
      score: (outputs, classes) -> (B,); a loss per image gives the gradient of the loss.

    Returns:
      tap -> gradient in the shape and dtype of its zeros, score per unit of the feature; {} for no zeros.

    Raises:
      ShapeError: `score` does not return one number per image, or zeros for another batch.
    """
    for name, value in zeros.items():
        if value.shape[:1] != images.shape[:1]:
            raise ShapeError(
                f'The zeros of "{name}" have shape {tuple(value.shape)}, but there are {images.shape[0]} images. Make '
                "them with zero_offsets from features of the same batch."
            )
    if not zeros:
        return {}

    def total(offsets: dict[str, jax.Array]) -> jax.Array:
        return _checked_score(lambda x, c: score(forward(x, offsets), c), images, classes).sum()

    return jax.grad(total)({name: value + _zero_of(images, value.ndim, value.dtype) for name, value in zeros.items()})


def layer_gradient_maps(gradients: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Gradients of layers to one map per layer.

    Args:
      gradients: tap -> (B, h, w, C); (B, C), e.g. `cls_block_i` and `pre_logits`, or (B, P, C), e.g. `prefix_i`.
        Attention (`attn_i`, `query_i`, `key_i`, `value_i`) has no place in the image, but its (B, H, N, N) and (B, H,
        N, D) look like maps: leave it out.

    Returns:
      tap -> (B, h, w) mean of |gradient| over channels. Features without a grid have no place in the image and give
      (B, 1, 1): the mean over their tokens, too.
    """
    maps = {}
    for name, value in gradients.items():
        if value.ndim not in (2, 3, 4):
            raise ShapeError(
                f'The gradient of "{name}" has shape {tuple(value.shape)}, but a map needs (B, h, w, C), (B, P, C) or '
                "(B, C). Omit that tap."
            )
        magnitude = jnp.abs(value.astype(jnp.promote_types(value.dtype, jnp.float32)))
        if value.ndim < 4:
            maps[name] = magnitude.reshape(value.shape[0], -1).mean(axis=1)[:, None, None]
        else:
            maps[name] = magnitude.mean(axis=-1)
    return maps


def _weighted_gradients(
    score: Score,
    images: jax.Array,
    classes: jax.Array,
    points: Callable[[jax.Array], jax.Array],
    weights: np.ndarray,
    batch: int,
) -> jax.Array:
    """Sum over k of weights[k] times the gradient at point k of each image.

    Args:
      points: (n,) indices -> (B, n, H, W, C).
      weights: (K,) > 0.
      batch: most images in a pass.

    Returns:
      (B, H, W, C).
    """
    check_range("batch", batch, 1, whole=True)
    size, count = images.shape[0], len(weights)
    blocks = -(-count // max(1, batch // max(1, size)))
    width = -(-count // blocks)  # blocks of equal size waste the fewest points
    padding = blocks * width - count
    # Points that only fill the last block repeat the last one and weigh nothing.
    index = np.minimum(np.arange(blocks * width), count - 1).reshape(blocks, width)
    share = np.pad(weights, (0, padding)).reshape(blocks, width)
    repeated = jnp.repeat(classes, width, axis=0)
    ones = (1,) * (images.ndim - 1)

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        which, weight = block
        # The image stays the major axis, so that a batch sharded over devices stays where it is.
        at = points(which).reshape(size * width, *images.shape[1:])
        gradient = vanilla_gradient(score, at, repeated, reduction="none").reshape(size, width, *images.shape[1:])
        weight = weight.reshape(width, *ones)
        return total + jnp.where(weight > 0, gradient * weight, 0).sum(axis=1), None

    start = jnp.broadcast_to(_zero_of(images, images.ndim, images.dtype), images.shape)
    return jax.lax.scan(add, start, (jnp.asarray(index), jnp.asarray(share, images.dtype)))[0]


def _quadrature(steps: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions in [0, 1] and positive weights that sum to 1."""
    if rule == "gauss":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return (nodes + 1) / 2, weights / 2
    if rule == "trapezoid":
        weights = np.full(steps + 1, 1 / steps)
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps + 1), weights
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    return (np.arange(steps) + shift) / steps, np.full(steps, 1 / steps)


def _zero_of(images: jax.Array, ndim: int, dtype: jnp.dtype) -> jax.Array:
    """(B, 1, ..., 1) zeros that are computed from the images.

    Under shard_map a constant counts as one value shared by all devices: its gradient would be summed over them, and a
    scan that starts from it and adds what differs per device would not type-check.
    """
    first = images.reshape(images.shape[0], -1)[:, :1]
    zero = jnp.zeros((), dtype)
    return jnp.where(first > 0, zero, zero).reshape(-1, *[1] * (ndim - 1))


def _floating(values: jax.Array) -> jax.Array:
    return jnp.asarray(values, jnp.promote_types(jnp.asarray(values).dtype, jnp.float32))


def _checked_score(score: Score, images: jax.Array, classes: jax.Array) -> jax.Array:
    """(B,) in at least fp32."""
    value = score(images, classes)
    if tuple(value.shape) != tuple(images.shape[:1]):
        raise ShapeError(
            f"The score has shape {tuple(value.shape)} for {images.shape[0]} images. Return one number per image, "
            f"({images.shape[0]},), e.g. with class_score(logits, classes)."
        )
    return _floating(value)
