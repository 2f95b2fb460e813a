"""Super-resolution networks as ONNX and StableHLO files, and a check of such a file against its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxkd.errors import WeightSourceError
from jaxkd.weights.exports import onnx, stablehlo
from jaxkd.weights.exports.onnx import require_upscaler

PyTree = Any
TOLERANCE = 1e-4  # of an exported program against the network, for images in [0, 1]

__all__ = ["check", "require_upscaler", "to_bytes"]


def to_bytes(to: str, model: nn.Module, variables: PyTree, metadata: Mapping[str, str]) -> bytes:
    """The network as "onnx" or "stablehlo"; `metadata` goes into ONNX only."""
    return onnx.onnx_bytes(model, variables, metadata) if to == "onnx" else stablehlo.to_stablehlo(model, variables)


def check(to: str, content: bytes, model: nn.Module, variables: PyTree) -> float | None:
    """Largest difference between an exported program's outputs and the network's on a random image, on the CPU.

    Returns:
      None where nothing runs it: onnxruntime is not installed, or JAX was told to do without its CPU.

    Raises:
      WeightSourceError: it is more than `TOLERANCE`.
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
