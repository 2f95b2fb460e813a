"""The plan of a train step: memory, arithmetic, traffic, communication and input of one chip and of all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxkd import parallel
from jaxkd.errors import ConfigError
from jaxkd.experiment.build import Experiment
from jaxkd.experiment.plan.program import (
    Compiled,
    TooLarge,
    abstract_arguments,
    build_experiment,
    bytes_of,
    compile_experiment,
)
from jaxkd.experiment.plan.search import largest_batch
from jaxkd.experiment.plan.topology import Topology, devices

# CPU time of an image of about 500 px from JPEG to batch, crop 224 and RandAugment, on a core of an AMD EPYC
# (benchmarks/input_pipeline.py; docs/howto/input_speed.md).
INPUT_SECONDS = 4.3e-3
HEAVIEST = 10

Say = Callable[[str], None]


def make_plan(
    config: ConfigDict, topology: Topology, *, search: bool = False, host_cores: int = 0, say: Say = lambda text: None
) -> dict[str, Any]:
    """Compiles the train step of `config` for `topology` and describes it.

    Args:
      config: full, without stages.
      topology: of `topology.parse`, after `topology.prepare`.
      search: whether to look for the largest batch that fits, which compiles a few times more.
      host_cores: CPU cores of a host; 0: those of the chip's usual host.
      say: gets a line before each compilation and after it.

    Returns:
      JSON-able facts; docs/plan.md describes them. `fits` is False where the step needs more memory than there is;
      `refusal` then says what to change.

    Raises:
      JaxkdError: whatever is wrong with the config, the mesh or the topology.
    """
    if search and not topology.chip.room:
        raise ConfigError(
            f"--search was given with --topology={topology.name}, whose memory is not known. Name a chip, such as "
            "gpu:h100:8."
        )
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model, devices(topology), fsdp=config.mesh.fsdp)
    experiment = build_experiment(config, mesh)
    compiled = _compile(experiment, say)
    plan = _facts(experiment, topology)
    plan["memory"] = _memory(experiment, topology, compiled)
    plan["peak_bytes"] = plan["memory"]["peak"]
    plan |= {"compile_seconds": round(compiled.seconds, 1), "code_bytes": getattr(compiled, "code", 0)}
    unknown = ("flops", "bytes", "hbm_bytes", "matrix_flops")  # where the compiler refuses
    plan |= dict.fromkeys([f"{name}_per_image" for name in unknown])
    plan |= dict.fromkeys(("roofline_ms", "images_per_second_bound", "input", "largest_batch"))
    plan |= {"collectives": [], "operations": []}
    room = topology.chip.room
    plan["fits"] = isinstance(compiled, Compiled) and not (room and compiled.peak > room)
    if isinstance(compiled, Compiled):
        plan |= _work(compiled, topology, plan["batch_size"])
        plan["input"] = _input(experiment, topology, plan["images_per_second_bound"], host_cores)
    if search:

        def attempt(batch_size: int) -> Compiled | TooLarge:
            return _compile(build_experiment(config, mesh, batch_size=batch_size), say)

        unit = parallel.batch_devices(mesh) * config.optimizer.accumulate
        found = largest_batch(attempt, (plan["batch_size"], compiled), unit=unit, room=room, say=say)
        plan["largest_batch"], plan["search"], plan["memory_full_at"] = found.batch_size, found.tried, found.full_at
    plan["notes"] = _notes(experiment, topology, plan)
    plan["refusal"] = "" if plan["fits"] else _refusal(experiment, topology, plan)
    return plan


def _compile(experiment: Experiment, say: Say) -> Compiled | TooLarge:
    size = experiment.config.train.batch_size
    say(f"compiling the step at batch {size:,}; a TPU program takes minutes at full size ...")
    compiled = compile_experiment(experiment)
    end = "does not fit" if isinstance(compiled, TooLarge) else f"{compiled.peak / 2**30:.2f} GiB a chip"
    say(f"batch {size:,}: {end} ({compiled.seconds:.0f} s)")
    return compiled


def _facts(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    config, mesh = experiment.config, experiment.mesh
    return {
        "topology": topology.name,
        "chip": topology.chip.title,
        "chips": topology.count,
        "slices": topology.slices,
        "hosts": topology.hosts,
        "exact": topology.exact,
        "mesh": dict(mesh.shape),
        "task": config.task,
        "student": config.student.name,
        "teacher": config.teacher.name or None,
        "classes": experiment.task.student.num_classes,
        "dtype": str(jnp.dtype(config.precision.compute)),
        "parameters": experiment.parameters,
        "batch_size": config.train.batch_size,
        "batch_per_chip": config.train.batch_size / topology.count,
        "jax": jax.__version__,
    }


def _memory(experiment: Experiment, topology: Topology, compiled: Compiled | TooLarge) -> dict[str, int]:
    """Bytes of one chip."""
    state, batch, _, constants = abstract_arguments(experiment)
    parts = {
        "parameters": bytes_of(state.params),
        "optimizer": bytes_of(state.opt_state),
        "ema": bytes_of(state.ema),
        "teacher": bytes_of(constants),
        "batch": bytes_of(batch),
        "activations": compiled.temporary if isinstance(compiled, Compiled) else 0,
    }
    known = sum(parts.values())
    peak = compiled.peak if isinstance(compiled, Compiled) else compiled.needed
    if isinstance(compiled, TooLarge):
        parts["activations"] = max(0, peak - known)
        known = sum(parts.values())
    # Tiles of a TPU, collections besides the parameters, metrics.
    return parts | {"padding_and_others": max(0, peak - known), "peak": peak, "room": int(topology.chip.room)}


def _work(compiled: Compiled, topology: Topology, batch_size: int) -> dict[str, Any]:
    """Arithmetic, traffic, communication, and the time that each takes at least."""
    chip, program = topology.chip, compiled.program
    flops = compiled.flops if topology.exact else compiled.matrix_flops / topology.count
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    sent = 0.0
    for one in program.collectives():
        kinds[one.kind][0] += one.count
        kinds[one.kind][1] += one.count * one.size
        sent += one.count * one.size * _sent(one.kind, one.group or topology.count)
    rows = program.traffic()
    total = sum(row.size for row in rows)
    result: dict[str, Any] = {
        "flops_per_image": flops * topology.count / batch_size,
        "matrix_flops_per_image": compiled.matrix_flops / batch_size,
        "bytes_per_image": compiled.traffic * topology.count / batch_size,
        "hbm_bytes_per_image": total * topology.count / batch_size,
        "collectives": [{"kind": kind, "count": count, "bytes": size} for kind, (count, size) in sorted(kinds.items())],
        "largest_collectives": [
            {
                "kind": one.kind,
                "count": one.count,
                "bytes": one.size,
                "chips": one.group or topology.count,
                "module": one.source,
            }
            for one in program.collectives()[:5]
        ],
        "operations": [
            {"module": row.module, "bytes": row.size, "share": row.size / total, "count": row.count}
            for row in rows[:HEAVIEST]
        ],
    }
    if chip.flops:
        times = {
            "compute": 1e3 * compiled.matrix_flops / topology.count / chip.flops,
            "memory": 1e3 * total / chip.bandwidth,
            "interconnect": 1e3 * sent / chip.link,
        }
        binds = max(times, key=lambda name: times[name])
        result["roofline_ms"] = times | {"binds": binds}
        result["images_per_second_bound"] = 1e3 * batch_size / times[binds]
    return result


def _sent(kind: str, chips: int) -> float:
    """Bytes that each of `chips` sends for each byte of their collective's larger side, best algorithm on a ring."""
    share = (chips - 1) / chips
    others = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0, "send": 0.0}
    return others.get(kind, share)


def _input(experiment: Experiment, topology: Topology, rate: float | None, host_cores: int) -> dict[str, Any] | None:
    """Cores that decode and augment `rate` images/s, against those of the hosts; None where nothing was measured."""
    if rate is None or "label" not in experiment.abstract_batch:
        return None
    cores = host_cores or topology.chip.host_cores
    needed = rate * INPUT_SECONDS
    return {
        "images_per_second": rate,
        "cpu_ms_per_image": 1e3 * INPUT_SECONDS,
        "cores_needed": math.ceil(needed),
        "cores_per_host": cores or None,
        "cores_assumed": not host_cores,
        "cores": cores * topology.hosts or None,
        "fed_images_per_second": cores * topology.hosts / INPUT_SECONDS or None,
        "enough": needed <= cores * topology.hosts if cores else None,
    }


def _notes(experiment: Experiment, topology: Topology, plan: dict[str, Any]) -> list[str]:
    """Sentences about what the numbers rest on."""
    notes, config = [], experiment.config
    if not topology.exact:
        notes.append(
            "The step was compiled for a CPU: FLOPs are counted in the program as it is written and hold everywhere; "
            "bytes, memory, collectives and operations are those of a CPU's program and only a hint."
        )
    if topology.chip.platform != "cpu" and config.precision.compute == "float32":
        notes.append(
            "The peak is that of bfloat16; this config computes in float32, whose matrix products JAX runs in bfloat16 "
            "passes on a TPU and in TF32, at half the rate, on a GPU. --config.precision.compute=bfloat16 halves the "
            "traffic of activations."
        )
    given = plan["input"]
    if given and given["enough"] is False:
        notes.append(
            f"Warning: the hosts cannot feed this. {given['cores_needed']:,} cores are needed at the upper bound and "
            f"{given['cores']:,} are there ({topology.hosts} x {given['cores_per_host']}), which prepare "
            f"{given['fed_images_per_second']:,.0f} images/s. Smaller stored images (shards with --resize=256: 2.2 ms) "
            "or data.augment.dct_scaling=True cost less."
        )
    if topology.slices > 1:
        notes.append(_slices_note(experiment, topology, plan))
    if config.precision.scan_blocks:
        notes.append(
            "Blocks are loops (precision.scan_blocks), which XLA's analysis counts once: arithmetic and the bytes read "
            "and written are guesses from the turns. Matrix products and the bytes in main memory are counted."
        )
    if config.optimizer.accumulate > 1:
        notes.append(
            f"Micro-batches are a loop of {config.optimizer.accumulate} turns, which XLA's analysis counts once; FLOPs "
            "and bytes are scaled by the turns that the program's text names."
        )
    return notes


def _slices_note(experiment: Experiment, topology: Topology, plan: dict[str, Any]) -> str:
    """A sentence on the network between slices, and one on a mesh that asks too much of it."""
    mesh, chips = experiment.mesh, topology.count // topology.slices
    sent = sum(row["bytes"] for row in plan["collectives"] if row["kind"] == "send")
    amount = (
        f"each chip sends {sent / 1e6:,.2f} MB a step over the data centre's network, {sent * chips / 1e6:,.1f} MB out "
        "of a slice (send in the table of collectives). The interconnect's time is that inside a slice."
    )
    spread = parallel.slices_of_group(mesh)
    if spread == 1:
        return f"The axis data spans {topology.slices} slices: to sum the gradients, {amount}"
    fsdp, model = mesh.shape[parallel.FSDP_AXIS], mesh.shape[parallel.MODEL_AXIS]
    widest = max(n for n in range(1, fsdp + 1) if fsdp % n == 0 and chips % (n * model) == 0)
    return (
        f"Warning: mesh.fsdp={fsdp} spreads the weights over {spread} slices of {chips} chips, so that every step "
        f"gathers them between slices as well: {amount} Use mesh.fsdp={widest} with mesh.data=-1: each slice then "
        "holds all weights, and only gradients leave it."
    )


def _refusal(experiment: Experiment, topology: Topology, plan: dict[str, Any]) -> str:
    """One sentence on how much is missing, and one on what to change."""
    config, memory = experiment.config, plan["memory"]
    needs = f"needs {memory['peak'] / 2**30:.2f} GiB" if memory["peak"] else "needs more"
    largest = plan["largest_batch"]
    ways = [f"--config.train.batch_size={largest}, the largest that fits" if largest else "a smaller train.batch_size"]
    if largest is None and topology.chip.room:
        ways[0] += " (--search finds the largest)"
    if config.precision.remat is not True:
        ways.append("precision.remat=True")
    if config.precision.compute == "float32":
        ways.append("precision.compute=bfloat16")
    ways.append(f"optimizer.accumulate={2 * config.optimizer.accumulate}")
    devices = math.gcd(parallel.batch_devices(experiment.mesh), 8)
    if devices > config.mesh.fsdp and "label" in experiment.abstract_batch:  # super-resolution refuses it
        ways.append(f"mesh.fsdp={devices}")
    ways.append("more chips")
    return (
        f"The step at batch {plan['batch_size']:,} {needs} on each {topology.chip.title}, which has "
        f"{topology.chip.room / 2**30:.2f} GiB. Use {', '.join(ways[:-1])} or {ways[-1]}."
    )
