"""Classifiers as ONNX and StableHLO files: for any batch, of the network's own image size.

Both come from the trace of the network, so that every classifier of the registry has them, also one registered by a
plugin, as long as `graph.py` translates its operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd import models
from jaxkd.data import EvalPreprocess, normalise
from jaxkd.errors import ConfigError
from jaxkd.models.contract import size_pair
from jaxkd.weights.exports.graph import BATCH, IR_VERSION, OPSET, Graph, Tensor, add_function
from jaxkd.weights.exports.onnx import INPUT, require_package

PyTree = Any
LOGITS, PROBABILITIES = "logits", "probabilities"  # names of the output
OUTPUT_KEY = "jaxkd.output"  # in the metadata of a file: which of the two


class Normalisation(NamedTuple):
    """Constants of the part before the network, for files that take pixels: mean and std per channel, in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_classifier(model: nn.Module) -> bool:
    """Whether `model` is a network with one image size and a classifier or the features in front of it."""
    return hasattr(model, "num_classes") and hasattr(model, "img_size")


def program(model: nn.Module, normalisation: Normalisation | None) -> Callable[[PyTree, jax.Array], jax.Array]:
    """The function (variables, images) -> outputs of a file, in fp32.

    Args:
      model: a classifier.
      normalisation: None: images (B, H, W, C) fp32, normalised, give logits (B, K). Else images are uint8 and give
        probabilities.
    """
    plain = {"dtype": jnp.float32, "remat": False, "scan_blocks": False}
    model = model.clone(**{name: value for name, value in plain.items() if hasattr(model, name)})

    def run(variables: PyTree, images: jax.Array) -> jax.Array:
        if normalisation is None:
            return model.apply(variables, images)[0]
        return jax.nn.softmax(model.apply(variables, normalise(images, *normalisation))[0], axis=-1)

    return run


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """(H, W, C) of a classifier's images."""
    return (*size_pair(model.img_size, "img_size"), getattr(model, "in_chans", 3))


def to_onnx(
    model: nn.Module, variables: PyTree, metadata: Mapping[str, str], normalisation: Normalisation | None
) -> Any:
    """The network as an `onnx.ModelProto` that onnx's own checker has passed.

    Its input "image" is (batch, C, H, W): fp32, normalised, and its output "logits" (batch, K); or with a
    `normalisation` uint8, and its output "probabilities".
    """
    require_package("onnx", "ONNX")
    from onnx import TensorProto, checker, helper

    height, width, channels = image_shape(model)
    sizes = (BATCH, channels, height, width)
    dtype, output = (jnp.float32, LOGITS) if normalisation is None else (jnp.uint8, PROBABILITIES)
    run, graph = program(model, normalisation), Graph(INPUT)
    constants = jax.tree.map(np.asarray, variables)
    with models.traced_for("cpu"), jax.default_matmul_precision("highest"):
        result = add_function(
            graph, lambda v, x: run(v, x.transpose(0, 2, 3, 1)), constants, Tensor(INPUT, sizes), output, dtype
        )
    kind = TensorProto.FLOAT if normalisation is None else TensorProto.UINT8
    file = helper.make_model(
        helper.make_graph(
            graph.nodes,
            type(model).__name__,
            [helper.make_tensor_value_info(INPUT, kind, sizes)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, (BATCH, *result.shape[1:]))],
            list(graph.arrays.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxkd",
        doc_string=f"Classifies RGB images, {_input_words(normalisation)}; gives {output}.",
    )
    helper.set_model_props(file, dict(metadata))
    checker.check_model(file, full_check=True)
    return file


def _input_words(normalisation: Normalisation | None) -> str:
    return "normalised as the metadata jaxkd.preprocessing say" if normalisation is None else "pixels from 0 to 255"


def to_stablehlo(model: nn.Module, variables: PyTree, normalisation: Normalisation | None, platforms: tuple) -> bytes:
    """The network as a serialised program; images are (batch, H, W, C), else as in `to_onnx`."""
    from jax import export

    require_package("flatbuffers", "StableHLO")
    constants = jax.tree.map(np.asarray, variables)
    run = program(model, normalisation)
    (batch,) = export.symbolic_shape(BATCH)
    dtype = jnp.float32 if normalisation is None else jnp.uint8
    images = jax.ShapeDtypeStruct((batch, *image_shape(model)), dtype)
    with models.traced_for("cpu"):  # the form that every platform computes
        exported = export.export(jax.jit(lambda images: run(constants, images)), platforms=platforms)(images)
    return bytes(exported.serialize())


def photographs(model: nn.Module, normalisation: Normalisation | None) -> np.ndarray:
    """The two photographs of scikit-learn as inputs of `program`, (2, H, W, C)."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    height, width, channels = image_shape(model)
    crop = EvalPreprocess((height, width), 0.9, "bicubic")
    pixels = np.stack([crop(Image.fromarray(image)) for image in load_sample_images().images])
    pixels = pixels[..., np.arange(channels) % 3]
    return pixels if normalisation else (pixels / 127.5 - 1).astype(np.float32)


def run_onnx(file: str | Path | bytes, images: np.ndarray) -> np.ndarray | None:
    """Outputs of an ONNX file by onnxruntime on the CPU, for images (B, H, W, C); None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    source = file if isinstance(file, bytes) else str(file)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {INPUT: np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2)))})[0]


def require_exportable(model: nn.Module, what: str) -> None:
    """Raises ConfigError unless `model` is a network that can be written as `what`."""
    if not is_classifier(model) and not hasattr(model, "receptive_field"):
        raise ConfigError(
            f"This {type(model).__name__} cannot be written as {what}; networks that classify or enlarge images can. "
            "Write safetensors."
        )
