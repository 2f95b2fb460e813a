"""Time of a run: of all of it, and of the steps that say how fast training is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxkd.train.members import Value


@dataclass
class Clock:
    """Time and images of a run over all its restarts; it travels in the checkpoint."""

    seconds: float = 0.0
    images: int = 0


@dataclass
class Window:
    """Sums since the last line of metrics."""

    # those that `seconds` is about, whose results have been read. A step that was only dispatched would make the
    # first rates of a window absurd.
    steps: int = 0
    seconds: float = 0.0  # that these steps took
    waited: float = 0.0  # seconds of them spent waiting for data
    sums: dict[str, Value] = field(default_factory=dict)  # of the metrics
    seen: int = 0  # steps whose metrics are in the sums
    learned: Value = 0  # of them, those in which a member of a population had an image

    def add(self, metrics: dict[str, Value], learns: np.ndarray | None = None) -> None:
        """Adds the metrics of one step; where `learns` (S,) is False, those of the member are of no image."""
        self.seen += 1
        self.steps += 1
        self.learned = self.learned + (1 if learns is None else learns)
        for name, value in metrics.items():
            own = value if learns is None or not np.ndim(value) else np.where(learns, value, 0.0)
            self.sums[name] = self.sums.get(name, 0.0) + own

    def means(self) -> dict[str, Value]:
        """Mean of each metric over the steps of the window; NaN of a member that had no image in any of them."""
        counts = np.where(self.learned, self.learned, np.nan) if np.ndim(self.learned) else max(self.seen, 1)
        return {name: value / (counts if np.ndim(value) else max(self.seen, 1)) for name, value in self.sums.items()}

    def rates(self, batch_size: int) -> tuple[float, float, float]:
        """(seconds a step, images a second, share of time spent waiting for data in percent)."""
        seconds = self.seconds / max(self.steps, 1)
        return seconds, batch_size / max(seconds, 1e-9), 100.0 * self.waited / max(self.seconds, 1e-9)


class StepTimer:
    """Adds the time between its calls to a run's clock, and to the window where it was spent on training steps.

    Attributes:
      window: since the last line of metrics.
    """

    def __init__(self, clock: Clock, batches: Any):
        self._clock, self._batches = clock, batches
        self.window = Window()
        self._mark, self._waited = time.perf_counter(), batches.wait_seconds

    def update(self, *, training: bool) -> None:
        """Adds the time since the last call; `training=False` keeps it (a compilation) out of the window."""
        now, waited = time.perf_counter(), self._batches.wait_seconds
        self._clock.seconds += now - self._mark
        if training:
            self.window.seconds += now - self._mark
            self.window.waited += waited - self._waited
        self._mark, self._waited = now, waited

    def restart(self) -> None:
        """Drops the time since the last call: evaluations and checkpoints are no training time."""
        self._mark = time.perf_counter()

    def next_window(self) -> Window:
        """The window so far; a new one begins."""
        window, self.window = self.window, Window()
        return window
