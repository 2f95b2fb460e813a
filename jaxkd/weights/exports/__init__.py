"""Super-resolution networks as ONNX and StableHLO files, and a check of such a file against its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxkd.errors import WeightSourceError
from jaxkd.weights.exports import onnx, stablehlo
from jaxkd.weights.exports.onnx import require_upscaler
from jaxkd.weights.files import checked_path, write_whole

PyTree = Any
TOLERANCE = 1e-4  # of an exported program against the network, for images in [0, 1]


def save(
    path: str | Path,
    model: nn.Module,
    variables: PyTree,
    metadata: Mapping[str, str] | None = None,
    *,
    to: str,
    overwrite: bool = False,
) -> float | None:
    """Writes a network with its weights as one file, whole or not at all, after comparing the two.

    Args:
      path: ends in ".onnx" or ".stablehlo"; its folder is made where it is missing.
      model: an MDBN or EDSR.
      variables: `{"params": ...}`.
      metadata: strings by name for an ONNX file, e.g. the network's name.
      to: "onnx" or "stablehlo".
      overwrite: replace a file that is there.

    Returns:
      The largest difference of the outputs; see `check`.
    """
    path = checked_path(path, f".{to}", overwrite=overwrite)
    if to == "onnx":
        content = onnx.to_onnx(model, variables, metadata).SerializeToString(deterministic=True)
    else:
        content = stablehlo.to_stablehlo(model, variables)
    difference = check(to, content, model, variables)
    write_whole(path, content)
    return difference


def check(to: str, content: bytes, model: nn.Module, variables: PyTree) -> float | None:
    """Largest difference between an exported program's outputs and the network's on a random image, on the CPU.

    Returns:
      None where nothing runs it: onnxruntime is not installed, or JAX was told to do without its CPU.
    """
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:
        return None
    image = np.random.default_rng(0).uniform(size=(1, 19, 24, 3)).astype(np.float32)
    with jax.default_device(cpu):
        exported = onnx.run_onnx(content, image) if to == "onnx" else stablehlo.load_stablehlo(content)(image)
        if exported is None:
            return None
        expected = jax.jit(lambda v, x: model.apply(v, x)[0])(jax.tree.map(np.asarray, variables), image)
    difference = float(np.abs(np.asarray(expected) - np.asarray(exported)).max())
    if not difference <= TOLERANCE:
        raise WeightSourceError(
            f"The outputs of the {to} program differ from the network's by {difference:.2g}, more than {TOLERANCE}, "
            "and nothing was written. Check that the weights are finite, and report it if they are."
        )
    return difference
