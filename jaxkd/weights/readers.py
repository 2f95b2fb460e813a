"""Readers of weight files: arrays by name, without PyTorch wherever the format allows it.

`.safetensors` (also sharded over files by an index) and `.npz` need nothing beyond jaxkd. PyTorch's own pickles
(`.pth`, `.pt`, `.ckpt`, `.bin`, `.tar`) are read as data (see `pickles.py`), and only where PyTorch is installed.
Floating-point arrays come back as fp32, whatever the file holds.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from jaxkd.errors import JaxkdError, WeightSourceError, did_you_mean
from jaxkd.weights.pickles import FLOAT8, Unreadable, checked_array, read_pickle, too_deep

# Names, each with an array, or with the next level of a training checkpoint.
Nested = dict[str, Any]

PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
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
      name -> array, fp32 where it was of any floating-point type, or `Unreadable`; of a training checkpoint nested
      dicts of these, and whatever else lies beside the weights.
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


def holds_weights(folder: Path) -> bool:
    """Whether a folder has one file of weights that `read` would take."""
    try:
        return _in_folder(folder).is_file()
    except WeightSourceError:
        return False


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
    arrays: Nested = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 -- not a dict
                part = file.get_slice(name)
                code, shape = part.get_dtype(), tuple(part.get_shape())
                if code in _SAFETENSORS_CODES:
                    arrays[name] = checked_array(file.get_tensor(name))
                elif code.startswith("F8"):
                    arrays[name] = Unreadable(FLOAT8.replace("float8", f"float8 ({code})", 1), shape)
                else:
                    arrays[name] = Unreadable(f"has the type {code}, which jaxkd does not read", shape)
    except Exception as error:  # safetensors has one error of its own, and NumPy's for types that it does not know
        raise _damaged(path, error) from error
    return arrays


# Types of safetensors that NumPy, with ml_dtypes, can hold and that mean plain numbers.
_SAFETENSORS_CODES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


def read_metadata(path: Path) -> dict[str, str]:
    """Texts by name in the header of a `.safetensors` file; of an index those of its first file, of others none."""
    path = _in_folder(path) if path.is_dir() else path
    if path.name.endswith(INDEX):
        path = path.parent / shards(path)[0]
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # as in `_read_safetensors`
        raise _damaged(path, error) from error


def mentions(path: Path, name: str) -> bool:
    """Whether a file or folder of weights, or the index of one, has an array whose name ends with `name`.

    Every format holds names as plain text, so that nothing is read but bytes.
    """
    path = _in_folder(path) if path.is_dir() else path
    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name.encode()) >= 0


def _read_npz(path: Path) -> Nested:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: checked_array(file[name]) for name in file.files}
    except Exception as error:  # zip, zlib and NumPy each have their own
        raise _damaged(path, error) from error


def _read_pickle(path: Path) -> Nested:
    try:
        return read_pickle(path)
    except JaxkdError:
        raise
    except RecursionError:
        raise too_deep(path) from None
    except Exception as error:  # pickle, zip, and RuntimeError for everything else
        raise _damaged(path, error) from error


def _weight_map(index: Path) -> dict[str, str]:
    """Array name -> file name, by the index of a sharded checkpoint.

    Raises:
      WeightSourceError: the file is no such index.
    """
    try:
        content = json.loads(index.read_text())
    except (ValueError, RecursionError) as error:
        raise _damaged(index, error) from error
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise WeightSourceError(
            f'"{index}" cannot be read as the index of a sharded checkpoint: it has no object "weight_map" of array '
            "names and file names. Fetch it again, or give one of the files beside it."
        )
    for name, file in files.items():
        if not isinstance(file, str) or Path(file).name != file or "\0" in file:
            raise WeightSourceError(
                f'"{index}" names {file!r} as the file of "{name}", which is no name of a file beside it. Fetch the '
                "index again."
            )
    return files


def shards(index: Path) -> list[str]:
    """File names in the index of a sharded checkpoint."""
    return sorted(set(_weight_map(index).values()))


def _read_sharded(index: Path) -> Nested:
    files, content = _weight_map(index), {}
    for name in sorted(set(files.values())):
        shard = index.parent / name
        reader = _reader(shard)
        if reader is None or not shard.is_file():
            raise WeightSourceError(
                f'"{shard}" is missing. The index "{index.name}" spreads the weights over several files and names this '
                f"one. Put all of them into one folder: {', '.join(shards(index))}."
            )
        content[name] = reader(shard)
    for array, name in files.items():
        if array not in content[name]:
            raise WeightSourceError(
                f'"{index.parent / name}" holds no array "{array}", which the index "{index.name}" expects there. They '
                "are of different checkpoints: fetch all of them again."
            )
    return {array: content[name][array] for array, name in files.items()}
