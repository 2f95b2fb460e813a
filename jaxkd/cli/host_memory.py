"""Memory that a CPU's programs free, kept by the process for their next call."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os

# Parameters of mallopt(3) in glibc's malloc.h, and the value of each.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_SETTINGS = {
    _M_ARENA_MAX: 1,  # the arenas of other threads hold 64 MB at most, and XLA allocates in one of its own threads
    _M_MMAP_MAX: 0,  # a mapping of its own would go back to the system with the array
    _M_TRIM_THRESHOLD: -1,  # whatever is free at the end of the heap stays
}
_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
_VARIABLES += ("MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed instead of giving it back to the system, where JAX's default device is a CPU.

    XLA allocates the intermediate arrays of a program as one piece at each call and frees it afterwards. glibc gives
    a piece of that size back at once, so that each step of a training would touch new pages, which the kernel zeroes
    one by one. In return the process stays as large as its largest step. Call it before JAX lists its devices: the
    threads that it starts then keep the arena that they get at their first allocation. Nothing changes where the
    environment sets glibc's malloc itself (MALLOC_..., GLIBC_TUNABLES) or where the C library is another one.

    Returns:
      Whether it is set.
    """
    if not _runs_on_cpu() or any(os.environ.get(name) for name in _VARIABLES):
        return False
    try:
        libc = ctypes.CDLL(None)
        if not hasattr(libc, "gnu_get_libc_version"):  # the numbers are glibc's
            return False
        return all([libc.mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items()])
    except (OSError, AttributeError, TypeError):  # not a system of that kind
        return False


def _runs_on_cpu() -> bool:
    """Whether JAX's default device will be a CPU: so configured, or nothing for other devices is installed."""
    import jax

    if jax.config.jax_platforms:
        return jax.config.jax_platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
