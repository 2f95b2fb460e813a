"""Members of a population that a step leaves as they were: diverged ones, and those without an image in the batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd.train.state import TrainState

PyTree = Any
POPULATION = "population"  # collection of `TrainState.mutable` that belongs to the population, not to the networks
NEVER = -1  # the step at which a member diverged that did not


def members_with_images(batch: dict[str, jax.Array]) -> jax.Array | None:
    """(S,) bool, whether a member learns from any image of the batch; None where all members learn from all images."""
    if "members" not in batch:
        return None
    return jnp.any(batch["members"] & batch["mask"][:, None], axis=0)


def mask_members(
    old: TrainState, new: TrainState, metrics: dict[str, jax.Array], learns: jax.Array | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`new` with the members of `old` that have diverged, in this step or before, or that have no image in this step.

    A member diverges in the step whose loss, gradient or updated parameters and collections are not finite. Moments
    need no check of their own: where the norm of the gradient is finite, so is the square of each entry, and the
    moving average mixes parameters that are.

    A member without an image makes no update: neither decay nor momentum moves its weights. Its position in the
    learning-rate schedule goes on, so that it ends with the run.

    Args:
      old: state before the step; `mutable[POPULATION]["diverged_at"]` is (S,) int32, the step or `NEVER`.
      new: state after it.
      metrics: of the step, with "loss" and "grad_norm" of shape (S,).
      learns: (S,) bool of `members_with_images`, or None.

    Returns:
      The state, and the metrics with "diverged_at" and, unless it is None, "learns".
    """
    before = old.mutable[POPULATION]["diverged_at"]

    def parts(state: TrainState) -> tuple[PyTree, ...]:
        mutable = {name: tree for name, tree in state.mutable.items() if name != POPULATION}
        return state.params, mutable, state.opt_state, state.ema

    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    for leaf in jax.tree.leaves(parts(new)[:2]):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
    if learns is not None:
        finite |= ~learns  # what an empty batch gives is not used
    lives = (before == NEVER) & finite
    trains = lives if learns is None else lives & learns

    def choose(mask: jax.Array, after: jax.Array, kept: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(-1, *[1] * (after.ndim - 1)), after, kept)

    def choose_part(after: PyTree, kept: PyTree) -> PyTree:
        return jax.tree.map(partial(choose, lives if _is_schedule(after) else trains), after, kept)

    params, mutable, opt_state, ema = jax.tree.map(choose_part, parts(new), parts(old), is_leaf=_is_schedule)
    diverged_at = jnp.where((before == NEVER) & ~finite, new.step, before)
    population = {**new.mutable[POPULATION], "diverged_at": diverged_at}
    state = TrainState(new.step, params, {**mutable, POPULATION: population}, opt_state, ema)
    return state, {**metrics, "diverged_at": diverged_at, **({} if learns is None else {"learns": learns})}


def _is_schedule(state: PyTree) -> bool:
    """Whether this part of an optimiser's state is the position in a learning-rate schedule."""
    return isinstance(state, optax.ScaleByScheduleState)
