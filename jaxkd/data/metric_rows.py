"""Reader of metrics.jsonl, which the runs of `train` write and their reports show."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any


def read_rows(path: Path, kind: str, *, only: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of `kind` in a file of JSON lines, by step, the newest of each step; [] where there is no file.

    A line that is no such row is left out: the half line of a killed process, or one that a bad disk damaged.

    Args:
      path: of metrics.jsonl.
      kind: "train", "eval" or another that `MetricWriter` was given.
      only: fields to keep besides "step", so that a long run takes little memory; (): all.

    Raises:
      OSError: the file cannot be read.
    """
    rows: dict[int, dict[str, Any]] = {}
    if not path.exists():
        return []
    quoted = json.dumps(kind).encode()
    with path.open("rb") as file:
        for line in file:
            if quoted not in line:  # of another kind: a long run has a million of these
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # also of bytes that are no text
                continue
            if _is_row(row) and row["kind"] == kind:
                rows[row["step"]] = {k: row[k] for k in ("step", *only) if k in row} if only else row
    return [rows[step] for step in sorted(rows)]


def _is_row(row: Any) -> bool:
    """Whether `row` has the fields and types that `MetricWriter` writes, which its readers rely on."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or not isinstance(row.get("kind"), str):
        return False
    layers = row.get("layers", [])
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        return False
    if (row["kind"] == "dynamics" and "layers" not in row) or not _is_number(row.get("epoch", 0)):
        return False
    values = [one for value in row.values() for one in (value if isinstance(value, list) else [value])]
    return all(isinstance(value, str) or _is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 1 << 63)
