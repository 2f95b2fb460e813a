"""Scores beside a checkpoint, by which the best one is chosen; damaged ones are taken from metrics.jsonl."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from jaxkd.data.files import write_atomic
from jaxkd.train.manifest import is_as_written, replace_digest
from jaxkd.train.run_folder import FOLDER, checkpoint_steps
from jaxkd.train.writers import read_metrics

FILE = "metrics/metrics"  # in the folder of a checkpoint, as Orbax writes it
_LOG = logging.getLogger(__name__)


def read_scores(run: Path, step: int) -> dict[str, Any]:
    """The scores of a checkpoint, {} without any; those of a damaged file are the evaluation's in metrics.jsonl."""
    found = _undamaged(run, step)
    return _logged(run, step) if found is None else found


def repair_scores(run: Path) -> None:
    """Replaces damaged scores of all checkpoints of a run, and their checksums; says so in the log.

    Orbax reads all of them when it opens the folder, and deletes checkpoints by them.

    Raises:
      OSError: a file cannot be read or written.
    """
    for step in checkpoint_steps(run):
        if _undamaged(run, step) is not None:
            continue
        folder, scores = run / FOLDER / str(step), _logged(run, step)
        write_atomic(folder / FILE, json.dumps(scores))
        replace_digest(folder, FILE)
        found = "They were taken from metrics.jsonl" if scores else "metrics.jsonl has none either, so that it has none"
        _LOG.warning('The scores "%s" were damaged. %s.', folder / FILE, found)


def _undamaged(run: Path, step: int) -> dict[str, Any] | None:
    """The scores as they were written; None if they are damaged."""
    folder = run / FOLDER / str(step)
    if not (folder / FILE).is_file() or not is_as_written(folder, FILE):
        return None if (folder / FILE).parent.is_dir() else {}
    try:
        scores = json.loads((folder / FILE).read_bytes())
    except (ValueError, RecursionError):
        return None
    return scores if isinstance(scores, dict) else None


def _logged(run: Path, step: int) -> dict[str, Any]:
    rows = [row for row in read_metrics(run, "eval") if row["step"] == step]
    return {k: v for row in rows for k, v in row.items() if k not in ("kind", "step", "epoch")}
