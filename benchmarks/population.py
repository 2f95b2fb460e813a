"""Time of a step that trains many students under one teacher, against as many separate steps.

    python benchmarks/population.py --config=configs/deit_cait.py --batch-size=8 > population.json
    python benchmarks/population.py --batch-size=256 --members=5,2,8 --peer=torch \\
        --config.precision.compute=bfloat16 --out=population.json      (a GPU)

Compiles and times the ordinary step of one student, S = 1, and the step of `config.population` with S students, which
differ in their seed, for each S of --members. A population shares the batch and the teacher's forward pass; S separate
runs take S times the ordinary step. With --peer=torch, the step of one student in PyTorch with timm's networks
(eager) is timed too, and S separate runs take S times that. Images and weights are random: no data set and no network
access are needed. Prints one JSON object; progress goes to stderr; fields of the config are changed as on the command
line of jaxkd.main.

All programs run in turns in one process. Ratios are the result: "to_one" is the time as a multiple of S = 1, for which
"flops_to_one" is the floor, "to_separate" how many times as fast S students train as in S separate steps, "to_peer" as
in S separate steps of PyTorch. An S that does not fit into memory has an error in the place of its times. Programs of a
large teacher compile for half a minute each; with --out, the object is written whenever one more S is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two frameworks share the GPU

import jax
import jax.numpy as jnp
import numpy as np
from step_time import prepare, say
from timing import Compiled, compile_program, interleaved, ratio, summary

from jaxkd import main as jaxkd_main
from jaxkd import parallel, train
from jaxkd.config.fields import change
from jaxkd.errors import ConfigError, JaxkdError, is_out_of_memory

PyTree = Any


def parse(argv: list[str]) -> tuple[argparse.Namespace, Any]:
    """(options, config); other options go to the parser of jaxkd.main."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/deit_cait.py", help="a config file, perhaps with :arguments")
    parser.add_argument("--batch-size", type=int, default=8, help="images a step (8)")
    parser.add_argument("--members", default="2,4,8", help="numbers of students (2,4,8)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each program (5)")
    parser.add_argument("--peer", choices=("torch",), help="also time PyTorch with timm's networks")
    parser.add_argument("--out", default="", help="file that is rewritten whenever more is known")
    options, rest = parser.parse_known_args(argv)
    try:
        options.members = list(dict.fromkeys(int(n) for n in options.members.split(",")))
    except ValueError:
        options.members = [0]
    if min(options.batch_size, options.repeats) < 1 or min(options.members) < 2:
        raise ConfigError(
            "--batch-size and --repeats must be at least 1, and --members numbers of at least 2. Leave them out for 8, "
            "5 and 2,4,8."
        )
    extra = [f"--config={options.config}", "--workdir=unused", f"--config.train.batch_size={options.batch_size}"]
    config = jaxkd_main.parse([*extra, *rest]).config
    return options, config


class Program:
    """A compiled train step of one student (0 members) or of a population, with its state."""

    def __init__(self, config: Any, members: int, batch_size: int, params: PyTree = None, constants: PyTree = None):
        if members:
            config = change(config, {"population": tuple({"seed": s} for s in range(members))}).lock()
        self.config, self.task, optimizer, self.schedule, _ = prepare(config)
        mesh = parallel.make_mesh(config.mesh.data, config.mesh.model, fsdp=config.mesh.fsdp)
        if constants is not None:
            self.task.constants = constants
        self.constants = parallel.put_on_mesh(self.task.constants, mesh)
        rng = np.random.default_rng(0)
        host = {
            "image": rng.integers(0, 256, (batch_size, *self.task.student.image_size, 3), np.uint8),
            "label": rng.integers(0, self.task.student.num_classes, batch_size).astype(np.int32),
        }
        self.batch, keys = parallel.put_batch(host, mesh), jax.random.key(1)
        if members:
            keys = train.Keys(keys, jax.random.split(keys, members))
        self.key = keys
        if params is None:
            params = jax.jit(self.task.init)(jax.random.key(0))[0]
        self.params = params
        mutable = jax.eval_shape(self.task.init, jax.random.key(0))[1]
        mutable = jax.tree.map(lambda s: jnp.full(s.shape, -1 if s.dtype == jnp.int32 else 0, s.dtype), mutable)
        if members:
            params = jax.tree.map(lambda x: jnp.broadcast_to(x, (members, *x.shape)), params)
        state = train.create_state(params, mutable, optimizer, ema=config.ema.decay > 0)
        self.state = jax.device_put(state, parallel.tree_shardings(state, mesh, members=members))
        step = train.compile_train_step(self.task, optimizer, mesh, self.state, ema_decay=config.ema.decay)
        self.compiled: Compiled = compile_program(step, self.state, self.batch, self.key, self.constants)

    def run(self) -> np.ndarray:
        """One step; the loss of each student when everything is done."""
        self.state, metrics = self.compiled.call(self.state, self.batch, self.key, self.constants)
        jax.block_until_ready(self.state)
        return np.atleast_1d(np.asarray(metrics["loss"], np.float64))


def build_peer(one: Program) -> Any:
    """PyTorch's step of the same student."""
    from peer_torch import TorchPeer, check_mirrored

    check_mirrored(one.config, one.task)
    inputs = jax.jit(one.task.inputs)(one.batch, jax.random.fold_in(one.key, 0), one.constants)
    images, labels = np.asarray(inputs.x), np.asarray(inputs.batch["label"])
    params = jax.device_get(one.params)
    return TorchPeer(one.config, one.task, params, images, labels, float(one.schedule(np.int32(0))))


class Measurement:
    """All programs and what is known of them."""

    def __init__(self, options: argparse.Namespace, config: Any):
        self.options = options
        say("compiling the step of one student ...")
        self.one = Program(config, 0, options.batch_size)
        self.losses = {"separate": float(self.one.run()[0])}
        self.populations: dict[int, Program] = {}
        self.failed: dict[int, str] = {}
        self.peer, self.config = None, config

    def add_population(self, members: int) -> None:
        """Compiles the step of so many students; one that does not fit into memory is kept as text."""
        say(f"compiling the step of a population of {members} ...")
        try:
            found = Program(self.config, members, self.options.batch_size, self.one.params, self.one.constants)
            self.losses[str(members)] = float(found.run().mean())
        except Exception as error:
            if isinstance(error, JaxkdError) or not is_out_of_memory(error):
                raise
            self.failed[members] = " ".join(str(error).split())[:300]
            say(f"{members} students do not fit into memory")
            return
        self.populations[members] = found

    def add_peer(self) -> None:
        """Builds PyTorch's step and runs it once."""
        say("first step of PyTorch, eager ...")
        self.peer = build_peer(self.one)
        self.losses["peer"] = self.peer.train_step()

    def time(self) -> dict[str, Any]:
        """The JSON object of the programs there are."""
        turns = {"separate": self.one.run} | {str(s): program.run for s, program in self.populations.items()}
        if self.peer is not None:
            turns["peer"] = self.peer.train_step
        say(f"timing {len(turns)} programs in turns, {self.options.repeats} times each ...")
        seconds = interleaved(turns, self.options.repeats)
        rows = {}
        for members, program in self.populations.items():
            own, one = seconds[str(members)], seconds["separate"]
            rows[str(members)] = {
                "ms": summary(own),
                "flops": program.compiled.flops,
                "compile_seconds": round(program.compiled.seconds, 2),
                "to_one": ratio(one, own),
                "flops_to_one": round(program.compiled.flops / self.one.compiled.flops, 3),
                "to_separate": ratio(own, members * one),
                "to_peer": ratio(own, members * seconds["peer"]) if self.peer is not None else None,
                "student_images_per_second": round(members * self.options.batch_size / float(np.median(own)), 1),
            }
        one = self.one
        return self._facts() | {
            "one_student": {
                "ms": summary(seconds["separate"]),
                "flops": one.compiled.flops,
                "compile_seconds": round(one.compiled.seconds, 2),
            },
            "peer": None
            if self.peer is None
            else {"name": "torch, eager", "ms": summary(seconds["peer"]), "versions": self.peer.versions},
            "populations": rows | {str(s): {"error": text} for s, text in self.failed.items()},
            "first_losses": self.losses,
        }

    def _facts(self) -> dict[str, Any]:
        one, device = self.one, jax.devices()[0]
        return {
            "config": self.options.config,
            "student": one.task.student.spec.name,
            "teacher": one.config.teacher.name or None,
            "batch_size": self.options.batch_size,
            "dtype": str(jnp.dtype(one.config.precision.compute)),
            "repeats": self.options.repeats,
            "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
            "host": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version()} | {name: version(name) for name in ("jax", "flax")},
        }


def measure(options: argparse.Namespace, config: Any) -> int:
    """Compiles, times and prints."""
    measurement = Measurement(options, config)
    if options.peer:
        measurement.add_peer()
    result: dict[str, Any] = {}
    for members in options.members:
        measurement.add_population(members)
        last = members == options.members[-1]
        if last or options.out:
            result = measurement.time()
        if options.out:
            path = Path(options.out)
            partial = path.with_name(path.name + ".partial")
            partial.write_text(json.dumps(result | {"complete": last}, indent=2))
            partial.replace(path)
    print(json.dumps(result, indent=2))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 2 a user error."""
    try:
        return measure(*parse(sys.argv[1:] if argv is None else argv))
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
