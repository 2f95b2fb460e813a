"""Saliency maps of the first images for each network: a figure, and an animation over the layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data
from jaxkd.analysis import saliency
from jaxkd.analysis.pipeline.features import FeatureSource
from jaxkd.errors import DataError
from jaxkd.report import saliency_figures

TITLES = ("vanilla gradient", "SmoothGrad", "integrated gradients")
SAMPLES, STEPS = 16, 16  # of SmoothGrad and of integrated gradients
IMAGES_PER_PASS = 8  # that memory follows; a CaiT-S24 keeps about 200 MB an image for its backward pass


def write_saliency(
    networks: Sequence[FeatureSource],
    source: Any,
    folder: Path,
    *,
    count: int,
    crop_pct: float = 0.0,
    interpolation: str = "",
    seed: int = 0,
    progress: Callable[[str, str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Vanilla gradient, SmoothGrad, integrated gradients and per-layer gradient maps of the class score.

    Args:
      networks: those without class scores are passed over.
      source: images; the first `count` that can be read are taken.
      folder: for `<network>_<i>.png` and `.gif`; made if missing.
      count: how many images.
      crop_pct: of the evaluation crop; 0 is each network's own.
      interpolation: likewise; "" is each network's own.
      seed: of SmoothGrad's noise.
      progress: called with (label, phase, done, total).

    Returns:
      What results.json has under "saliency": one entry per network and image, paths relative to the folder's parent.
    """
    progress = progress or (lambda label, phase, done, total: None)
    found = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, network in enumerate(networks, start=1):
        if network.score is None:
            continue
        crop = data.eval_preprocess(network, network.image_size, crop_pct, interpolation)
        shown = _first_images(crop, source, count)
        explain = jax.jit(partial(_explain, network))
        layers = jax.jit(partial(_layer_maps, network))
        for i, (name, pixels) in enumerate(shown):
            x = network.normalise(jnp.asarray(pixels)[None])
            classes, maps, error = explain(network.constants, x, jax.random.fold_in(jax.random.key(seed), i))
            # Numbered, since two labels may differ in signs only that no file name should have.
            stem = f"{number}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', network.label)}_{i}"
            image = pixels[None].astype(np.float32) / 255.0
            saliency_figures.draw_saliency(
                image,
                {title: np.asarray(maps[title]) for title in TITLES},
                folder / f"{stem}.png",
                labels=(Path(name).name,),
                caption=f"{network.label}, class {int(classes[0])} (highest score) · SmoothGrad: {SAMPLES} samples, "
                f"noise 15 %, seed {seed} · integrated gradients: {STEPS} steps from the mean colour, completeness "
                f"error {100 * float(error[0]):.1f} %",
            )
            by_layer = layers(network.constants, x, classes)  # in the order of names, as jit hands a dict back
            saliency_figures.draw_layer_animation(
                image[0],
                {name: np.asarray(by_layer[name])[0] for name in network.layers},
                folder / f"{stem}.gif",
            )
            found.append(
                {
                    "model": network.label,
                    "image": name,
                    "class": int(classes[0]),
                    "png": f"{folder.name}/{stem}.png",
                    "gif": f"{folder.name}/{stem}.gif",
                    "completeness_error": float(error[0]) if np.isfinite(error[0]) else None,
                }
            )
            progress(network.label, "saliency", i + 1, len(shown))
    return found


def _first_images(preprocess: data.EvalPreprocess, source: Any, count: int) -> list[tuple[str, np.ndarray]]:
    shown = []
    for i in range(len(source)):
        if len(shown) == count:
            break
        try:
            shown.append((source.name(i), preprocess(source.image(i))))
        except DataError:
            continue  # the statistics have named it
    return shown


def _explain(
    network: FeatureSource, constants: Any, x: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """The predicted class, the three maps by title, and the completeness error."""
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
    zeros = saliency.zero_offsets(network.shapes(x.shape[0]))
    return saliency.layer_gradient_maps(
        saliency.layer_gradients(partial(network.with_offsets, constants), x, classes, zeros)
    )
