"""Files with an address, such as gs://bucket/folder/file, read through fsspec: in object stores and elsewhere."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from jaxkd.errors import StorageError, did_you_mean

Result = TypeVar("Result")
Part = tuple[str, int, int]  # name of a file, first byte, number of bytes

WAIT_SECONDS = 60.0  # for one answer; the drivers repeat requests themselves, some of them for many minutes
_PIECE = 16_000_000  # bytes of one request for a large file, so that a slow line has time for it
_AT_ONCE = 256  # requests that are sent together
_THREADS = 32  # for file systems of fsspec that send one request at a time
_RIGHTS = ("forbidden", "access denied", "accessdenied", "permission", "unauthorized", "credential", "anonymous caller")
_AGAIN = "then run the same command again"


class Store:
    """The files of one folder of a store. Picklable; each process connects when it first reads.

    Everything waits at most `WAIT_SECONDS` for an answer, and raises a StorageError that names the file.

    Args:
      address: of the folder, such as gs://bucket/imagenet_shards/train.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")

    def list(self) -> dict[str, int]:
        """Name -> bytes of each file; FileNotFoundError where there is no such folder."""

        def work() -> dict[str, int]:
            system, path = _connect(self.address, os.getpid())
            system.invalidate_cache(path)
            entries = system.ls(path, detail=True)
            return {
                e["name"].rstrip("/").rpartition("/")[2]: int(e["size"] or 0) for e in entries if e["type"] == "file"
            }

        return _answer(work, self.address, absent=FileNotFoundError)

    def read(self, name: str, size: int) -> bytes:
        """The whole file, which has `size` bytes."""
        pieces = [(name, start, min(_PIECE, size - start)) for start in range(0, size, _PIECE)]
        return b"".join(part for piece in pieces for part in self.read_parts([piece]))

    def read_parts(self, parts: Sequence[Part]) -> list[bytes]:
        """The bytes of each part, requested together."""
        found: list[bytes] = []
        for first in range(0, len(parts), _AT_ONCE):
            some = parts[first : first + _AT_ONCE]
            names = sorted({name for name, _, _ in some})
            shown = f"{self.address}/{names[0]}" if len(names) == 1 else self.address
            found += _answer(lambda some=some: _parts(self.address, some), shown)
        return found


@lru_cache(64)
def _connect(address: str, process: int) -> tuple[Any, str]:
    """(file system, path in it) of this process; connections do not survive a fork."""
    import fsspec

    for driver in ("gcsfs", "s3fs", "google.auth"):  # they log tracebacks of what they raise too
        logging.getLogger(driver).setLevel(logging.CRITICAL)
    return fsspec.core.url_to_fs(address)


def _parts(address: str, parts: Sequence[Part]) -> list[bytes]:
    system, folder = _connect(address, os.getpid())
    spans = [(f"{folder}/{name}", start, start + size) for name, start, size in parts]
    if system.async_impl:
        paths, starts, ends = map(list, zip(*spans, strict=True))
        found = system.cat_ranges(paths, starts, ends, on_error="return")
        for part in found:
            if isinstance(part, BaseException):
                raise part
        return found
    return _in_threads(lambda span: system.cat_file(*span), spans)


def _in_threads(function: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
    """`function` of each item. No thread of these holds Python back at exit, as one of a pool would."""
    found: dict[int, Result] = {}
    failed: list[BaseException] = []
    todo = iter(list(enumerate(items)))

    def run() -> None:
        for index, item in todo:
            try:
                found[index] = function(item)
            except BaseException as error:
                failed.append(error)
            if failed:
                return

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(_THREADS, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [found[index] for index in range(len(items))]


def _answer(work: Callable[[], Result], address: str, *, absent: type[Exception] | None = None) -> Result:
    """The result of `work`; its errors become a StorageError, or `absent` where a file is not there."""
    outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    # Not in a pool, whose threads Python would wait for at exit.
    threading.Thread(target=run, daemon=True, name="jaxkd-store").start()
    try:
        result, error = outcome.get(timeout=WAIT_SECONDS)
    except Empty:
        raise StorageError(
            f'"{address}" did not answer within {WAIT_SECONDS:g} seconds. Check the address and the network, {_AGAIN}.'
        ) from None
    if error is None:
        return result
    if absent is not None and isinstance(error, FileNotFoundError):
        raise absent(address) from None
    raise _user_error(error, address) from None


def _user_error(error: BaseException, address: str) -> StorageError:
    protocol = address.partition("://")[0]
    reason = " ".join(str(error).split())[:200]
    shown = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    if isinstance(error, ImportError):
        return StorageError(
            f'"{address}" is read through fsspec and its driver for {protocol}://, which cannot be imported '
            f"({reason}). Install them with pip install 'jaxkd[storage]', or copy the files into a folder."
        )
    if isinstance(error, ValueError) and "protocol" in reason.lower():
        import fsspec

        known = fsspec.available_protocols()
        return StorageError(
            f'"{address}" begins with {protocol}://, which fsspec does not know.{did_you_mean(protocol, known)} '
            "Give an address such as gs://bucket/folder or s3://bucket/folder, or a folder."
        )
    if isinstance(error, FileNotFoundError):
        return StorageError(f'"{address}" is not there. Check the address, or copy the file there again, {_AGAIN}.')
    text = f"{type(error).__name__} {reason}".lower()
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(error, PermissionError) or code in (401, 403) or any(words in text for words in _RIGHTS):
        return StorageError(
            f'"{address}" may not be read with the credentials of this machine ({shown}). Log in (gcloud '
            "auth application-default login, aws configure), or ask the owner of the bucket for the right to read, "
            f"{_AGAIN}."
        )
    return StorageError(f'"{address}" cannot be read ({shown}). Check the address and the network, {_AGAIN}.')
