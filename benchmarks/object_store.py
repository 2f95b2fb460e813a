"""Images a second out of shards: from a folder, and from a store that takes a while to answer.

    python benchmarks/object_store.py --latency=0.03

Reads batches in random order in one process and decodes nothing. The store is simulated: a folder whose files answer
after `--latency` seconds, many at a time, as gcsfs and s3fs do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
from fsspec.asyn import AsyncFileSystem

from jaxkd.data import open_source
from jaxkd.data.prepare.shards import ShardOptions, convert
from jaxkd.data.sources.folder import FolderSource
from jaxkd.data.sources.registry import Source, fetch_records


class SlowStore(AsyncFileSystem):
    """A folder as an object store."""

    protocol = "slow"
    root, latency = Path(), 0.0

    async def _ls(self, path, detail=True, **_):
        entries = [(entry.name, entry.stat().st_size) for entry in os.scandir(self.root / path)]
        return [{"name": f"{path}/{name}", "size": size, "type": "file"} for name, size in entries]

    async def _cat_file(self, path, start=None, end=None, **_):
        await asyncio.sleep(self.latency)
        with open(self.root / path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


def write_images(folder: Path, count: int, size: int) -> None:
    """`count` files of random bytes below folder/train; nothing decodes them."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "train" / label).mkdir(parents=True)
    for index in range(count):
        (folder / "train" / "ab"[index % 2] / f"{index}.jpg").write_bytes(rng.bytes(size))


def images_per_second(source: Source, order: np.ndarray, batch: int, *, together: bool) -> float:
    """Reads all records in `order`."""
    start = time.perf_counter()
    for first in range(0, len(order), batch):
        records = order[first : first + batch].tolist()
        if together:
            fetch_records(source, records)
        for record in records:
            source.bytes(record)
    return len(order) / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--bytes", type=int, default=110_000, help="of an image")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--latency", type=float, default=0.03, help="seconds until a request is answered")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "images", options.images, options.bytes)
        convert(FolderSource(root / "images", "train"), root / "shards" / "train", ShardOptions(shard_bytes=20_000_000))
        os.environ["JAXKD_DATA_CACHE"] = str(root / "cache")
        fsspec.register_implementation("slow", SlowStore)
        SlowStore.root, SlowStore.latency = root, options.latency
        order = np.random.default_rng(1).permutation(options.images)
        print("| source | images/s |\n| --- | --- |")

        def measure(name: str, spec: str, gigabytes: int, together: bool, order: np.ndarray = order) -> None:
            os.environ["JAXKD_DATA_CACHE_GB"] = str(gigabytes)
            speed = images_per_second(open_source(spec, "train"), order, options.batch, together=together)
            print(f"| {name} | {speed:,.0f} |", flush=True)

        measure("folder", str(root / "shards"), 0, False)
        measure("store, one image after another", "slow://shards", 0, False, order[: options.batch * 2])
        measure("store, a batch together, nothing kept", "slow://shards", 0, True)
        measure("store, a batch together, first epoch with the cache", "slow://shards", 50, True)
        measure("store, second epoch, all kept", "slow://shards", 50, True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
