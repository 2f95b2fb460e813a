"""Records of shards from an object store, kept on a local disk after they were read once.

    CACHE/index/<hash of the address>/     the manifest and the index of each set of shards
    CACHE/shards/<SHA-256>.tar             as large as the shard, with holes where no record was read yet

A record is known by its CRC-32: a hole, a half-written record and a damaged disk all mean that it is read again.
Nothing is locked, as all processes of a machine write the same bytes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaxkd.config.paths import user_cache_folder, user_path
from jaxkd.errors import ConfigError, StorageError, check_range

FOLDER, SIZE = "JAXKD_DATA_CACHE", "JAXKD_DATA_CACHE_GB"
DEFAULT_GB = 50.0
_OPEN_FILES = 64
_LOG = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder of indices and records.

    Raises:
      ConfigError: no `JAXKD_DATA_CACHE`, and no home folder.
    """
    given = os.environ.get(FOLDER, "")
    if given:
        return user_path(given, FOLDER)
    home = user_cache_folder()
    if home is None:
        raise ConfigError(f"There is no home folder for what is read from object stores. Set {FOLDER} to a folder.")
    return home / "data"


def cache_error(error: OSError) -> StorageError:
    """The error where the folder cannot be written."""
    return StorageError(
        f'The cache of object stores, "{cache_folder()}", cannot be written ({error.strerror}). Set {FOLDER} to a '
        "folder with space."
    )


class ShardCache:
    """Local files for as many shards as fit. Picklable; each process opens them when it first needs them.

    Which shards these are is decided once: records are read in random order over all of them, where dropping what was
    used longest ago would drop what is needed next.

    Args:
      shards: `{"file", "bytes", "sha256"}` of each, as in the manifest.
      name: of the data, for the note on stderr.
    """

    def __init__(self, shards: Sequence[dict[str, Any]], name: str):
        folder = cache_folder() / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [str(folder / f"{s['sha256']}{os.path.splitext(s['file'])[1]}") for s in shards]
        sizes = [s["bytes"] for s in shards]
        there = {entry.path: entry.stat() for entry in os.scandir(folder)}
        own = [p in there for p in self._paths]
        others = sum(stat.st_size for path, stat in there.items() if path not in set(self._paths))
        held = sum(stat.st_blocks * 512 for path, stat in there.items() if path in set(self._paths))
        limit = cache_bytes()
        room = min(limit - others, held + shutil.disk_usage(folder).free // 2)
        self._kept, new = set[int](), 0
        for index in sorted(range(len(shards)), key=lambda i: not own[i]):  # those of an earlier run first
            if sizes[index] <= room:
                room -= sizes[index]
                self._kept.add(index)
                new += not own[index]
                _reserve(self._paths[index], sizes[index])
        if new:
            size = sum(sizes[i] for i in self._kept)
            _LOG.warning(
                "%s: what is read of %d of its %d shards is kept in %s (%.3g GB when all is read). %s names another "
                "folder, %s the size of all in it (%g; 0 keeps nothing).",
                *(name, len(self._kept), len(shards), folder, size / 1e9, FOLDER, SIZE, limit / 1e9),
            )

    def get(self, shard: int, offset: int, size: int, crc32: int) -> bytes | None:
        """A record, or None where it was not read yet."""
        if shard not in self._kept:
            return None
        with contextlib.suppress(OSError):
            data = os.pread(_open(self._paths[shard], os.getpid()).handle, size, offset)
            if len(data) == size and zlib.crc32(data) == crc32:
                return data
        return None

    def put(self, shard: int, offset: int, data: bytes) -> None:
        """Keeps a record whose checksum is right; a full disk keeps nothing more."""
        if shard not in self._kept:
            return
        try:
            os.pwrite(_open(self._paths[shard], os.getpid()).handle, data, offset)
        except OSError as error:
            self._kept = set()
            _LOG.warning("%s: no more records are kept (%s).", self._paths[shard], error.strerror)


def cache_bytes() -> int:
    """The most that the cache may hold: `JAXKD_DATA_CACHE_GB`, in 10^9 bytes."""
    text = os.environ.get(SIZE, "") or str(DEFAULT_GB)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    check_range(SIZE, text if math.isnan(value) else value, 0, 1e6)
    return int(value * 1e9)


def _reserve(path: str, size: int) -> None:
    """A file of `size` bytes that takes no space yet."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(handle).st_size != size:
            os.ftruncate(handle, size)
    finally:
        os.close(handle)


class _Open:
    """An open file; see `_TarShard` on positional reads."""

    def __init__(self, path: str):
        self.handle = -1
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def __del__(self, close: Any = os.close) -> None:
        if self.handle >= 0:
            close(self.handle)


@lru_cache(_OPEN_FILES)
def _open(path: str, process: int) -> _Open:
    return _Open(path)
