"""The only place with side effects: batches in, steps, evaluation, checkpoints, metrics out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from jaxkd.errors import JaxkdError, NonFiniteLossError
from jaxkd.parallel import any_host, put_batch
from jaxkd.train.checkpoint import Checkpoints
from jaxkd.train.preemption import StopRequest
from jaxkd.train.progress import TrainProgress, duration
from jaxkd.train.state import TrainState, non_finite_paths
from jaxkd.train.writers import MetricWriter

PyTree = Any


@dataclass(frozen=True)
class LoopSettings:
    """Schedule of the loop, in optimiser steps.

    Attributes:
      total_steps: length of the run.
      steps_per_epoch: optimiser steps of an epoch.
      batch_size: global images per optimiser step.
      log_every: steps between lines of metrics (means over the window).
      eval_every: steps between evaluations; the last step always evaluates.
      checkpoint_every: steps between checkpoints, perhaps two different rhythms; evaluations and the last step save
        too.
    """

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    log_every: int
    eval_every: int
    checkpoint_every: tuple[int, ...]


@dataclass
class Clock:
    """Time and images of a run over all its restarts; it travels in the checkpoint."""

    seconds: float = 0.0
    images: int = 0


@dataclass(frozen=True)
class Observation:
    """A second compiled step, which also computes statistics, and when it takes the place of the first.

    Attributes:
      step_fn: as the plain step, with `{name: (L,)}` in `metrics["statistics"]`.
      every: optimiser steps between two of them; the first step of a run is one too, the start of every curve.
      layers: what the L values of each statistic belong to.
    """

    step_fn: Callable
    every: int
    layers: tuple[str, ...]

    def due(self, done: int) -> bool:
        """Whether the step after `done` steps is one; by its number alone, so that a resumed run takes the same."""
        return done == 0 or (done + 1) % self.every == 0


@dataclass
class _Window:
    """Sums since the last line of metrics.

    `steps` are the steps that `seconds` is about: those whose results have been read. A step that was only dispatched
    would make the first rates of a window absurd.
    """

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    seen: int = 0

    def add(self, metrics: dict[str, float]) -> None:
        self.seen += 1
        self.steps += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


def check_finite(metrics: dict[str, float], step: int, kept: Callable[[], list[int]]) -> None:
    """Raises NonFiniteLossError that names the first bad term; the single terms come before their sum.

    Args:
      metrics: of `step`; a gradient that is not finite shows in "grad_norm".
      step: optimiser step that they belong to.
      kept: gives the steps whose checkpoints exist.
    """
    bad = [k for k, v in metrics.items() if not math.isfinite(v)]
    if bad:
        causes = [k for k in bad if k not in ("loss", "grad_norm") and not k.endswith("_weighted")]
        name = (causes or [k for k in bad if k != "grad_norm"] or bad)[0]
        raise NonFiniteLossError(f'The term "{name}" became {metrics[name]} at step {step}. {_what_now(kept())}')


def check_state(state: TrainState, mesh: Mesh, step: int, kept: Callable[[], list[int]]) -> None:
    """Raises NonFiniteLossError if `state` after `step` is not fit to be saved; see `check_finite`.

    The loss and the gradient of a step are those of the parameters before it: an update that overflows shows in
    neither.
    """
    bad = non_finite_paths(state, mesh)
    if bad:
        more = f" and {len(bad) - 1} more arrays" if len(bad) > 1 else ""
        raise NonFiniteLossError(f'"{bad[0]}"{more} held NaN or infinity after step {step}. {_what_now(kept())}')


def _what_now(kept: list[int]) -> str:
    good = f"the last good checkpoint, of step {kept[-1]}, was kept" if kept else "no checkpoint was written"
    start = "; student.weights=<this work directory> starts from the kept weights" if kept else ""
    return (
        f"Training on would only spread it, so the run stopped and {good}. Lower optimizer.learning_rate, set "
        f"optimizer.clip_norm=1.0, or compute in float32 (precision.compute), in a new --workdir{start}."
    )


def train_loop(
    step_fn: Callable,
    state: TrainState,
    batches: Any,
    settings: LoopSettings,
    *,
    constants: PyTree,
    key: jax.Array,
    mesh: Mesh,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    progress: TrainProgress,
    stop: StopRequest,
    clock: Clock,
    meta: Callable[[Clock], dict],
    evaluate: Callable[[TrainState], dict[str, float]] | None,
    schedule: Callable[[int], float],
    observation: Observation | None = None,
) -> tuple[TrainState, dict[str, float]]:
    """Runs from `state.step` to `settings.total_steps`, or to a request to stop.

    Args:
      step_fn: the compiled train step.
      state: where to start; its buffers are donated.
      batches: iterator of host batches with `get_state()` (the position after what was consumed) and `wait_seconds`.
      settings: when things happen.
      constants: passed to the step, never changed.
      key: of the run; the step folds its number in.
      mesh: where the batch is split.
      checkpoints: where states go.
      writer: where metrics go.
      progress: what a person sees.
      stop: asks to end early.
      clock: time and images so far.
      meta: what to write into a checkpoint besides the state.
      evaluate: scores a state, `{metric: mean}`; None if there is nothing to score on.
      schedule: step -> learning rate, for the log.
      observation: which steps also compute statistics; None for none. They are written as rows of kind "dynamics" under
        the number of the step that computed them, and are those of the parameters it started from.

    Returns:
      The last state and the last evaluation.

    Raises:
      NonFiniteLossError: a loss, the gradient or the state was NaN or infinite; such a state is never saved.
    """
    window = _Window()
    scores: dict[str, float] = {}
    pending: tuple[int, dict, Any] | None = None
    compiled: set[bool] = set()  # which of the two programs, by whether it observes
    alone = jax.process_count() == 1
    agreed = False  # hosts are asked to stop at different moments, but must stop after the same step
    step = int(state.step)
    mark = time.perf_counter()
    waited = batches.wait_seconds

    def settle() -> None:
        """Reads the metrics of the last dispatched step: it blocks until that step is done."""
        nonlocal pending, agreed
        if pending is not None:
            number, arrays, asked = pending
            pending = None
            host = jax.device_get(arrays)
            statistics = host.pop("statistics", None)
            values = {k: float(v) for k, v in host.items()}
            clock.images += int(values.pop("images", settings.batch_size))
            if statistics is not None:  # NaN too: they watch training and must not end it
                epoch = round(number / settings.steps_per_epoch, 4)
                writer.write_layers("dynamics", number, observation.layers, statistics, epoch=epoch)
            check_finite(values, number, checkpoints.steps)
            window.add(values)
            agreed = bool(asked)

    def account(*, speed: bool) -> None:
        """Adds the time since `mark` to the run, and to the window if it says how fast training is."""
        nonlocal mark, waited
        now = time.perf_counter()
        clock.seconds += now - mark
        if speed:
            window.seconds += now - mark
            window.waited += batches.wait_seconds - waited
        mark, waited = now, batches.wait_seconds

    def stopping() -> bool:
        return bool(stop.requested) if alone else agreed

    while step < settings.total_steps and not stopping():
        observing = observation is not None and observation.due(step)
        fresh = observing not in compiled
        if fresh and compiled:  # the steps before say how fast training is, the compilation that follows does not
            settle()
            account(speed=True)
        compiled.add(observing)
        batch = put_batch(next(batches), mesh)
        state, metrics = (observation.step_fn if observing else step_fn)(state, batch, key, constants)
        step += 1
        settle()  # of the step before, while this one runs
        pending = (step, metrics, False if alone else any_host(bool(stop.requested), mesh))
        last = step == settings.total_steps
        evaluating = evaluate is not None and (last or step % settings.eval_every == 0)
        saving = last or evaluating or any(step % every == 0 for every in settings.checkpoint_every)
        logging = last or step % settings.log_every == 0
        if evaluating or saving or logging or fresh:
            settle()
        if fresh:
            window.steps -= 1
            if not logging:
                progress.update(step, "compiled")
        account(speed=not fresh)
        if window.steps:
            progress.update(step, _status(window, settings, step))
        if logging:
            writer.write("train", step, _line(window, settings, step, schedule(step - 1), clock))
            window = _Window()
        if saving:
            check_state(state, mesh, step, checkpoints.steps)
        metrics_now: dict[str, float] | None = None
        if evaluating:
            progress.update(step, "evaluating")
            try:
                scores = evaluate(state)
            except JaxkdError:  # unreadable validation images must not cost the training since the last checkpoint
                checkpoints.save(state, data=batches.get_state(), meta=meta(clock))
                checkpoints.wait()
                raise
            metrics_now = scores
            epoch = step / settings.steps_per_epoch
            writer.write("eval", step, {"epoch": round(epoch, 4), **scores})
            progress.say(_score_line(step, epoch, scores, settings, clock))
        if saving:
            checkpoints.save(state, data=batches.get_state(), meta=meta(clock), metrics=metrics_now)
        mark = time.perf_counter()
    if stopping() and step < settings.total_steps:
        settle()
        check_state(state, mesh, step, checkpoints.steps)
        checkpoints.save(state, data=batches.get_state(), meta=meta(clock))
        reason = stop.requested or "another host was asked to stop"
        progress.say(f"{reason}: stopped at step {step}, saved; the same command continues from there.")
    checkpoints.wait()
    return state, scores


def _rates(window: _Window, settings: LoopSettings) -> tuple[float, float, float]:
    """(seconds a step, images a second, share of time spent waiting for data in percent)."""
    seconds = window.seconds / max(window.steps, 1)
    return seconds, settings.batch_size / max(seconds, 1e-9), 100.0 * window.waited / max(window.seconds, 1e-9)


def _status(window: _Window, settings: LoopSettings, step: int) -> str:
    seconds, images, waiting = _rates(window, settings)
    loss = f"loss {window.sums['loss'] / window.seen:.3f} · " if window.seen else ""
    left = duration(seconds * (settings.total_steps - step))
    return f"{loss}{images:.0f} images/s · {1e3 * seconds:.0f} ms/step · data wait {waiting:.0f} % · {left} left"


def _line(window: _Window, settings: LoopSettings, step: int, rate: float, clock: Clock) -> dict[str, float]:
    values: dict[str, float] = {"epoch": round(step / settings.steps_per_epoch, 4), "learning_rate": rate}
    values |= {name: value / max(window.seen, 1) for name, value in window.sums.items()}
    if window.steps:
        seconds, images, waiting = _rates(window, settings)
        values |= {"images_per_second": images, "step_ms": 1e3 * seconds, "data_wait_percent": waiting}
    return values | {"seconds": clock.seconds, "images": clock.images}


def _score_line(step: int, epoch: float, scores: dict[str, float], settings: LoopSettings, clock: Clock) -> str:
    shown = " · ".join(
        f"{k} {v:.2f}" if k.startswith(("top", "ema_top")) else f"{k} {v:.4f}" for k, v in scores.items()
    )
    return f"epoch {epoch:g} (step {step}/{settings.total_steps}) · {shown} · {duration(clock.seconds)}"
