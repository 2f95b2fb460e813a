"""`jaxkd.predict`: photographs through a loaded network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, cast

import jax
import numpy as np
from flax import linen as nn
from PIL import Image

from jaxkd import models, weights
from jaxkd.errors import ConfigError, check_range
from jaxkd.inference.exported import ExportedNetwork
from jaxkd.inference.preprocessing import Photo, in_batches, is_one_photo, read_photo
from jaxkd.models.sr_base import Upscaler
from jaxkd.superres.tiling import Enlarger

PyTree = Any
Prediction = list[tuple[str, float]]


def predict(
    model: nn.Module | ExportedNetwork,
    variables: PyTree,
    photos: Photo | Sequence[Photo],
    *,
    top: int = 5,
    batch_size: int = 32,
) -> Prediction | list[Prediction] | Image.Image | list[Image.Image]:
    """Likeliest classes of photographs; of a super-resolution network, the enlarged photographs.

        model, variables = jaxkd.load("runs/flowers")
        jaxkd.predict(model, variables, "photo.jpg", top=2)              # [("daisy", 0.93), ("tulip", 0.04)]
        jaxkd.predict(model, variables, ["a.jpg", "b.jpg"])              # a list of such lists

    Args:
      model: of `jaxkd.load`.
      variables: likewise.
      photos: one photograph or a sequence of them: a path, an image of Pillow, or a uint8 array (H, W, 3) or (H, W);
        of any size. EXIF rotations are applied, transparency is dropped.
      top: so many classes, at most all.
      batch_size: photographs at once. Super-resolution takes them one by one, in windows that bound the memory; an
        exported one takes each as a whole.

    Returns:
      For one photograph `[(class name, probability), ...]`, likeliest first, by a softmax of the outputs; of a
      super-resolution network an RGB image of Pillow. For a sequence a list of these.

    Raises:
      ConfigError: the network reads no images or has no classifier, or it was not loaded by `jaxkd.load`.
      DataError: a file is missing or holds no image. ShapeError: an array that is no photograph.
    """
    check_range("top", top, least=1)
    check_range("batch_size", batch_size, least=1)
    one = is_one_photo(photos)
    given: list[Any] = [photos] if one else list(cast(Sequence[Photo], photos))
    results: Sequence[Any]
    if isinstance(model, Upscaler):
        results = _enlarged(model, variables, given)
    elif isinstance(model, ExportedNetwork) and models.spec(model.name).task == "restoration":
        results = [_enlarged_whole(model, photo) for photo in given]
    else:
        results = _classes(model, variables, given, batch_size, top)
    return results[0] if one else list(results)


def _classes(model: Any, variables: PyTree, photos: list[Photo], batch_size: int, top: int) -> list[Prediction]:
    _require_classifier(model)
    results: list[Prediction] = []
    for pixels, count in in_batches(photos, model.preprocessing, batch_size) if photos else ():
        for row in _probabilities(model, variables, pixels)[:count]:
            best = np.argsort(-row, kind="stable")[:top]
            results.append([(model.class_names[i], float(row[i])) for i in best])
    return results


def _probabilities(model: Any, variables: PyTree, pixels: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8 -> (B, K) fp32."""
    if isinstance(model, ExportedNetwork) and model.gives_probabilities:
        return model.apply(variables, pixels)[0]
    images = model.preprocessing.normalise(pixels)
    if isinstance(model, ExportedNetwork):
        return np.asarray(jax.nn.softmax(model.apply(variables, images)[0], axis=-1))
    return np.asarray(_softmax_of_network(model, variables, images))


@partial(jax.jit, static_argnames="model")
def _softmax_of_network(model: nn.Module, variables: PyTree, images: jax.Array) -> jax.Array:
    """(B, H, W, 3) -> (B, K) fp32."""
    return jax.nn.softmax(model.apply(variables, images)[0].astype("float32"), axis=-1)


def _enlarged(model: Any, variables: PyTree, photos: list[Photo]) -> list[Image.Image]:
    model, variables = weights.for_inference(model, variables)
    enlarger = _enlarger(model.clone(name=None))
    enlarger.use(variables)
    results = [Image.fromarray(enlarger(np.asarray(read_photo(photo)))) for photo in photos]
    enlarger.use({})  # frees the weights; the compiled programs stay
    return results


def _enlarged_whole(model: ExportedNetwork, photo: Photo) -> Image.Image:
    images = np.asarray(read_photo(photo), np.float32)[None] / 255
    return Image.fromarray(np.uint8(np.rint(np.clip(model.apply({}, images)[0][0], 0, 1) * 255)))


@lru_cache(maxsize=1)
def _enlarger(model: Upscaler) -> Enlarger:
    return Enlarger(model, {})


def _require_classifier(model: Any) -> None:
    name = getattr(model, "name", None) or type(model).__name__
    if not hasattr(model, "preprocessing"):
        raise ConfigError(
            f"This {name} has neither class names nor a preprocessing. Take the network that jaxkd.load returns, not a "
            "clone of it or one of models.create."
        )
    if model.preprocessing is None:
        raise ConfigError(
            f"{name} {models.spec(name).purpose}, and jaxkd.predict reads photographs. Use jaxkd decode for "
            "runs on EEG, and model.apply for other inputs."
        )
    if not model.class_names:
        raise ConfigError(
            f"{name} has no classifier (num_classes=0). Use model.apply(variables, images) for its features, or load "
            "weights with a classifier."
        )
