"""Sharding rules: one table for parameters, and functions that put host arrays on the mesh."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd.parallel.mesh import MODEL_AXIS, batch_devices, batch_spec

# Regex over the slash path of a parameter -> partition of its last axes. Megatron's split: the first matrix of a pair
# by columns, the second by rows, so that each block needs one all-reduce. Read only where the model axis is above 1.
PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"attn/(qkv|q|k|v)/kernel$", PartitionSpec(None, MODEL_AXIS)),
    (r"attn/proj/kernel$", PartitionSpec(MODEL_AXIS, None)),
    (r"mlp/fc1/kernel$", PartitionSpec(None, MODEL_AXIS)),
    (r"mlp/fc1/bias$", PartitionSpec(MODEL_AXIS)),
    (r"mlp/fc2/kernel$", PartitionSpec(MODEL_AXIS, None)),
)


def path_of(key_path: tuple) -> str:
    """A JAX key path as `"student/blocks_0/attn/qkv/kernel"`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path)


def partition_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of one array: the first rule that matches and divides, else replicated."""
    if mesh.shape[MODEL_AXIS] == 1:
        return PartitionSpec()
    for pattern, spec in PARAMETER_RULES:
        if re.search(pattern, path) and len(shape) >= len(spec):
            spec = PartitionSpec(*([None] * (len(shape) - len(spec))), *spec)  # stacked members or blocks lead
            if all(axis is None or size % mesh.shape[axis] == 0 for axis, size in zip(spec, shape, strict=True)):
                return spec
    return PartitionSpec()


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over `BATCH_AXES`."""
    return NamedSharding(mesh, batch_spec())


def splits_members(members: int, mesh: Mesh) -> bool:
    """Whether the members of a population are split over the devices that a batch is split over."""
    return members > 0 and batch_devices(mesh) > 1 and members % batch_devices(mesh) == 0


def tree_shardings(tree: Any, mesh: Mesh, *, members: int = 0) -> Any:
    """A tree of NamedSharding for parameters, optimiser state or a whole train state.

    Optimiser moments end in the path of their parameter, so one table serves both.

    Args:
      tree: of arrays or their shapes.
      mesh: devices.
      members: of a population, along the first axis of every array that has axes: split over `BATCH_AXES` if they
        divide; the rules see the shape of one member.
    """
    lead = (*batch_spec(),) if splits_members(members, mesh) else (None,)

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        shape = tuple(leaf.shape)
        if not members or not shape:
            return NamedSharding(mesh, partition_of(path_of(path), shape, mesh))
        one = partition_of(path_of(path), shape[1:], mesh)
        return NamedSharding(mesh, PartitionSpec(*lead, *one) if any((*lead, *one)) else PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This host's slice of a batch (leading axis) -> global arrays split over `BATCH_AXES`."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Host arrays -> global arrays, placed by the parameter rules (replicated where none applies)."""
    return jax.device_put(tree, tree_shardings(tree, mesh))
