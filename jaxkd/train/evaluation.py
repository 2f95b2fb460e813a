"""Exact evaluation: every image counts once, on any number of devices and hosts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from jaxkd.errors import DataError
from jaxkd.parallel import put_batch

PyTree = Any


def evaluate(
    eval_step: Callable[[PyTree, PyTree, dict, PyTree], dict],
    batches: Iterable[dict],
    params: dict[str, tuple[PyTree, PyTree]],
    constants: PyTree,
    mesh: Mesh,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, dict[str, float]], int, float]:
    """Means of all metrics over the unmasked examples of `batches`.

    Args:
      eval_step: `compile_eval_step(task, mesh)`.
      batches: this host's batches with `mask`; the same number on every host.
      params: name -> (parameters, mutable collections): raw weights and moving average are scored in one pass.
      constants: of the task.
      mesh: where the batch is split.
      progress: called with the number of batches done.

    Returns:
      name -> {metric: mean}, the number of images, and images per second, decoding included, from the second batch on
      (over a single batch: with compilation).

    Raises:
      DataError: no image counted.
    """
    totals: dict[str, dict[str, list[float]]] = {name: {} for name in params}
    begin = time.perf_counter()
    start, compiled_on = begin, 0
    pending: list[tuple[str, dict]] = []

    def drain() -> None:
        for name, metrics in pending:
            for metric, (value, count) in jax.device_get(metrics).items():
                # Python floats are float64: sums stay exact far beyond any data set's size.
                cell = totals[name].setdefault(metric, [0.0, 0.0])
                cell[0] += float(value)
                cell[1] += float(count)
        pending.clear()

    def counts() -> list[float]:
        return [count for cells in totals.values() for _, count in cells.values()]

    def images() -> int:
        return int(counts()[0]) if counts() else 0

    index = -1
    for index, batch in enumerate(batches):
        arrays = put_batch(batch, mesh)
        ready = [(name, eval_step(p, mutable, arrays, constants)) for name, (p, mutable) in params.items()]
        drain()  # of the batch before, while this one computes
        pending.extend(ready)
        if index == 0:  # compilation is not speed
            drain()
            start, compiled_on = time.perf_counter(), images()
        if progress is not None:
            progress(index + 1)
    drain()
    seconds = time.perf_counter() - start
    if not counts() or min(counts()) == 0:
        raise DataError(
            f"The evaluation counted no images ({index + 1} batches). Their mean score does not exist. Give a split "
            "that holds images, and batches whose `mask` is True for those that count."
        )
    means = {
        name: {metric: total / count for metric, (total, count) in cells.items()} for name, cells in totals.items()
    }
    if images() <= compiled_on:
        compiled_on, seconds = 0, time.perf_counter() - begin
    return means, images(), (images() - compiled_on) / max(seconds, 1e-9)
