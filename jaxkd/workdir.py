"""Whose work directory it is: a run continues only in its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxkd import parallel
from jaxkd.errors import CheckpointError
from jaxkd.recipes import flatten

# Fields that may differ between a run and its continuation: none of them changes what is computed.
FREE_FIELDS = ("data.workers", "log.", "checkpoint.", "eval.batch_size")


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved config into a new work directory, or checks that an old one belongs to the same run.

    Raises:
      CheckpointError: the directory holds another run, or something that is no run.
    """
    fields = {k: json.loads(json.dumps(v, default=str)) for k, v in flatten(config).items()}
    path = workdir / "config.json"
    if path.exists():
        old = flatten(ConfigDict(json.loads(path.read_text())))
        differing = [
            f"{k}: {old.get(k)!r} there, {fields.get(k)!r} now"
            for k in sorted(set(old) | set(fields))
            if not k.startswith(FREE_FIELDS) and _jsonable(old.get(k)) != _jsonable(fields.get(k))
        ]
        if differing:
            raise CheckpointError(
                f'--workdir="{workdir}" belongs to another run. Continuing it with another config would mix two '
                "experiments in one set of checkpoints. Choose a new --workdir, or use the old config. They differ "
                f"in: {'; '.join(differing[:8])}{f'; and {len(differing) - 8} more' if len(differing) > 8 else ''}."
            )
        return
    if workdir.exists() and not workdir.is_dir():
        raise CheckpointError(
            f'--workdir="{workdir}" is a file. A run needs a folder for checkpoints and metrics. Name a new folder.'
        )
    if (workdir / "checkpoints").exists():
        raise CheckpointError(
            f'--workdir="{workdir}" holds checkpoints but no config.json. Whose they are is unknown, and nothing saved '
            "may be lost. Choose a new --workdir."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    if parallel.is_main_host():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(config.to_dict(), indent=2, default=str))
        temporary.replace(path)


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value.to_dict() if isinstance(value, ConfigDict) else value, default=str))


def check_teacher(saved: dict, now: dict, workdir: Path) -> None:
    """Raises CheckpointError unless the teacher of a checkpoint (its metadata) is the present one."""
    for field in ("teacher", "teacher_fingerprint"):
        if saved.get(field) != now.get(field):
            raise CheckpointError(
                f'The checkpoint in "{workdir}" was distilled from another teacher ({field} {saved.get(field)} there, '
                f"{now.get(field)} now). Half of one teacher and half of another is neither. Restore the old weights "
                "file, or choose a new --workdir."
            )
