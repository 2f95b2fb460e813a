"""Claims a work directory: a run continues only in its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxkd import data, parallel, train
from jaxkd.data.files import write_atomic
from jaxkd.errors import CheckpointError
from jaxkd.train.run_folder import MOVABLE, checkpoint_config

SUBSET = "subset.json"


def has_checkpoints(workdir: Path) -> bool:
    """Whether a run in `workdir` has finished a checkpoint, from which it would continue."""
    return bool(train.checkpoint_steps(workdir))


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Writes the resolved config into a new work directory, or checks that an old one belongs to the same run.

    A directory whose run never finished a checkpoint has nothing to lose: its config is replaced.

    Raises:
      CheckpointError: the directory holds another run, something that is no run, or cannot be written.
    """
    path, started = workdir / "config.json", has_checkpoints(workdir)
    if started and not path.exists() and checkpoint_config(workdir) is None:
        raise CheckpointError(
            f'--workdir="{workdir}" holds checkpoints but no config.json, so they may belong to another run. '
            "Choose a new --workdir."
        )
    _refuse_member(workdir)
    try:
        if started:
            _check_same_run(config, workdir)
            if path.exists() and path.read_bytes().strip(b"\0 \n\r\t"):
                return
        workdir.mkdir(parents=True, exist_ok=True)
        if parallel.is_main_host():
            write_atomic(path, json.dumps(config.to_dict(), indent=2, default=str))
    except OSError as error:
        raise CheckpointError(
            f'--workdir="{workdir}" cannot be used ({error.strerror or error}). Name a folder that can be written to.'
        ) from None


def _refuse_member(workdir: Path) -> None:
    """Raises CheckpointError where `workdir` is the exported folder of a member of a population."""
    try:
        population = json.loads((workdir / "result.json").read_text()).get("population")
    except (OSError, ValueError, AttributeError):
        return
    if population:
        raise CheckpointError(
            f'--workdir="{workdir}" holds a member of the population that was trained in "{population}", without its '
            "optimiser, so that no training continues in it. Choose a new --workdir; "
            f'--config.student.weights="{workdir}" starts from its weights.'
        )


def _check_same_run(config: ConfigDict, workdir: Path) -> None:
    differing = train.differing_fields(train.read_config(workdir), config, "there", "now", ignored=MOVABLE)
    if differing:
        raise CheckpointError(
            f'--workdir="{workdir}" belongs to another run. Choose a new --workdir, or use the old config. They '
            f"differ in: {differing}."
        )


def check_classes(meta: dict, names: Sequence[str], config: ConfigDict, workdir: Path) -> None:
    """Raises DataError unless a checkpoint (its meta) was trained on the classes `names`, in their order.

    A run from before data.class_order existed recorded no classes and sorted class folders as text.
    """
    recorded = meta.get("classes", ())
    ordered = list(names) == data.order_classes(names, config.data.class_order)  # else they are no folders' names
    if not recorded and ordered and "class_order" not in meta.get("config", {}).get("data", {}):
        recorded = data.order_classes(names, "text")
    data.check_same_classes(recorded, names, str(workdir), config.data.source)


def save_subset(source: data.Source, workdir: Path) -> None:
    """Writes which images a subset holds, once the run has claimed the directory; a continued run keeps its file."""
    path = workdir / SUBSET
    if not isinstance(source, data.Subset):
        if not has_checkpoints(workdir):  # of an abandoned start
            path.unlink(missing_ok=True)
    elif not (path.exists() and has_checkpoints(workdir)):
        data.save_subset(source, path)


def check_subset(saved: dict | None, now: dict | None, config: ConfigDict, workdir: Path) -> None:
    """Raises CheckpointError unless a checkpoint (its facts of the subset) was trained on the same images."""
    if saved == now:
        return
    before, present = (f"{f['images']} of {f['of']}" if f else "all" for f in (saved, now))
    raise CheckpointError(
        f'The checkpoint in "{workdir}" was trained on another choice of images of {config.data.source} ({before} '
        f"there, {present} now; {workdir / SUBSET} lists them). Restore the old data, or choose a new --workdir."
    )


def check_teacher(saved: dict, now: dict, workdir: Path) -> None:
    """Raises CheckpointError unless the teacher of a checkpoint (its metadata) is the present one."""
    for field in ("teacher", "teacher_fingerprint"):
        if saved.get(field) != now.get(field):
            raise CheckpointError(
                f'The checkpoint in "{workdir}" was distilled from another teacher ({field} {saved.get(field)} there, '
                f"{now.get(field)} now). Restore the old weights file, or choose a new --workdir."
            )
