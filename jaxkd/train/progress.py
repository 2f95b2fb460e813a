"""Progress of long work: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from jaxkd.errors import printable


def duration(seconds: float) -> str:
    """`3723` -> `1h02m`, `83` -> `1m23s`."""
    seconds = max(round(seconds), 0)
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


QUIET = 60.0  # seconds after which a log file gets a line, whether the work reports or not


@dataclass(frozen=True)
class ProgressLine:
    """A line on how far some work is, which a later one replaces; a log file may leave it out."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(self.text)


def shorten(status: str, width: int) -> str:
    """`status` without some of its parts, which stand between dots, so that it is at most `width` long.

    The first part (the loss) and the last (the time left) stay longest; of the others the later ones go first.
    """
    parts = status.split(" · ")
    while len(parts) > 1 and len(" · ".join(parts)) > width:
        parts.pop(-2 if len(parts) > 2 else -1)
    return " · ".join(parts)[: max(width, 0)]


class Progress:
    """Progress of named pieces of work, one after the other or side by side.

    Where there is no terminal: a line for each new piece of work, then every `every_seconds` in which it reports, and
    after a minute without any, as while a large network compiles.
    """

    def __init__(self, console: Console | None, *, every_seconds: float = 20.0):
        self._console = console
        self._every = every_seconds
        self._last_line = time.monotonic()
        self._current = ""  # the line that is repeated while nothing is reported
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None
        self._tasks: dict[str, object] = {}
        self._starts: dict[str, tuple[float, int]] = {}  # when a title was first seen, and how much was done then
        self._bar: RichProgress | None = None
        if console is not None and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
            )
            self._bar = RichProgress(*columns, console=console, transient=True)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        elif self._console is not None:
            self._watch = threading.Thread(target=self._repeat, name="jaxkd-progress", daemon=True)
            self._watch.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        self._ended.set()
        if self._watch is not None:
            self._watch.join()

    def _repeat(self) -> None:
        start, due = time.monotonic(), QUIET
        while not self._ended.wait(due):
            quiet = time.monotonic() - self._last_line
            due = max(QUIET - quiet, QUIET / 60)
            if quiet >= QUIET and self._current:
                self._report(f"{self._current}, still running after {duration(time.monotonic() - start)}")
                due = QUIET

    def show(self, title: str, done: int, total: int, status: str | None = None, *, detail: str = "") -> None:
        """Shows that `done` of `total` are done.

        Args:
          title: names the work; a new one gets a bar of its own.
          done, total: in units of the work.
          status: words behind the bar; None is the rate and the time left.
          detail: added to them.
        """
        if self._console is None:
            return
        if status is None:
            status = ", ".join(filter(None, (self._rate(title, done, total), detail)))
        if self._bar:
            if title not in self._tasks:
                self._tasks[title] = self._bar.add_task(escape(title), total=total, status="")
            # What the other columns take: the bar at least 10, the time 7, and a space between columns.
            room = self._console.width - len(title) - 2 * len(str(total)) - 22
            self._bar.update(self._tasks[title], completed=done, total=total, status=escape(shorten(status, room)))
            return
        self._current = f"{title} {done}/{total}"
        new = title not in self._tasks
        self._tasks[title] = None
        if new or time.monotonic() - self._last_line >= self._every:
            self._report(f"{self._current} {status}".rstrip())

    def __call__(self, label: str, phase: str, done: int, total: int) -> None:
        """`show` in the form that analyses and scorers report in."""
        self.show(f"{label}: {phase}", done, total)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._print(text, str)

    def _report(self, text: str) -> None:
        """Prints a line where there is no bar."""
        self._print(text, ProgressLine)

    def _print(self, text: str, kind: Callable[[str], str | ProgressLine]) -> None:
        self._last_line = time.monotonic()
        if self._console is not None:
            encoding = getattr(self._console.file, "encoding", None) or "utf-8"
            plain = getattr(self._console.file, "errors", None) == "jaxkd"  # the handler of cli/console.py
            text = printable(text).encode(encoding, "jaxkd" if plain else "replace").decode(encoding)
            self._console.print(kind(text), markup=False, highlight=False, soft_wrap=True)

    def _rate(self, title: str, done: int, total: int) -> str:
        start, before = self._starts.setdefault(title, (time.monotonic(), done))
        seconds = time.monotonic() - start
        if done <= before or seconds < 0.5:
            return ""
        rate = (done - before) / seconds
        return f"{rate:,.1f}/s, {duration((total - done) / rate)} left"


class TrainProgress(Progress):
    """Progress of a run; `update` is cheap and may be called every step.

    Args:
      console: where to; None is silent (every host but the first).
      title: what runs.
      total: steps of the whole run.
      done: steps done before (a resume).
      every_seconds: how often a line is printed where there is no terminal.
    """

    def __init__(self, console: Console | None, title: str, total: int, done: int, *, every_seconds: float = 20.0):
        super().__init__(console, every_seconds=every_seconds)
        self._title, self._total = f"{title} step", total
        if self._bar:
            self.show(self._title, done, total, "compiling")
        self._current = f"{self._title} {done}/{total} compiling"

    def update(self, step: int, status: str) -> None:
        """Shows `step` of the total and `status` (rates, loss, time left)."""
        self.show(self._title, step, self._total, status)
