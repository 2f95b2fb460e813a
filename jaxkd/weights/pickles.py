"""PyTorch's pickles read as data: arrays, numbers, texts and plain containers, never code.

Files are read with `weights_only=True`. Scalars, dtypes and arrays of NumPy and the containers of Python's standard
library are data too, so they are added to what PyTorch allows; any other class is refused by name.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import math
import pathlib
import types
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # its import also teaches NumPy the name "bfloat16", which safetensors asks it for
import numpy as np

from jaxkd.errors import WeightSourceError

MAX_DEPTH = 50  # of nested containers; the deepest checkpoint of a trainer known to us has 6
MAX_ITEMS = 1_000_000  # of all dicts together, and of one list, set or range that a function builds
LARGE = 2**26  # numbers that a file may hold beyond its bytes: PyTorch does not compress, but a view repeats a number


class Unreadable:
    """An array that cannot be a weight, kept by name so that it matters only where a network needs it.

    Attributes:
      reason: the end of the sentence "The tensor NAME ...".
      shape: of the array, () where it is not known.
    """

    def __init__(self, reason: str, shape: tuple[int, ...] = ()):
        self.reason, self.shape = reason, tuple(shape)


FLOAT8 = "is float8, which jaxkd does not read, because its scale factors are named differently by every program"


def checked_array(array: np.ndarray) -> np.ndarray | Unreadable:
    """Arrays of numbers, floating-point ones as fp32; integers and booleans (buffers) stay as they are."""
    kind, name = array.dtype.kind, array.dtype.name
    if name.startswith(("float8_", "float6_", "float4_")):
        return Unreadable(FLOAT8.replace("float8", name, 1), array.shape)
    if kind == "f" or array.dtype == ml_dtypes.bfloat16:
        return array.astype(np.float32)
    if kind in "iub" or name in ("int4", "uint4"):
        return array
    words = {"c": "holds complex numbers", "U": "holds texts", "S": "holds bytes", "O": "holds Python objects"}
    return Unreadable(f"{words.get(kind, f'has the type {name}')}, not real numbers", array.shape)


def read_pickle(path: Path) -> dict[str, Any]:
    """Content of a `.pth`, `.pt`, `.ckpt`, `.bin` or `.tar` of PyTorch; see `readers.read`.

    Raises:
      WeightSourceError: PyTorch is not installed, the file holds other objects than data, or is no pickle of a dict.
      Exception: of pickle, zip or PyTorch, for a damaged file.
    """
    try:
        import torch
    except ImportError:
        raise WeightSourceError(
            f'"{path}" is a PyTorch pickle, and PyTorch is not installed. '
            "Run `pip install 'jaxkd[torch]'`, or convert the file to .safetensors where there is PyTorch."
        ) from None
    data_classes = _data_classes()
    try:
        with torch.serialization.safe_globals(data_classes), _counted_bytearrays():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _TooManyItems:
        raise _too_many(path) from None
    except Exception as error:  # pickle, zip, and RuntimeError for everything else
        raise _refusal(torch, path, error) or error from None
    if not isinstance(content, dict):
        raise WeightSourceError(
            f'"{path}" holds a {type(content).__name__} and not a dict of arrays. Save the model.state_dict() instead.'
        )
    try:
        return _Plain(torch, path).convert(content)
    except _TooManyItems:
        raise _too_many(path) from None


def _data_classes() -> list[Any]:
    """Classes and functions that build data and nothing else, also under the module names of older releases."""
    from numpy._core import multiarray

    numpy_functions = [multiarray.scalar, multiarray._reconstruct]
    dtypes = {type(np.dtype(code)) for code in np.typecodes["All"]}
    # PyTorch fills lists and dicts only, so their relatives are read as these.
    relatives = [(_as_dict, "collections.defaultdict"), (_as_list, "collections.deque"), (_as_list, "builtins.list")]
    relatives += [(_as_frozenset, "builtins.frozenset"), (_as_range, "builtins.range")]
    # The value of "1e300000" as a fraction takes minutes, so these stay texts.
    relatives += [(_as_text, "decimal.Decimal"), (_as_text, "fractions.Fraction")]
    containers = [argparse.Namespace, types.SimpleNamespace, *relatives]
    values = [slice, uuid.UUID]
    times = [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    paths = [(pathlib.PurePosixPath, f"pathlib{module}.{name}") for module in ("", "._local") for name in _PATHS]
    old_names = [(function, f"numpy.core.multiarray.{function.__name__}") for function in numpy_functions]
    new_names = [(function, f"numpy._core.multiarray.{function.__name__}") for function in numpy_functions]
    return [np.dtype, np.ndarray, *dtypes, *old_names, *new_names, *containers, *values, *times, *paths]


def _as_dict(factory: Any = None) -> dict[Any, Any]:
    return {}


# A few bytes may ask for any number of items, so the functions that build them count.


def _as_list(items: Iterable[Any] = (), maximum: int | None = None) -> list[Any]:
    return list(_few(items))


def _as_frozenset(items: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(_few(items))


def _as_range(start: int, stop: int | None = None, step: int = 1) -> range:
    start, stop = (0, start) if stop is None else (start, stop)
    if step and abs(stop - start) // abs(step) > MAX_ITEMS:
        raise _TooManyItems
    return range(start, stop, step)


def _as_bytearray(content: Any = b"", *encoding: str) -> bytearray:
    if isinstance(content, int) and content > MAX_ITEMS:
        raise _TooManyItems
    return bytearray(content, *encoding)


@contextlib.contextmanager
def _counted_bytearrays() -> Iterator[None]:
    """Context in which PyTorch builds the bytearrays of a pickle with `_as_bytearray`.

    It knows the class by name, before those that a caller allows; without effect where its internals are others.
    """
    try:
        from torch._weights_only_unpickler import _get_allowed_globals

        known = _get_allowed_globals()
        before = known["builtins.bytearray"]
    except (ImportError, KeyError):
        yield
        return
    known["builtins.bytearray"] = _as_bytearray
    try:
        yield
    finally:
        known["builtins.bytearray"] = before


def _as_text(*parts: Any) -> str:
    return "/".join(map(str, parts))


def _few(items: Iterable[Any]) -> list[Any]:
    few = list(itertools.islice(items, MAX_ITEMS + 1))
    if len(few) > MAX_ITEMS:
        raise _TooManyItems
    return few


class _TooManyItems(Exception):
    """A pickle would fill the memory."""


# A path of another operating system is text here, so all of them become pure paths.
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")


def _refusal(torch: Any, path: Path, error: Exception) -> WeightSourceError | None:
    """The error for a file that is whole but holds something else than weights."""
    if isinstance(error, RecursionError):
        return too_deep(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return WeightSourceError(
                    f'"{path}" is a TorchScript program and not a state dict. Save the weights alone: '
                    "torch.save(torch.jit.load(OLD).state_dict(), NEW)."
                )
    unsafe = _unsafe_names(torch, path)
    if not unsafe:
        return None
    return WeightSourceError(
        f'"{path}" holds more than weights: {", ".join(unsafe)}. Reading such objects could run any code, so '
        "jaxkd reads arrays only. If you trust the file, write its arrays to a new one with PyTorch: "
        "torch.save(torch.load(OLD, weights_only=False)['model'], NEW)."
    )


def _unsafe_names(torch: Any, path: Path) -> Iterable[str]:
    """Classes other than data that a pickle would need."""
    try:
        with torch.serialization.safe_globals(_data_classes()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # the file is damaged, which the caller reports
        return ()
    allowed = {entry[1] for entry in _data_classes() if isinstance(entry, tuple)}
    return sorted(set(names) - allowed)


def too_deep(path: Path) -> WeightSourceError:
    """The error for containers nested without end."""
    return WeightSourceError(
        f'"{path}" nests its containers more than {MAX_DEPTH} deep, or one holds itself, which no state dict does. '
        "Save the network's state_dict() alone."
    )


def _too_many(path: Path) -> WeightSourceError:
    return WeightSourceError(
        f'"{path}" asks for more than {MAX_ITEMS:,} items in its containers, which no state dict has. Save the '
        "network's state_dict() alone."
    )


class _Plain:
    """Nested dicts with tensors and arrays -> the same with checked NumPy arrays."""

    def __init__(self, torch: Any, path: Path):
        self.torch, self.path, self.items = torch, path, 0
        self.numbers, self.most = 0, 2 * path.stat().st_size + LARGE  # twice, as weights may be tied
        self.arrays: dict[int, Any] = {}  # a tensor under many names is converted once

    def convert(self, value: Any, depth: int = 0, above: frozenset[int] = frozenset()) -> Any:
        """`value`, below the dicts whose ids are `above`.

        Raises:
          WeightSourceError: dicts are nested without end.
          _TooManyItems: dicts that hold others twice would have too many items when they are written out.
        """
        if isinstance(value, dict):
            if depth > MAX_DEPTH or id(value) in above:
                raise too_deep(self.path)
            self.items += len(value)
            if self.items > MAX_ITEMS:
                raise _TooManyItems
            inner = above | {id(value)}
            return {str(name): self.convert(item, depth + 1, inner) for name, item in value.items()}
        if isinstance(value, self.torch.Tensor | np.ndarray):
            if id(value) not in self.arrays:
                self.arrays[id(value)] = self._array(value)
            return self.arrays[id(value)]
        return value

    def _array(self, value: Any) -> np.ndarray | Unreadable:
        is_tensor = isinstance(value, self.torch.Tensor)
        dense = not is_tensor or (value.layout == self.torch.strided and not value.is_nested)
        shape = tuple(value.shape) if dense else ()
        if dense and not (is_tensor and value.device.type == "meta"):
            self.numbers += math.prod(shape)
        if self.numbers > self.most:
            return Unreadable(f"has the shape {list(shape)}, and the file is too short for it and those before", shape)
        return _from_tensor(value.detach(), self.torch) if is_tensor else checked_array(value)


def _from_tensor(tensor: Any, torch: Any) -> np.ndarray | Unreadable:
    shape, name = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type == "meta":
        return Unreadable("is on the meta device, so the file has its shape but not its numbers", shape)
    if tensor.layout != torch.strided or tensor.is_nested:
        return Unreadable("is sparse or nested; save tensor.to_dense() instead", () if tensor.is_nested else shape)
    if tensor.is_quantized:
        return Unreadable(f"is quantised ({name}); save tensor.dequantize() instead", shape)
    if name.startswith(("float8", "float4")):
        return Unreadable(FLOAT8.replace("float8", name, 1), shape)
    try:
        return checked_array((tensor.float() if tensor.is_floating_point() else tensor.cpu()).numpy())
    except (RuntimeError, TypeError):  # a type that NumPy does not have
        return Unreadable(f"has the type {name}, which NumPy does not have", shape)
