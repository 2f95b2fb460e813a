"""The protocol of a task, which is all that the loop knows: the loop never sees a model."""

from __future__ import annotations

from typing import Any, Protocol

import jax

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Task(Protocol):
    """Pure functions of a training problem. `loss` and `evaluate` are traced; they must not have side effects.

    Attributes:
      constants: arrays the compiled step reads and never changes (a teacher's variables). They are an argument of the
        step, outside the optimiser and the checkpoint.
      frozen: tree of bool like the parameters, True where nothing may move; None if everything trains.
    """

    constants: PyTree
    frozen: PyTree | None

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Initial parameters `{"student": ..., "projectors": ...}` and mutable collections (maybe empty)."""
        ...

    def loss(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: jax.Array, step: jax.Array, constants: PyTree
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        """Scalar to minimise, its named terms (scalars) and the new mutable collections."""
        ...

    def evaluate(self, params: PyTree, mutable: PyTree, batch: Batch, constants: PyTree) -> Metrics:
        """`{name: (sum, count)}` over the examples whose `batch["mask"]` is True."""
        ...

    def metadata(self) -> dict[str, Any]:
        """JSON-able facts that a checkpoint must agree with on resume (the teacher's name and hash)."""
        ...
