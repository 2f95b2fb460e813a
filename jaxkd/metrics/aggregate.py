"""Averages as (total, count), so that padding, masks, batches and hosts reduce by adding up: `clu.metrics.Average`.

Totals are fp32 on the device and counts int32; a total of 0s and 1s is exact up to 2^24 (16.8 million) examples of one
batch. `train.evaluate` adds batches up on the host in float64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from clu.metrics import Average

from jaxkd.errors import ShapeError

Metrics = dict[str, Average]


def average(values: jax.Array, where: jax.Array | None = None) -> Average:
    """The average of the values that count.

    Args:
      values: (B,), one per example.
      where: (B,) bool, False for the examples to leave out; None for all of them.

    Returns:
      Total () fp32 and count () int32. What is left out does not enter, NaN included.

    Raises:
      ShapeError: `where` of another shape.
    """
    values = jnp.asarray(values, jnp.float32)
    if where is not None and jnp.shape(where) != values.shape:
        raise ShapeError(
            f"where has shape {jnp.shape(where)} and the values {values.shape}. Pass one bool for each value."
        )
    return Average.from_model_output(values, mask=where if where is None else jnp.asarray(where, jnp.bool_))
