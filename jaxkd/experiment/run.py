"""Runs an experiment: `run(config, workdir) -> result`."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict
from rich.console import Console
from threadpoolctl import threadpool_limits

from jaxkd import __version__, data, parallel, train
from jaxkd.config.paths import user_path
from jaxkd.config.plugins import import_plugins
from jaxkd.data.files import write_atomic
from jaxkd.errors import DamagedCheckpointError, JaxkdError, PeerLostError, storage_error
from jaxkd.experiment import members, teacher_cache
from jaxkd.experiment.build import Experiment, build, warm_up_warning
from jaxkd.experiment.environment import FILE as ENVIRONMENT
from jaxkd.experiment.environment import record_start, start_lines
from jaxkd.experiment.lock import WorkdirLock
from jaxkd.experiment.member_comparison import MEMBERS_FIGURE, compare_members
from jaxkd.experiment.next_steps import print_next
from jaxkd.experiment.objective import simkd_note
from jaxkd.experiment.profile import make_profile
from jaxkd.experiment.run_log import RunLog
from jaxkd.experiment.sweep import run_stages
from jaxkd.experiment.workdir import check_classes, check_subset, check_teacher, claim_workdir
from jaxkd.report.training_statistics import draw_tables, write_tables

_LOG = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: str | Path, *, console: Console | None = None, profile: int = 0) -> dict[str, Any]:
    """Trains what `config` says in `workdir`, from its last checkpoint if there is one.

    Args:
      config: full, perhaps with stages.
      workdir: of the run.
      console: for summary, progress and tables; None is silent.
      profile: steps to trace, of each stage; 0 for none.

    Returns:
      `{"metrics": {...}, "step": n, "finished": bool, ...}`; with stages `{"stages": {name: result}}`.
    """
    workdir = user_path(workdir, "--workdir")
    import_plugins(config.plugins)
    with storage_errors(workdir):
        if config.stages:
            return run_stages(config, workdir, partial(run_one, profile=profile), console)
        return run_one(config, workdir, console, profile=profile)


@contextlib.contextmanager
def storage_errors(workdir: Path) -> Iterator[None]:
    """Turns what a full disk, a quota or missing permissions raise anywhere in a run into one StorageError."""
    try:
        yield
    except JaxkdError:
        raise
    except Exception as error:  # OSError, and what Orbax and TensorStore raise in its place
        refused = storage_error(error, path=str(workdir), kept=_kept(workdir), continues=True)
        if refused is None:
            raise
        raise refused from error


def _kept(workdir: Path) -> str:
    steps = train.checkpoint_steps(workdir)
    return f"The last whole checkpoint, of step {steps[-1]}, stays" if steps else "No checkpoint was written yet"


def run_one(
    config: ConfigDict, workdir: Path, console: Console | None, *, title: str = "", profile: int = 0
) -> dict[str, Any]:
    """One training run; see `run`."""
    main = parallel.is_main_host()
    with (
        RunLog(workdir, console, active=main) as log,
        storage_errors(workdir),
        WorkdirLock(workdir, wanted=main) as lock,
        _peer_loss(workdir),
    ):
        lock.acquire(make=False)  # a run in progress is noticed before data and weights are read
        return _run_locked(config, workdir, lock, log, title, profile)


@contextlib.contextmanager
def _peer_loss(workdir: Path) -> Iterator[None]:
    """Turns what JAX raises where another process has died, anywhere in a run, into one PeerLostError."""
    try:
        yield
    except Exception as error:
        if not parallel.is_peer_loss(error):
            raise
        raise PeerLostError(
            f"Another process of this run ended or cannot be reached ({' '.join(str(error).split())[:120]}). "
            f"{_kept(workdir)}. Start all processes again with the same command; it continues."
        ) from error


def _run_locked(
    config: ConfigDict, workdir: Path, lock: WorkdirLock, log: RunLog, title: str, profile: int
) -> dict[str, Any]:
    console = log.console
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model, fsdp=config.mesh.fsdp)
    experiment = build(config, mesh, workdir=workdir, console=console)
    config, settings = experiment.config, experiment.settings
    lock.acquire()
    if lock.warning:
        _say(console, lock.warning)
    claim_workdir(config, workdir)  # only now: a config that cannot run must not stand in the way of its correction
    if parallel.is_main_host():
        experiment.save_inputs(workdir)
        overview = parameter_overview.get_parameter_overview(experiment.abstract_params, include_stats=False)
        write_atomic(workdir / "parameters.txt", overview)
    checkpoints = train.Checkpoints(
        workdir,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        keep_every=config.checkpoint.keep_every_epochs * settings.steps_per_epoch,
        best_metric=experiment.best_metric,
    )
    log.open(*start_lines(workdir))
    state, clock, resumed = _restore_or_init(experiment, checkpoints, workdir, console)
    if parallel.is_main_host():
        _record_start(workdir, resumed, settings.total_steps, console)
    log_run_summary(console, experiment, workdir, resumed=resumed)
    writer = train.MetricWriter(
        workdir,
        tensorboard=config.log.tensorboard,
        active=parallel.is_main_host(),
        first_step=(resumed or 0) + 1,
    )
    evaluate, lost = experiment.make_evaluator(writer), False
    alone, title = not title, title or workdir.name
    try:
        if resumed is not None and resumed >= settings.total_steps:
            if console is not None:
                console.print(f"{title}: all {settings.total_steps} steps were done before.", highlight=False)
            scores = evaluate(state)  # says the result again
        else:
            traced = make_profile(profile, workdir, experiment, int(state.step), console, stage="" if alone else title)
            state, scores = _train(experiment, state, clock, checkpoints, writer, evaluate, console, title, traced)
            if int(state.step) >= experiment.settings.total_steps:  # of a stopped run the average is not final
                _warn_of_average(console, config, int(state.step))
            scored = bool(getattr(experiment.task, "eval_constants", None))  # also where the run stopped before
            if (note := simkd_note(config, scored)) and parallel.is_main_host():
                _say(console, note)
    except Exception as error:
        lost = parallel.is_peer_loss(error)
        _draw_curves(experiment, workdir, {}, console)  # they may show why
        raise
    finally:
        writer.close()
        if not lost:  # else Orbax would wait for the other process
            checkpoints.close()
        if experiment.statistics is not None and parallel.is_main_host():  # of a run that failed too: they may show why
            _write_statistics(config, workdir)
    result = _result(experiment, workdir, int(state.step), scores, clock)
    if experiment.members:
        result["members"] = members.member_results(experiment, workdir, state, scores)
        if result["finished"]:
            meta = _checkpoint_meta(experiment, clock)
            members.write_members(experiment, workdir, state, result["members"], meta)
    if parallel.is_main_host() and result["finished"]:
        write_atomic(workdir / "result.json", json.dumps(result, indent=2))
    _draw_curves(experiment, workdir, result, console)
    if parallel.is_main_host() and alone:
        if experiment.members and result["finished"]:
            table = compare_members({workdir.name: config}, {workdir.name: result}, workdir, figure=MEMBERS_FIGURE)
            console.print(table)
        print_next(console, [workdir], workdir)
    return result


def _record_start(workdir: Path, resumed: int | None, steps: int, console: Console) -> None:
    try:
        record_start(workdir, continues_after=resumed, total_steps=steps)
    except OSError as error:
        _say(console, f"{workdir / ENVIRONMENT} cannot be written ({error.strerror or error}); the run goes on.")


def _draw_curves(experiment: Experiment, workdir: Path, result: dict[str, Any], console: Console | None) -> None:
    """Draws the curves of a run, also of one that was stopped or failed; says so where that fails."""
    if not parallel.is_main_host():
        return
    facts = {"train_images": experiment.train_images, "val_images": experiment.val_images}
    try:
        figure = experiment.draw_result(workdir, {**facts, **result})
    except Exception as error:  # no picture is worth a run
        reason = " ".join(str(error).split())[:200]
        _say(console, f"The curves in {workdir} were not drawn ({type(error).__name__}: {reason}); the run is whole.")
        return
    if figure is not None and console is not None:
        console.print(f"Curves: {figure}", markup=False, highlight=False, soft_wrap=True)


def _restore_or_init(
    experiment: Experiment, checkpoints: train.Checkpoints, workdir: Path, console: Console | None
) -> tuple[train.TrainState, train.Clock, int | None]:
    """(state, clock, step of the checkpoint that it comes from or None); also moves the pipeline to its position."""
    while done := checkpoints.steps():
        try:
            abstract, placed = experiment.abstract_state, experiment.shardings
            state, position, meta = checkpoints.restore(done[-1], abstract, experiment.mesh, placed)
        except DamagedCheckpointError as error:
            if experiment.config.checkpoint.on_damage != "previous" or len(done) == 1:
                raise
            moved = checkpoints.set_aside(done[-1])
            _say(
                console,
                f"{error.finding} Moved to {moved}, as checkpoint.on_damage=previous; the run continues from step "
                f"{done[-2]}.",
            )
            continue
        if not checkpoints.has_checksums(done[-1]):
            _say(
                console,
                f"The checkpoint of step {done[-1]} has no checksums, as an older version of jaxkd wrote it: damage to "
                "it would not be noticed.",
            )
        check_teacher(meta["task"], experiment.task.metadata(), workdir)
        check_classes(meta, experiment.class_names, experiment.config, workdir)
        check_subset(meta.get("subset"), experiment.subset, experiment.config, workdir)
        experiment.pipeline.set_state(position)
        return state, train.Clock(**meta["clock"]), done[-1]
    return experiment.init_state(), train.Clock(), None


def _say(console: Console | None, text: str) -> None:
    if console is not None and not console.quiet:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    elif parallel.is_main_host():  # a caller from Python, who gave no console
        _LOG.warning(text)


def _train(
    experiment: Experiment,
    state: train.TrainState,
    clock: train.Clock,
    checkpoints: train.Checkpoints,
    writer: train.MetricWriter,
    evaluate: Callable[[train.TrainState], dict[str, Any]],
    console: Console | None,
    title: str,
    profile: train.StepProfile | None,
) -> tuple[train.TrainState, dict[str, Any]]:
    """The training loop with everything around it: data in the background, signals, progress."""
    config, settings, observation = experiment.config, experiment.settings, None
    if experiment.statistics is not None:
        observed = experiment.compile_step(statistics=True)
        observation = train.Observation(observed, config.dynamics.every_steps, experiment.statistics.layers)
    with train.StopRequest() as stop:
        _fill_cache(experiment, console, stop)
        batches = data.Prefetcher(experiment.pipeline)
        try:
            with (
                train.TrainProgress(console, title, settings.total_steps, int(state.step)) as progress,
                # On a CPU the statistics' small decompositions wait for one another where several BLAS threads work.
                threadpool_limits(None if observation is None else 1, user_api="blas"),
            ):
                loop = train.Loop(
                    settings=settings,
                    constants=experiment.constants,
                    key=experiment.key,
                    mesh=experiment.mesh,
                    checkpoints=checkpoints,
                    writer=writer,
                    progress=progress,
                    stop=stop,
                    clock=clock,
                    meta=lambda clock: _checkpoint_meta(experiment, clock),
                    evaluate=evaluate,
                    schedule=lambda step: train.to_value(experiment.schedule(np.int32(step))),
                    observation=observation,
                    members=tuple(member.name for member in experiment.members),
                    remember=members.remember_best(experiment),
                    profile=profile,
                )
                return train.train_loop(experiment.compile_step(), state, batches, loop)
        finally:
            batches.close()
            if profile is not None:
                profile.close()


def _fill_cache(experiment: Experiment, console: Console | None, stop: train.StopRequest) -> None:
    """Writes the teacher's logits that the run reads and that are not there yet."""
    teacher_cache.fill(
        experiment.task,
        experiment.pipeline,
        steps=experiment.settings.total_steps,
        key=experiment.key,
        mesh=experiment.mesh,
        accumulate=experiment.config.optimizer.accumulate,
        console=console,
        stop=stop,
    )


def _warn_of_average(console: Console | None, config: ConfigDict, steps: int) -> None:
    """Says so where more than 1 % of the moving average after `steps` steps are the initial weights."""
    warning = train.initial_share_warning(config.ema.decay, steps, warmup=config.ema.warmup)
    if warning and parallel.is_main_host():
        _say(console, f"{warning} Take the raw weights, or set a smaller ema.decay or ema.warmup=True.")


def _checkpoint_meta(experiment: Experiment, clock: train.Clock) -> dict[str, Any]:
    return {
        "task": experiment.task.metadata(),
        "clock": asdict(clock),  # a copy, as it is written in the background while the clock goes on
        "classes": list(experiment.class_names),
        **({} if experiment.subset is None else {"subset": experiment.subset}),
        "config": json.loads(json.dumps(experiment.config.to_dict(), default=str)),
        "versions": {"jaxkd": __version__, "jax": jax.__version__, "python": platform.python_version()},
    }


def _result(
    experiment: Experiment, workdir: Path, step: int, scores: dict[str, Any], clock: train.Clock
) -> dict[str, Any]:
    """The result of a run, as result.json holds it."""
    return {
        "metrics": _without_nan(train.to_json(scores)),
        "step": step,
        **best_score(workdir, experiment.best_metric),
        "finished": step >= experiment.settings.total_steps,
        "seconds": clock.seconds,
        "images_trained": clock.images,
        "broken_images": sorted(experiment.pipeline.broken.found.values()),
        "val_images": experiment.val_images,
        "train_images": experiment.train_images,
        "student": experiment.config.student.name,
        "parameters": experiment.parameters,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "workdir": str(workdir),
    }


def _without_nan(metrics: dict[str, Any]) -> dict[str, Any]:
    """`metrics` with None for what a member of a population lost by diverging: JSON has no NaN."""

    def clean(value: Any) -> Any:
        return [None if math.isnan(v) else v for v in value] if isinstance(value, list) else value

    return {name: clean(value) for name, value in metrics.items()}


def best_score(workdir: Path, metric: str) -> dict[str, Any]:
    """The best held-out score of the raw weights over the whole run, which is what papers print, and its step.

    Of a population also the member that reached it.
    """
    rows = [row for row in train.read_metrics(workdir, "eval") if not isinstance(row.get(metric), str | None)]
    if not rows:
        return {}
    best = max(rows, key=lambda row: (train.best_member(row[metric])[0], row["step"]))
    score, member = train.best_member(best[metric])
    result = {f"best_{metric}": score, "best_step": best["step"]}
    return result if member is None else {**result, "best_member": member}


def _write_statistics(config: ConfigDict, workdir: Path) -> None:
    """Tables and figures of all statistics of the layers so far."""
    rows = train.read_metrics(workdir, "dynamics")
    images = min(config.dynamics.images, config.train.batch_size // config.optimizer.accumulate)
    caption = f"{config.student.name} on {config.data.source}: the first {images} images of a training batch, "
    write_tables(rows, workdir / "dynamics")
    draw_tables(rows, workdir / "dynamics", caption=caption + f"as trained on; one run, seed {config.seed}.")


def log_run_summary(console: Console | None, experiment: Experiment, workdir: Path, *, resumed: int | None) -> None:
    """Prints networks, objective, data, length, devices and time; silent without a console and on other hosts."""
    if console is None or not parallel.is_main_host():
        return
    config, task, settings, devices = experiment.config, experiment.task, experiment.settings, experiment.mesh.devices
    teacher = getattr(task, "teacher", None)
    source = f" <- {teacher.spec.name} ({teacher.origin})" if teacher else ""
    every = config.dynamics.every_steps
    lines = [
        f"{config.student.name} ({experiment.parameters:,} parameters, {task.student.origin}){source}",
        *experiment.summary,
        f"{settings.total_steps:,} steps of {settings.batch_size} on {devices.size} x {devices.flat[0].device_kind} "
        f"· {workdir}" + ("" if resumed is None else f" · continues after step {resumed:,}"),
        *([f"statistics of the layers at step 1 and every {every:,} steps"] if every else []),
        time.strftime("%Y-%m-%d %H:%M:%S"),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if warning := warm_up_warning(config, settings):
        _say(console, warning)
