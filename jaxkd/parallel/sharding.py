"""Sharding rules: one table for parameters, and functions that put host arrays on the mesh."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd.parallel.mesh import FSDP_AXIS, MODEL_AXIS, batch_devices, batch_spec

# Regex over the slash path of a parameter -> partition of its last axes. Megatron's split: the first matrix of a pair
# by columns, the second by rows, so that each block needs one all-reduce. Read only where the model axis is above 1.
PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"attn/(qkv|q|k|v)/kernel$", PartitionSpec(None, MODEL_AXIS)),
    (r"attn/proj/kernel$", PartitionSpec(MODEL_AXIS, None)),
    (r"mlp/fc1/kernel$", PartitionSpec(None, MODEL_AXIS)),
    (r"mlp/fc1/bias$", PartitionSpec(MODEL_AXIS)),
    (r"mlp/fc2/kernel$", PartitionSpec(MODEL_AXIS, None)),
)

# Numbers in an array below which FSDP leaves it whole: gathering a bias takes longer than it saves memory.
FSDP_LEAST = 2**10


def path_of(key_path: tuple) -> str:
    """A JAX key path as `"student/blocks_0/attn/qkv/kernel"`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path)


def partition_of(path: str, shape: tuple[int, ...], mesh: Mesh, *, fsdp: bool = True) -> PartitionSpec:
    """The partition of one array by the first rule that matches and divides, and over the devices of FSDP.

    Args:
      path: of the array.
      shape: of the whole array.
      mesh: devices.
      fsdp: whether the largest axis that divides and that no rule splits is split over `FSDP_AXIS`.
    """
    spec = _model_partition(path, shape, mesh)
    parts = mesh.shape[FSDP_AXIS]
    if not fsdp or parts == 1 or math.prod(shape) < FSDP_LEAST:
        return spec
    axes = [*spec, *[None] * (len(shape) - len(spec))]
    free = [i for i, size in enumerate(shape) if axes[i] is None and size % parts == 0]
    if free:
        axes[max(free, key=lambda i: shape[i])] = FSDP_AXIS
        return PartitionSpec(*axes)
    return spec


def _model_partition(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
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


def on_each_device(mesh: Mesh) -> Callable[..., Any]:
    """`apply(function, *arrays)` inside a compiled step: each device calls the function with its own examples.

    For functions that XLA does not partition, such as an FFT, for which it would gather the batch. All arrays have the
    batch first, and so has what the function returns, which must not compare examples with each other.
    """

    def apply(function: Callable[..., Any], *arrays: Any) -> Any:
        if batch_devices(mesh) == 1 or any(x.shape[0] % batch_devices(mesh) for x in arrays):
            return function(*arrays)
        return jax.shard_map(function, mesh=mesh, in_specs=batch_spec(), out_specs=batch_spec())(*arrays)

    return apply


def splits_members(members: int, mesh: Mesh) -> bool:
    """Whether the members of a population are split over the devices that a batch is split over."""
    return members > 0 and batch_devices(mesh) > 1 and members % batch_devices(mesh) == 0


def tree_shardings(tree: Any, mesh: Mesh, *, members: int = 0, fsdp: bool = True) -> Any:
    """A tree of NamedSharding for parameters, optimiser state or a whole train state.

    Optimiser moments end in the path of their parameter, so one table serves both.

    Args:
      tree: of arrays or their shapes.
      mesh: devices.
      members: of a population, along the first axis of every array that has axes: split over `BATCH_AXES` if they
        divide; the rules see the shape of one member.
      fsdp: see `partition_of`; members that are split are not split again.
    """
    lead = (*batch_spec(),) if splits_members(members, mesh) else (None,)
    fsdp = fsdp and not any(lead)

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        shape = tuple(leaf.shape)
        if not members or not shape:
            return NamedSharding(mesh, partition_of(path_of(path), shape, mesh, fsdp=fsdp))
        one = partition_of(path_of(path), shape[1:], mesh, fsdp=fsdp)
        return NamedSharding(mesh, PartitionSpec(*lead, *one) if any((*lead, *one)) else PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def gather_weights(tree: Any, mesh: Mesh, *, members: int = 0) -> Any:
    """Inside a compiled step: parameters as every device of FSDP uses them, whole; the same tree without FSDP.

    Said explicitly, because XLA could otherwise gather activations instead.
    """
    if mesh.shape[FSDP_AXIS] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, tree_shardings(tree, mesh, members=members, fsdp=False))


def split_weights(tree: Any, mesh: Mesh, *, members: int = 0) -> Any:
    """Inside a compiled step: parameters or their gradients as FSDP stores them; the same tree without FSDP."""
    if mesh.shape[FSDP_AXIS] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, tree_shardings(tree, mesh, members=members))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This host's slice of a batch (leading axis) -> global arrays split over `BATCH_AXES`."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Host arrays -> global arrays, placed by the parameter rules (replicated where none applies)."""
    return jax.device_put(tree, tree_shardings(tree, mesh))
