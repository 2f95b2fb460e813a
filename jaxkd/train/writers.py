"""Writes metrics: JSON lines always, TensorBoard events when wanted."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from jaxkd.data.metric_rows import read_rows
from jaxkd.train.events import EventFile
from jaxkd.train.members import to_json


class MetricWriter:
    """Appends one JSON object a line to `workdir/metrics.jsonl` and scalars to `workdir/tensorboard`.

    After a resume the lines of steps that run again are written again; `read_metrics` keeps the last of each, and
    TensorBoard drops the earlier points.

    Args:
      workdir: of the run.
      tensorboard: whether event files are written.
      active: False writes nothing, on every host but the first.
      first_step: that will be written; TensorBoard drops what earlier event files hold from it on, also those of a run
        that ended before its first checkpoint.

    Raises:
      OSError: here and in every method, if the disk refuses it.
    """

    def __init__(self, workdir: Path, *, tensorboard: bool = True, active: bool = True, first_step: int = 1):
        self._file = _open_lines(Path(workdir) / "metrics.jsonl") if active else None
        self._events = None
        if active and tensorboard:
            folder = Path(workdir) / "tensorboard"
            self._events = EventFile(folder, purge_step=first_step if any(folder.glob("events*")) else None)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes `values` of `step`; `kind` is "train" or "eval" and prefixes the TensorBoard tags.

        A metric of shape (S,), one number for each member of a population, becomes a list and the tags `kind/name/i`.
        """
        values = to_json(values)
        self._line(kind, step, values)
        if self._events is not None:
            scalars = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
            for name, value in values.items():
                if isinstance(value, list):
                    scalars |= {f"{kind}/{name}/{member}": one for member, one in enumerate(value)}
            self._events.add_scalars(scalars, step)

    def write_layers(
        self, kind: str, step: int, layers: Sequence[str], values: Mapping[str, Any], *, epoch: float
    ) -> None:
        """Writes one value per layer of each name: `{"layers": [...], name: [...]}`, tags `kind/name/layer`."""
        # str gives the shortest number that is this fp32; float(v) alone would write 17 digits of it.
        lists = {name: [float(str(v)) for v in value] for name, value in values.items()}
        self._line(kind, step, {"epoch": epoch, "layers": list(layers), **lists})
        if self._events is not None:
            scalars = {
                f"{kind}/{name}/{layer}": value
                for name, numbers in lists.items()
                for layer, value in zip(layers, numbers, strict=True)
                if math.isfinite(value)  # a curve has a gap there
            }
            self._events.add_scalars(scalars, step)

    def _line(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if self._file is not None:
            clean = {k: _json_number(v) for k, v in values.items()}
            self._file.write(json.dumps({"kind": kind, "step": step, **clean}) + "\n")
            self._file.flush()

    def write_images(self, kind: str, step: int, images: dict[str, Any]) -> None:
        """Writes (H, W, 3) uint8 pictures to TensorBoard, where it is on."""
        if self._events is not None:
            for name, image in images.items():
                self._events.add_image(f"{kind}/{name}", image, step)

    def close(self) -> None:
        """Closes both; what could not be written was said by the call that wrote it."""
        for one in (self._file, self._events):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.close()


def _open_lines(path: Path) -> TextIO:
    """`path` for appending lines; the half line of a killed process is ended first, or it would swallow the next."""
    half = False
    if path.exists() and path.stat().st_size:
        with path.open("rb") as old:
            old.seek(-1, os.SEEK_END)
            half = old.read(1) != b"\n"
    file = path.open("a", encoding="utf-8")
    if half:
        file.write("\n")
    return file


def _json_number(value: Any) -> Any:
    """JSON has no NaN; a string keeps the line readable by every parser."""
    if isinstance(value, list):
        return [_json_number(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(workdir: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of `kind` in `workdir/metrics.jsonl`, by step; see `data.metric_rows.read_rows`."""
    return read_rows(Path(workdir) / "metrics.jsonl", kind)
