"""Checksums of a checkpoint's files, by which damage is noticed.

The file checksums.json is written into a checkpoint before it gets its name, so that every checkpoint that has a name
has one. Orbax and TensorStore check some of what they read, and pass most flipped bits of an array on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxkd.data.files import write_atomic

FILE = "checksums.json"
ALGORITHM = "sha256"
# Orbax writes the time of completion into the second one after the checksums; no array depends on it.
UNCHECKED = (FILE, "_CHECKPOINT_METADATA")


def write_manifest(folder: Path) -> None:
    """Writes the checksums of all files in `folder` and below it.

    Raises:
      OSError: a file cannot be read, or the checksums cannot be written.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in UNCHECKED)
    names = [p.relative_to(folder).as_posix() for p in paths]
    content = {"algorithm": ALGORITHM, "files": dict(zip(names, _digests(paths), strict=True))}
    with (folder / FILE).open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def has_manifest(folder: Path) -> bool:
    """Whether the checkpoint has checksums; those of older versions of jaxkd have none."""
    return (folder / FILE).is_file()


def is_as_written(folder: Path, name: str) -> bool:
    """Whether a file of a checkpoint has its checksum; True where the checkpoint has no checksum of it.

    Raises:
      OSError: the file cannot be read.
    """
    digest = _listed(folder).get(name)
    return digest is None or _digests([folder / name]) == [digest]


def replace_digest(folder: Path, name: str) -> None:
    """Writes the checksum of a file that was changed on purpose, unless the checkpoint has no checksum of it.

    Raises:
      OSError: the file cannot be read, or the checksums cannot be written.
    """
    files = _listed(folder)
    if name in files:
        content = {"algorithm": ALGORITHM, "files": files | {name: _digests([folder / name])[0]}}
        write_atomic(folder / FILE, json.dumps(content, indent=1))


def _listed(folder: Path) -> dict[str, str]:
    """File name -> checksum; {} without checksums, or where their file is damaged, which `find_damage` says."""
    try:
        content = json.loads((folder / FILE).read_bytes())
        return dict(content["files"]) if content["algorithm"] == ALGORITHM else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def find_damage(folder: Path, items: Iterable[str] = ()) -> str:
    """The first file of a checkpoint that is not as it was written, in words; "" if all are, or without checksums.

    Args:
      folder: of the checkpoint.
      items: look only at the files in these folders of it; () is all.

    Raises:
      OSError: a file that exists cannot be read, which need not be damage: no permission, too many open files.
    """
    if not has_manifest(folder):
        return ""
    try:
        content = json.loads((folder / FILE).read_bytes())
        if content["algorithm"] != ALGORITHM:
            return f"{FILE} names the checksum {content['algorithm']!r}, which is not known"
        files = {str(name): str(digest) for name, digest in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{FILE} is no list of checksums ({type(error).__name__})"
    wanted = tuple(items)
    names = sorted(name for name in files if not wanted or name.split("/")[0] in wanted)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        return f"the file {missing[0]} is missing"
    if not files or {name.split("/")[0] for name in names} < set(wanted):
        return f"{FILE} lacks files"
    digests = _digests([folder / name for name in names])
    changed = [name for name, digest in zip(names, digests, strict=True) if digest != files[name]]
    return f"the file {changed[0]} is not as it was written" if changed else ""


def _digests(paths: list[Path]) -> list[str]:
    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, ALGORITHM).hexdigest()

    with ThreadPoolExecutor(4) as pool:  # hashing releases Python's lock
        return list(pool.map(digest, paths))
