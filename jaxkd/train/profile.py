"""A trace of a few steps of a run, by JAX's profiler, which leaves the steps as they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

WARMUP = 3  # steps of a start before the first traced one: the first compiles, the next fill caches and queues


@dataclass(frozen=True)
class StepTrace:
    """Trace of a few steps of a run.

    Attributes:
      folder: that was given to JAX's profiler.
      steps: how many steps were traced.
      seconds: that they took.
      program: text of the compiled step; "" where the compiler has none.
    """

    folder: Path
    steps: int
    seconds: float
    program: str


class StepProfile:
    """Traces `steps` steps of a training loop after the first `after` ones, counted over the whole run.

    A profiler that fails is said and ends no run.

    Args:
      folder: where the trace goes.
      after: steps done before the first traced one.
      steps: how many are traced.
      report: called once with the trace.
      say: for one line, if tracing fails.
      active: whether this process traces; of several only one does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        after: int,
        steps: int,
        report: Callable[[StepTrace], None],
        say: Callable[[str], None],
        active: bool = True,
    ):
        self._folder, self._after, self._steps, self._active = folder, after, steps, active
        self._report, self._say = report, say
        self._began = 0.0
        self._tracing = False

    def switches(self, step: int) -> bool:
        """Whether tracing begins or ends after optimiser step `step`."""
        return step in (self._after, self._after + self._steps)

    def switch(self, step: int, program: Callable[[], str]) -> None:
        """Begins or ends tracing; the device is idle.

        Args:
          step: that was done last.
          program: gives the text of the compiled step; it may compile, so that each of several processes asks.
        """
        try:
            if step == self._after:
                self._begin()
                return
            seconds = time.perf_counter() - self._began
            traced = self.close()
            text = program()
            if traced:
                self._report(StepTrace(self._folder, self._steps, seconds, text))
        except Exception as error:  # of CUPTI, of the disk, or of another profiler that runs already
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        self._say(f"The steps could not be profiled ({type(error).__name__}: {reason}). Training is not affected.")

    def _begin(self) -> None:
        if not self._active:
            return
        self._folder.mkdir(parents=True, exist_ok=True)  # JAX would notice at the end, and not trace again
        settings = jax.profiler.ProfileOptions()
        settings.python_tracer_level = 0  # calls of Python functions would fill the trace
        settings.host_tracer_level = 2 if jax.default_backend() == "cpu" else 1
        jax.profiler.start_trace(str(self._folder), profiler_options=settings)
        self._tracing, self._began = True, time.perf_counter()

    def close(self) -> bool:
        """Ends tracing if it is on, and writes the trace; returns whether it was."""
        tracing, self._tracing = self._tracing, False
        try:
            if tracing:
                jax.profiler.stop_trace()
        except Exception as error:
            self._fail(error)
            return False
        return tracing


def first_traced(due: Callable[[int], Any], done: int, total: int, steps: int) -> int:
    """Steps done before the first traced one: after the warm-up, and where possible without other work in between.

    Args:
      due: whether something else follows a step or takes its place, such as an evaluation.
      done: steps of earlier starts.
      total: of the run, at least `done + WARMUP + steps`.
      steps: to trace.
    """
    first = done + WARMUP
    candidates = range(first, min(total - steps, first + 1000) + 1)
    return next((start for start in candidates if not any(due(start + i) for i in range(steps))), first)
