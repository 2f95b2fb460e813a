"""Freed memory that stays with the process: the next call of a program touches no new pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import resource
import jax
import jax.numpy as jnp
from jaxkd.cli.host_memory import keep_freed_memory

kept = keep_freed_memory()
# Each product is an intermediate array of 16 MB that the next one reads.
chain = jax.jit(lambda x: (jnp.sin(x[:, None] * x).cumsum(0) @ jnp.cos(x[:, None] + x)).sum())
x = jnp.arange(2048, dtype=jnp.float32)
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(chain(x))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(faults[1:]))
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets the malloc of glibc")


def page_faults(**environment: str) -> tuple[bool, int]:
    """(what the function returned, page faults of a later call of one program) in a fresh process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    env |= {"JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


def test_a_program_runs_in_the_pages_of_its_last_call_unless_the_environment_sets_malloc():
    kept, few = page_faults()
    left, many = page_faults(MALLOC_TOP_PAD_="131072")  # the default, so that only the function's refusal acts
    assert kept and not left
    # The rest are pages of short-lived objects: 500 on a quiet machine, 2,400 of 15,000 seen on a busy one.
    assert few < many / 3, (few, many)
