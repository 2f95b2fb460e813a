"""A config becomes an experiment: everything that a run, a plan, a benchmark or a test needs of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import parallel, train
from jaxkd.config import population
from jaxkd.config.fields import change, data_seed
from jaxkd.errors import ConfigError
from jaxkd.experiment import classification, comparison, restoration
from jaxkd.experiment.checks import check_config, check_decay_tokens
from jaxkd.experiment.classification_check import check_runs
from jaxkd.experiment.components import Components
from jaxkd.experiment.eeg.components import build_components as build_contrastive
from jaxkd.experiment.eeg.components import compare_contrastive
from jaxkd.experiment.registry import register_task, registered_task

PyTree = Any
STEPS_WITHOUT_DATA = 1000  # optimiser steps of an epoch where no data set says how many there are


register_task("classification", classification.build_components, comparison.compare_classifiers, check_runs)
register_task("distillation", classification.build_components, comparison.compare_classifiers, check_runs)
register_task("restoration", restoration.build_components, comparison.compare_restorations)
register_task("contrastive", build_contrastive, compare_contrastive)


@dataclass(frozen=True, kw_only=True)
class Experiment(Components):
    """One training problem, checked and ready to run; see `build`."""

    mesh: Mesh  # devices
    optimizer: optax.GradientTransformation  # with the schedule inside
    schedule: train.Schedule  # step -> learning rate, (S,) where members differ
    settings: train.LoopSettings  # when things happen
    abstract_state: train.TrainState  # shapes of the train state
    shardings: PyTree  # of the train state

    @property
    def parameters(self) -> int:
        """Number of parameters of the student."""
        return int(parameter_overview.count_parameters(self.abstract_params["student"]))

    @cached_property
    def constants(self) -> PyTree:
        """Arrays that the compiled step reads and never changes, on the mesh."""
        return parallel.put_on_mesh(self.task.constants, self.mesh)

    @cached_property
    def members(self) -> tuple[population.Member, ...]:
        """Members of the population; () for an ordinary run."""
        return population.members(self.config)

    @property
    def abstract_params(self) -> PyTree:
        """Shapes of the parameters of one network."""
        params = self.abstract_state.params
        if not self.members:
            return params
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)

    @cached_property
    def key(self) -> jax.Array | train.Keys:
        """The key of the run's steps: another stream than the initial parameters."""
        seed = data_seed(self.config)
        if self.members:
            seeds = [(m.config.seed + 1) % 2**32 for m in self.members]  # as `jax.random.key` takes a larger number
            keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
        elif seed != self.config.seed:
            keys = jax.random.key(self.config.seed + 1)
        else:
            return jax.random.key(self.config.seed + 1)
        return train.Keys(jax.random.key(seed + 1), keys)

    def init_state(self) -> train.TrainState:
        """The state at step 0, on the mesh; no device ever holds all of an array that is split.

        Its buffers are its own: the step may be given them to reuse, and the loaded weights stay.
        """

        def create(key: jax.Array, loaded: PyTree = None) -> train.TrainState:
            params, mutable = self.task.init(key)
            if loaded is not None:
                params = {**params, "student": loaded}
            return train.create_state(params, mutable, self.optimizer, ema=self.config.ema.decay > 0)

        key = jax.random.key(self.config.seed)
        whole = all(sharding.is_fully_replicated for sharding in jax.tree.leaves(self.shardings))
        if whole or self.members:
            # Each device holds all of it anyway, or the members of a population are drawn one by one. Compiled as one
            # program, random initialisers take many times longer than op by op.
            return jax.device_put(create(key), self.shardings)
        loaded = self.task.student.variables
        if loaded is not None:  # an argument, because the program would otherwise hold the weights
            loaded = jax.device_put(loaded["params"], self.shardings.params["student"])
        return jax.jit(create, out_shardings=self.shardings)(key, loaded)

    def compile_step(self, *, statistics: bool = False) -> Callable[..., tuple[train.TrainState, dict[str, Any]]]:
        """The jitted train step, with the layers' statistics in its metrics if asked for; see `train.train_step`."""
        return train.compile_train_step(
            self.task,
            self.optimizer,
            self.mesh,
            self.abstract_state,
            accumulate=self.config.optimizer.accumulate,
            repeat_after=self.config.data.views * self.settings.steps_per_epoch,
            ema_decay=self.config.ema.decay,
            ema_warmup=self.config.ema.warmup,
            statistics=self.statistics if statistics else None,
        )


def build(
    config: ConfigDict,
    mesh: Mesh,
    *,
    workdir: Path | None = None,
    console: Console | None = None,
    load: bool = True,
    open_data: bool = True,
) -> Experiment:
    """Everything that `config` names, opened and checked; nothing is compiled and nothing written.

    Args:
      config: full, without stages; a copy is resolved.
      mesh: devices, `parallel.make_mesh`.
      workdir: of the run, where a continued one reads what it started with; only read.
      console: where choices that were made are said; None is silent.
      load: whether weights are read. False leaves all networks random, for planning and timing.
      open_data: whether the data set is opened. False leaves out pipeline and evaluator, and takes the number of
        classes from the config or the student's published weights.

    Raises:
      JaxkdError: whatever is wrong with the config, its weights or its data.
    """
    if not open_data and not config.data.source:
        config = change(config, {"data.source": "none"}).lock()
    check_config(config)
    parallel.check_batch("train.batch_size", config.train.batch_size, mesh, accumulate=config.optimizer.accumulate)
    parts = registered_task(config.task).build(
        config, mesh, workdir=workdir, console=console, load=load, open_data=open_data
    )
    return assemble(parts, mesh)


def assemble(parts: Components, mesh: Mesh) -> Experiment:
    """The experiment of the components of a task: schedule, optimiser, shapes and shardings added.

    Raises:
      ConfigError: a setting of the optimiser or the schedule is wrong for this task.
    """
    config, task = parts.config, parts.task
    settings = loop_settings(config, parts.pipeline.steps_per_epoch if parts.pipeline else assumed_epoch(config))
    schedule, optimizer = build_optimizer(config, settings, task.frozen)

    def create(key: jax.Array) -> train.TrainState:
        return train.create_state(*task.init(key), optimizer, ema=config.ema.decay > 0)

    abstract = jax.eval_shape(create, jax.random.key(config.seed))
    check_decay_tokens(config, abstract.params)
    return Experiment(
        **vars(parts),
        mesh=mesh,
        optimizer=optimizer,
        schedule=schedule,
        settings=settings,
        abstract_state=abstract,
        shardings=parallel.tree_shardings(abstract, mesh, members=getattr(task, "member_count", 0)),
    )


def assumed_epoch(config: ConfigDict) -> int:
    """Steps of an epoch where no data set was opened: few enough that the warm-up is shorter than the run."""
    if not config.schedule.steps:
        return STEPS_WITHOUT_DATA
    return max(min(STEPS_WITHOUT_DATA, int(config.schedule.steps / (config.schedule.warmup_epochs + 1))), 1)


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


def projector_settings(config: ConfigDict) -> dict[str, float]:
    """Arguments of `train.make_optimizer` for the parameters of the terms; {} where they train as the student does."""
    settings, own = config.distill, {}
    if settings.projector_learning_rate:
        own["projector_rate"] = settings.projector_learning_rate / config.optimizer.learning_rate
    if settings.projector_weight_decay is not None:
        own["projector_decay"] = settings.projector_weight_decay
    return own


def build_optimizer(
    config: ConfigDict, settings: train.LoopSettings, frozen: PyTree | None
) -> tuple[train.Schedule, optax.GradientTransformation]:
    """Schedule and optimiser of a run, of a population those of all members."""

    def make(schedule: train.Schedule, **numbers: float | jax.Array) -> optax.GradientTransformation:
        return train.make_optimizer(
            schedule,
            **numbers,
            b1=config.optimizer.b1,
            b2=config.optimizer.b2,
            eps=config.optimizer.eps,
            clip_norm=config.optimizer.clip_norm,
            decay_tokens=config.optimizer.decay_tokens,
            frozen=frozen,
        )

    members = [member.config for member in population.members(config)]
    if not members:
        schedule = build_schedule(config, settings)
        return schedule, make(schedule, weight_decay=config.optimizer.weight_decay, **projector_settings(config))
    schedules = [build_schedule(member, settings) for member in members]
    same_rate = len({member.optimizer.learning_rate for member in members}) == 1
    schedule = schedules[0] if same_rate else lambda step: jnp.stack([one(step) for one in schedules])
    numbers = [{"weight_decay": m.optimizer.weight_decay, **projector_settings(m)} for m in members]
    names = dict.fromkeys(name for own in numbers for name in own)
    # A member whose terms have no parameters has no settings of them; those that other members need get these.
    alone = [{"projector_rate": 1.0, "projector_decay": own["weight_decay"]} for own in numbers]
    tables = {name: [(a | own)[name] for a, own in zip(alone, numbers, strict=True)] for name in names}

    def of_member(member: jax.Array) -> optax.GradientTransformation:
        own = schedule if same_rate else lambda step: schedule(step)[member]
        chosen = {k: v[0] if len(set(v)) == 1 else jnp.asarray(v, jnp.float32)[member] for k, v in tables.items()}
        return make(own, **chosen)

    return schedule, train.member_optimizer(of_member, len(members))


def _rate_scale(config: ConfigDict) -> float:
    """Factor of optimizer.learning_rate for the batch."""
    reference = config.optimizer.reference_batch
    return config.train.batch_size / reference if reference else 1.0


def warm_up_warning(config: ConfigDict, settings: train.LoopSettings) -> str:
    """A sentence where the warm-up takes more than half of the run, or the rate never comes near its peak; else ""."""
    total, warm_up = settings.total_steps, round(config.schedule.warmup_epochs * settings.steps_per_epoch)
    if not warm_up:
        return ""
    steps = np.unique(np.linspace(0, total - 1, 500).astype(np.int32))
    peak, highest = config.optimizer.learning_rate * _rate_scale(config), build_schedule(config, settings)(steps).max()
    if 2 * warm_up <= total and highest > 0.75 * peak:
        return ""
    field = next((f for f in ("train.steps", "schedule.steps") if config[f]), "train.epochs")
    shorter = int(total / settings.steps_per_epoch / 5)
    return (
        f"schedule.warmup_epochs={config.schedule.warmup_epochs:g} is too long for this run: the learning rate rises "
        f"for {warm_up:,} steps, the run has {total:,}, and its highest rate is {highest:.2g} of a peak of {peak:.2g}. "
        f"Set --config.schedule.warmup_epochs={shorter}, or a larger --config.{field} (now {config[field]})."
    )


def build_schedule(config: ConfigDict, settings: train.LoopSettings) -> train.Schedule:
    """Step -> learning rate; the peak scales with the batch where optimizer.reference_batch is set.

    `train.steps` cuts a run short but does not squeeze its schedule: that follows train.epochs.
    """
    reference = config.optimizer.reference_batch
    scale = _rate_scale(config)
    if config.schedule.kind == "cosine" and config.optimizer.learning_rate * scale < config.schedule.min_lr:
        raise ConfigError(
            f"The peak learning rate is optimizer.learning_rate={config.optimizer.learning_rate} x batch "
            f"{config.train.batch_size} / {reference or config.train.batch_size} = "
            f"{config.optimizer.learning_rate * scale:g}, below schedule.min_lr={config.schedule.min_lr:g}. "
            "Raise the rate, set optimizer.reference_batch=0, or lower schedule.min_lr."
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
