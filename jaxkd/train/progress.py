"""A line that says how far, how fast, and how long still: live on a terminal, now and then in a log file."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


def duration(seconds: float) -> str:
    """`3723` -> `1h02m`, `83` -> `1m23s`."""
    seconds = max(round(seconds), 0)
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class TrainProgress:
    """Progress of a run; `update` is cheap and may be called every step.

    Args:
      console: where to; None is silent (every host but the first).
      title: what runs.
      total: steps of the whole run.
      done: steps done before (a resume).
      every_seconds: how often a line is printed where there is no terminal.
    """

    def __init__(self, console: Console | None, title: str, total: int, done: int, *, every_seconds: float = 20.0):
        self._console = console
        self._title = title
        self._total = total
        self._every = every_seconds
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, status="compiling")

    def __enter__(self) -> TrainProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, status: str) -> None:
        """Shows `step` of the total and `status` (rates, loss, time left)."""
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
        elif self._console is not None and time.monotonic() - self._last_line >= self._every:
            self._last_line = time.monotonic()
            self._console.print(
                f"{self._title} step {step}/{self._total} {status}", markup=False, highlight=False, soft_wrap=True
            )

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
