"""Processes of a distributed run."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd.errors import JaxkdError, PeerLostError, TopologyError, check_range
from jaxkd.parallel import peer_watch

_LOG = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 40  # without a sign of life, after which a process counts as dead
JOIN_SECONDS = 300  # in which all processes must have started
SILENT_SECONDS = 15  # of these, after which a process says what it waits for
_ADDRESS, _BIND = "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"

_LOST = ("gloo", "nccl", "connection closed by peer", "connection reset", "coordination service", "heartbeat")


def is_peer_loss(error: BaseException) -> bool:
    """Whether `error` is what JAX raises where another process of this run has died.

    User errors are none, whatever they say, and neither are the operating system's: those come from downloads.
    """
    if isinstance(error, JaxkdError | OSError) or jax.process_count() == 1:
        return False
    return any(words in str(error).lower() for words in _LOST)


def initialize_distributed(wanted: bool | None = None) -> None:
    """Joins the other processes, before any other JAX call.

    Args:
      wanted: True joins (JAX finds the coordinator on TPU pods, Slurm and Open MPI, or in JAX_COORDINATOR_ADDRESS,
        JAX_NUM_PROCESSES and JAX_PROCESS_ID); None joins only where JAX_COORDINATOR_ADDRESS is set; False never does.
        Process 0 listens on JAX_COORDINATOR_BIND_ADDRESS, else on the coordinator's address.

    Once joined, a process whose peers die ends with code 2 and one sentence; see `peer_watch`.

    Raises:
      TopologyError: one of these variables is missing or impossible, or process 0 cannot listen on its address.
      PeerLostError: not all processes joined in `JOIN_SECONDS`.
    """
    if wanted is None:
        wanted = _ADDRESS in os.environ
    if not wanted or jax.distributed.is_initialized():
        return
    count = _whole_number("JAX_NUM_PROCESSES", least=1)
    index = _whole_number("JAX_PROCESS_ID", least=0, below=count)
    address = os.environ.get(_ADDRESS)
    # JAX's own service for it takes SIGTERM, and a process would go on; see `train.StopRequest`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with peer_watch.ended_in_words(), _said_while_waiting(count, address, index):
            jax.distributed.initialize(
                coordinator_address=address,
                coordinator_bind_address=_bind_address(index),
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                initialization_timeout=JOIN_SECONDS,
                num_processes=count,
                process_id=index,
            )
    except ValueError as error:
        if None not in (address, count, index):
            raise
        raise TopologyError(
            f"JAX does not find the other processes ({error}). Set {_ADDRESS}=HOST:PORT, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID, or start without --distributed."
        ) from error
    except RuntimeError as error:
        if not any(words in str(error).lower() for words in ("bad_cast", "deadline", "unavailable")):
            raise
        raise PeerLostError(
            f"The {count or 'other'} processes of this run did not all meet at {address or 'the coordinator'} within "
            f"{JOIN_SECONDS} seconds{_why_not_reached(address, index)}. Start all of them at about the same time, each "
            "with its own JAX_PROCESS_ID from 0 and the same coordinator, which the others must be able to reach."
        ) from error


@contextlib.contextmanager
def _said_while_waiting(count: int | None, address: str | None, index: int | None) -> Iterator[None]:
    """Context in which a process waits for the others: a line on standard error after `SILENT_SECONDS`.

    Ctrl-C and SIGTERM end the process at once: Python's handlers would run when the wait is over.
    """

    def say() -> None:
        print(
            f"jaxkd: Waiting for all {count or 'other'} processes of this run to meet at "
            f"{address or 'the coordinator'}{_why_not_reached(address, index)}. Gives up after {JOIN_SECONDS} seconds.",
            file=sys.stderr,
            flush=True,
        )

    timer = threading.Timer(SILENT_SECONDS, say)
    timer.daemon = True
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # no other may set them
        handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in handlers.items():
            if handler is not None:  # of a library in C
                signal.signal(number, handler)


def _why_not_reached(address: str | None, index: int | None) -> str:
    """ " (this machine cannot connect to it: ...)", or "" where it can or process 0 is this one."""
    if not address or not index:
        return ""
    host, port = _host_and_port(_ADDRESS)
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError as error:
        return f" (this machine cannot connect to it: {error.strerror or error})"
    return ""


def _whole_number(name: str, *, least: int, below: int | None = None) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    value = int(text) if re.fullmatch(r"\d{1,9}", text) else text
    check_range(name, value, least, below=below, whole=True, error=TopologyError)
    return int(value)


def _bind_address(index: int | None) -> str | None:
    """The address that process 0 listens on: JAX would take all interfaces of the machine, also the public ones.

    Args:
      index: of this process; None where JAX finds it out.
    """
    given = {name: _host_and_port(name) for name in (_BIND, _ADDRESS) if name in os.environ}
    if not given:
        return None
    name, (host, port) = next(iter(given.items()))
    text = os.environ[name]
    if index:
        return text
    try:
        # "[::]" is any address of both versions of IP; a machine may have no IPv6.
        flags = socket.AI_PASSIVE
        found = socket.getaddrinfo(None if host == "::" else host, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:  # the latter for a name that is too long
        found, refused = [], error
    else:
        refused = _why_not_listen(found)
    if refused is not None and index == 0:
        missing = not found or getattr(refused, "errno", None) == errno.EADDRNOTAVAIL
        advice = (
            f"Start process 0 on the machine that has it, or set {_BIND}=[::]:{port} where others reach this machine "
            "at that address (NAT, containers)"
            if missing
            else "Choose another port"
        )
        raise TopologyError(
            f'{name}="{text}" is where process 0 listens, and this machine cannot listen there '
            f"({getattr(refused, 'strerror', None) or refused}). {advice}."
        )
    loopback = bool(found) and all(where[0].startswith("127.") or where[0] == "::1" for *_, where in found)
    if name == _BIND or not loopback or re.match(r"127\.|::1$|(ip6-)?(localhost|loopback)\b", host):
        return text
    # Debian's /etc/hosts has the machine's own name beside 127.0.1.1.
    _LOG.warning(
        '%s="%s" is %s on this machine, where other machines cannot reach it, so process 0 listens on all interfaces. '
        "Set %s to listen on one.",
        name,
        text,
        found[0][4][0],
        _BIND,
    )
    return f"[::]:{port}"


def _host_and_port(name: str) -> tuple[str, int]:
    """Host, without the brackets of IPv6, and port of an environment variable that is set."""
    text = os.environ[name]
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]\s]+)):(\d{1,5})", text)
    if found is None or not 0 < int(found[3]) < 2**16:
        raise TopologyError(
            f'{name}="{text}" is not a host and a port. Write both, e.g. {name}=10.0.0.1:1234 or [fd00::1]:1234.'
        )
    return found[1] or found[2], int(found[3])


def _why_not_listen(found: list[Any]) -> OSError | None:
    """The error with which this machine refuses to listen on each address of `socket.getaddrinfo`; None: on one it can.

    JAX prints it and raises another one without it.
    """
    refused = None
    for family, kind, _, _, where in found:
        try:
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a run that has just ended used it
                probe.bind(where)
            return None
        except OSError as error:
            refused = error
    return refused


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


def sum_over_hosts(values: np.ndarray) -> np.ndarray:
    """The sum of the hosts' `values` in float64, on every host, which must all call it at the same point."""
    if jax.process_count() == 1:
        return values
    # As bytes: JAX would round float64 to float32.
    gathered = multihost_utils.process_allgather(np.frombuffer(np.asarray(values, np.float64).tobytes(), np.uint8))
    return np.asarray(gathered).view(np.float64).reshape(jax.process_count(), *values.shape).sum(axis=0)


def main_host_decides(flag: bool) -> bool:
    """The `flag` of the main host, on every host, which must all call it at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))
