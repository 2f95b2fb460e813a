"""Cost of a super-resolution network for a result of 1280 x 720: parameters, FLOP, latency and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxkd import weights
from jaxkd.errors import ConfigError
from jaxkd.models.flops import multiply_adds
from jaxkd.superres.tiling import by_strips

RESULT = (720, 1280)  # height and width that the field counts a network's cost for
CALLS = 5  # whose median is the latency
FLOP_IS = "2 per multiply-add of every convolution, counted from its shapes; sums and activations left out"


def measure_cost(
    model: Any, variables: Any, progress: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """Measures the cost of a network for a result of 1280 x 720 pixels, enlarged in one pass.

    Returns:
      `parameters`; `gflop` (1e9, see `flop_is`; half of it are the Multi-Adds of the field's tables); `latency_ms`, the
      median of `calls`; `memory_mb` (1e6 bytes; arguments, result and what the compiled program needs between, None
      where the backend does not say); `result` as (height, width), rounded up to the scale; and the `device`. Latency
      and memory are those of the form that inference uses (`weights.for_inference`, `tiling.by_strips`).
    """
    height, width = (-(-side // model.scale) for side in RESULT)
    image = np.random.default_rng(0).random((1, height, width, 3), np.float32)
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x)[0])(variables, image)
    fast, held = weights.for_inference(model, variables)
    fast = by_strips(fast)
    held, image = jax.device_put((held, image))
    try:
        compiled = jax.jit(lambda v, x: fast.apply(v, x)[0]).lower(held, image).compile()
        times = []
        for call in range(CALLS + 1):
            progress(call, CALLS + 1)
            start = time.perf_counter()
            compiled(held, image).block_until_ready()
            times.append(time.perf_counter() - start)
        progress(CALLS + 1, CALLS + 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise ConfigError(
            f"The memory of {jax.devices()[0].device_kind} is too small for a result of {RESULT[1]} x {RESULT[0]} in "
            "one pass, by which costs are compared. Leave --cost out, or use a larger device."
        ) from None
    used = compiled.memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return {
        "parameters": sum(int(p.size) for p in jax.tree.leaves(variables["params"])),
        "gflop": 2 * multiply_adds(jaxpr.jaxpr) / 1e9,
        "flop_is": FLOP_IS,
        "latency_ms": 1000 * statistics.median(times[1:]),  # the first call may still set things up
        "calls": CALLS,
        "memory_mb": None if used is None else sum(getattr(used, part) for part in parts) / 1e6,
        "result": [height * model.scale, width * model.scale],
        "device": jax.devices()[0].device_kind,
    }
