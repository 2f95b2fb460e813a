"""A parallel map that keeps the order and a bounded number of results in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 0, ahead: int = 0
) -> Iterator[Result]:
    """Yields `function(item)` of each item in order, computed ahead of the reader in threads.

    Threads suit functions that release Python's lock: decoding, resizing, reading files.

    Args:
      function: called once per item; what it raises is raised where its result would be yielded.
      items: read as needed, so that it may be infinite.
      threads: 0 takes one per core, at most 16.
      ahead: results that are computed or waiting while the reader holds one; 0 is twice the number of threads.

    Returns:
      An iterator; closing it cancels the calls that have not started and waits for the others.
    """
    threads = threads or min(os.cpu_count() or 1, 16)
    ahead = ahead or 2 * threads
    with ThreadPoolExecutor(threads, thread_name_prefix="jaxkd-map") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
