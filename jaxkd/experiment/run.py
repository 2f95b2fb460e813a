"""`run(config, workdir) -> result`: the one place that builds a task from a config and loops it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from threadpoolctl import threadpool_limits

from jaxkd import __version__, data, parallel, train
from jaxkd.config.plugins import import_plugins
from jaxkd.errors import ConfigError
from jaxkd.experiment import classification, restoration
from jaxkd.experiment.checks import check_config
from jaxkd.experiment.classification import build_dynamics, build_evaluator, build_task, build_train_pipeline, resolve
from jaxkd.experiment.run_summary import announce
from jaxkd.experiment.sweep import run_stages
from jaxkd.experiment.workdir import check_teacher, claim_workdir
from jaxkd.report.training_statistics import draw_tables, write_tables

__all__ = [
    "build_dynamics",
    "build_evaluator",
    "build_schedule",
    "build_task",
    "build_train_pipeline",
    "loop_settings",
    "resolve",
    "run",
    "run_one",
]
PyTree = Any


def run(config: ConfigDict, workdir: str | Path, *, console: Console | None = None) -> dict[str, Any]:
    """Trains what `config` says in `workdir`, from its last checkpoint if there is one.

    Args:
      config: a full config (`fields.base()` and changes), with or without stages.
      workdir: where checkpoints, metrics and the resolved config go; made if missing.
      console: where progress goes; None is silent.

    Returns:
      `{"metrics": {...}, "step": n, "finished": bool, ...}`; with stages `{"stages": {name: result}}`.

    Raises:
      JaxkdError: anything that the user can mend, before the first step wherever possible.
    """
    workdir = Path(workdir)
    import_plugins(config.plugins)
    if config.stages:
        return run_stages(config, workdir, run_one, console)
    return run_one(config, workdir, console)


def run_one(config: ConfigDict, workdir: Path, console: Console | None, *, title: str = "") -> dict[str, Any]:
    """One training run; see `run`."""
    check_config(config)
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model)
    parallel.check_batch("train.batch_size", config.train.batch_size, mesh, accumulate=config.optimizer.accumulate)
    kind = restoration if config.task == "restoration" else classification
    problem = kind.open_problem(config, workdir, mesh, console)
    config, task, pipeline, dynamics = problem.config, problem.task, problem.pipeline, problem.dynamics
    settings = loop_settings(config, pipeline.steps_per_epoch)
    schedule = build_schedule(config, settings)
    optimizer = train.make_optimizer(
        schedule,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        eps=config.optimizer.eps,
        clip_norm=config.optimizer.clip_norm,
        frozen=task.frozen,
    )
    claim_workdir(config, workdir)  # only now: a config that cannot run must not stand in the way of its correction
    problem.keep()
    task.constants = parallel.put_on_mesh(task.constants, mesh)

    def start() -> train.TrainState:
        params, mutable = task.init(jax.random.key(config.seed))
        return train.create_state(params, mutable, optimizer, ema=config.ema.decay > 0)

    abstract = jax.eval_shape(start)
    checkpoints = train.Checkpoints(
        workdir,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        keep_every=config.checkpoint.keep_every_epochs * settings.steps_per_epoch,
        best_metric=problem.best_metric,
    )
    clock = train.Clock()
    done = checkpoints.steps()
    if done:
        state, position, meta = checkpoints.restore(done[-1], abstract, mesh)
        check_teacher(meta["task"], task.metadata(), workdir)
        pipeline.set_state(position)
        clock = train.Clock(**meta["clock"])
    else:
        state = parallel.put_on_mesh(start(), mesh)
    announce(console, problem, settings, mesh, workdir, resumed=done[-1] if done else None, state=state)

    stepping = {"accumulate": config.optimizer.accumulate, "ema_decay": config.ema.decay}
    step_fn = train.compile_train_step(task, optimizer, mesh, abstract, **stepping)
    observation = None
    if dynamics is not None:
        observed = train.compile_train_step(task, optimizer, mesh, abstract, **stepping, statistics=dynamics)
        observation = train.Observation(observed, config.dynamics.every_steps, dynamics.layers)
    writer = train.MetricWriter(workdir, tensorboard=config.log.tensorboard, active=parallel.is_main_host())
    evaluator = problem.evaluator(writer)
    title = title or workdir.name
    key = jax.random.key(config.seed + 1)  # another stream than the initial parameters
    resolved = config.to_dict()

    def meta_of(clock: train.Clock) -> dict[str, Any]:
        return {
            "task": task.metadata(),
            "clock": vars(clock),
            "config": json.loads(json.dumps(resolved, default=str)),
            "versions": {"jaxkd": __version__, "jax": jax.__version__, "python": platform.python_version()},
        }

    finished_before = bool(done) and done[-1] >= settings.total_steps
    batches = None if finished_before else data.Prefetcher(pipeline)
    try:
        if batches is None:
            if console is not None:
                console.print(f"{title}: all {settings.total_steps} steps were done before.", highlight=False)
            scores = evaluator(state)  # says the result again
        else:
            with (
                train.StopRequest() as stop,
                train.TrainProgress(console, title, settings.total_steps, int(state.step)) as progress,
                # On a CPU the statistics' small decompositions wait for one another where several BLAS threads work.
                threadpool_limits(None if dynamics is None else 1, user_api="blas"),
            ):
                state, scores = train.train_loop(
                    step_fn,
                    state,
                    batches,
                    settings,
                    constants=task.constants,
                    key=key,
                    mesh=mesh,
                    checkpoints=checkpoints,
                    writer=writer,
                    progress=progress,
                    stop=stop,
                    clock=clock,
                    meta=meta_of,
                    evaluate=evaluator,
                    schedule=lambda step: float(schedule(np.int32(step))),
                    observation=observation,
                )
    finally:
        if batches is not None:
            batches.close()
        writer.close()
        checkpoints.close()
        if dynamics is not None and parallel.is_main_host():  # of a run that failed too: they may show why
            _write_dynamics(config, workdir)
    step = int(state.step)
    result = {
        "metrics": scores,
        "step": step,
        **_best(workdir, problem.best_metric),
        "finished": step >= settings.total_steps,
        "seconds": clock.seconds,
        "images_trained": clock.images,
        "broken_images": sorted(pipeline.broken.found.values()),
        "val_images": problem.val_images,
        "train_images": problem.train_images,
        "student": config.student.name,
        "parameters": int(sum(np.prod(p.shape) for p in jax.tree.leaves(abstract.params["student"]))),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "workdir": str(workdir),
    }
    if result["finished"] and parallel.is_main_host():
        (workdir / "result.json").write_text(json.dumps(result, indent=2))
    if config.task == "restoration" and parallel.is_main_host():  # of a run that was stopped too
        figure = restoration.draw_run(config, workdir, result)
        if figure is not None and console is not None:
            console.print(f"Curves: {figure}", markup=False, highlight=False, soft_wrap=True)
    return result


def _write_dynamics(config: ConfigDict, workdir: Path) -> None:
    """Tables and pictures of all statistics so far."""
    rows = train.read_metrics(workdir, "dynamics")
    images = min(config.dynamics.images, config.train.batch_size // config.optimizer.accumulate)
    caption = f"{config.student.name} on {config.data.source}: the first {images} images of a training batch, "
    write_tables(rows, workdir / "dynamics")
    draw_tables(rows, workdir / "dynamics", caption=caption + f"as trained on; one run, seed {config.seed}.")


def _best(workdir: Path, metric: str) -> dict[str, Any]:
    """The best held-out score of the raw weights over the whole run, which is what papers print, and its step."""
    rows = [row for row in train.read_metrics(workdir, "eval") if isinstance(row.get(metric), int | float)]
    best = max(rows, key=lambda row: (row[metric], row["step"]), default=None)
    return {} if best is None else {f"best_{metric}": best[metric], "best_step": best["step"]}


def loop_settings(config: ConfigDict, steps_per_epoch: int) -> train.LoopSettings:
    """Epochs of the config as optimiser steps."""
    total = config.train.steps or config.schedule.steps or config.train.epochs * steps_per_epoch
    every = (config.checkpoint.every_epochs * steps_per_epoch, config.checkpoint.every_steps)
    return train.LoopSettings(
        total_steps=total,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.train.batch_size,
        log_every=config.log.every_steps,
        eval_every=config.eval.every_steps or max(1, round(config.eval.every_epochs * steps_per_epoch)),
        checkpoint_every=tuple(e for e in every if e),
    )


def build_schedule(config: ConfigDict, settings: train.LoopSettings) -> Any:
    """Step -> learning rate; the peak scales with the batch where optimizer.reference_batch is set.

    `train.steps` cuts a run short but does not squeeze its schedule: that follows train.epochs.
    """
    reference = config.optimizer.reference_batch
    scale = config.train.batch_size / reference if reference else 1.0
    if config.schedule.kind == "cosine" and config.optimizer.learning_rate * scale < config.schedule.min_lr:
        raise ConfigError(
            f"The peak learning rate is optimizer.learning_rate={config.optimizer.learning_rate} x batch "
            f"{config.train.batch_size} / {reference or config.train.batch_size} = "
            f"{config.optimizer.learning_rate * scale:g}, below schedule.min_lr={config.schedule.min_lr:g}. The rate "
            "would rise over the run. Raise the rate, set optimizer.reference_batch=0, or lower schedule.min_lr."
        )
    return train.make_schedule(
        config.schedule.kind,
        learning_rate=config.optimizer.learning_rate * scale,
        total_steps=config.schedule.steps or config.train.epochs * settings.steps_per_epoch,
        steps_per_epoch=settings.steps_per_epoch,
        warmup_epochs=config.schedule.warmup_epochs,
        warmup_lr=config.schedule.warmup_lr,
        min_lr=config.schedule.min_lr,
    )
