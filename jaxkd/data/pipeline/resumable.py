"""An infinite, resumable iterator over batches, computed in this process or by worker processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

from jaxkd.data.pipeline.broken import BrokenImages
from jaxkd.data.pipeline.parent import end_with_parent
from jaxkd.errors import CheckpointError

Batch = dict[str, np.ndarray]


class _From:
    """Batches from a position on, as the long sequence that grain expects."""

    def __init__(self, batches: Any, start: int):
        self._batches, self._start = batches, start

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> Batch:
        return self._batches[self._start + index]


def _start_worker(parent: int) -> None:
    """Worker setup: ignores Ctrl-C, and exits with the parent process even if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


def _start_quiet_tracker() -> None:
    """Starts Python's tracker of shared memory so that it frees what is left at the end without a warning.

    When workers are stopped, batches that nobody will read are still on their way in shared memory; grain misses some
    of them. The tracker frees them when this process ends, and would print that it did after everything a user wants to
    read.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


class ResumableBatches:
    """An endless iterator over batches that are a function of their position; the workers change nothing about them.

    Args:
      batches: `batches[position]` is a batch of this host, positions counted from 0 over all epochs; in it "broken",
        a JSON text of record number -> what is wrong with it; copied to the worker processes.
      steps_per_epoch: how many of them are an epoch.
      identity: what must be the same where a position is restored, name -> value, JSON-able.
      broken: collects what cannot be read.
      workers: processes that make batches (grain); 0 makes them in this process.
    """

    def __init__(
        self,
        batches: Any,
        *,
        steps_per_epoch: int,
        identity: dict[str, Any],
        broken: BrokenImages,
        workers: int = 0,
    ):
        self.steps_per_epoch, self.broken = steps_per_epoch, broken
        self._batches, self._identity, self._workers = batches, identity, workers
        self._position = 0
        self._iterator: Iterator[Batch] | None = None

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch handed out, JSON-able."""
        return {"position": self._position, **self._identity, "broken": dict(self.broken.found)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the position of `state`."""
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise CheckpointError(
                    f"The checkpoint's position in the data was saved with {name}={state.get(name)}, but now there is "
                    f"{name}={value}. Restore the data set and config of that run, or choose a new --workdir."
                )
        self.close()
        self.broken.found.update(state.get("broken", {}))
        self._position = int(state["position"])

    def __iter__(self) -> ResumableBatches:
        return self

    def __next__(self) -> Batch:
        """The next batch of this host."""
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._position += 1
        self.broken.add(json.loads(str(batch.pop("broken"))))
        return batch

    def _start(self) -> Iterator[Batch]:
        if not self._workers:
            return (self._batches[p] for p in range(self._position, 1 << 62))
        import grain
        from absl import flags

        _start_quiet_tracker()
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads absl's global flags, which only absl.app.run parses
        dataset = grain.MapDataset.source(_From(self._batches, self._position))
        # One thread a process: what they would do holds Python's lock half of the time.
        dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        parent = os.getpid()  # here: the function runs in the workers
        return iter(dataset.mp_prefetch(options, worker_init_fn=lambda *_: _start_worker(parent)))

    def close(self) -> None:
        """Ends the worker processes."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()
