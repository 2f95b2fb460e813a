"""The train step of a config, compiled for devices that are not here, and what the compiler says of it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from jaxkd import models, parallel
from jaxkd.config.fields import change
from jaxkd.errors import ConfigError, is_out_of_memory
from jaxkd.experiment.build import Experiment, build
from jaxkd.experiment.plan.hlo import Program
from jaxkd.models.flops import multiply_adds

PyTree = Any


@dataclass(frozen=True)
class Compiled:
    """A compiled train step.

    Attributes:
      seconds: of tracing and compiling.
      flops: operations of one chip and step; None where the compiler's count is of another kind of machine.
      matrix_flops: 2 for each multiply-add of matrix products and convolutions, of all chips together.
      traffic: bytes that one chip reads and writes in one step, by XLA's count.
      peak: bytes of one chip that the step needs.
      temporary: of these, what exists only inside the step.
      arguments: of these, state, constants and batch.
      program: its operations.
      code: bytes of its machine code; 0 where the compiler does not say.
    """

    seconds: float
    flops: float
    matrix_flops: float
    traffic: float
    peak: int
    temporary: int
    arguments: int
    program: Program
    code: int = 0


@dataclass(frozen=True)
class TooLarge:
    """A step that the compiler refused.

    Attributes:
      seconds: until it did.
      needed: bytes of one chip, 0 where it does not say.
      room: bytes that it has, likewise.
    """

    seconds: float
    needed: int
    room: int


def build_experiment(config: ConfigDict, mesh: Mesh, *, batch_size: int = 0) -> Experiment:
    """The experiment of a config without weights or data, perhaps with another batch size.

    Raises:
      JaxkdError: whatever is wrong with the config, or does not fit the devices.
    """
    if batch_size:
        # The rate, which scales with the batch, does not matter here and must not be refused.
        config = change(config, {"train.batch_size": batch_size, "optimizer.reference_batch": 0}).lock()
    experiment = build(config, mesh, load=False, open_data=False)
    if not experiment.abstract_batch:
        raise ConfigError(
            f'task="{config.task}" does not say what a batch is, so its step cannot be compiled without data. Set '
            "abstract_batch in the Components that its builder returns."
        )
    return experiment


def with_shardings(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes of `tree` that carry the shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def abstract_arguments(experiment: Experiment) -> tuple[PyTree, ...]:
    """State, batch, key and constants of the step, as shapes with shardings; no array exists."""
    mesh = experiment.mesh

    def everywhere(tree: PyTree, sharding: NamedSharding) -> PyTree:
        return with_shardings(tree, jax.tree.map(lambda _: sharding, tree))

    constants = experiment.task.abstract_constants
    return (
        with_shardings(experiment.abstract_state, experiment.shardings),
        everywhere(dict(experiment.abstract_batch), parallel.batch_sharding(mesh)),
        everywhere(jax.eval_shape(lambda key: key, experiment.key), parallel.replicated(mesh)),
        with_shardings(constants, parallel.tree_shardings(constants, mesh)),
    )


def bytes_of(tree: PyTree) -> int:
    """Bytes on one device of shapes with shardings, without padding."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        items = 1
        for size in shape:
            items *= size
        total += items * (4 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize)
    return total


def compile_experiment(experiment: Experiment, *, statistics: bool = False) -> Compiled | TooLarge:
    """Compiles the step for the experiment's mesh, whose devices may exist only on paper.

    Args:
      experiment: of `build_experiment`.
      statistics: whether the step is that with the layers' statistics.
    """
    start = time.perf_counter()
    arguments = abstract_arguments(experiment)
    # Networks take the form for the devices that are planned, not for those that JAX has here.
    with models.traced_for(experiment.mesh.devices.flat[0].platform):
        traced = experiment.compile_step(statistics=statistics).trace(*arguments)
        lowered = traced.lower()
    try:
        compiled = lowered.compile()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        needed, room = _sizes(str(error))
        # The message counts what exists inside the step; its arguments are there too.
        return TooLarge(time.perf_counter() - start, needed + bytes_of(arguments) if needed else 0, room)
    seconds = time.perf_counter() - start
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    program = Program(compiled.as_text())
    # XLA counts the body of a loop once (accumulation is a loop); the text says how often it runs.
    once, all_turns = (sum(row.size for row in program.traffic(loops=loops)) for loops in (False, True))
    turns = all_turns / once if once else 1.0
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        seconds=seconds,
        flops=float(cost.get("flops", 0.0)) * turns,
        matrix_flops=2.0 * multiply_adds(traced.jaxpr.jaxpr),
        traffic=float(cost.get("bytes accessed", 0.0)) * turns,
        peak=peak + memory.temp_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        arguments=memory.argument_size_in_bytes,
        program=program,
        code=memory.generated_code_size_in_bytes,
    )


def _sizes(message: str) -> tuple[int, int]:
    """(needed, available) bytes of the compiler's message about too little memory, 0 for what it does not say."""
    found = re.search(r"\((\d+(?:\.\d+)?)([KMGT]?)\) exceeds available HBM \((\d+(?:\.\d+)?)([KMGT]?)\)", message)
    found = found or re.search(r"Used (\d+(?:\.\d+)?)([KMGT]?) of (\d+(?:\.\d+)?)([KMGT]?) hbm", message)
    if found is None:
        return 0, 0
    units = {unit: 1024**power for power, unit in enumerate(["", "K", "M", "G", "T"])}
    return int(float(found[1]) * units[found[2]]), int(float(found[3]) * units[found[4]])
