"""The lock of a work directory: one run at a time trains in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxkd.errors import CheckpointError

FILE = "run.lock"


class WorkdirLock:
    """Holds the exclusive lock of a work directory, from `acquire` to the end of its context.

    The lock is the operating system's (`flock`) on the file run.lock, which says who holds it: the kernel releases it
    however the process ends, and what the file then still says means nothing. Of the processes of one distributed run,
    only the first takes it.

    Args:
      workdir: of the run.
      wanted: whether this process takes the lock at all.

    Attributes:
      warning: a sentence where the file system has no locks; the run then goes on without.
    """

    def __init__(self, workdir: Path, *, wanted: bool = True):
        self._workdir, self._wanted = workdir, wanted
        self._handle: int | None = None
        self.warning = ""

    def acquire(self, *, make: bool = True) -> None:
        """Takes the lock, unless this process has it.

        Args:
          make: whether a work directory that does not exist is made; else there is nothing to lock.

        Raises:
          CheckpointError: another process trains there, which the message names, or the directory cannot be used.
        """
        if not self._wanted or self._handle is not None:
            return
        try:
            if make:
                self._workdir.mkdir(parents=True, exist_ok=True)
            elif not self._workdir.is_dir():
                return
            # Python closes the file in the programs that it starts, so that no worker process holds the lock for long.
            handle = os.open(self._workdir / FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CheckpointError(
                f'--workdir="{self._workdir}" cannot be used ({error.strerror or error}). Name a folder that can be '
                "written to."
            ) from None
        try:
            self._lock(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def _lock(self, handle: int) -> None:
        import fcntl  # not on Windows, where the package can still be imported

        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)  # `is_locked` of a report may have it for a moment
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f'--workdir="{self._workdir}" is in use by another run{_in_words(os.pread(handle, 4096, 0))}. Wait '
                "until it ends, stop it, or choose another --workdir."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            self.warning = (
                f'The file system of "{self._workdir}" has no locks ({error.strerror}), so that a second run there '
                "would not be noticed. Start no other run in this work directory."
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_owner()).encode(), 0)

    def __enter__(self) -> WorkdirLock:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _in_words(content: bytes) -> str:
    """' (process 12 on host a, since ...)'; '' where the holder could not write who it is."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        owner = json.loads(content)
        return f" (process {owner['pid']} on host {owner['host']}, since {owner['since']})"
    return ""
