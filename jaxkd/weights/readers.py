"""Readers of weight files: arrays by name, without PyTorch wherever the format allows it.

`.safetensors` (also sharded over files by an index) and `.npz` need nothing beyond jaxkd. PyTorch's own pickles
(`.pth`, `.pt`, `.bin`, `.tar`) are read with `weights_only=True`, so that a file cannot run code, and only where
PyTorch is installed. Floating-point arrays come back as fp32, whatever the file holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes  # its import also teaches NumPy the name "bfloat16", which safetensors asks it for
import numpy as np
from safetensors import safe_open

from jaxkd.errors import WeightSourceError, did_you_mean

# Names, each with an array, or with the next level of a training checkpoint.
Nested = dict[str, Any]

PICKLES = (".pth", ".pt", ".bin", ".tar")
SUFFIXES = (".safetensors", ".npz", *PICKLES)
INDEX = ".index.json"

# In a folder, the first of these that is there.
IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def read(path: Path) -> Nested:
    """Everything that a file or folder of weights holds.

    Args:
      path: a file with one of `SUFFIXES`, the index of a sharded checkpoint (`*.safetensors.index.json`), or a folder
        that holds one of these.

    Returns:
      name -> array, fp32 where it was of any floating-point type; of a training checkpoint nested dicts of these, and
      whatever else lies beside the weights.
    """
    path = _in_folder(path) if path.is_dir() else path
    if not path.is_file():
        raise WeightSourceError(not_found(str(path)))
    if path.name.endswith(INDEX):
        return _read_sharded(path)
    reader = _reader(path)
    if reader is None:
        raise WeightSourceError(
            f'"{path}" is not of a known format by its ending. Rename or convert it to one of {", ".join(SUFFIXES)} or '
            f"*.safetensors{INDEX}."
        )
    return reader(path)


def not_found(source: str, why: str = "") -> str:
    """Sentences that say that the path `source` does not exist, and what lies where it should be."""
    path = Path(source).expanduser()
    folder = next((p for p in path.parents if p.is_dir()), Path())
    missing = path.relative_to(folder).parts[0] if path.is_relative_to(folder) else path.name
    names = sorted(p.name for p in folder.iterdir())
    near = did_you_mean(missing, names)
    if not near:
        weights = [n for n in names if n.endswith((*SUFFIXES, INDEX))]
        near = f" It holds the weights {', '.join(weights[:5])}." if weights else ""
    return (
        f'The weights "{source}" do not exist: the folder "{folder.resolve()}" has no "{missing}".{near} '
        f"{why + ' ' if why else ''}Give the path of a file ({', '.join(SUFFIXES)}), of a folder that holds one, or a "
        'Hugging Face id such as "timm/cait_s24_224.fb_dist_in1k".'
    )


def is_weights_name(source: str) -> bool:
    """Whether a source is spelt like a file of weights."""
    return source.lower().endswith((*SUFFIXES, INDEX))


def _reader(path: Path) -> Callable[[Path], Nested] | None:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return _read_pickle
    return {".safetensors": _read_safetensors, ".npz": _read_npz}.get(suffix)


def _in_folder(folder: Path) -> Path:
    """The file of weights in `folder`: a customary name, else the only one there is."""
    for name in IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.is_file() and p.name.lower().endswith((*SUFFIXES, INDEX)))
    if len(found) == 1:
        return found[0]
    what = f"holds {len(found)} files of weights" if found else "holds no weights"
    why = (
        f"Which one is meant cannot be guessed: {', '.join(p.name for p in found[:8])}."
        if found
        else f"A folder of weights has one of {', '.join(IN_FOLDER)}, or a single file ({', '.join(SUFFIXES)})."
    )
    raise WeightSourceError(f'The folder "{folder}" {what}. {why} Give the path of the file itself.')


def _as_float32(array: np.ndarray) -> np.ndarray:
    """fp16, bf16 and fp64 -> fp32; integers and booleans (buffers) stay."""
    is_float = np.issubdtype(array.dtype, np.floating) or array.dtype == ml_dtypes.bfloat16
    return array.astype(np.float32) if is_float else array


def _damaged(path: Path, error: Exception) -> WeightSourceError:
    """The error for a file that its reader refuses, with what it is instead where that can be seen."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    why = f"The file is incomplete or of another format ({reason})."
    if start.startswith(b"version https://git-lfs"):
        why = "It is a Git LFS pointer, a few lines of text in place of the weights (`git lfs pull` gets them)."
    elif start[:9].lower().startswith((b"<!doctype", b"<html")):
        why = "It is a web page, probably an error message saved in place of the weights."
    return WeightSourceError(
        f'"{path}" ({path.stat().st_size} bytes) cannot be read as {path.suffix}. {why} Fetch it again and compare its '
        "size with the original's."
    )


def _read_safetensors(path: Path) -> Nested:
    try:
        with safe_open(path, framework="np") as file:
            return {name: _as_float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 -- not a dict
    except Exception as error:  # safetensors has one error of its own, and NumPy's for types that it does not know
        raise _damaged(path, error) from error


def _read_npz(path: Path) -> Nested:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: _as_float32(file[name]) for name in file.files}
    except Exception as error:  # zip, zlib and NumPy each have their own
        raise _damaged(path, error) from error


def shards(index: Path) -> list[str]:
    """File names in the index of a sharded checkpoint."""
    try:
        names = json.loads(index.read_text())["weight_map"].values()
        return sorted(set(names))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(index, error) from error


def _read_sharded(index: Path) -> Nested:
    arrays: Nested = {}
    for name in shards(index):
        shard = index.parent / name
        reader = _reader(shard)
        if reader is None or not shard.is_file():
            raise WeightSourceError(
                f'"{shard}" is missing. The index "{index.name}" spreads the weights over several files and names this '
                f"one. Put all of them into one folder: {', '.join(shards(index))}."
            )
        arrays.update(reader(shard))
    return arrays


def _arrays(value: Any, is_tensor: Callable[[Any], bool]) -> Any:
    """Nested dicts with tensors -> the same with NumPy arrays; bf16 has no NumPy counterpart in PyTorch."""
    if isinstance(value, dict):
        return {str(name): _arrays(item, is_tensor) for name, item in value.items()}
    if is_tensor(value):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    return value


def _read_pickle(path: Path) -> Nested:
    try:
        import torch
    except ImportError:
        raise WeightSourceError(
            f'"{path}" is a PyTorch pickle, and PyTorch is not installed. '
            "Run `pip install 'jaxkd[torch]'`, or convert the file to .safetensors where there is PyTorch."
        ) from None
    import argparse

    try:
        # The published DeiT, MAE and CaiT checkpoints carry their command line in a Namespace; it is only data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, and RuntimeError for everything else
        unsafe = _unsafe_names(torch, path)
        if unsafe:
            raise WeightSourceError(
                f'"{path}" holds more than weights: {", ".join(unsafe)}. Reading such objects could run any code, so '
                "jaxkd reads arrays only. If you trust the file, write its arrays to a new one with PyTorch: "
                "torch.save(torch.load(OLD, weights_only=False)['model'], NEW)."
            ) from error
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise WeightSourceError(
            f'"{path}" holds a {type(content).__name__} and not a dict of arrays. Save the model.state_dict() instead.'
        )
    return _arrays(content, lambda value: isinstance(value, torch.Tensor))


def _unsafe_names(torch: Any, path: Path) -> Iterable[str]:
    """Classes other than arrays that a pickle would need."""
    import argparse

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # the file is damaged, which the caller reports
        return ()
