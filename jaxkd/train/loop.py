"""The order of things in training: batch, step, metrics, evaluation, checkpoint. The only place with side effects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkd.errors import JaxkdError
from jaxkd.parallel import any_host, put_batch
from jaxkd.train.checkpoint import Checkpoints
from jaxkd.train.finite import check_finite, check_state, drop_diverged
from jaxkd.train.members import Value, live_mean, to_value
from jaxkd.train.preemption import StopRequest
from jaxkd.train.profile import StepProfile
from jaxkd.train.progress import TrainProgress, duration
from jaxkd.train.state import TrainState
from jaxkd.train.timer import Clock, StepTimer, Window
from jaxkd.train.writers import MetricWriter

PyTree = Any


class Due(NamedTuple):
    """Work that follows a step."""

    log: bool
    evaluate: bool
    save: bool


@dataclass(frozen=True)
class LoopSettings:
    """Schedule of the loop, in optimiser steps."""

    total_steps: int  # length of the run
    steps_per_epoch: int  # optimiser steps of an epoch
    batch_size: int  # global images per optimiser step
    log_every: int  # steps between lines of metrics (means over the window)
    eval_every: int  # steps between evaluations; the last step always evaluates
    # steps between checkpoints, perhaps two different rhythms; evaluations and the last step save too
    checkpoint_every: tuple[int, ...]

    def due(self, step: int, *, evaluates: bool = True) -> Due:
        """The work that follows optimiser step `step`, counted from 1, of a run that `evaluates`."""
        last = step == self.total_steps
        evaluate = evaluates and (last or step % self.eval_every == 0)
        save = last or evaluate or any(step % every == 0 for every in self.checkpoint_every)
        return Due(log=last or step % self.log_every == 0, evaluate=evaluate, save=save)

    def epoch(self, step: int) -> float:
        """Epochs after `step` steps, for the log."""
        return round(step / self.steps_per_epoch, 4)


@dataclass(frozen=True)
class Observation:
    """A second compiled step, which also computes statistics, and when it takes the place of the first."""

    step_fn: Callable  # as the plain step, with `{name: (L,)}` in `metrics["statistics"]`
    every: int  # optimiser steps between two of them; the first step of a run is one too, the start of every curve
    layers: tuple[str, ...]  # what the L values of each statistic belong to

    def due(self, done: int) -> bool:
        """Whether the step after `done` steps is one; by its number alone, so that a resumed run takes the same."""
        return done == 0 or (done + 1) % self.every == 0


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Everything that `train_loop` needs besides the step, the state and the batches."""

    settings: LoopSettings  # when things happen
    constants: PyTree  # passed to the step, never changed
    key: jax.Array  # of the run; the step folds its number in
    mesh: Mesh  # where the batch is split
    checkpoints: Checkpoints  # where states go
    writer: MetricWriter  # where metrics go
    progress: TrainProgress  # what a person sees
    stop: StopRequest  # asks to end early
    clock: Clock  # time and images so far
    meta: Callable[[Clock], dict]  # what to write into a checkpoint besides the state
    # scores a state, `{metric: mean}`; None if there is nothing to score on
    evaluate: Callable[[TrainState], dict[str, Value]] | None
    schedule: Callable[[int], Value]  # step -> learning rate, for the log
    # which steps also compute statistics; None for none. They are written as rows of kind "dynamics" under the
    # number of the step that computed them, and are those of the parameters it started from.
    observation: Observation | None = None
    members: tuple[str, ...] = ()  # names of the members of a population
    # (state, scores) -> the state with what it remembers of its evaluations; None if that is nothing
    remember: Callable[[TrainState, dict[str, Value]], TrainState] | None = None
    profile: StepProfile | None = None  # traces a few steps

    def save(self, state: TrainState, batches: Any, scores: dict[str, Value] | None = None) -> None:
        """Starts writing the checkpoint of `state`, with its scores if it was evaluated."""
        self.checkpoints.save(state, data=batches.get_state(), meta=self.meta(self.clock), metrics=scores)


class _PendingMetrics:
    """Metrics of the last dispatched step, which are read while the next one runs."""

    def __init__(self, loop: Loop, timer: StepTimer):
        self._loop, self._timer = loop, timer
        self._pending: tuple[int, dict, Any] | None = None
        self._alone = jax.process_count() == 1
        self._agreed = False  # hosts are asked to stop at different moments, but must stop after the same step

    def put(self, step: int, metrics: dict[str, Any]) -> None:
        """The metrics of `step`, still on the device."""
        asked = False if self._alone else any_host(bool(self._loop.stop.requested), self._loop.mesh)
        self._pending = (step, metrics, asked)

    def flush(self) -> None:
        """Reads them, which blocks until their step is done; writes statistics and checks that all are finite."""
        if self._pending is None:
            return
        loop, (step, metrics, asked) = self._loop, self._pending
        self._pending = None
        host = jax.device_get(metrics)
        statistics = host.pop("statistics", None)
        loop.clock.images += int(host.pop("images", loop.settings.batch_size))
        if statistics is not None:  # NaN too: they watch training and must not end it
            epoch = loop.settings.epoch(step)
            loop.writer.write_layers("dynamics", step, loop.observation.layers, statistics, epoch=epoch)
        diverged_at, learns = host.pop("diverged_at", None), host.pop("learns", None)
        values = {name: to_value(value) for name, value in host.items()}
        if diverged_at is None:
            check_finite(values, step, loop.checkpoints.steps)
        else:
            say, kept = loop.progress.say, loop.checkpoints.steps
            values = drop_diverged(values, diverged_at, step, loop.members, say, kept)
        self._timer.window.add(values, learns)
        self._agreed = bool(asked)

    def stopping(self) -> bool:
        """Whether this process, or any where there are several, was asked to stop."""
        return bool(self._loop.stop.requested) if self._alone else self._agreed


def train_loop(step_fn: Callable, state: TrainState, batches: Any, loop: Loop) -> tuple[TrainState, dict[str, Value]]:
    """Runs from `state.step` to `loop.settings.total_steps`, or to a request to stop.

    Args:
      step_fn: the compiled train step.
      state: where to start; its buffers are donated.
      batches: iterator of host batches with `get_state()` (the position after what was consumed) and `wait_seconds`.
      loop: everything else.

    Returns:
      The last state and the last evaluation.
    """
    settings, progress = loop.settings, loop.progress
    timer = StepTimer(loop.clock, batches)
    pending = _PendingMetrics(loop, timer)
    compiled: set[bool] = set()  # which of the two programs, by whether it observes
    scores: dict[str, Value] = {}
    step = int(state.step)
    while step < settings.total_steps and not pending.stopping():
        observing = loop.observation is not None and loop.observation.due(step)
        fresh = observing not in compiled
        if fresh and compiled:  # the steps before say how fast training is, the compilation that follows does not
            pending.flush()
            timer.update(training=True)
        compiled.add(observing)
        batch = put_batch(next(batches), loop.mesh)
        run_step = loop.observation.step_fn if observing else step_fn
        state, metrics = run_step(state, batch, loop.key, loop.constants)
        step += 1
        pending.flush()  # of the step before, while this one runs
        pending.put(step, metrics)
        due = settings.due(step, evaluates=loop.evaluate is not None)
        tracing = loop.profile is not None and loop.profile.switches(step)
        if any(due) or fresh or tracing:
            pending.flush()
        if fresh:
            timer.window.steps -= 1
            if not due.log:
                progress.update(step, "compiled")
        timer.update(training=not fresh)
        if timer.window.steps:
            progress.update(step, _status(timer.window, settings, step))
        if tracing:
            loop.profile.switch(step, partial(_program_text, step_fn, state, batch, loop))
            timer.restart()
        if due.log:
            loop.writer.write("train", step, _log_values(timer.next_window(), loop, step))
        if due.save:
            check_state(state, loop.mesh, step, loop.checkpoints.steps)
        if due.evaluate:
            scores = _evaluate(state, batches, loop)
            if loop.remember is not None:
                state = loop.remember(state, scores)
        if due.save:
            loop.save(state, batches, scores if due.evaluate else None)
        timer.restart()
    if pending.stopping() and step < settings.total_steps:
        pending.flush()
        check_state(state, loop.mesh, step, loop.checkpoints.steps)
        loop.save(state, batches)
        reason = loop.stop.requested or "another host was asked to stop"
        progress.say(f"{reason}: stopped at step {step}, saved; the same command continues from there.")
    loop.checkpoints.wait()
    return state, scores


def _program_text(step_fn: Callable, state: TrainState, batch: Any, loop: Loop) -> str:
    """The compiled step as XLA prints it."""
    return step_fn.lower(state, batch, loop.key, loop.constants).compile().as_text() or ""


def _evaluate(state: TrainState, batches: Any, loop: Loop) -> dict[str, Value]:
    """Scores of `state`, written and shown."""
    step = int(state.step)
    loop.progress.update(step, "evaluating")
    try:
        scores = loop.evaluate(state)
    except JaxkdError:  # unreadable validation images must not cost the training since the last checkpoint
        loop.save(state, batches)
        loop.checkpoints.wait()
        raise
    loop.writer.write("eval", step, {"epoch": loop.settings.epoch(step), **scores})
    loop.progress.say(_score_line(step, scores, loop))
    return scores


def _status(window: Window, settings: LoopSettings, step: int) -> str:
    seconds, images, waiting = window.rates(settings.batch_size)
    loss = f"loss {live_mean(window.means()['loss']):.3f} · " if window.seen else ""
    left = duration(seconds * (settings.total_steps - step))
    return f"{loss}{images:.0f} images/s · {1e3 * seconds:.0f} ms/step · data wait {waiting:.0f} % · {left} left"


def _log_values(window: Window, loop: Loop, step: int) -> dict[str, Value]:
    values: dict[str, Value] = {"epoch": loop.settings.epoch(step), "learning_rate": loop.schedule(step - 1)}
    values |= window.means()
    if window.steps:
        seconds, images, waiting = window.rates(loop.settings.batch_size)
        values |= {"images_per_second": images, "step_ms": 1e3 * seconds, "data_wait_percent": waiting}
    return values | {"seconds": loop.clock.seconds, "images": loop.clock.images}


def _score_line(step: int, scores: dict[str, Value], loop: Loop) -> str:
    members = max((np.size(value) for value in scores.values()), default=1)
    means = {name: live_mean(value) for name, value in scores.items()}
    shown = " · ".join(f"{k} {v:.{2 if k.startswith(('top', 'ema_top')) else 4}f}" for k, v in means.items())
    settings, of_members = loop.settings, f" (means of {members} members)" if members > 1 else ""
    epoch = step / settings.steps_per_epoch
    return (
        f"epoch {epoch:g} (step {step}/{settings.total_steps}) · {shown}{of_members} · {duration(loop.clock.seconds)}"
    )
