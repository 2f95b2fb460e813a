"""Saliency maps of the first images for each network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data
from jaxkd.analysis import saliency
from jaxkd.analysis.pipeline.features import FeatureSource
from jaxkd.errors import DataError, printable

TITLES = ("vanilla gradient", "SmoothGrad", "integrated gradients")
SAMPLES, STEPS = 16, 16  # of SmoothGrad and of integrated gradients
IMAGES_PER_PASS = 8  # that memory follows; a CaiT-S24 keeps about 200 MB an image for its backward pass


@dataclass(frozen=True)
class ImageSaliency:
    """Saliency of one image for one network."""

    model: str  # label of the network
    name: str  # of the image
    image: np.ndarray  # (H, W, 3) in [0, 1]
    predicted: int  # class with the highest score
    maps: dict[str, np.ndarray]  # title -> (H, W), in the order of `TITLES`
    layers: dict[str, np.ndarray]  # tap -> (h, w) gradient magnitudes in depth order
    completeness_error: float  # of integrated gradients, relative; may be NaN or infinite
    details: str  # parameters of the methods in words


def saliency_maps(
    networks: Sequence[FeatureSource],
    source: Any,
    *,
    count: int,
    crop_pct: float = 0.0,
    interpolation: str = "",
    seed: int = 0,
    progress: Callable[[str, str, int, int], None] | None = None,
) -> Iterator[ImageSaliency]:
    """Vanilla gradient, SmoothGrad, integrated gradients and per-layer gradient maps of the class score."""
    details = (
        f"SmoothGrad: {SAMPLES} samples, noise 15 %, seed {seed} · integrated gradients: {STEPS} steps from the mean "
        "colour"
    )
    for network in networks:
        if network.score is None:
            continue
        assert network.normalise is not None  # as there is a score
        crop = data.eval_preprocess(network, cast(tuple[int, int], network.image_size), crop_pct, interpolation)
        shown = _first_images(crop, source, count)
        explain = jax.jit(partial(_explain, network))
        layers = jax.jit(partial(_layer_maps, network))
        for i, (name, pixels) in enumerate(shown):
            x = network.normalise(jnp.asarray(pixels)[None])
            classes, maps, error = explain(network.constants, x, jax.random.fold_in(jax.random.key(seed), i))
            by_layer = layers(network.constants, x, classes)  # in the order of names, as jit hands a dict back
            yield ImageSaliency(
                network.label,
                name,
                pixels.astype(np.float32) / 255.0,
                int(classes[0]),
                {title: np.asarray(maps[title])[0] for title in TITLES},
                {tap: np.asarray(by_layer[tap])[0] for tap in network.layers},
                float(error[0]),
                details,
            )
            if progress is not None:
                progress(network.label, "saliency", i + 1, len(shown))


def _first_images(preprocess: data.EvalPreprocess, source: Any, count: int) -> list[tuple[str, np.ndarray]]:
    shown: list[tuple[str, np.ndarray]] = []
    for i in range(len(source)):
        if len(shown) == count:
            break
        try:
            shown.append((printable(source.name(i)), preprocess(source.image(i))))
        except DataError:
            continue  # the statistics have named it
    return shown


def _explain(
    network: FeatureSource, constants: Any, x: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """The predicted class, the three maps by title, and the completeness error."""
    assert network.score is not None and network.with_offsets is not None  # both of a network with a score
    score = partial(network.score, constants)
    classes = jnp.argmax(network.with_offsets(constants, x, {}), axis=1)
    attributions, error = saliency.integrated_gradients(score, x, classes, steps=STEPS, batch=IMAGES_PER_PASS)
    return (
        classes,
        {
            TITLES[0]: saliency.vanilla_gradient(score, x, classes),
            TITLES[1]: saliency.smooth_grad(score, x, classes, key, samples=SAMPLES, batch=IMAGES_PER_PASS),
            TITLES[2]: saliency.attribution_map(attributions),
        },
        error,
    )


def _layer_maps(network: FeatureSource, constants: Any, x: jax.Array, classes: jax.Array) -> dict[str, jax.Array]:
    assert network.shapes is not None and network.with_offsets is not None  # both of a network with a score
    zeros = saliency.zero_offsets(network.shapes(x.shape[0]))
    return saliency.layer_gradient_maps(
        saliency.layer_gradients(partial(network.with_offsets, constants), x, classes, zeros)
    )
