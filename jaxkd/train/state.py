"""The train state: everything that training changes, as one pytree."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from jaxkd.parallel import path_of, replicated

PyTree = Any


class TrainState(struct.PyTreeNode):
    """State of a run after `step` optimiser steps."""

    step: jax.Array  # () int32, optimiser steps done
    params: PyTree  # `{"student": ..., "projectors": ...}`, fp32
    mutable: PyTree  # other collections (batch statistics), maybe empty
    opt_state: PyTree  # of the optimiser
    ema: PyTree | None  # moving average of `params`, or None when it is off


def create_state(params: PyTree, mutable: PyTree, tx: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """State at step 0; the moving average starts at the initial parameters, as timm's ModelEma does."""
    # Copies, because the step donates the state: no two leaves may share a buffer, and the caller's own arrays (a
    # student's loaded weights, perhaps its teacher's too) must outlive the first step.
    params, mutable, average = (jax.tree.map(jnp.copy, tree) for tree in (params, mutable, params if ema else None))
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, mutable=mutable, opt_state=tx.init(params), ema=average
    )


@cache
def _all_finite(mesh: Mesh) -> Any:
    return jax.jit(lambda x: jnp.all(jnp.isfinite(x)), out_shardings=replicated(mesh))


def non_finite_paths(state: TrainState, mesh: Mesh) -> list[str]:
    """Paths of the arrays of `state` that hold NaN or infinity, such as "params/student/head/kernel"; [] if none does.

    Waits for the state. The arrays are looked at one by one: they have few distinct shapes, hence few programs to
    compile, where one program over the whole state would take seconds.
    """
    leaves = [
        (path_of(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    flags = []
    for _, leaf in leaves:
        flags.append(_all_finite(mesh)(leaf))
        if not leaf.sharding.is_fully_replicated:
            # The devices must agree on it. On CPUs, several such programs at once can deadlock.
            flags[-1].block_until_ready()
    flags = jax.device_get(flags)
    return [path for (path, _), finite in zip(leaves, flags, strict=True) if not finite]
