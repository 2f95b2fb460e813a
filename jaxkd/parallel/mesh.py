"""The device mesh: the batch over `BATCH_AXES`, the train state over `FSDP_AXIS`, wide matrices over `MODEL_AXIS`."""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxkd.errors import TopologyError

FSDP_AXIS = "fsdp"  # each device of a group holds a part of the parameters, and gathers them where they are used
BATCH_AXES = ("data", FSDP_AXIS)  # all that a batch is split over: the only place that names them
MODEL_AXIS = "model"
AXES = (*BATCH_AXES, MODEL_AXIS)


def batch_spec(leading: int = 0) -> PartitionSpec:
    """The partition of an array whose batch axis comes after `leading` axes that every device holds whole."""
    return PartitionSpec(*[None] * leading, BATCH_AXES)


def batch_devices(mesh: Mesh) -> int:
    """Number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def host_count(devices: Iterable[jax.Device]) -> int:
    """Number of hosts that have these devices."""
    return len({device.process_index for device in devices})


def slices_of_group(mesh: Mesh) -> int:
    """TPU slices over which a group of FSDP is spread at most; 1 also for devices that have no slices."""
    return max(len({getattr(device, "slice_index", 0) for device in group.flat}) for group in mesh.devices)


def make_mesh(data: int = -1, model: int = 1, devices: list | None = None, *, fsdp: int = 1) -> Mesh:
    """A `(data, fsdp, model)` mesh over all devices of all hosts.

    Args:
      data: groups of devices along the batch, each with a whole train state; -1 takes what the others leave.
      model: devices along wide matrices.
      devices: the devices, `jax.devices()` by default.
      fsdp: devices along the batch that share one train state.
    """
    devices = jax.devices() if devices is None else devices
    count, sizes = len(devices), f"mesh.data={data}, mesh.fsdp={fsdp}, mesh.model={model}"
    if model < 1 or fsdp < 1 or (data != -1 and data < 1):
        raise TopologyError(
            f"{sizes} is not a mesh. Give numbers of devices (data may be -1 for 'the rest'), e.g. "
            "--config.mesh.data=-1 --config.mesh.fsdp=1 --config.mesh.model=1 to split the batch over all devices."
        )
    if data == -1:
        data = max(count // (fsdp * model), 1)
    if data * fsdp * model != count:
        raise TopologyError(
            f"mesh.data={data} x mesh.fsdp={fsdp} x mesh.model={model} needs {data * fsdp * model} devices, but there "
            f"are {count} ({devices[0].platform}). Use --config.mesh.data=-1 with a mesh.fsdp and a mesh.model whose "
            f"product divides {count}."
        )
    grid = np.asarray(devices).reshape(data, fsdp, model)
    if any(len({d.process_index for d in row}) > 1 for row in grid.reshape(-1, model)):
        raise TopologyError(
            f"mesh.model={model} puts devices of several hosts into one group. A group works on the same images, but "
            f"each host loads its own. Use a mesh.model that divides the {count // host_count(devices)} devices of a "
            "host."
        )
    return Mesh(grid, AXES)


def check_batch(name: str, batch_size: int, mesh: Mesh, *, accumulate: int = 1) -> None:
    """Raises TopologyError unless `batch_size` splits evenly over hosts, the data axis and the micro-batches."""
    parts = batch_devices(mesh) * accumulate
    if batch_size < 1 or batch_size % parts:
        lower, upper = batch_size // parts * parts, (batch_size // parts + 1) * parts
        near = f"{lower} or {upper}" if lower else f"{upper}"
        pieces = f"{batch_devices(mesh)} devices" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
        raise TopologyError(
            f"{name}={batch_size} does not divide over {pieces}. Use a multiple of {parts}, for example {near}."
        )
    if batch_size % jax.process_count():
        raise TopologyError(
            f"{name}={batch_size} does not divide over {jax.process_count()} hosts. "
            f"Use a multiple of {jax.process_count()}."
        )
