"""Several processes as one program."""

from __future__ import annotations

import os

import jax


def initialize_distributed(wanted: bool | None = None) -> None:
    """Joins the other processes, before any other JAX call.

    Args:
      wanted: True joins (JAX finds the coordinator on TPU pods, Slurm and Open MPI, or in JAX_COORDINATOR_ADDRESS,
        JAX_NUM_PROCESSES and JAX_PROCESS_ID); None joins only where JAX_COORDINATOR_ADDRESS is set; False never does.
    """
    if wanted is None:
        wanted = "JAX_COORDINATOR_ADDRESS" in os.environ
    if not wanted or jax.distributed.is_initialized():
        return
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    jax.distributed.initialize(
        coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
        num_processes=int(count) if count else None,
        process_id=int(index) if index else None,
    )


def is_main_host() -> bool:
    """True on the process that writes logs and figures."""
    return jax.process_index() == 0
