"""Feature sources of an analysis: images in, named feature maps out, from a registered network or a function."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxkd import data, models, parallel
from jaxkd.errors import ConfigError, DataError, ShapeError, TapError, check_choice, did_you_mean, in_words
from jaxkd.weights.network import Network

_LOG = logging.getLogger(__name__)
PyTree = Any
LAYOUTS = ("nhwc", "nchw")
PREDICTED = "predicted class"  # entry of the answer of `FeatureSource.gradients`


@dataclass
class FeatureSource:
    """A network for an analysis; made by `network_features` or `callable_features`."""

    label: str  # what tables and figures call it
    name: str  # in the zoo, or `module:function`
    origin: str  # where its weights came from, for people
    parameters: int | None  # how many, None if unknown
    image_size: tuple[int, ...]  # (height, width) that it takes, () of a network that takes no images
    crop_pct: float  # of the evaluation crop
    interpolation: str  # of the evaluation resize
    layers: tuple[str, ...]  # tap names in depth order; of a callable known only after the first batch
    num_classes: int  # outputs, 0 where there are none
    forward: Callable[[Any], dict[str, Any]]  # batch of device images (B, H, W, 3) uint8 -> {layer: features}
    # (images, labels or None) -> {layer: gradient of a score, PREDICTED: (B,) class}, or None where there is none
    gradients: Callable[[Any, Any], dict[str, jax.Array]] | None = None
    gradient_of: str = "class"  # what `gradients` is of, "class" or "loss"
    # the network's variables on the devices, an argument so that no program holds them as literals
    constants: PyTree = None
    score: Callable | None = None  # (constants, normalised images, classes) -> (B,) class scores, or None
    # (constants, normalised images, offsets) -> logits, or None; for per-layer gradients
    with_offsets: Callable | None = None
    normalise: Callable | None = None  # uint8 -> what `score` takes
    # batch size -> {layer: shape and dtype of its features}, for offsets
    shapes: Callable[[int], dict[str, jax.ShapeDtypeStruct]] | None = None
    notes: list[str] = field(default_factory=list)  # sentences for the report
    class_names: tuple[str, ...] = ()  # of the outputs, where the weights say so

    @property
    def last(self) -> str:
        """The layer whose tokens are kept: the deepest that has any ("" for the last of a callable).

        Class-attention blocks and pre-logits hold one vector per image, prefixes only a few tokens.
        """
        shapes = self.shapes(1) if self.shapes is not None else {}
        deep = [name for name in self.layers if name not in shapes or len(shapes[name].shape) == 4]
        return (deep or list(self.layers) or [""])[-1]


def matching_taps(model: Any, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Taps by name or pattern; a name that does not exist stays, for the network's own error."""
    taps = models.tap_names(model)
    found = [fnmatch.filter(taps, p) or [p] for p in patterns]
    return tuple(dict.fromkeys(t for names in found for t in names))


def _score_gradients(
    apply: Callable,
    normalise: Callable,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    gradient_of: str,
    constants: PyTree,
    images: jax.Array,
    labels: jax.Array,
) -> dict[str, jax.Array]:
    """{layer: gradient} of each image's highest logit ("class") or cross-entropy ("loss"), and its class."""
    x = normalise(images)
    zeros = {name: jnp.zeros((x.shape[0], *s.shape[1:]), s.dtype) for name, s in shapes.items()}

    def scores(offsets: dict) -> tuple[jax.Array, jax.Array]:
        # A sum over images: each image's score depends on its own offsets only.
        logits = apply(constants, x, offsets, ())[0].astype(jnp.float32)
        predicted = logits.argmax(axis=1)
        if gradient_of == "loss":
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).sum(), predicted
        return logits.max(axis=1).sum(), predicted

    gradients, predicted = jax.grad(scores, has_aux=True)(zeros)
    return {**gradients, PREDICTED: predicted}


def network_features(
    network: Network,
    mesh: Mesh,
    *,
    label: str = "",
    layers: tuple[str, ...] = (),
    gradient_of: str = "class",
    seed: int = 0,
) -> FeatureSource:
    """Features of a registered network, compiled at highest matmul precision.

    Args:
      network: with its weights; initial ones are drawn where it has none.
      mesh: the batch is split over its `data` axis.
      label: for tables; the network's name by default.
      layers: taps or patterns ("block_*"); () for the blocks, or the stages of a
        Swin, as in the papers (`models.depth_taps`): the small values of CaiT's class-attention blocks in the common
        range of the entropy would change every other layer's.
      seed: of random weights.
      gradient_of: "class" (the highest logit of each image) or "loss" (cross-entropy with the label).
    """
    model, spec = network.model, network.spec
    taps = matching_taps(model, layers) or models.depth_taps(models.tap_names(model))
    variables = network.variables
    if variables is None:
        variables = models.init_variables(model, jax.random.key(seed), (1, *network.image_size, 3))
    constants = parallel.put_on_mesh(variables, mesh)

    def normalise(images: jax.Array) -> jax.Array:
        return data.normalise(images, spec.mean, spec.std)

    def apply(constants: PyTree, x: jax.Array, offsets: Mapping[str, jax.Array] | None = None, taps: tuple = taps):
        with jax.default_matmul_precision("highest"):
            return model.apply(constants, x, train=False, taps=taps, offsets=offsets)

    # Raises the TapError of an unknown layer before anything is compiled.
    blank = jax.ShapeDtypeStruct((1, *network.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda c, x: apply(c, x)[1], constants, blank)
    order = tuple(t for t in models.tap_names(model) if t in taps)
    attention = [t for t in order if t.split(".")[-1].split("_")[0] in models.ATTENTION_TAPS]
    if attention:
        raise TapError(
            f'The layer "{attention[0]}" holds attention, (batch, heads, tokens, tokens or channels). Leave it out, or '
            "use a function of your own."
        )
    split = parallel.batch_sharding(mesh)
    forward = jax.jit(lambda c, images: apply(c, normalise(images))[1], in_shardings=(None, split), out_shardings=split)

    gradient_fn = partial(_score_gradients, apply, normalise, shapes, gradient_of)
    gradients = jax.jit(gradient_fn, in_shardings=(None, split, split), out_shardings=split)
    return FeatureSource(
        label=label or spec.name,
        name=spec.name,
        origin=network.origin,
        parameters=int(sum(np.prod(p.shape) for p in jax.tree.leaves(variables["params"]))),
        image_size=network.image_size,
        crop_pct=spec.crop_pct,
        interpolation=spec.interpolation,
        layers=order,
        num_classes=network.num_classes,
        forward=lambda images: forward(constants, images),
        gradients=(lambda images, labels: gradients(constants, images, labels)) if network.num_classes else None,
        gradient_of=gradient_of,
        constants=constants,
        score=lambda c, x, classes: jnp.take_along_axis(apply(c, x, None, ())[0], classes[:, None], axis=1)[:, 0],
        with_offsets=lambda c, x, offsets: apply(c, x, offsets, ())[0],
        normalise=normalise,
        class_names=network.class_names,
        shapes=lambda size: {n: jax.ShapeDtypeStruct((size, *shapes[n].shape[1:]), shapes[n].dtype) for n in order},
    )


def callable_features(
    spec: str,
    *,
    image_size: tuple[int, int],
    label: str = "",
    layers: tuple[str, ...] = (),
    crop_pct: float = 1.0,
    layout: str = "nhwc",
) -> FeatureSource:
    """Features of a user's function `images -> {name: features}`.

    Args:
      spec: "package.module:function". It is called with (B, H, W, 3) fp32 NumPy images in [0, 1], does its own
        normalisation, and answers with arrays (B, N, C) or (B, h, w, C), the same names each time, in depth order. It
        is called as it is: one that uses JAX should jit itself.
      image_size: (height, width) of the images that it gets.
      label: for tables; the function's name by default.
      layers: which names to read, in depth order; () takes all as they come. What `jax.jit` returns is sorted by name,
        so a jitted function with more than ten numbered layers needs this.
      crop_pct: of the evaluation crop.
      layout: "nchw" for maps (B, C, h, w), as PyTorch's convolutions give them. A map that looks like one otherwise is
        warned of.
    """
    check_choice("--layout", layout, LAYOUTS)
    function = _import(spec)
    notes: list[str] = []

    def forward(images: Any) -> dict[str, np.ndarray]:
        pixels = np.asarray(images, np.float32) / 255.0
        try:
            answer = function(pixels)
        except Exception as error:  # the user's function may fail in any way
            raise ConfigError(
                f'--model="{spec}" failed on images of shape {pixels.shape} ({type(error).__name__}: '
                f"{' '.join(str(error).split())[:300]}). It is called with fp32 NumPy images in [0, 1], channels last. "
                "Run it on such an array to see where."
            ) from error
        if not isinstance(answer, Mapping) or not answer:
            raise ShapeError(
                f'"{spec}" answered with {type(answer).__name__}, not with named features. Return a dict {{name: (B, '
                "N, C) or (B, h, w, C)}."
            )
        features = {str(name): _real(spec, str(name), value) for name, value in answer.items()}
        for name, value in features.items():
            if value.ndim not in (3, 4) or value.shape[0] != pixels.shape[0] or 0 in value.shape:
                raise ShapeError(
                    f'The feature "{name}" of "{spec}" has shape {value.shape} for {pixels.shape[0]} images. Features '
                    "are (B, N, C) tokens or (B, h, w, C) maps, channels last. Move the axes, e.g. "
                    "x.transpose(0, 2, 3, 1) of an NCHW map."
                )
            if value.ndim == 4 and layout == "nchw":
                features[name] = np.moveaxis(value, 1, -1)
            elif value.ndim == 4 and _looks_nchw(value.shape, image_size) and not notes:
                notes.append(
                    f'The feature "{name}" of "{spec}" has shape {value.shape}: its last two axes have the shape of '
                    "the image, as in NCHW, and its last axis was taken as channels. If channels come second, add "
                    "--layout=nchw."
                )
                _LOG.warning(notes[0])
        return features

    return FeatureSource(
        label=label or spec.rpartition(":")[2],
        name=spec,
        origin="a Python function",
        parameters=None,
        image_size=image_size,
        crop_pct=crop_pct,
        interpolation="bicubic",
        layers=layers,
        num_classes=0,
        forward=forward,
        notes=notes,
    )


def _looks_nchw(shape: tuple[int, ...], image_size: tuple[int, int]) -> bool:
    """Whether the last two of four axes are in the proportion of the image, and the two before them are not."""
    (_, a, b, c), (height, width) = shape, image_size
    return b * width == c * height and a * width != b * height


def _real(spec: str, name: str, value: Any) -> np.ndarray:
    """`value` as fp32."""
    try:
        if hasattr(value, "detach"):  # a tensor of PyTorch, perhaps with gradients, on a GPU, or of bfloat16
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise TypeError(f"its type is {array.dtype}")
        return array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f'The feature "{name}" of "{spec}" is no array of real numbers ({" ".join(str(error).split())}). Return '
            "(B, N, C) or (B, h, w, C) floats; of complex ones, their parts."
        ) from None


def _import(spec: str) -> Callable:
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may fail in any way
        raise ConfigError(
            f'--model="{spec}": the module "{module_name}" cannot be imported ({type(error).__name__}: '
            f"{' '.join(str(error).split())}). Run from its folder, or add that folder to PYTHONPATH."
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        have = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        raise ConfigError(
            f'--model="{spec}": "{module_name}" has no function "{name}".{did_you_mean(name, have)} It has: '
            f"{in_words(have)}."
        )
    return function


def check_gradient_labels(gradient_of: str, labelled: bool, source: Any, images: str, classes: dict[str, int]) -> None:
    """Raises unless labels are known where the gradient of the loss is asked for.

    Args:
      gradient_of: "loss", "class" or "none".
      labelled: whether the images have labels.
      source: the images.
      images: what the command line called them.
      classes: label of a model -> its number of outputs.
    """
    if gradient_of != "loss":
        return
    if not labelled:
        raise DataError(
            f'--gradients=loss needs labels, but --images="{images}" is a plain folder of images. Give a data set with '
            "val/<label>/*, or use --gradients=class."
        )
    for label, count in classes.items():
        if count and count != len(source.class_names):
            raise ConfigError(
                f"--gradients=loss: {label} has {count} outputs, the images have {len(source.class_names)} classes. "
                "Use the data set of its weights, or --gradients=class."
            )
