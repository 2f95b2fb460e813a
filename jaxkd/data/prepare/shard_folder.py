"""The output folder of a conversion into shards, which no other process or conversion may write to."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxkd.data.files import claim_folder, remove_partial_files, write_atomic
from jaxkd.data.sources.shards import CONVERSION, KIND, MANIFEST, NAMES, RECORDS, VERSION, Manifest
from jaxkd.errors import DataError


@contextlib.contextmanager
def claim_shard_folder(folder: Path, split: str, identity: dict[str, Any]) -> Iterator[None]:
    """Locks `folder` for this process, and checks that it is new or holds a part of the same conversion."""
    with claim_folder(folder):
        names = sorted(n for n in os.listdir(folder) if not (n.startswith(".") and n.endswith(".partial")))
        known = next((n for n in (MANIFEST, CONVERSION) if n in names), None)
        index = "|".join(re.escape(n) for n in (MANIFEST, CONVERSION, RECORDS, NAMES))
        allowed = re.compile(rf"{re.escape(split)}-\d{{5}}\.\w+|done-\d{{5}}\.json|{index}")
        others = [n for n in names if not known or not allowed.fullmatch(n)]
        if others:
            raise DataError(
                f'"{folder}" holds "{others[0]}"{f" and {len(others) - 1} more" if len(others) > 1 else ""}, which '
                "no conversion of this data set wrote. Choose a new folder for --out."
            )
        if known:
            before = Manifest.load(folder).source if known == MANIFEST else _read_identity(folder)
            check_unchanged(folder, "another conversion", before, identity)
        else:
            content = {"kind": KIND, "version": VERSION, "split": split, "source": identity}
            write_atomic(folder / CONVERSION, json.dumps(content, indent=1))
        remove_partial_files(folder)
        yield


def check_unchanged(folder: Path, found: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises DataError, which says that `folder` holds `found`, if `before` and `now` differ."""
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    if changed:
        raise DataError(
            f'"{folder}" holds {found}: '
            f"{', '.join(f'{k} was {before.get(k)} and is now {now.get(k)}' for k in changed)}. (Another fingerprint "
            "means that images were added, removed, renamed or changed.) Choose another --out, or delete that folder."
        )


def _read_identity(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        content = json.loads((folder / CONVERSION).read_text())
        if content["kind"] == KIND and content["version"] == VERSION:
            return content["source"]
    raise DataError(
        f'"{folder / CONVERSION}" was not written by this version of jaxkd. Choose another --out, or delete that '
        "folder."
    )
