"""File systems of fsspec over local folders: slow ones, broken ones, and ones that count what is asked of them."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem


class CountedStore(AsyncFileSystem):
    """A folder whose files take `latency` seconds to answer, many at a time, as those of an object store."""

    protocol, cachable = "counted", False
    root, latency = Path(), 0.0
    requests: list[tuple[str, int | None]] = []  # noqa: RUF012
    together = most = 0

    @classmethod
    def reset(cls, root: Path, latency: float = 0.0) -> None:
        cls.root, cls.latency, cls.requests, cls.together, cls.most = root, latency, [], 0, 0

    async def _ls(self, path, detail=True, **_):
        entries = []
        for entry in os.scandir(self.root / path):
            kind = "directory" if entry.is_dir() else "file"
            entries.append({"name": f"{path}/{entry.name}", "size": entry.stat().st_size, "type": kind})
        return entries

    async def _info(self, path, **_):
        size = (self.root / path).stat().st_size
        return {"name": path, "size": size, "type": "file"}

    async def _cat_file(self, path, start=None, end=None, **_):
        cls = type(self)
        cls.requests.append((path.rpartition("/")[2], start))
        cls.together += 1
        cls.most = max(cls.most, cls.together)
        await asyncio.sleep(cls.latency)
        cls.together -= 1
        return (self.root / path).read_bytes()[start:end]


class BrokenStore(LocalFileSystem):
    """Raises `error` at every request, or waits where it is a number of seconds."""

    protocol, cachable = "broken", False
    error: BaseException | float = 0.0
    spared: tuple[str, ...] = ()  # names of files that can be read

    def _fail(self, path: str) -> None:
        if any(name in str(path) for name in self.spared):
            return
        if isinstance(self.error, BaseException):
            raise self.error
        time.sleep(self.error)

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(str(path).replace("broken://", "file://"))

    def ls(self, path, detail=False, **options):
        self._fail("listing")
        return super().ls(path, detail=detail, **options)

    def cat_file(self, path, start=None, end=None, **options):
        self._fail(path)
        return super().cat_file(path, start, end, **options)
