"""A stop request for tests that interrupt a run."""

from __future__ import annotations

from jaxkd import train
from jaxkd.experiment import run as run_module


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


def run_stopped(monkeypatch, config, workdir, *, after: int) -> dict:
    """The result of a run that is stopped after a number of steps."""
    with monkeypatch.context() as patch:
        patch.setattr(train, "StopRequest", lambda: StopAfter(after))
        return run_module.run(config, workdir)
