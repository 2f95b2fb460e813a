"""The log file of a work directory: lines of the terminal as plain text with time stamps, warnings and errors."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.control import Control
from rich.rule import Rule
from rich.text import Text

from jaxkd.errors import JaxkdError, printable
from jaxkd.train.progress import ProgressLine

FILE = "log.txt"
WIDTH = 140  # columns of tables
PROGRESS_SECONDS = 600.0  # at most one line of progress in this time
MOST_WAITING = 1000  # messages that are kept until the work directory is claimed


class RunLog(logging.Handler):
    """Copies what a console prints, Python's warnings and log messages into `log.txt`, from `open` on.

    Messages before `open` are kept and written by it, so that a run that is refused leaves no file. Bars are left out,
    and lines of progress are thinned to one in ten minutes. Nothing here raises: a message that the disk refuses is
    counted, and the next one that it takes says how many are missing.

    Args:
      workdir: where `log.txt` goes.
      console: of the run; None for a caller from Python.
      active: False writes nothing, on every host but the first.
      clock: seconds since the epoch, for time stamps.

    Attributes:
      console: to be used in the place of the one given; where there was none, one that prints nothing.
    """

    _muted = False  # of all logs together: those of a stage and of its run hear the same console

    def __init__(
        self, workdir: Path, console: Console | None, *, active: bool = True, clock: Callable[[], float] = time.time
    ):
        super().__init__(logging.WARNING)
        self._path, self._clock, self._active = Path(workdir) / FILE, clock, active
        self.console = Console(file=io.StringIO(), quiet=True, width=WIDTH) if console is None and active else console
        self._file: int | None = None
        self._waiting: list[str] | None = []  # None once the file is open
        self._lost, self._reason = 0, ""
        self._last_progress = -PROGRESS_SECONDS
        self._show_warning: Any = None

    def open(self, *heading: str) -> None:
        """Starts the file, or goes on at its end; `heading` is the first lines of this start."""
        if not self._active or self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        with contextlib.suppress(OSError):  # said by the first write
            old = self._path.stat().st_size if self._path.is_file() else 0
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            if old:
                os.write(self._file, b"\n")  # also ends the half line of a killed process
        for line in heading:
            self.write(line)
        for lines in waiting:
            self._append(lines)

    def write(self, text: str) -> None:
        """Adds a message; of several lines the further ones are indented."""
        first, *rest = printable(text).rstrip().split("\n") or [""]
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._clock()))
        lines = "\n".join([f"{stamp} {first}", *(f"    {line}".rstrip() for line in rest)]) + "\n"
        if self._waiting is None:
            self._append(lines)
        elif len(self._waiting) < MOST_WAITING:
            self._waiting.append(lines)

    def _append(self, lines: str) -> None:
        if self._lost:
            lines = f"({self._lost} messages are missing here: {self._reason})\n{lines}"
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            content = lines.encode("utf-8", "backslashreplace")
            while content:
                content = content[os.write(self._file, content) :]
            self._lost = 0
        except OSError as error:
            self._reason, self._lost = error.strerror or str(error), self._lost + 1
            if self._lost == 1:
                with self._mute():
                    print(f"jaxkd: {self._path} cannot be written ({self._reason}); the run goes on.", file=sys.stderr)

    def process_renderables(self, renderables: list[RenderableType]) -> list[RenderableType]:
        """Copies what the console is about to print; rich's interface of a render hook."""
        if not self._muted:
            for one in renderables:
                if isinstance(one, ProgressLine) and not self._progress_is_due():
                    continue
                if text := _plain(one).strip("\n"):
                    self.write(text)
        return renderables

    def _progress_is_due(self) -> bool:
        now = self._clock()
        due = now - self._last_progress >= PROGRESS_SECONDS
        self._last_progress = now if due else self._last_progress
        return due

    def emit(self, record: logging.LogRecord) -> None:
        """Copies a log message; without any other handler it still goes to stderr, as Python does by itself."""
        try:
            text = record.getMessage()
        except Exception:  # arguments that do not fit the text: Python's own handlers end no program either
            text = f"{record.msg} {record.args}"
        self.write(f"{record.levelname.lower()}: {text}")
        if self._is_only_handler(record.name) and logging.lastResort is not None:
            with self._mute():
                logging.lastResort.handle(record)

    def _is_only_handler(self, name: str) -> bool:
        """Whether no handler but these logs, of which this is the first, gets the messages of a logger."""
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            handlers = [h for h in logger.handlers if h is self or not isinstance(h, RunLog)]
            if handlers and handlers != [self]:
                return False
            first = next((h for h in logger.handlers if isinstance(h, RunLog)), self)
            if first is not self:
                return False
            logger = logger.parent if logger.propagate else None
        return True

    def _warn(self, message: Warning | str, category: type[Warning], *more: Any, **options: Any) -> None:
        self.write(f"warning: {category.__name__}: {message}")
        with self._mute():
            self._show_warning(message, category, *more, **options)

    @contextlib.contextmanager
    def _mute(self) -> Iterator[None]:
        """A live bar sends stderr through the console, which would log a second time, in each log that is open."""
        before, RunLog._muted = RunLog._muted, True
        try:
            yield
        finally:
            RunLog._muted = before

    def __enter__(self) -> RunLog:
        if self._active:
            self.console.push_render_hook(self)
            logging.getLogger().addHandler(self)
            self._show_warning, warnings.showwarning = warnings.showwarning, self._warn
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._active:
            return
        warnings.showwarning = self._show_warning
        logging.getLogger().removeHandler(self)
        self.console.pop_render_hook()
        if isinstance(error, JaxkdError):
            self.write(f"error: {error}")
        elif isinstance(error, Exception):
            self.write("error: " + "".join(traceback.format_exception(error)))
        elif isinstance(error, KeyboardInterrupt):
            number = error.args[0] if error.args and isinstance(error.args[0], int) else signal.SIGINT
            self.write(f"stopped by {signal.Signals(number).name}; the same command continues")
        elif error is not None:
            self.write(f"ended by {type(error).__name__}")
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def _plain(renderable: RenderableType) -> str:
    if isinstance(renderable, Control):
        return ""
    if isinstance(renderable, Text):
        return renderable.plain
    if isinstance(renderable, ProgressLine):
        return renderable.text
    if isinstance(renderable, Rule):
        return f"-- {renderable.title}"
    target = io.StringIO()
    Console(file=target, width=WIDTH, color_system=None, force_terminal=False).print(renderable)
    return "\n".join(line.rstrip() for line in target.getvalue().split("\n"))
