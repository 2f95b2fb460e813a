"""Members of a population whose loss or update stops being finite: they stay as they were, the others go on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.train.state import TrainState

PyTree = Any
POPULATION = "population"  # collection of `TrainState.mutable` that belongs to the population, not to the networks
NEVER = -1  # the step at which a member diverged that did not


def mask_diverged(
    old: TrainState, new: TrainState, metrics: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`new` with the members of `old` that have diverged, in this step or before.

    A member diverges in the step whose loss, gradient or updated parameters and collections are not finite. Moments
    need no check of their own: where the norm of the gradient is finite, so is the square of each entry, and the
    moving average mixes parameters that are.

    Args:
      old: state before the step; `mutable[POPULATION]["diverged_at"]` is (S,) int32, the step or `NEVER`.
      new: state after it.
      metrics: of the step, with "loss" and "grad_norm" of shape (S,).

    Returns:
      The state, and the metrics with "diverged_at".
    """
    before = old.mutable[POPULATION]["diverged_at"]

    def parts(state: TrainState) -> tuple[PyTree, ...]:
        mutable = {name: tree for name, tree in state.mutable.items() if name != POPULATION}
        return state.params, mutable, state.opt_state, state.ema

    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    for leaf in jax.tree.leaves(parts(new)[:2]):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            finite &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
    trains = (before == NEVER) & finite

    def choose(after: jax.Array, kept: jax.Array) -> jax.Array:
        return jnp.where(trains.reshape(-1, *[1] * (after.ndim - 1)), after, kept)

    params, mutable, opt_state, ema = jax.tree.map(choose, parts(new), parts(old))
    diverged_at = jnp.where((before == NEVER) & ~finite, new.step, before)
    population = {**new.mutable[POPULATION], "diverged_at": diverged_at}
    state = TrainState(new.step, params, {**mutable, POPULATION: population}, opt_state, ema)
    return state, {**metrics, "diverged_at": diverged_at}
