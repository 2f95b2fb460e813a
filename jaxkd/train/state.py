"""Everything that training changes, as one pytree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

PyTree = Any


class TrainState(struct.PyTreeNode):
    """State of a run after `step` optimiser steps.

    Attributes:
      step: () int32, optimiser steps done.
      params: `{"student": ..., "projectors": ...}`, fp32.
      mutable: other collections (batch statistics), maybe empty.
      opt_state: of the optimiser.
      ema: moving average of `params`, or None when it is off.
    """

    step: jax.Array
    params: PyTree
    mutable: PyTree
    opt_state: PyTree
    ema: PyTree | None


def create_state(params: PyTree, mutable: PyTree, tx: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """State at step 0; the moving average starts at the initial parameters, as timm's ModelEma does."""
    # A copy, because the step donates the state: two leaves must never share a buffer.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, mutable=mutable, opt_state=tx.init(params), ema=average
    )
