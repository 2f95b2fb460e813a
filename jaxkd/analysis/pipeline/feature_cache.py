"""Caches for the features of a chunk until its range is known: on the devices, or in a scratch file."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np


class DeviceFeatureCache:
    """Keeps the arrays as they are."""

    def __init__(self) -> None:
        self._parts: list[dict[str, jax.Array]] = []

    def put(self, features: dict[str, jax.Array]) -> None:
        """Adds the features of the next micro-batch."""
        self._parts.append(features)

    def get(self, part: int, name: str) -> jax.Array:
        """A layer of a micro-batch."""
        return self._parts[part][name]

    def forget(self, part: int) -> None:
        """The micro-batch is not needed any more."""
        self._parts[part] = {}

    def clear(self) -> None:
        """The chunk is done."""
        self._parts = []


class FileFeatureCache:
    """Writes each layer of each micro-batch to a file, over the chunk before; memory holds one layer at a time."""

    def __init__(self, path: Path):
        self._path, self._file = path, path.open("w+b")
        self._places: list[dict[str, tuple[int, tuple[int, ...], np.dtype]]] = []

    def put(self, features: dict[str, jax.Array]) -> None:
        """See `DeviceFeatureCache`."""
        places = {}
        for name, value in features.items():
            array = np.ascontiguousarray(value)
            places[name] = (self._file.tell(), array.shape, array.dtype)
            self._file.write(array.data)
        self._places.append(places)

    def get(self, part: int, name: str) -> np.ndarray:
        """See `DeviceFeatureCache`."""
        offset, shape, dtype = self._places[part][name]
        self._file.flush()
        return np.fromfile(self._path, dtype, int(np.prod(shape)), offset=offset).reshape(shape)

    def forget(self, part: int) -> None:
        """See `DeviceFeatureCache`."""

    def clear(self) -> None:
        """See `DeviceFeatureCache`."""
        self._file.seek(0)
        self._places = []

    def close(self) -> None:
        """Deletes the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)
