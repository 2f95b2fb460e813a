"""Worker processes that end with the process that started them, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, *, every_seconds: float = 2.0) -> None:
    """Kills this process when `parent` is gone, also if it is gone already.

    On Linux the kernel does it. The thread that asks for the parent's number is for other systems, and for a parent
    that died before this call: under load, minutes can pass between the start of a process and here.

    Args:
      parent: number of the process that started this one.
      every_seconds: between two looks.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="jaxkd-parent", daemon=True).start()
