"""Shards in an object store: gs://bucket/folder, s3://bucket/folder and what else fsspec reads.

The index is copied once. Records are requested by their place in a shard, those of a batch together, and kept on a
local disk (`shard_cache`).
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jaxkd.data.files import write_atomic
from jaxkd.data.sources.shard_cache import ShardCache, cache_error, cache_folder
from jaxkd.data.sources.shards import (
    CONVERSION,
    MANIFEST,
    Manifest,
    ShardSource,
    check_index,
    check_sizes,
    damaged_index,
    damaged_shard,
    file_sha256,
)
from jaxkd.data.storage import Store
from jaxkd.errors import DataError

_MAKE = (
    "Make shards with jaxkd shards --in=FOLDER --out=DIR, and copy them: gcloud storage cp -r DIR gs://..., "
    "or aws s3 cp --recursive DIR s3://..."
)
Encoded = bytes  # `bytes` is a method below


class StoredShards(ShardSource):
    """A split out of tar shards in a store; see `Source`. The same records as from a copy in a folder.

    Each record is compared with its CRC-32, whether it comes from the store or from the disk.

    Args:
      root: address of the folder above the splits.
      split: "train" or "val".
      exif: see `Source`.

    Raises:
      StorageError: the store cannot be reached or read.
      DataError: there are no shards, or not those that the manifest names.
    """

    def __init__(self, root: str, split: str, *, exif: bool = False):
        self._store, self.exif = Store(f"{root.rstrip('/')}/{split}"), exif
        address = self._store.address
        self.folder = cache_folder() / "index" / hashlib.sha256(address.encode()).hexdigest()[:16]
        sizes = _list_split(self._store, root, split)
        try:
            write_atomic(self.folder / MANIFEST, self._store.read(MANIFEST, sizes[MANIFEST]))
            manifest = Manifest.load(self.folder, address)
            if manifest.format != "tar":
                raise DataError(
                    f'The shards in "{address}" have the format "{manifest.format}", which is read from folders only. '
                    "Copy them into a folder, or convert the data with --format=tar."
                )
            check_sizes(manifest, sizes, address)
            for name, expected in manifest.index.items():
                self._copy_index(name, expected, sizes)
            self._cache = ShardCache(manifest.shards, address)
        except OSError as error:
            raise cache_error(error) from None
        check_index(self.folder, manifest, address)
        self._describe(manifest, address)
        self._ahead: dict[int, list[Any]] = {}  # record -> [data, how often it is still to be read]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_ahead": {}}

    def _copy_index(self, name: str, expected: str, sizes: dict[str, int]) -> None:
        """Copies a file of the index unless it was copied before."""
        path, address = self.folder / name, f"{self._store.address}/{name}"
        if path.is_file() and file_sha256(path) == expected:
            return
        if name not in sizes:
            raise damaged_index(address)
        data = self._store.read(name, sizes[name])
        if hashlib.sha256(data).hexdigest() != expected:
            raise damaged_index(address)
        write_atomic(path, data)

    def fetch(self, records: Sequence[int]) -> None:
        """Requests the records that are read next, all at once; a record may come more than once."""
        if len(self._ahead) > 8 * max(len(records), 1):  # of batches that were given up
            self._ahead = {}
        wanted, missing = Counter(map(int, records)), []
        for index in wanted:
            data = self._cached(index)
            if data is None:
                missing.append(index)
            else:
                self._ahead[index] = [data, wanted[index]]
        if missing:
            for index, data in zip(missing, self._store.read_parts([self._part(i) for i in missing]), strict=True):
                if self._keep(index, data):
                    self._ahead[index] = [data, wanted[index]]

    def bytes(self, index: int) -> Encoded:
        """See `Source`."""
        index = range(len(self))[index]
        entry = self._ahead.get(index)
        if entry is not None:
            entry[1] -= 1
            if entry[1] <= 0:
                self._ahead.pop(index, None)
            return entry[0]
        data = self._cached(index)
        if data is None:
            (data,) = self._store.read_parts([self._part(index)])
            if not self._keep(index, data):
                path = self._paths[int(self._record(index)["shard"])]
                raise damaged_shard(path, f"has another checksum at record {self.name(index)}")
        return data

    def _part(self, index: int) -> tuple[str, int, int]:
        record = self._record(index)
        name = self._paths[int(record["shard"])].rpartition("/")[2]
        return name, int(record["offset"]), int(record["size"])

    def _cached(self, index: int) -> Encoded | None:
        shard, _, offset, size, crc32 = self._record(index).item()
        return self._cache.get(shard, offset, size, crc32)

    def _keep(self, index: int, data: Encoded) -> bool:
        """Whether the checksum is right; then the record is kept."""
        record = self._record(index)
        if len(data) != record["size"] or zlib.crc32(data) != record["crc32"]:
            return False
        self._cache.put(int(record["shard"]), int(record["offset"]), data)
        return True


def _list_split(store: Store, root: str, split: str) -> dict[str, int]:
    """Name -> bytes of the files of a split, with a manifest among them."""
    try:
        sizes = store.list()
    except FileNotFoundError:
        sizes = None
    if sizes is not None and MANIFEST in sizes:
        return sizes
    if sizes is not None and CONVERSION in sizes:
        raise DataError(
            f'"{store.address}" is the copy of a conversion that is not finished. Run its jaxkd shards '
            "command again, and copy the result."
        )
    try:
        above = Store(root).list()
    except FileNotFoundError:
        above = None
    if above is None:
        raise DataError(f'"{root}" is not there, or is empty. Check bucket and path. {_MAKE}')
    if MANIFEST in above:
        raise DataError(
            f'"{root}" holds the shards of one split, and a run reads two. Give the folder above it: '
            f"{root.rstrip('/').rpartition('/')[0]}."
        )
    raise DataError(f'"{root}" holds no shards of split "{split}": there is no {store.address}/{MANIFEST}. {_MAKE}')
