"""Timing of several programs against one another on a machine that others may use at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.models.flops import multiply_adds

Run = Callable[[], Any]


@dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
      call: the program.
      seconds: of tracing and compiling.
      flops: 2 for each multiply-add of its matrix products and convolutions.
    """

    call: Any
    seconds: float
    flops: float


def compile_program(function: Any, *args: Any, compiler_options: Mapping[str, Any] | None = None) -> Compiled:
    """Compiles a jitted function for the shapes of `args`."""
    start = time.perf_counter()
    traced = function.trace(*args)
    compiled = traced.lower().compile(compiler_options)
    seconds = time.perf_counter() - start
    return Compiled(compiled, seconds, 2.0 * multiply_adds(traced.jaxpr.jaxpr))


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


def interleaved(programs: Mapping[str, Run], repeats: int, clock: str = "wall") -> dict[str, np.ndarray]:
    """Seconds of each of `repeats` calls of every program, in turns: A B C A B C ...

    Each timed call follows an untimed one of the same program: two frameworks share the cores here, and the first call
    after the other's turn pays for threads that have to wake up or have not gone to sleep yet.

    Args:
      programs: name -> a function that returns when its work is done.
      repeats: timed calls of each.
      clock: "processor" counts the time of all threads of this process, those that wait in a loop included.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, run in programs.items():
            run()
            start = now()
            run()
            seconds[name].append(now() - start)
    return {name: np.asarray(values) for name, values in seconds.items()}


def summary(seconds: np.ndarray) -> dict[str, float]:
    """Milliseconds: median, min, and spread (75th minus 25th percentile)."""
    ms = 1e3 * seconds
    low, high = np.percentile(ms, (25, 75))
    return {"median": _rounded(np.median(ms)), "min": _rounded(ms.min()), "spread": _rounded(high - low)}


def ratio(seconds: np.ndarray, peer_seconds: np.ndarray) -> dict[str, float]:
    """The peer's time as a multiple of `seconds`, by medians and by minima; above 1 the peer is slower."""
    return {
        "median": round(float(np.median(peer_seconds) / np.median(seconds)), 3),
        "min": round(float(peer_seconds.min() / seconds.min()), 3),
    }


def _rounded(value: Any) -> float:
    return float(f"{float(value):.4g}")


def matrix_products(dtype: Any) -> dict[int, tuple[float, Run]]:
    """Side n -> (operations, run) of the square matrix products whose best rate is called the machine's peak."""
    sides = (768, 1536, 2304) if jax.default_backend() == "cpu" else (4096, 8192, 16384)
    product = jax.jit(jnp.matmul)
    programs = {}
    for side in sides:
        a = jax.random.normal(jax.random.key(side), (side, side), jnp.float32).astype(dtype)
        compiled = product.lower(a, a).compile()
        programs[side] = (2.0 * side**3, lambda c=compiled, a=a: jax.block_until_ready(c(a, a)))
    return programs
