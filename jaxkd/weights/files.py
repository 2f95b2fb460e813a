"""Writers of weight files: whole or not at all, and never over another file unasked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn
from safetensors.numpy import save

from jaxkd.data.files import write_atomic
from jaxkd.errors import WeightSourceError
from jaxkd.weights.basicsr import is_upscaler, to_basicsr
from jaxkd.weights.file_facts import grid_metadata
from jaxkd.weights.timm import to_timm

PyTree = Any


def checked_path(path: str | Path, ending: str, *, overwrite: bool) -> Path:
    """`path`, if a file of this format may be written there; asked before the work starts.

    Args:
      path: "~" means the home folder.
      ending: e.g. ".onnx".
      overwrite: replace a file that is there.
    """
    path = Path(path).expanduser()
    if path.suffix != ending:
        raise WeightSourceError(
            f'"{path}" does not end in {ending}, which tells readers the format. Write "{path.with_suffix(ending)}".'
        )
    if path.is_dir():
        raise WeightSourceError(f'"{path}" is a folder. Name a file in it.')
    if path.exists() and not overwrite:
        raise WeightSourceError(f'"{path}" exists already. Choose another name or pass overwrite=True (--overwrite).')
    return path


def write_whole(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all; makes its folder."""
    try:
        write_atomic(path, content)
    except OSError as error:
        raise WeightSourceError(
            f'"{path}" cannot be written ({error.strerror or error}). Nothing was changed. Free space, repair '
            "permissions or choose another folder."
        ) from None
    return path


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
      metadata: strings by name for the file's header; those of `to_metadata` make --model and --model-arg superfluous.
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
    return write_whole(path, save(state, metadata={"format": "pt", **grid_metadata(model), **(metadata or {})}))
