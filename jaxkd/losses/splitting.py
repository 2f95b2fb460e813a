"""Transforms of single examples that XLA does not partition: a caller with several devices says how they are split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

# (function, arrays with the batch first) -> what the function returns
Apply = Callable[..., jax.Array]
_APPLY: ContextVar[Apply | None] = ContextVar("apply", default=None)


@contextmanager
def transforms_applied_by(apply: Apply | None) -> Iterator[None]:
    """Losses that are traced inside compute their FFTs as `apply(function, *arrays)`, None for `function(*arrays)`.

    XLA gathers a batch that is split over devices for an FFT. The losses know no devices; `parallel.on_each_device`
    makes an `apply` for a mesh.

    Args:
      apply: called as `apply(function, *arrays)` with arrays whose first axis is the batch.
    """
    token = _APPLY.set(apply)
    try:
        yield
    finally:
        _APPLY.reset(token)


def on_examples(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`function(*arrays)`, which treats the examples along the first axis one by one."""
    apply = _APPLY.get()
    return function(*arrays) if apply is None else apply(function, *arrays)
