"""Prefetching of batches in a thread, with a measurement of the time spent waiting for them."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import numpy as np


class Prefetcher:
    """Iterates over `pipeline` (`ResumableBatches`) with up to `depth` batches computed ahead.

    Its `get_state` is the position after the last *consumed* batch, not the last prefetched one, as a checkpoint needs.

    Attributes:
      wait_seconds: how long `__next__` has waited so far.
    """

    def __init__(self, pipeline: Any, depth: int = 2):
        self.wait_seconds = 0.0
        self._pipeline = pipeline
        self._state = pipeline.get_state()
        self._queue: queue.Queue[tuple[Any, Any, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="jaxkd-prefetch", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            self._make()
        finally:
            # In the thread that started the workers: Linux kills them when it ends, and they should rather end well.
            self._pipeline.close()

    def _make(self) -> None:
        while not self._stop.is_set():
            try:
                item = (next(self._pipeline), self._pipeline.get_state(), None)
            except BaseException as error:
                item = (None, None, error)
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[2] is not None:
                return

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch."""
        start = time.perf_counter()
        batch, state, error = self._queue.get()
        self.wait_seconds += time.perf_counter() - start
        if error is not None:
            self._queue.put((batch, state, error))  # asked again, it fails again
            raise error
        self._state = state
        return batch

    def get_state(self) -> dict[str, Any]:
        """Position after the last batch that was consumed."""
        return self._state

    def close(self) -> None:
        """Stops the thread and the pipeline."""
        self._stop.set()
        self._thread.join()
