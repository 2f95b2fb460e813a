"""Settings of XLA's compiler for CPUs with which a train step is faster."""

from __future__ import annotations

import os
from functools import cache

import jax
from jax.sharding import Mesh

# jax 0.10 gives matrix products to YNNPACK, which is slower at the shapes of a transformer than Eigen, XLA's default
# before. Sums and maxima stay with YNNPACK. See benchmarks/NOTES.md.
_SETTINGS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """`compiler_options` of `jax.jit` for a program on `mesh`; None where there are none.

    A setting is left out where XLA_FLAGS has it, and where the installed XLA does not know it.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in _SETTINGS.items() if name not in flags and _known(name, value)} or None


@cache
def _known(name: str, value: str) -> bool:
    """Whether the installed XLA takes the setting: they come and go with its versions."""
    program = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((), "float32"))
    try:
        program.compile(compiler_options={name: value})
    except (RuntimeError, ValueError):
        return False
    return True
