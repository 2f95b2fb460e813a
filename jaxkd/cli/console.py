"""What the command-line programs share: how they fail, and how they keep quiet."""

from __future__ import annotations

import argparse
import ast
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from jaxkd.errors import ConfigError, DataError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are ours: one paragraph, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError instead of printing the usage."""
        raise ConfigError(f"The command line was not understood: {message}. See {self.prog} --help.")


def model_argument(text: str) -> tuple[str, Any]:
    """`--model-arg`'s "depth=3" -> ("depth", 3); what is no Python value stays text.

    Raises:
      ConfigError: there is no value.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f'--model-arg="{text}" has no value. It passes one constructor argument. Write NAME=VALUE.')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def disk_error(error: OSError, folder: str) -> DataError:
    """What a command that can be continued says when the disk fails it in `folder`."""
    where = f'"{error.filename}"' if error.filename else f'A file of "{folder}"'
    return DataError(
        f"{where} cannot be read or written ({error.strerror or error}). What is finished stays. Free space or mend "
        "permissions, then run the same command again; it continues."
    )


def fail(error: BaseException) -> NoReturn:
    """Prints what the user can mend as one paragraph and exits with code 2."""
    print(f"jaxkd: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def quiet() -> None:
    """Keeps Orbax' running commentary, which goes through absl, out of the progress; errors still show."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)


def end_on_sigterm() -> None:
    """Lets SIGTERM end a program as Ctrl-C does, so that its scratch files go."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


class PhaseProgress:
    """One line per phase: how far, how fast, how long still."""

    def __init__(self, console: Any):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=not console.is_terminal)
        self._tasks: dict[tuple[str, str], tuple[Any, float]] = {}

    def __enter__(self) -> PhaseProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, label: str, phase: str, done: int, total: int) -> None:
        key = (label, phase)
        if key not in self._tasks:
            from rich.markup import escape

            task = self._progress.add_task(escape(f"{label}: {phase}"), total=total, rate="")
            self._tasks[key] = (task, time.perf_counter())
        task, start = self._tasks[key]
        seconds = max(time.perf_counter() - start, 1e-9)
        self._progress.update(
            task, completed=done, total=total, rate=f"{done / seconds:.1f}/s" if seconds > 0.5 else ""
        )
