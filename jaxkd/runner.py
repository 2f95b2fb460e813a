"""`run(config, workdir) -> result`: the one place that builds a task from a config and loops it."""

from __future__ import annotations

import functools
import json
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import __version__, auto_pairs, data, distill, models, parallel, tasks, train, weights
from jaxkd.announcement import announce
from jaxkd.dynamics_tables import draw_tables, write_tables
from jaxkd.errors import ConfigError
from jaxkd.stages import run_stages
from jaxkd.validate import mixes, validate
from jaxkd.workdir import check_teacher, claim_workdir

PyTree = Any


def run(config: ConfigDict, workdir: str | Path, *, console: Console | None = None) -> dict[str, Any]:
    """Trains what `config` says in `workdir`, from its last checkpoint if there is one.

    Args:
      config: a full config (`recipes.base()` and changes), with or without stages.
      workdir: where checkpoints, metrics and the resolved config go; made if missing.
      console: where progress goes; None is silent.

    Returns:
      `{"metrics": {...}, "step": n, "finished": bool, ...}`; with stages `{"stages": {name: result}}`.

    Raises:
      JaxkdError: anything that the user can mend, before the first step wherever possible.
    """
    workdir = Path(workdir)
    if config.stages:
        return run_stages(config, workdir, run_one, console)
    return run_one(config, workdir, console)


def run_one(config: ConfigDict, workdir: Path, console: Console | None, *, title: str = "") -> dict[str, Any]:
    """One training run; see `run`."""
    validate(config)
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model)
    parallel.check_batch("train.batch_size", config.train.batch_size, mesh, accumulate=config.optimizer.accumulate)
    eval_batch = config.eval.batch_size or config.train.batch_size
    parallel.check_batch("eval.batch_size", eval_batch, mesh)
    sources = {split: data.open_source(config.data.source, split) for split in ("train", "val")}
    build = functools.partial(build_task, num_classes=len(sources["train"].class_names))
    config = resolve(config, num_classes=len(sources["train"].class_names))
    config, chosen = auto_pairs.settle(config, workdir, sources["val"], build, console)
    task = build(config)
    pipeline = build_train_pipeline(config, sources["train"], task.student)
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
    dynamics = build_dynamics(config, task, mesh)
    claim_workdir(config, workdir)  # only now: a config that cannot run must not stand in the way of its correction
    auto_pairs.keep(chosen, workdir)
    task.constants = parallel.put_replicated(task.constants, mesh)

    def start() -> train.TrainState:
        params, mutable = task.init(jax.random.key(config.seed))
        return train.create_state(params, mutable, optimizer, ema=config.ema.decay > 0)

    abstract = jax.eval_shape(start)
    checkpoints = train.Checkpoints(
        workdir,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        keep_every=config.checkpoint.keep_every_epochs * settings.steps_per_epoch,
    )
    clock = train.Clock()
    done = checkpoints.steps()
    if done:
        state, position, meta = checkpoints.restore(done[-1], abstract, mesh)
        check_teacher(meta["task"], task.metadata(), workdir)
        pipeline.set_state(position)
        clock = train.Clock(**meta["clock"])
    else:
        state = parallel.put_replicated(start(), mesh)
    announce(console, config, task, sources, settings, mesh, workdir, resumed=done[-1] if done else None, state=state)

    stepping = {"accumulate": config.optimizer.accumulate, "ema_decay": config.ema.decay}
    step_fn = train.compile_train_step(task, optimizer, mesh, abstract, **stepping)
    observation = None
    if dynamics is not None:
        observed = train.compile_train_step(task, optimizer, mesh, abstract, **stepping, statistics=dynamics)
        observation = train.Observation(observed, config.dynamics.every_steps, dynamics.layers)
    eval_step = train.compile_eval_step(task, mesh)
    evaluator = build_evaluator(config, task, sources["val"], eval_batch, eval_step, mesh)
    writer = train.MetricWriter(workdir, tensorboard=config.log.tensorboard, active=parallel.is_main_host())
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
        **_best(workdir),
        "finished": step >= settings.total_steps,
        "seconds": clock.seconds,
        "images_trained": clock.images,
        "broken_images": sorted(pipeline.broken.found.values()),
        "val_images": len(sources["val"]),
        "train_images": len(sources["train"]),
        "student": config.student.name,
        "parameters": int(sum(np.prod(p.shape) for p in jax.tree.leaves(abstract.params["student"]))),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "workdir": str(workdir),
    }
    if result["finished"] and parallel.is_main_host():
        (workdir / "result.json").write_text(json.dumps(result, indent=2))
    return result


def _write_dynamics(config: ConfigDict, workdir: Path) -> None:
    """Tables and pictures of all statistics so far."""
    rows = train.read_metrics(workdir, "dynamics")
    images = min(config.dynamics.images, config.train.batch_size // config.optimizer.accumulate)
    caption = f"{config.student.name} on {config.data.source}: the first {images} images of a training batch, "
    write_tables(rows, workdir / "dynamics")
    draw_tables(rows, workdir / "dynamics", caption=caption + f"as trained on; one run, seed {config.seed}.")


def _best(workdir: Path) -> dict[str, Any]:
    """The best held-out top-1 of the raw weights over the whole run, which is what papers print, and its step."""
    rows = [row for row in train.read_metrics(workdir, "eval") if isinstance(row.get("top1"), int | float)]
    best = max(rows, key=lambda row: (row["top1"], row["step"]), default=None)
    return {} if best is None else {"best_top1": best["top1"], "best_step": best["step"]}


def resolve(config: ConfigDict, *, num_classes: int) -> ConfigDict:
    """A copy of `config` that says what it left to the data, so that a work directory describes its networks fully."""
    resolved = config.copy_and_resolve_references()
    with resolved.unlocked():
        for network in (resolved.student, resolved.teacher):
            if network.name and network.args.num_classes is None:
                network.args.num_classes = num_classes
    return resolved.lock()


def build_task(config: ConfigDict, *, num_classes: int, load: bool = True) -> tasks.ClassificationTask:
    """The networks, objective and frozen parameters of a config.

    Everything that can be wrong is checked before weights are read or fetched.

    Args:
      config: validated and resolved.
      num_classes: of the data.
      load: False leaves all weights random, for timing and planning.
    """
    student = _network(config.student, config.precision.compute, config.precision.remat)
    if student.num_classes != num_classes:
        raise ConfigError(
            f"student.args.num_classes={student.num_classes}, but the data have {num_classes} classes. A label is the "
            "place of its folder among the sorted class folders, so another number of outputs means other classes. "
            "Leave student.args.num_classes out, or use a folder with all the classes of the weights."
        )
    tasks.resolve_layers(config.dynamics.layers, models.tap_names(student.model))
    frozen = None
    if config.student.freeze:
        shapes = jax.eval_shape(
            student.model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *student.image_size, 3), np.float32)
        )
        frozen = {"student": weights.freeze_mask(shapes["params"], tuple(config.student.freeze)), "projectors": {}}
    if config.task == "classification":
        student = _loaded(student, config.student, config.seed, load)
        objective = distill.preset("none", smoothing=config.label_smoothing)
        return tasks.ClassificationTask(student, objective, frozen=frozen, **_on_device(config))
    teacher = _network(config.teacher, config.precision.compute, False, like=student)
    student_taps, teacher_taps = models.tap_names(student.model), models.tap_names(teacher.model)
    pairs = distill.resolve_pairs(config.distill.pairs or (), student_taps, teacher_taps)
    given = {k: _plain(config.distill[k]) for k in ("alpha", "temperature", "feature_weight")}
    objective = distill.preset(
        config.distill.preset,
        pairs=pairs,
        smoothing=config.label_smoothing,
        spectral_method=config.distill.spectral_method or None,
        **{k: v for k, v in given.items() if v is not None},
    )
    tasks.check_networks(student, teacher, objective, pairs)
    if config.teacher.new_head and any(term.name in ("kl", "hard") for term in objective.terms):
        raise ConfigError(
            f'teacher.new_head=True with distill.preset="{config.distill.preset}" would distil the logits of a random '
            "classifier. Only a trained head teaches. Fine-tune the teacher on these classes first "
            "(configs/supervised.py), or choose a preset without logits: spectral or mse."
        )
    student = _loaded(student, config.student, config.seed, load)
    teacher = _loaded(teacher, config.teacher, config.seed, load)
    return tasks.DistillationTask(student, teacher, objective, pairs=pairs, frozen=frozen, **_on_device(config))


def build_dynamics(config: ConfigDict, task: tasks.ClassificationTask, mesh: Mesh) -> tasks.Dynamics | None:
    """What is computed of the layers every `dynamics.every_steps` steps; None if that is 0."""
    options = config.dynamics.to_dict()
    if not options.pop("every_steps"):
        return None
    return tasks.Dynamics(task, mesh, **options)


def _on_device(config: ConfigDict) -> dict[str, Any]:
    """Erasing and mixing, which happen inside the step."""
    erase, mix = None, None
    if config.data.erase.probability:
        count = config.data.erase.count
        erase = data.EraseConfig(config.data.erase.probability, config.data.erase.mode, max_count=count)
    if mixes(config):
        mix = data.MixConfig(
            mixup_alpha=config.data.mix.mixup,
            cutmix_alpha=config.data.mix.cutmix,
            cutmix_minmax=tuple(config.data.mix.cutmix_minmax) or None,
            prob=config.data.mix.prob,
            switch_prob=config.data.mix.switch_prob,
            mode=config.data.mix.mode,
        )
    return {"erase": erase, "mix": mix}


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _network(config: ConfigDict, compute: str, remat: bool, *, like: tasks.Network | None = None) -> tasks.Network:
    args = {k: _plain(v) for k, v in config.args.items() if v is not None}
    if like is not None:  # a teacher sees the student's images
        args.setdefault("img_size", like.image_size)
    return tasks.build_network(config.name, args, compute=compute, remat=remat)


def _loaded(network: tasks.Network, config: ConfigDict, seed: int, load: bool) -> tasks.Network:
    if not (load and config.weights):
        return network
    key = jax.random.key(seed)
    return tasks.load_weights(
        network, config.weights, variant=config.variant, resize=config.resize, new_head=config.new_head, key=key
    )


def build_train_pipeline(config: ConfigDict, source: Any, network: tasks.Network) -> data.TrainPipeline:
    """This host's share of the endless, resumable sequence of training batches."""
    augment = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in config.data.augment.items()}
    return data.TrainPipeline(
        source,
        batch_size=config.train.batch_size,
        image_size=network.image_size,
        fill=data.fill_from_mean(network.spec.mean),
        seed=config.seed,
        augment=data.AugmentConfig(**augment),
        repeats=config.data.repeats,
        workers=config.data.workers,
        max_broken=config.data.max_broken,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )


def loop_settings(config: ConfigDict, steps_per_epoch: int) -> train.LoopSettings:
    """Epochs of the config as optimiser steps."""
    total = config.train.steps or config.train.epochs * steps_per_epoch
    every = (config.checkpoint.every_epochs * steps_per_epoch, config.checkpoint.every_steps)
    return train.LoopSettings(
        total_steps=total,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.train.batch_size,
        log_every=config.log.every_steps,
        eval_every=max(1, round(config.eval.every_epochs * steps_per_epoch)),
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
        total_steps=config.train.epochs * settings.steps_per_epoch,
        steps_per_epoch=settings.steps_per_epoch,
        warmup_epochs=config.schedule.warmup_epochs,
        warmup_lr=config.schedule.warmup_lr,
        min_lr=config.schedule.min_lr,
    )


def build_evaluator(
    config: ConfigDict, task: tasks.ClassificationTask, source: Any, batch_size: int, eval_step: Any, mesh: Mesh
) -> Any:
    """A function state -> {metric: mean} over the whole validation split; `ema_*` beside the raw weights."""
    spec = task.student.spec
    preprocess = data.EvalPreprocess(
        image_size=task.student.image_size,
        crop_pct=config.eval.crop_pct or spec.crop_pct,
        interpolation=config.eval.interpolation or spec.interpolation,
    )

    def score(state: train.TrainState) -> dict[str, float]:
        batches = data.eval_batches(
            source,
            preprocess,
            batch_size=batch_size,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
            max_broken=config.data.max_broken,
        )
        members = {"": (state.params, state.mutable)}
        if state.ema is not None:
            members["ema_"] = (state.ema, state.mutable)
        means, _, _ = train.evaluate(eval_step, batches, members, {}, mesh)
        return {prefix + name: value for prefix, values in means.items() for name, value in values.items()}

    return score
