"""Claims a work directory: a run continues only in its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxkd import parallel
from jaxkd.config.fields import base, flatten
from jaxkd.data.files import write_atomic
from jaxkd.errors import CheckpointError
from jaxkd.train import read_config

# Fields that may differ between a run and its continuation: none of them changes what is computed.
FREE_FIELDS = ("data.workers", "log.", "checkpoint.", "dynamics.", "eval.batch_size")


def checkpoint_steps(workdir: Path) -> list[int]:
    """Steps of the finished checkpoints of `workdir`, ascending; [] where the folder cannot be read."""
    try:
        return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    except OSError:
        return []


def has_checkpoints(workdir: Path) -> bool:
    """Whether a run in `workdir` has finished a checkpoint, from which it would continue."""
    return bool(checkpoint_steps(workdir))


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved config into a new work directory, or checks that an old one belongs to the same run.

    A directory whose run never finished a checkpoint has nothing to lose: its config is replaced.

    Raises:
      CheckpointError: the directory holds another run, something that is no run, or cannot be written.
    """
    path, started = workdir / "config.json", has_checkpoints(workdir)
    if started and path.exists():
        _check_same_run(config, workdir)
        return
    if started:
        raise CheckpointError(
            f'--workdir="{workdir}" holds checkpoints but no config.json, so they may belong to another run. '
            "Choose a new --workdir."
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if parallel.is_main_host():
            write_atomic(path, json.dumps(config.to_dict(), indent=2, default=str))
    except OSError as error:
        raise CheckpointError(
            f'--workdir="{workdir}" cannot be used ({error.strerror or error}). Name a folder that can be written to.'
        ) from None


def _check_same_run(config: ConfigDict, workdir: Path) -> None:
    defaults, old, now = flatten(base()), flatten(ConfigDict(read_config(workdir))), flatten(config)
    # A field that did not exist when the run was started had what is now its default.
    differing = [
        f"{k}: {old.get(k, defaults.get(k))!r} there, {now.get(k)!r} now"
        for k in sorted(set(old) | set(now))
        if not k.startswith(FREE_FIELDS) and _jsonable(old.get(k, defaults.get(k))) != _jsonable(now.get(k))
    ]
    if differing:
        more = f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise CheckpointError(
            f'--workdir="{workdir}" belongs to another run. Choose a new --workdir, or use the old config. They '
            f"differ in: {'; '.join(differing[:8])}{more}."
        )


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value.to_dict() if isinstance(value, ConfigDict) else value, default=str))


def check_teacher(saved: dict, now: dict, workdir: Path) -> None:
    """Raises CheckpointError unless the teacher of a checkpoint (its metadata) is the present one."""
    for field in ("teacher", "teacher_fingerprint"):
        if saved.get(field) != now.get(field):
            raise CheckpointError(
                f'The checkpoint in "{workdir}" was distilled from another teacher ({field} {saved.get(field)} there, '
                f"{now.get(field)} now). Restore the old weights file, or choose a new --workdir."
            )
