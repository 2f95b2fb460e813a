"""The folder that a conversion into shards writes: it owns the folder alone, and files appear in it complete."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxkd.data.sources.shards import CONVERSION, KIND, MANIFEST, NAMES, RECORDS, VERSION, Manifest
from jaxkd.errors import DataError


@contextlib.contextmanager
def claimed(folder: Path, split: str, identity: dict[str, Any]) -> Iterator[None]:
    """Makes sure that `folder` belongs to this conversion, and for now to this process alone.

    Args:
      folder: made if it does not exist; what a killed process left half written (`*.partial`) is written anew.
      split: its shards are called `<split>-00000.*`.
      identity: what is converted and how; equal to the former one where a conversion is continued.

    Raises:
      DataError: it is in use, or holds something else or another conversion.
    """
    import fcntl  # not on Windows, where the rest of jaxkd.data can still be imported

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError(f'"{folder}" is a file, or lies in one. Shards need a folder. Choose another --out.') from None
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it however the process ends
        except BlockingIOError:
            raise DataError(
                f'Another conversion is writing into "{folder}" right now. Two would spoil the files of each other. '
                "Wait for it, or choose another --out."
            ) from None
        there = sorted(os.listdir(folder))
        known = next((n for n in (MANIFEST, CONVERSION) if n in there), None)
        names = "|".join(re.escape(n) for n in (MANIFEST, CONVERSION, RECORDS, NAMES))
        ours = rf"({re.escape(split)}-\d{{5}}\.\w+|done-\d{{5}}\.json|{names})(\.partial)?"
        foreign = [n for n in there if not re.fullmatch(ours if known else rf"{CONVERSION}\.partial", n)]
        if foreign:
            raise DataError(
                f'"{folder}" holds "{foreign[0]}"{f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""}, which '
                "no conversion of this data set wrote. Shards are not mixed with other files, and nothing is "
                "overwritten. Choose a new folder for --out."
            )
        if known:
            _check_same(folder, Manifest.load(folder).source if known == MANIFEST else _read_identity(folder), identity)
        if not known:
            content = {"kind": KIND, "version": VERSION, "split": split, "source": identity}
            write(folder / CONVERSION, json.dumps(content, indent=1).encode())
        yield
    finally:
        os.close(handle)


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    if changed:
        raise DataError(
            f'"{folder}" holds another conversion: '
            f"{', '.join(f'{k} was {before.get(k)} and is now {now.get(k)}' for k in changed)}. Its shards would not "
            "fit together with new ones, and are not overwritten. (Another fingerprint means that images were added, "
            "removed, renamed or changed.) Choose another --out, or delete that folder."
        )


def _read_identity(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        content = json.loads((folder / CONVERSION).read_text())
        if content["kind"] == KIND and content["version"] == VERSION:
            return content["source"]
    raise DataError(
        f'"{folder / CONVERSION}" was not written by this version of jaxkd. It says what the unfinished conversion in '
        "that folder is of. Choose another --out, or delete that folder."
    )


def partial(path: Path) -> Path:
    """What a file is called until it is complete."""
    return path.with_name(f"{path.name}.partial")


def write(path: Path, data: bytes) -> None:
    """Writes a file that is there completely or not at all."""
    partial(path).write_bytes(data)
    commit(path)


def commit(path: Path) -> None:
    """Gives `path`.partial its final name, safe against a power cut."""
    _sync(partial(path))
    os.replace(partial(path), path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
