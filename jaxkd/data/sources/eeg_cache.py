"""A corpus of EEG kept on disk, so that a second start maps a file into memory in place of reading gigabytes.

An entry is a folder named after what was read (names, sizes and times of the files, and the arguments). Its manifest,
written last, has the size and SHA-256 of each other file; an entry that differs from it is read anew from the sources.
The folder holds EEG of people: it is made for its owner alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.files import atomic_file, write_atomic
from jaxkd.data.sources.eeg_corpus import EegCorpus
from jaxkd.errors import DataError, storage_error

_LOG = logging.getLogger(__name__)
_VERSION = 1  # of the layout, and of what the readers make of the files
_ARRAYS = ("index", "word_count", "start", "position", "gaze", "eeg")
_TEXTS = ("subject", "corpus", "task", "text", "word")
_MANIFEST = "manifest.json"
_BLOCK = 2**22


def cache_key(files: list[tuple[str, Path]], arguments: dict[str, Any]) -> str:
    """Name of the entry for `files`, (name, path), read with `arguments` (JSON-able)."""
    facts = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files]
    text = json.dumps([_VERSION, facts, arguments], sort_keys=True)
    return f"eeg-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}"


def load_cached(folder: Path, key: str) -> EegCorpus | None:
    """The corpus of an entry, its EEG mapped from the disk; None if there is none or, with a warning, it is damaged."""
    entry = folder / key
    if not (entry / _MANIFEST).exists():
        return None
    try:
        _verify(entry)
        arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r" if name == "eeg" else None) for name in _ARRAYS}
        texts = json.loads((entry / "texts.json").read_text())
        columns = {name: np.array(texts[name], str) for name in ("subject", "corpus", "task")}
        columns |= {name: tuple(texts[name]) for name in ("text", "word")}
        return EegCorpus(**arrays, **columns, facts=texts["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        _LOG.warning(
            'The cache "%s" is damaged (%s). The files are read again, and the cache is replaced.', entry, reason
        )
        return None


def _verify(entry: Path) -> None:
    """Compares each file with the manifest.

    Raises:
      ValueError: one differs.
    """
    manifest = json.loads((entry / _MANIFEST).read_text())
    if set(manifest) != {*(f"{name}.npy" for name in _ARRAYS), "texts.json"}:
        raise ValueError("its manifest lists other files")
    for name, (size, digest) in manifest.items():
        if (entry / name).stat().st_size != size:
            raise ValueError(f"{name} has another size")
        if _digest(entry / name) != digest:
            raise ValueError(f"{name} has another checksum")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def save_cached(folder: Path, key: str, corpus: EegCorpus) -> bool:
    """Writes an entry; returns whether it could. If not, a warning says why, and nothing half written remains."""
    entry = folder / key
    try:
        entry.mkdir(mode=0o700, parents=True, exist_ok=True)
        (entry / _MANIFEST).unlink(missing_ok=True)  # so that a damaged entry is not taken for a new one
        for name in _ARRAYS:
            with atomic_file(entry / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, np.asarray(getattr(corpus, name)), allow_pickle=False)
        texts: dict[str, Any] = {name: [str(value) for value in getattr(corpus, name)] for name in _TEXTS}
        write_atomic(entry / "texts.json", json.dumps(texts | {"facts": corpus.facts}))
        names = [*(f"{name}.npy" for name in _ARRAYS), "texts.json"]
        manifest = {name: ((entry / name).stat().st_size, _digest(entry / name)) for name in names}
        write_atomic(entry / _MANIFEST, json.dumps(manifest, indent=1))
    except OSError as error:
        with contextlib.suppress(OSError):
            for path in entry.iterdir():
                path.unlink()
            entry.rmdir()
        reason = storage_error(error, path=str(entry), kept="The corpus was read without a cache") or error
        _LOG.warning("The cache was not written. %s", reason)
        return False
    return True
