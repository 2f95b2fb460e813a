"""Writes metrics: JSON lines always, TensorBoard events when wanted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from jaxkd.train.members import to_json


class MetricWriter:
    """Appends one JSON object a line to `workdir/metrics.jsonl` and scalars to `workdir/tensorboard`.

    After a resume the lines of steps that run again are written again; `read_metrics` keeps the last of each.
    """

    def __init__(self, workdir: Path, *, tensorboard: bool = True, active: bool = True):
        self._file = _open_lines(Path(workdir) / "metrics.jsonl") if active else None
        self._events = None
        if active and tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(Path(workdir) / "tensorboard"))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes `values` of `step`; `kind` is "train" or "eval" and prefixes the TensorBoard tags.

        A metric of shape (S,), one number for each member of a population, becomes a list and the tags `kind/name/i`.
        """
        values = to_json(values)
        self._line(kind, step, values)
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)
                elif isinstance(value, list):
                    for member, one in enumerate(value):
                        self._events.add_scalar(f"{kind}/{name}/{member}", one, step)

    def write_layers(
        self, kind: str, step: int, layers: Sequence[str], values: Mapping[str, Any], *, epoch: float
    ) -> None:
        """Writes one value per layer of each name: `{"layers": [...], name: [...]}`, tags `kind/name/layer`."""
        # str gives the shortest number that is this fp32; float(v) alone would write 17 digits of it.
        lists = {name: [float(str(v)) for v in value] for name, value in values.items()}
        self._line(kind, step, {"epoch": epoch, "layers": list(layers), **lists})
        if self._events is not None:
            for name, numbers in lists.items():
                for layer, value in zip(layers, numbers, strict=True):
                    if math.isfinite(value):  # a curve has a gap there
                        self._events.add_scalar(f"{kind}/{name}/{layer}", value, step)

    def _line(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._file is not None:
            clean = {k: _json_number(v) for k, v in values.items()}
            self._file.write(json.dumps({"kind": kind, "step": step, **clean}) + "\n")
            self._file.flush()

    def write_images(self, kind: str, step: int, images: dict[str, Any]) -> None:
        """Writes (H, W, 3) uint8 pictures to TensorBoard, where it is on."""
        if self._events is not None:
            for name, image in images.items():
                self._events.add_image(f"{kind}/{name}", image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes both."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _open_lines(path: Path) -> TextIO:
    """`path` for appending lines; the half line of a killed process is ended first, or it would swallow the next."""
    half = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    file = path.open("a")
    if half:
        file.write("\n")
    return file


def _json_number(value: Any) -> Any:
    """JSON has no NaN; a string keeps the line readable by every parser."""
    if isinstance(value, list):
        return [_json_number(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(workdir: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of `kind` in `workdir/metrics.jsonl`, by step, the newest line of each step."""
    path = Path(workdir) / "metrics.jsonl"
    rows: dict[int, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the half line of a killed process
            if row.get("kind") == kind:
                rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]
