"""Weights to a file that timm (BasicSR), jaxkd and the Hugging Face Hub read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn
from safetensors.numpy import save

from jaxkd.weights.basicsr import is_upscaler, to_basicsr
from jaxkd.weights.files import checked_path, write_whole
from jaxkd.weights.timm import to_timm

PyTree = Any


def save_safetensors(
    path: str | Path,
    model: nn.Module,
    variables: PyTree,
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes `variables` with timm's (BasicSR's) names and layouts, whole or not at all.

    Args:
      path: ends in ".safetensors"; its folder is made where it is missing.
      model: the network that the variables belong to.
      variables: `{"params": ...}`.
      metadata: strings by name for the file's header, e.g. the network's name.
      overwrite: replace a file that is there.

    Returns:
      The path.

    Raises:
      WeightSourceError: the file exists, or has another ending.
      WeightMismatchError: the variables belong to another network.
    """
    path = checked_path(path, ".safetensors", overwrite=overwrite)
    state = (to_basicsr if is_upscaler(model) else to_timm)(model, variables)
    # "pt" says that names and layouts are PyTorch's; some readers insist on it.
    return write_whole(path, save(state, metadata={"format": "pt", **(metadata or {})}))
