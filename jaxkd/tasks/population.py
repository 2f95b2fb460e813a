"""Many students of one architecture in one program, under one teacher forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxkd import parallel
from jaxkd.distill.population import MEMBER, PopulationObjective
from jaxkd.tasks.classification import ClassificationTask
from jaxkd.train.diverged import NEVER, POPULATION
from jaxkd.train.task import Batch, Inputs, Metrics, Task

PyTree = Any


class PopulationTask(Task):
    """Trains S students on the same batches: batches are augmented and the teacher runs once for all of them.

    Parameters and collections are those of one student with the members along a first axis; the loss of the step is the
    sum of the members' losses, so that each gets the gradient of its own.

    Args:
      task: of one student, with the joined objective of all members.
      seeds: S seeds, as `config.seed` of the runs that the members stand for.
      starts: S trees of variables to start from, or None for random ones; () for those of `task`.
      mesh: devices; members are split over those of the batch where they divide, and every device then holds the
        whole batch while it trains its members.
      keep_best: whether the state holds each member's best weights.
      ema: whether the run has a moving average, of which the best is kept too.
    """

    def __init__(
        self,
        task: ClassificationTask,
        seeds: Sequence[int],
        *,
        mesh: Mesh,
        starts: Sequence[PyTree] = (),
        keep_best: bool = False,
        ema: bool = False,
    ):
        assert isinstance(task.objective, PopulationObjective)
        self.task, self.seeds, self.member_count = task, tuple(seeds), len(seeds)
        self.student, self.objective, self.student_taps = task.student, task.objective, task.student_taps
        self.teacher = getattr(task, "teacher", None)
        self._starts, self._keep = tuple(starts) or (task.student.variables,) * len(seeds), (keep_best, ema)
        self._gathered = parallel.replicated(mesh) if parallel.splits_members(len(seeds), mesh) else None

    @cached_property
    def constants(self) -> PyTree:
        """Those of one student: the members share them."""
        return self.task.constants

    @property
    def abstract_constants(self) -> PyTree:
        """Their shapes."""
        return self.task.abstract_constants

    @property
    def eval_constants(self) -> PyTree:
        """Those of one student."""
        return self.task.eval_constants

    @property
    def frozen(self) -> PyTree | None:
        """Of one member, as the optimiser sees it."""
        return self.task.frozen

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Members start as the single runs with their seeds do; `key` is not read."""
        members = []
        for member, (seed, start) in enumerate(zip(self.seeds, self._starts, strict=True)):
            members.append(self.task.init_member(jax.random.key(seed), start, member=member))
        params, mutable = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        never = jnp.full(self.member_count, NEVER, jnp.int32)
        population: dict[str, Any] = {"diverged_at": never}
        if self._keep[0]:
            weights = {"params": params["student"], **({"ema": params["student"]} if self._keep[1] else {})}
            weights = jax.tree.map(jnp.zeros_like, weights)
            population["best"] = {**weights, "score": jnp.zeros(self.member_count), "step": never}
        return params, {**mutable, POPULATION: population}

    def inputs(self, batch: Batch, key: jax.Array, constants: PyTree) -> Inputs:
        """See `train.Task.inputs`; the same for all members."""
        return self._gather(self.task.inputs(batch, key, constants))

    def student_loss(
        self,
        params: PyTree,
        mutable: PyTree,
        inputs: Inputs,
        key: jax.Array,
        step: jax.Array,
        *,
        taps: tuple[str, ...] = (),
        offsets: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree, dict[str, jax.Array]]]:
        """The sum of the members' losses; "loss" and the terms are (S,), features at `taps` (S, B, ...).

        Args:
          params, mutable: of all members.
          inputs: of `inputs`.
          key: (S,) keys, one for each member.
          step, taps, offsets: see `train.Task.student_loss`.
        """
        networks = {name: tree for name, tree in mutable.items() if name != POPULATION}
        shared = {name: value for name, value in inputs.batch.items() if name != "members"}
        subsets = inputs.batch.get("members")  # (B, S), which images each member learns from

        def one(params: PyTree, mutable: PyTree, key: jax.Array, member: jax.Array, learns: jax.Array | None) -> tuple:
            batch = {**shared, MEMBER: member}
            if learns is not None:
                batch["mask"] = learns & shared["mask"]
            own = inputs._replace(batch=batch)
            loss, (terms, mutable, features) = self.task.student_loss(
                params, mutable, own, key, step, taps=taps, offsets=offsets
            )
            return {"loss": loss, **terms}, mutable, features

        given = (params, networks, key, jnp.arange(self.member_count), None if subsets is None else subsets.T)
        terms, networks, features = jax.vmap(one)(*given)
        return jnp.sum(terms["loss"]), (terms, {**networks, POPULATION: mutable[POPULATION]}, features)

    def evaluate(self, params: PyTree, mutable: PyTree, batch: Batch, constants: PyTree) -> Metrics:
        """As `ClassificationTask.evaluate`, (S,); NaN for members that have diverged."""
        networks = {name: tree for name, tree in mutable.items() if name != POPULATION}
        batch = self._gather(batch)

        def one(params: PyTree, mutable: PyTree, member: jax.Array) -> Metrics:
            return self.task.evaluate(params, mutable, {**batch, MEMBER: member}, constants)

        scores = jax.vmap(one)(params, networks, jnp.arange(self.member_count))
        lost = mutable[POPULATION]["diverged_at"] != NEVER
        return {name: v.replace(total=jnp.where(lost, jnp.nan, v.total)) for name, v in scores.items()}

    def metadata(self) -> dict[str, Any]:
        """See `train.Task.metadata`."""
        return self.task.metadata()

    def _gather(self, tree: PyTree) -> PyTree:
        """Arrays that are split over the batch -> whole on every device, where the members are split instead."""
        if self._gathered is None:
            return tree
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self._gathered), tree)
