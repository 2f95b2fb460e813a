"""Multiply-adds of a network or of a whole train step, counted in the program as it is written."""

from __future__ import annotations

import math
from typing import Any


def multiply_adds(jaxpr: Any) -> int:
    """Multiply-adds of all matrix products and convolutions in a jaxpr, on all devices together.

    Unlike a compiler's own count it does not depend on the backend (XLA counts nothing for the library calls of a
    GPU). At the border of a convolution those with padding count too, as is usual; elementwise work and FFTs do not.
    Both branches of a condition count, and the body of a `while` loop counts once.

    Args:
      jaxpr: `jax.make_jaxpr(f)(*args).jaxpr`, or `jax.jit(f).trace(*args).jaxpr.jaxpr`.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lengths = (equation.invars[0].aval.shape[axis] for axis in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(lengths)
        times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
        if name == "pallas_call":  # its body works on one tile
            times = math.prod(params["grid_mapping"].grid)
        for value in params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                total += times * multiply_adds(inner) if hasattr(inner, "eqns") else 0
    return total
