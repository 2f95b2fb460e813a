"""Every metric is a pair (sum, count), so that padding, masks, batches and hosts reduce by adding up.

Sums are fp32 on the device. A sum of 0s and 1s, and a count, is exact up to 2^24 (16.8 million) examples; beyond that
add the batches up on the host, where `finalise` and Python floats are float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError

Metric = tuple[jax.Array, jax.Array]
Metrics = dict[str, Metric]


def metric(values: jax.Array, where: jax.Array | None = None) -> Metric:
    """(sum, count) of the values that count.

    Args:
      values: (B,), one per example.
      where: (B,) bool, False for the examples to leave out; None for all of them.

    Returns:
      Two fp32 scalars. What is left out does not enter, NaN included.

    Raises:
      ShapeError: `where` of another shape.
    """
    values = jnp.asarray(values, jnp.float32)
    if where is None:
        return jnp.sum(values), jnp.asarray(values.size, jnp.float32)
    if jnp.shape(where) != values.shape:
        raise ShapeError(
            f"where has shape {jnp.shape(where)} and the values {values.shape}. It says of each value whether it "
            "counts. Pass arrays of one shape."
        )
    where = jnp.asarray(where, jnp.bool_)
    return jnp.sum(jnp.where(where, values, 0.0)), jnp.sum(where, dtype=jnp.float32)


def merge(*parts: Mapping[str, Metric]) -> Metrics:
    """The metrics of all `parts` together: sums and counts added by name; a name may be absent from some."""
    total: Metrics = {}
    for part in parts:
        for name, (value, count) in part.items():
            if name in total:
                value, count = total[name][0] + value, total[name][1] + count
            total[name] = (value, count)
    return total


def finalise(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Means by name, on the host; NaN where nothing was counted."""
    means = {}
    for name, (value, count) in jax.device_get(dict(metrics)).items():
        means[name] = float(value) / float(count) if float(count) else float("nan")
    return means
