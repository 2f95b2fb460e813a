"""Files that are complete or absent, and folders that one process at a time may write to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from jaxkd.errors import DataError

LONGEST_NAME = 255  # bytes of a file name on common file systems


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`, which is renamed to `path` at the end of the block.

    The file is flushed to the disk before it is renamed, so that `path` never holds a part of the content, also after a
    power cut. If the block fails, the temporary file is removed and `path` is unchanged. A killed process can leave the
    temporary file behind; see `remove_partial_files`.

    Args:
      path: its folder is made if it does not exist; an existing file is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    if len(os.fsencode(temporary.name)) > LONGEST_NAME:
        temporary = path.with_name(f".{sha256(os.fsencode(path.name)).hexdigest()}.{os.getpid()}.partial")
    try:
        temporary.touch()  # so that a folder that cannot be written to is reported before the work
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a whole file with `atomic_file`; text is encoded as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_partial_files(folder: Path) -> None:
    """Removes what killed processes left behind of `atomic_file` in `folder` and below it."""
    for path in folder.rglob(".*.partial"):
        path.unlink()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the exclusive lock (`flock`) of a file; False without the file, None without locks."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def claim_folder(folder: Path, *, option: str = "--out") -> Iterator[None]:
    """Makes `folder` if it does not exist and locks it, so that only one process at a time works in it.

    The operating system releases the lock however the process ends.

    Args:
      folder: to work in.
      option: the option or field that names it, for errors.
    """
    import fcntl  # not on Windows, where the rest of jaxkd.data can still be imported

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError(f'"{folder}" is a file, or lies in one. Choose another folder for {option}.') from None
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f'Another process is writing into "{folder}" right now. Wait for it, or choose another {option}.'
            ) from None
        yield
    finally:
        os.close(handle)
