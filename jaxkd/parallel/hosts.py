"""Processes of a distributed run."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

HEARTBEAT_SECONDS = 40  # without a sign of life, after which a process counts as dead


_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset", "coordination service", "heartbeat")


def is_peer_loss(error: BaseException) -> bool:
    """Whether `error` is what JAX raises where another process of this run has died."""
    return jax.process_count() > 1 and any(words in str(error).lower() for words in _LOST)


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
    address, count, index = (
        os.environ.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    jax.distributed.initialize(
        coordinator_address=address,
        # JAX would listen on all interfaces of the machine, also the public ones.
        coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or address,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        num_processes=int(count) if count else None,
        process_id=int(index) if index else None,
    )


def is_main_host() -> bool:
    """True on the process that writes logs and figures."""
    return jax.process_index() == 0


@cache
def _any(mesh: Mesh) -> Any:
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))


def any_host(flag: bool, mesh: Mesh) -> jax.Array:
    """() bool on every host: whether `flag` is True on at least one of them.

    Only dispatched, so that nobody waits until somebody reads it. Every host must call it at the same point.
    """
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    local = np.full(len(mesh.local_devices), flag)
    return _any(mesh)(jax.make_array_from_process_local_data(sharding, local))
