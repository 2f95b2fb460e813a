"""Reader of metrics.jsonl, which the runs of `train` write and their reports show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(path: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of `kind` in a file of JSON lines, by step, the newest of each step; [] where there is no file.

    A line that is no such row is left out: the half line of a killed process, or one that a bad disk damaged.
    """
    rows: dict[int, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # also of bytes that are no text
                continue
            if _is_row(row) and row["kind"] == kind:
                rows[row["step"]] = row
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
