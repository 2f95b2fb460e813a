"""The compiled train and evaluation steps of a task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from jaxkd.parallel import batch_sharding, batch_spec, gather_weights, replicated, split_weights, tree_shardings
from jaxkd.train.cpu_compiler import compiler_options
from jaxkd.train.diverged import mask_members, members_with_images
from jaxkd.train.moving_average import warmed_decay
from jaxkd.train.state import TrainState
from jaxkd.train.task import Batch, Keys, Task, fold_in, step_key

PyTree = Any
# (params, mutable, batch, key, step, constants) -> {name: (L,)}, one value per layer; traced with the step.
Statistics = Callable[[PyTree, PyTree, Batch, jax.Array, jax.Array, PyTree], dict[str, jax.Array]]


def _micro_batches(batch: Batch, count: int, mesh: Mesh) -> Batch:
    """(B, ...) -> (count, B / count, ...) without moving an example to another device.

    Micro-batch i takes every count-th example: a contiguous split would put whole micro-batches on one device each.
    """

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, batch_spec(1)))

    return jax.tree.map(split, batch)


def _gradients(
    task: Task,
    mesh: Mesh,
    params: PyTree,
    mutable: PyTree,
    batch: Batch,
    key: jax.Array | Keys,
    step: jax.Array,
    constants: PyTree,
) -> tuple[PyTree, dict[str, jax.Array], PyTree]:
    members = getattr(task, "member_count", 0)

    def loss_fn(p: PyTree) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        return task.loss(gather_weights(p, mesh, members=members), mutable, batch, key, step, constants)

    (loss, (terms, mutable)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return split_weights(grads, mesh, members=members), {"loss": loss, **terms}, mutable


def trainable_norm(grads: PyTree, frozen: PyTree | None) -> jax.Array:
    """Global L2 norm of the gradient over what trains; frozen parameters do not count."""
    if frozen is None:
        return optax.global_norm(grads)
    return optax.global_norm([g for g, f in zip(jax.tree.leaves(grads), jax.tree.leaves(frozen), strict=True) if not f])


def count_images(batch: Batch) -> jax.Array:
    """Number of examples whose `mask` is True, or of all examples without a mask."""
    if "mask" in batch:
        return jnp.sum(batch["mask"], dtype=jnp.int32)
    return jnp.asarray(jax.tree.leaves(batch)[0].shape[0], jnp.int32)


def train_step(
    task: Task,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    accumulate: int = 1,
    repeat_after: int = 0,
    ema_decay: float = 0.0,
    ema_warmup: bool = False,
    statistics: Statistics | None = None,
) -> Callable[[TrainState, Batch, Any, PyTree], tuple[TrainState, dict[str, Any]]]:
    """The un-jitted step `(state, batch, key, constants) -> (state, metrics)`; `compile_train_step` jits it.

    Args:
      task: the pure functions.
      tx: the optimiser.
      mesh: where the batch is split.
      accumulate: micro-batches per optimiser step; gradients, terms and losses are their mean, each weighed by the
        number of its examples that count (an unreadable image does not).
      repeat_after: steps after which the batches repeat, and with them what happens to them on the device; 0 for never.
      ema_decay: decay of the moving average per optimiser step; 0 when it is off.
      ema_warmup: a smaller decay in the first steps, see `moving_average.warmed_decay`.
      statistics: what else to compute of the parameters before the update, on the batch (of several micro-batches, the
        first) and with the key of its loss; it lands in `metrics["statistics"]` and changes nothing else.
    """

    members = getattr(task, "member_count", 0)
    norm = partial(trainable_norm, frozen=task.frozen)
    norm = jax.vmap(norm) if members else norm

    def step_fn(
        state: TrainState, batch: Batch, key: jax.Array | Keys, constants: PyTree
    ) -> tuple[TrainState, dict[str, Any]]:
        key = step_key(key, state.step, repeat_after=repeat_after)
        observed = (batch, key)
        constants = gather_weights(constants, mesh)
        gradients = partial(_gradients, task, mesh, state.params)
        if accumulate == 1:
            grads, metrics, mutable = gradients(state.mutable, batch, key, state.step, constants)
        else:

            def body(carry: tuple, micro: tuple[jax.Array, Batch]) -> tuple[tuple, None]:
                total, mutable = carry
                index, part = micro
                grads, metrics, mutable = gradients(mutable, part, fold_in(key, index), state.step, constants)
                count = count_images(part)

                def add(total: jax.Array, value: jax.Array) -> jax.Array:
                    return total + jnp.where(count > 0, count.astype(value.dtype) * value, 0)

                return (jax.tree.map(add, total, (grads, metrics)), mutable), None

            parts = (jnp.arange(accumulate), _micro_batches(batch, accumulate, mesh))
            first = jax.tree.map(lambda x: x[0], parts)
            observed = (first[1], fold_in(key, 0))
            shapes = jax.eval_shape(lambda m: gradients(state.mutable, m[1], key, state.step, constants)[:2], first)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            ((grads, metrics), mutable), _ = jax.lax.scan(body, (zeros, state.mutable), parts)
            images = jnp.maximum(count_images(batch), 1)
            grads, metrics = jax.tree.map(lambda x: x / images.astype(x.dtype), (grads, metrics))
        metrics["grad_norm"] = norm(grads)
        metrics["images"] = count_images(batch)
        if statistics is not None:
            params = gather_weights(state.params, mesh, members=members)
            metrics["statistics"] = statistics(params, state.mutable, *observed, state.step, constants)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = task.constrain(optax.apply_updates(state.params, updates))
        ema = state.ema
        if ema is not None:
            decay = warmed_decay(ema_decay, state.step) if ema_warmup else ema_decay
            ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema, params)
        new = TrainState(state.step + 1, params, mutable, opt_state, ema)
        return mask_members(state, new, metrics, members_with_images(batch)) if members else (new, metrics)

    return step_fn


def compile_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
    *,
    accumulate: int = 1,
    repeat_after: int = 0,
    ema_decay: float = 0.0,
    ema_warmup: bool = False,
    statistics: Statistics | None = None,
) -> Callable[[TrainState, Batch, Any, PyTree], tuple[TrainState, dict[str, Any]]]:
    """`train_step` as one jitted function: state donated, batch split over the mesh, metrics replicated.

    `state` may be abstract (`jax.eval_shape`): only its shapes are read.
    """
    shardings = tree_shardings(state, mesh, members=getattr(task, "member_count", 0))
    return jax.jit(
        train_step(
            task,
            tx,
            mesh,
            accumulate=accumulate,
            repeat_after=repeat_after,
            ema_decay=ema_decay,
            ema_warmup=ema_warmup,
            statistics=statistics,
        ),
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh), tree_shardings(task.abstract_constants, mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def compile_batch_map(
    fn: Callable[[Batch, jax.Array | Keys, PyTree], PyTree], mesh: Mesh, *, accumulate: int = 1
) -> Callable[[Batch, jax.Array | Keys, jax.Array, PyTree], PyTree]:
    """`(batch, key, step, constants) -> fn(batch, key of the step, constants)`, jitted.

    `fn` sees the micro-batches and the keys that the train step gives a task, and the arrays that it returns, with the
    examples along their first axis, come back in the order of the batch.
    """

    def mapped(batch: Batch, key: jax.Array | Keys, step: jax.Array, constants: PyTree) -> PyTree:
        key, constants = step_key(key, step), gather_weights(constants, mesh)
        if accumulate == 1:
            return fn(batch, key, constants)
        parts = (jnp.arange(accumulate), _micro_batches(batch, accumulate, mesh))
        found = jax.lax.map(lambda part: fn(part[1], fold_in(key, part[0]), constants), parts)
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), found)

    return jax.jit(mapped, out_shardings=batch_sharding(mesh))


def compile_eval_step(task: Task, mesh: Mesh) -> Callable[[PyTree, PyTree, Batch, PyTree], dict]:
    """`(params, mutable, batch, constants) -> {name: average}`, jitted; nothing is donated."""

    def evaluate(params: PyTree, mutable: PyTree, batch: Batch, constants: PyTree) -> dict:
        params = gather_weights(params, mesh, members=getattr(task, "member_count", 0))
        return task.evaluate(params, mutable, batch, gather_weights(constants, mesh))

    return jax.jit(evaluate, out_shardings=replicated(mesh), compiler_options=compiler_options(mesh))
