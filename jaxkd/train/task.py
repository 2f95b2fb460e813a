"""The protocol between the training loop and a task: pure functions of parameters, state and a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

from jaxkd.metrics import Metrics

PyTree = Any
Batch = dict[str, jax.Array]


class Inputs(NamedTuple):
    """The data of one step of a student; every array has the examples along its first axis."""

    x: jax.Array  # what the student takes
    batch: Batch  # labels or targets that belong to `x`, and "mask" where some examples do not count
    teacher: Any  # (output, features) of the teacher for `x`, or None


class Keys(NamedTuple):
    """Two keys in the place of one, where the data of a run have a seed of their own."""

    data: jax.Array  # of augmentation and mixing on the device
    student: jax.Array  # of everything else; (S,) keys of a population


def fold_in(key: jax.Array | Keys, number: int | jax.Array) -> jax.Array | Keys:
    """`jax.random.fold_in` of one key, or of each of several."""
    if isinstance(key, Keys):
        return Keys(*(fold_in(k, number) for k in key))
    return jax.random.fold_in(key, number) if key.ndim == 0 else jax.vmap(jax.random.fold_in, (0, None))(key, number)


def step_key(key: jax.Array | Keys, step: int | jax.Array, *, repeat_after: int = 0) -> jax.Array | Keys:
    """The key of an optimiser step, counted from 0.

    Args:
      key: of the run.
      step: optimiser steps done.
      repeat_after: steps after which the key for `Task.inputs` repeats, as the batches do; 0 for never.
    """
    if not repeat_after:
        return fold_in(key, step)
    return Keys(jax.random.fold_in(data_key(key), step % repeat_after), fold_in(student_key(key), step))


def data_key(key: jax.Array | Keys) -> jax.Array:
    """The key for `Task.inputs`."""
    return key.data if isinstance(key, Keys) else key


def student_key(key: jax.Array | Keys) -> jax.Array:
    """The key for `Task.student_loss`."""
    return key.student if isinstance(key, Keys) else key


class Task(Protocol):
    """Pure functions of a training problem. All but `init` and `metadata` are traced and have no side effects.

    A task defines `init`, `inputs`, `evaluate`, and either `compare` or a `student_loss` of its own.

    Attributes:
      student: the network that trains (`weights.Network`).
      student_taps: features of the student that `compare` reads.
      constants: arrays the compiled step reads and never changes (a teacher's variables). They are an argument of the
        step, outside the optimiser and the checkpoint.
      frozen: tree of bool like the parameters, True where nothing may move; None if everything trains.
      member_count: students of a population, along the first axis of all parameters and state; 0 for one network.
    """

    member_count: int = 0
    student: Any
    student_taps: tuple[str, ...] = ()
    constants: PyTree
    frozen: PyTree | None

    @property
    def abstract_constants(self) -> PyTree:
        """Shapes and types of `constants`."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.constants)

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Initial parameters `{"student": ..., "projectors": ...}` and mutable collections (maybe empty)."""
        ...

    def inputs(self, batch: Batch, key: jax.Array, constants: PyTree) -> Inputs:
        """Augments and normalises a batch and runs the teacher; reads no parameters that train."""
        ...

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
        """The loss of the student on `inputs`.

        Args:
          params: as `init` returns them.
          mutable: likewise.
          inputs: of `inputs`, or a part of its examples.
          key: the key of the step, that `inputs` was given too unless the data have a seed of their own.
          step: optimiser steps done.
          taps: features of the student to return.
          offsets: tap -> array that is added there, so that the gradient at 0 is the layer's gradient.

        Returns:
          The scalar to minimise, and (its named terms, the new mutable collections, the features at `taps`).
        """
        output = self.student.model.apply(
            {"params": params["student"]},
            inputs.x,
            train=True,
            taps=(*self.student_taps, *taps),
            offsets=offsets,
            rngs={"dropout": jax.random.fold_in(key, 1)},
            **self.student_options(train=True),
        )
        loss, terms, mutable = self.compare(params, mutable, inputs, output, step, key)
        return loss, (terms, mutable, {name: output[1][name] for name in taps})

    def student_options(self, train: bool) -> dict[str, Any]:
        """Further arguments of the student's `apply`."""
        return {}

    def compare(
        self,
        params: PyTree,
        mutable: PyTree,
        inputs: Inputs,
        output: tuple[Any, dict[str, jax.Array]],
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        """The loss of the student's (output, features) on `inputs`, its named terms and the new mutable collections."""
        ...

    def loss(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: jax.Array | Keys, step: jax.Array, constants: PyTree
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        """`student_loss` of `inputs`: the scalar to minimise, its named terms and the new mutable collections."""
        inputs = self.inputs(batch, data_key(key), constants)
        loss, (terms, mutable, _) = self.student_loss(params, mutable, inputs, student_key(key), step)
        return loss, (terms, mutable)

    def constrain(self, params: PyTree) -> PyTree:
        """The parameters within their bounds, after each update of the optimiser; here none has any."""
        return params

    def evaluate(self, params: PyTree, mutable: PyTree, batch: Batch, constants: PyTree) -> Metrics:
        """Averages by name over the examples whose `batch["mask"]` is True."""
        ...

    def metadata(self) -> dict[str, Any]:
        """JSON-able facts that a checkpoint must agree with on resume: the networks' names, the teacher's hash."""
        return {"student": self.student.spec.name}
