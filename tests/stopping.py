"""A stop request for tests that interrupt a run."""

from __future__ import annotations


class StopAfter:
    """A stop request that comes after a number of steps; stands in for SIGTERM."""

    def __init__(self, steps: int):
        self._left = steps + 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    @property
    def requested(self) -> str:
        self._left -= 1
        return "SIGTERM" if self._left <= 0 else ""
