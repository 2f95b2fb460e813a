"""Stop requests: SIGTERM (a preempted machine), SIGHUP (a closed terminal) and Ctrl-C save a checkpoint and exit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """Context in which SIGTERM, SIGHUP and SIGINT set `requested` instead of killing; a second one ends as usual."""

    def __init__(self) -> None:
        self.requested: str = ""
        self._old: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        signal.signal(number, self._old.get(number) or signal.SIG_DFL)
        if number == signal.SIGINT:  # somebody waits at a terminal, and a step or its compilation may take long
            with contextlib.suppress(OSError):  # not print, whose buffer the signal may have interrupted
                os.write(2, b"\nStopping after this step, and saving. A second Ctrl-C ends without saving.\n")

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for name in ("SIGTERM", "SIGINT", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number is not None and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):  # nohup
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, old in self._old.items():
            signal.signal(number, old or signal.SIG_DFL)  # None: the handler was not Python's and cannot be restored
