"""Exact evaluation: every image counts once, on any number of devices and hosts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from clu.metrics import Average
from jax.sharding import Mesh

from jaxkd.errors import DataError
from jaxkd.parallel import put_batch
from jaxkd.train.members import Value, to_value

PyTree = Any


class _Totals:
    """Averages of the batches so far, by network and metric.

    The batches are merged on the host in float64: fp32 stops counting at 2^24 images.
    """

    def __init__(self, names: Iterable[str]):
        self._averages: dict[str, dict[str, Average]] = {name: {} for name in names}
        self._pending: list[tuple[str, dict[str, Average]]] = []

    def add(self, batch: list[tuple[str, dict[str, Average]]]) -> None:
        """Merges the batch that was added before, whose computation has ended meanwhile, and remembers this one."""
        self.flush()
        self._pending = batch

    def flush(self) -> None:
        for name, metrics in self._pending:
            for metric, average in jax.device_get(metrics).items():
                exact = jax.tree.map(lambda x: np.asarray(x, np.float64), average)
                known = self._averages[name].get(metric)
                self._averages[name][metric] = exact if known is None else known.merge(exact)
        self._pending = []

    def counts(self) -> list[np.ndarray]:
        return [average.count for averages in self._averages.values() for average in averages.values()]

    def images(self) -> int:
        return int(np.max(self.counts()[0])) if self.counts() else 0

    def means(self) -> dict[str, dict[str, Value]]:
        return {
            name: {metric: to_value(average.compute()) for metric, average in averages.items()}
            for name, averages in self._averages.items()
        }


def evaluate(
    eval_step: Callable[[PyTree, PyTree, dict, PyTree], dict],
    batches: Iterable[dict],
    params: dict[str, tuple[PyTree, PyTree]],
    constants: PyTree,
    mesh: Mesh,
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, dict[str, Value]], int, float]:
    """Means of all metrics over the unmasked examples of `batches`.

    Args:
      eval_step: `compile_eval_step(task, mesh)`.
      batches: this host's batches with `mask`; the same number on every host.
      params: name -> (parameters, mutable collections): raw weights and moving average are scored in one pass.
      constants: of the task.
      mesh: where the batch is split.
      progress: called with the number of batches done.

    Returns:
      name -> {metric: mean, or (S,) means of a population}, the number of images, and images per second, decoding
      included, from the second batch on (over a single batch: with compilation).

    Raises:
      DataError: no image counted.
    """
    totals = _Totals(params)
    begin = time.perf_counter()
    start, compiled_on = begin, 0
    index = -1
    for index, batch in enumerate(batches):
        arrays = put_batch(batch, mesh)
        totals.add([(name, eval_step(p, mutable, arrays, constants)) for name, (p, mutable) in params.items()])
        if index == 0:  # compilation is not speed
            totals.flush()
            start, compiled_on = time.perf_counter(), totals.images()
        if progress is not None:
            progress(index + 1)
    totals.flush()
    seconds = time.perf_counter() - start
    if not totals.counts() or min(np.min(count) for count in totals.counts()) == 0:
        raise DataError(
            f"The evaluation counted no images ({index + 1} batches). Give a split that holds images, and batches "
            "whose `mask` is True for those that count."
        )
    images = totals.images()
    if images <= compiled_on:
        compiled_on, seconds = 0, time.perf_counter() - begin
    return totals.means(), images, (images - compiled_on) / max(seconds, 1e-9)
