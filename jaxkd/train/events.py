"""TensorBoard event files, written in the calling thread.

tensorboardX's own SummaryWriter writes in a thread: what the disk refuses there is printed as a traceback, and training
goes on until the queue to that thread is full and then waits forever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class EventFile:
    """One event file; every call is on the disk when it returns.

    Args:
      folder: made if missing.
      purge_step: of a run that continues: TensorBoard drops what earlier files hold of this step and later ones.

    Raises:
      OSError: here and in every method, if the disk refuses it.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        # The number makes the name unique: tensorboardX replaces a file of the same second.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes a number for each tag."""
        from tensorboardX import summary

        for tag, value in values.items():
            self._write(step=step, summary=summary.scalar(tag, value))
        self.flush()

    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Writes an (H, W, 3) uint8 picture."""
        from tensorboardX import summary

        self._write(step=step, summary=summary.image(tag, image, dataformats="HWC"))
        self.flush()

    def _write(self, **content) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **content))

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
