"""End of a process of a distributed run whose peers have died, in words instead of JAX's abort.

JAX's coordination service tells each process when another one has died: at once where it is the coordinator, within
`hosts.HEARTBEAT_SECONDS` where it is another one. JAX's client then aborts the process with a C++ trace (exit code 134)
unless it is given a callback, which `jax.distributed.initialize` has no argument for.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

GRACE_SECONDS = 5  # in which the main thread, which knows the last checkpoint, may end the process itself

MESSAGE = (
    "jaxkd: Another process of this run ended or cannot be reached, so this one ends too. Checkpoints that are "
    "complete stay. Start all processes again with the same command; it continues."
)
_kept_for_c: list[Any] = []  # functions that C++ calls must not be collected


def _end(*_: Any) -> None:
    """Ends this process with code 2; called in a thread of JAX."""
    time.sleep(GRACE_SECONDS)
    with contextlib.suppress(OSError, ValueError):
        print(MESSAGE, file=sys.stderr, flush=True)
    os._exit(2)


@contextlib.contextmanager
def ended_in_words() -> Iterator[None]:
    """Context for `jax.distributed.initialize`: the client that it makes calls `_end` where JAX would abort.

    Without effect where JAX's internals have other names.
    """
    try:
        from jax._src.lib import _jax

        make_client = _jax.get_distributed_runtime_client
    except (ImportError, AttributeError):
        yield
        return
    if "missed_heartbeat_callback" not in (make_client.__doc__ or ""):
        yield
        return
    _replace_terminate()
    _jax.get_distributed_runtime_client = functools.partial(make_client, missed_heartbeat_callback=_end)
    try:
        yield
    finally:
        _jax.get_distributed_runtime_client = make_client


def _replace_terminate() -> None:
    """Lets C++ call `_end` for the exception with which jaxlib's call of the callback fails.

    jaxlib (0.10 and 0.11) has no Python type for the status that it calls the callback with, raises std::bad_cast in
    its own thread, and C++ ends the process. Any other exception that nothing catches ends it as before.
    """
    if _kept_for_c:
        return
    try:
        library = ctypes.CDLL("libstdc++.so.6")
        set_terminate, current = library._ZSt13set_terminatePFvvE, library.__cxa_current_exception_type
    except (OSError, AttributeError):
        return
    handler = ctypes.CFUNCTYPE(None)
    set_terminate.restype, set_terminate.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    current.restype, current.argtypes = ctypes.c_void_p, []

    def terminate() -> None:
        kind = current()
        # A std::type_info is the address of its virtual functions and then that of its mangled name.
        name = ctypes.string_at(ctypes.cast(kind, ctypes.POINTER(ctypes.c_void_p))[1]) if kind else b""
        if name == b"St8bad_cast":
            _end()
        handler(before)()

    function = handler(terminate)
    _kept_for_c.append(function)
    before = set_terminate(ctypes.cast(function, ctypes.c_void_p))
