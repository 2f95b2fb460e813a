"""Networks as ONNX and StableHLO files, and a check of such a file against its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxkd.errors import ConfigError, WeightSourceError
from jaxkd.weights.basicsr import is_upscaler
from jaxkd.weights.exports import classifiers, onnx, stablehlo
from jaxkd.weights.exports.classifiers import Normalisation, require_exportable
from jaxkd.weights.files import checked_path, write_whole

PyTree = Any
TOLERANCE = 1e-4  # of an exported program against the network, for images in [0, 1] and logits up to 1; relative above


def save(
    path: str | Path,
    model: nn.Module,
    variables: PyTree,
    metadata: Mapping[str, str] | None = None,
    *,
    to: str,
    overwrite: bool = False,
    normalisation: Normalisation | None = None,
) -> float | None:
    """Writes a network with its weights as one file, whole or not at all, after comparing the two.

    Args:
      path: ends in ".onnx" or ".stablehlo"; its folder is made where it is missing.
      model: a classifier, MDBN or EDSR.
      variables: `{"params": ...}`.
      metadata: strings by name, kept in the file, e.g. the network's name.
      to: "onnx" or "stablehlo".
      overwrite: replace a file that is there.
      normalisation: of a classifier: the file takes uint8 pixels, normalises them, and gives probabilities. None: it
        takes normalised images and gives logits.

    Returns:
      The largest difference of the outputs; see `check`.

    Raises:
      ConfigError: a network that cannot be written in this format, or a package that is missing.
      WeightSourceError: the file exists, or its outputs differ from the network's.
    """
    path = checked_path(path, f".{to}", overwrite=overwrite)
    require_exportable(model, to)
    facts = dict(metadata or {})
    if is_upscaler(model):
        if normalisation is not None:
            raise ConfigError(
                f"normalisation={normalisation}, but this {type(model).__name__} takes images in [0, 1] as they are. "
                "Leave it out (--with-preprocessing)."
            )
        content = (
            onnx.to_onnx(model, variables, facts).SerializeToString(deterministic=True)
            if to == "onnx"
            else stablehlo.to_stablehlo(model, variables)
        )
    else:
        facts[classifiers.OUTPUT_KEY] = classifiers.PROBABILITIES if normalisation else classifiers.LOGITS
        content = (
            classifiers.to_onnx(model, variables, facts, normalisation).SerializeToString(deterministic=True)
            if to == "onnx"
            else classifiers.to_stablehlo(model, variables, normalisation, stablehlo.PLATFORMS)
        )
    difference = check(to, content, model, variables, normalisation)
    if to == "stablehlo" and facts:
        content = stablehlo.with_metadata(content, facts)
    write_whole(path, content)
    return difference


def check(
    to: str, content: bytes, model: nn.Module, variables: PyTree, normalisation: Normalisation | None = None
) -> float | None:
    """Largest difference between an exported program's outputs and the network's, on the CPU.

    A classifier is compared on two photographs, a super-resolution network on a random image.

    Returns:
      None where nothing runs it: onnxruntime is not installed, or JAX was told to do without its CPU.
    """
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:
        return None
    if is_upscaler(model):
        images = np.random.default_rng(0).uniform(size=(1, 19, 24, 3)).astype(np.float32)
        run_onnx, run = onnx.run_onnx, lambda v, x: model.apply(v, x)[0]
    else:
        images = classifiers.photographs(model, normalisation)
        run_onnx, run = classifiers.run_onnx, classifiers.program(model, normalisation)
    with jax.default_device(cpu), jax.default_matmul_precision("highest"):
        exported = run_onnx(content, images) if to == "onnx" else stablehlo.load_stablehlo(content)(images)
        if exported is None:
            return None
        expected = np.asarray(jax.jit(run)(jax.tree.map(np.asarray, variables), images))
    difference = float(np.abs(expected - np.asarray(exported)).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise WeightSourceError(
            f"The outputs of the {to} program differ from the network's by {difference:.2g}, more than {TOLERANCE}, "
            "and nothing was written. Check that the weights are finite, and report it if they are."
        )
    return difference
