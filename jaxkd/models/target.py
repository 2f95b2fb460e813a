"""The platform that a program is traced for: some forms of one computation suit one kind of device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_PLATFORM: ContextVar[str] = ContextVar("platform", default="")


def target_platform() -> str:
    """ "cpu", "gpu" or "tpu": that of `traced_for`, else of JAX's default devices."""
    return _PLATFORM.get() or jax.default_backend()


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Networks that are traced inside take the form for `platform`, whatever devices this machine has.

    For programs that are compiled ahead of time for another machine. A function that `jax.jit` has traced before keeps
    its form.

    Args:
      platform: "cpu", "gpu" or "tpu".
    """
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)
