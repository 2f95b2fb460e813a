"""Time of a distillation step and of its parts, against the machine's own peak and against PyTorch.

    python benchmarks/step_time.py --config=configs/deit_cait.py --batch-size=8 --peer=torch > step_time.json
    python benchmarks/step_time.py --config=configs/deit_cait.py --batch-size=256 --peer=torch --forms=eager,compile \\
        --config.precision.compute=bfloat16 --out=step_time.json      (a GPU)

Compiles and times the teacher's forward pass, the student's forward and backward pass and the whole train step that
`jaxkd.main` would run with this config, and both forms of the spectral loss. The two parts start from images that are
normalised, erased and mixed as the config says; the whole step does that itself. Images are random, and so are weights
that are not in a local file: no data set and no network access are needed. Prints one JSON object; progress goes to
stderr. Fields of the config are changed as on the command line of jaxkd.main (--config.precision.compute=bfloat16).

All programs run in turns in one process, so that whatever else the machine does falls on all of them. Ratios are the
result; absolute times are of this machine at this time. With --peer=torch, a ratio above 1 says that jaxkd is faster;
the peer is given prepared images in the whole step too, so that both compute the same loss, which is checked. Its form
"compile_blocks" is torch.compile of each block, "compile" of both whole networks, which takes minutes. On a GPU the
peak memory of both frameworks' train steps is reported. On a CPU the process keeps the memory that it frees, as
jaxkd.main lets it (`jaxkd.cli.host_memory`); MALLOC_TOP_PAD_=131072 in the environment leaves the C library as it is.
On a CPU that others use, processor time (--clock=processor) is steadier, on one core (`taskset -c 0` before the
command) for both frameworks, because threads that wait for one another would count too.
FLOP are 2 for each multiply-add of matrix products and convolutions (`jaxkd.models.flops`), the same for every form.

With --out, the object is also written to a file as soon as the whole step is timed, and again when more is known: a run
that is stopped leaves what it knew. torch.compile comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two frameworks share the GPU

import jax
import jax.numpy as jnp
import numpy as np
from timing import CLOCKS, Compiled, compile_program, interleaved, matrix_products, ratio, summary

from jaxkd import losses
from jaxkd.errors import ConfigError, JaxkdError
from jaxkd.losses.spectral import DEFAULT_METHOD, METHODS

PyTree = Any
# Relative difference of the loss of the same weights and images; bfloat16 rounds in another order in every product.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
RECIPE_MAPS = [((14, 14, 192), (14, 14, 384))] * 8  # DeiT-Tiny and CaiT-S24, where a config pairs no maps
# Arguments of networks that draw random masks, so that the two frameworks' losses differ.
RATES = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> tuple[argparse.Namespace, Any]:
    """(options, config); other options go to the parser of jaxkd.main.

    Raises:
      ConfigError: a wrong option, or a package that configs need and that is not installed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/deit_cait.py", help="a config file, perhaps with :arguments")
    parser.add_argument("--batch-size", type=int, default=8, help="images a step (8)")
    parser.add_argument("--repeats", "--steps", type=int, default=10, help="timed calls of each program (10)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="what is timed (wall)")
    parser.add_argument("--peer", choices=("torch",), help="also time PyTorch with timm's networks")
    parser.add_argument("--forms", default="eager", help="of the peer: eager, compile_blocks, compile (eager)")
    parser.add_argument("--out", default="", help="file that is rewritten whenever more is known")
    options, rest = parser.parse_known_args(argv)
    if options.batch_size < 1 or options.repeats < 1:
        raise ConfigError(
            f"--batch-size={options.batch_size} and --repeats={options.repeats} must both be at least 1. Leave them "
            "out for 8 and 10."
        )
    forms = options.forms.split(",")
    if not set(forms) <= {"eager", "compile_blocks", "compile"}:
        raise ConfigError(
            f'--forms="{options.forms}" names an unknown form. Give eager, compile_blocks, compile or several of them, '
            "separated by commas."
        )
    try:
        from jaxkd import main
    except ModuleNotFoundError as error:
        if error.name not in ("ml_collections", "absl"):
            raise
        raise ConfigError(
            f"The package {error.name} is not installed. Configs are written with ml_collections. Run: "
            "pip install ml-collections absl-py"
        ) from None
    extra = [f"--config={options.config}", "--workdir=unused", f"--config.train.batch_size={options.batch_size}"]
    config = main.parse([*extra, *rest]).config
    return options, config


def prepare(config: Any) -> tuple[Any, Any, Any, Any, bool]:
    """(resolved config, task, optimiser, schedule, whether weights were read) of a run that trains on no data set."""
    from jaxkd import models, parallel
    from jaxkd.experiment import build

    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.source = config.data.source or "random images"
        local = [Path(n.weights).expanduser().exists() for n in (config.student, config.teacher) if n.weights]
        load = bool(local) and all(local)
        config.stages = ()
        classes = 10 if config.data.source == "embedded:digits" else models.spec(config.student.name).num_classes
        config.student.args.num_classes = config.student.args.get("num_classes") or classes or 1000
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model, fsdp=config.mesh.fsdp)
    experiment = build(config.lock(), mesh, load=load, open_data=False)
    task = experiment.task
    if task.constants and not load:
        # As at the start of a training run, so that features have the sizes that features have.
        images = jnp.zeros((1, *task.teacher.image_size, 3), jnp.float32)
        task.constants = jax.jit(task.teacher.model.init)(jax.random.key(config.seed + 7), images)
    return experiment.config, task, experiment.optimizer, experiment.schedule, load


def place_step(batch_size: int, config: Any, task: Any, optimizer: Any, mesh: Any) -> tuple[Any, ...]:
    """(random batch, key, parameters, mutable state, train state) on the mesh, and there the constants of `task`."""
    from jaxkd import parallel, train

    rng = np.random.default_rng(config.seed)
    host = {
        "image": rng.integers(0, 256, (batch_size, *task.student.image_size, 3), np.uint8),
        "label": rng.integers(0, task.student.num_classes, batch_size).astype(np.int32),
    }
    batch, key = parallel.put_batch(host, mesh), jax.random.key(config.seed + 1)
    task.constants = parallel.put_on_mesh(task.constants, mesh)
    params, mutable = jax.jit(task.init)(jax.random.key(config.seed))
    state = parallel.put_on_mesh(train.create_state(params, mutable, optimizer, ema=config.ema.decay > 0), mesh)
    return batch, key, parallel.put_on_mesh(params, mesh), mutable, state


def spectral_programs(batch: int, maps: list[tuple[tuple, tuple]]) -> dict[str, tuple[Compiled, Any]]:
    """Value and gradient of the mean spectral loss over pairs of maps, in each of its forms."""
    rng = np.random.default_rng(1)
    students, teachers = (
        [jnp.asarray(rng.normal(size=(batch, *pair[side])), jnp.float32) for pair in maps] for side in (0, 1)
    )
    programs = {}
    for method in METHODS:

        def loss(students: list, teachers: list, method: str = method) -> jax.Array:
            values = [losses.spectral(s, t, method=method) for s, t in zip(students, teachers, strict=True)]
            return jnp.mean(sum(values) / len(values))

        compiled = compile_program(jax.jit(jax.value_and_grad(loss)), students, teachers)
        programs[method] = (compiled, lambda c=compiled.call: jax.block_until_ready(c(students, teachers)))
    return programs


@dataclass
class Step:
    """The train step of a run that trains on random images, compiled.

    Attributes:
      options, config: of the command line, the config resolved.
      task, optimizer, schedule, mesh: what `jaxkd.main` would train with.
      loaded: whether weights were read from files.
      batch, key: one batch on the device, and the key of the run.
      params, mutable: initial parameters and other collections.
      compiled: the step.
      state: changed by `run`.
    """

    options: argparse.Namespace
    config: Any
    task: Any
    optimizer: Any
    schedule: Any
    mesh: Any
    loaded: bool
    batch: PyTree
    key: jax.Array
    params: PyTree
    mutable: PyTree
    compiled: Compiled
    state: Any

    def run(self) -> float:
        """One step; returns its loss when everything is done."""
        self.state, metrics = self.compiled.call(self.state, self.batch, self.key, self.task.constants)
        jax.block_until_ready(self.state)
        return float(metrics["loss"])

    @cached_property
    def inputs(self) -> Any:
        """The inputs of the first step: prepared images, their labels and the teacher's output."""
        return jax.jit(self.task.inputs)(self.batch, self.first_key, self.task.constants)

    @property
    def first_key(self) -> jax.Array:
        """The key of the first step."""
        return jax.random.fold_in(self.key, 0)


def build_step(options: argparse.Namespace, config: Any, *, compiler_options: Any = None) -> Step:
    """Everything that the step needs, and the step compiled, in a process whose memory is set as by `jaxkd.main`."""
    from jaxkd import parallel, train
    from jaxkd.cli import host_memory

    host_memory.keep_freed_memory()

    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model, fsdp=config.mesh.fsdp)
    parallel.check_batch("--batch-size", options.batch_size, mesh, accumulate=config.optimizer.accumulate)
    config, task, optimizer, schedule, loaded = prepare(config)
    if options.peer:
        from peer_torch import check_mirrored

        check_mirrored(config, task)  # before anything compiles
    batch, key, params, mutable, state = place_step(options.batch_size, config, task, optimizer, mesh)
    say("compiling the train step ...")
    function = train.compile_train_step(
        task, optimizer, mesh, state, accumulate=config.optimizer.accumulate, ema_decay=config.ema.decay
    )
    compiled = compile_program(function, state, batch, key, task.constants, compiler_options=compiler_options)
    return Step(options, config, task, optimizer, schedule, mesh, loaded, batch, key, params, mutable, compiled, state)


def memory_megabytes(step: Step) -> dict[str, float] | None:
    """Peaks (2^20 bytes) of this process until now, and of the step as the compiler plans it; None on a CPU."""
    statistics = step.mesh.devices.flat[0].memory_stats() or {}
    if "peak_bytes_in_use" not in statistics:
        return None
    plan = step.compiled.call.memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    planned = sum(getattr(plan, part, 0) for part in parts) - getattr(plan, "alias_size_in_bytes", 0)
    return {
        "allocator_peak": round(statistics["peak_bytes_in_use"] / 2**20, 1),
        "planned_by_compiler": round(planned / 2**20, 1),
    }


@dataclass
class Measurement:
    """The programs that are timed in turns: those of jaxkd, the peer's forms, and the machine's matrix products.

    Attributes:
      step: the train step.
      compiled, runs: programs of jaxkd by name, and functions that run them once.
      peers: form -> the peer.
      failed: form -> the error of a form that could not run.
    """

    step: Step
    compiled: dict[str, Compiled] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    spectral: dict[str, tuple[Compiled, Any]] = field(default_factory=dict)
    maps: list[tuple[tuple, tuple]] = field(default_factory=list)
    peers: dict[str, Any] = field(default_factory=dict)
    peer_losses: dict[str, float] = field(default_factory=dict)
    peer_memory: dict[str, float | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.compiled["train_step"], self.runs["train_step"] = self.step.compiled, self.step.run
        self.first_loss = self.step.run()
        self.memory = memory_megabytes(self.step)  # now: other programs would raise the peak
        self.products = matrix_products(jnp.dtype(self.step.config.precision.compute))

    def add_peer(self, form: str) -> None:
        """Builds a form of the peer and runs its first step; what fails there is kept as text.

        Raises:
          ConfigError: the peer cannot be built at all.
        """
        from peer_torch import TorchPeer

        say(f"first step of PyTorch, {form} ...")
        step = self.step
        images, batch = np.asarray(step.inputs.x), np.asarray(step.inputs.batch["label"])
        rate = float(step.schedule(np.int32(0)))
        try:
            peer = TorchPeer(step.config, step.task, step.params, images, batch, rate, form=form)
            self.peer_losses[form] = peer.train_step()
            self.peer_memory[form] = peer.peak_megabytes()
            self.peers[form] = peer
        except JaxkdError:
            raise
        except Exception as error:  # a compiler that is missing, or too little memory: the rest is still worth timing
            text = str(error).strip() or type(error).__name__
            self.failed[form] = text[:500]
            say(f"PyTorch, {form}, failed: {text[:500]}")

    def add_parts(self) -> None:
        """Compiles the parts of the step and the forms of the spectral loss."""
        from jaxkd.train.cpu_compiler import compiler_options

        step, task = self.step, self.step.task
        inputs, key = step.inputs, step.first_key
        part = partial(compile_program, compiler_options=compiler_options(step.mesh))  # as of the whole step

        def student_loss(params: PyTree, mutable: PyTree, inputs: Any) -> jax.Array:
            return task.student_loss(params, mutable, inputs, key, jnp.int32(0))[0]

        say("compiling the parts ...")
        if task.objective.needs_teacher:
            self.compiled["teacher_forward"] = part(jax.jit(task.teacher_forward), inputs.x, task.constants)
            call = self.compiled["teacher_forward"].call
            self.runs["teacher_forward"] = lambda: jax.block_until_ready(call(inputs.x, task.constants))
        given = (step.params, step.mutable, inputs)
        gradient = part(jax.jit(jax.value_and_grad(student_loss)), *given)
        self.compiled["student_forward_backward"] = gradient
        self.runs["student_forward_backward"] = lambda: jax.block_until_ready(gradient.call(*given))
        self.maps = _paired_maps(task, inputs.teacher)
        self.spectral = spectral_programs(step.options.batch_size, self.maps)

    def time(self) -> tuple[dict[str, Any], bool]:
        """(the JSON object, whether the peers compute the same loss), of the programs there are."""
        step, repeats = self.step, self.step.options.repeats
        turns = {f"matrix_{side}": run for side, (_, run) in self.products.items()}
        for name, run in self.runs.items():
            turns[name] = run
            turns |= {f"{form}_{name}": getattr(peer, name) for form, peer in self.peers.items()}
        turns |= {f"spectral_{method}": run for method, (_, run) in self.spectral.items()}
        say(f"timing {len(turns)} programs in turns, {repeats} times each ...")
        seconds = interleaved(turns, repeats, step.options.clock)
        rates = {side: flops / seconds[f"matrix_{side}"].min() for side, (flops, _) in self.products.items()}
        peak, chip = max(rates.values()), self._chip_peak()

        def speed(name: str, flops: float) -> dict[str, Any]:
            median, best = float(np.median(seconds[name])), float(seconds[name].min())
            return {
                "ms": summary(seconds[name]),
                "images_per_second": round(step.options.batch_size / median, 2),
                "share_of_peak": round(flops / best / peak, 4),
                "share_of_data_sheet": round(flops / median / chip, 4) if chip else None,
            }

        def described(name: str, program: Compiled) -> dict[str, Any]:
            cost = {"flops": program.flops, "compile_seconds": round(program.seconds, 2)}
            faults = {"page_faults": _page_faults(self.runs[name])} if name in self.runs else {}
            return speed(name, program.flops) | cost | faults

        result = self._facts() | {
            "matrix_peak": {
                "flops_per_second": peak,
                "side": max(rates, key=lambda side: rates[side]),
                "sweep": {str(side): rate for side, rate in rates.items()},
                "data_sheet": chip,
            },
            "programs": {name: described(name, program) for name, program in self.compiled.items()},
        }
        result["programs"]["train_step"]["memory_mb"] = self.memory
        if self.spectral:
            result["spectral_loss"] = {
                "pairs": [" and ".join(str((step.options.batch_size, *shape)) for shape in pair) for pair in self.maps],
                "default": DEFAULT_METHOD,
                **{method: described(f"spectral_{method}", program) for method, (program, _) in self.spectral.items()},
                "closed_to_fft": ratio(seconds["spectral_closed"], seconds["spectral_fft"]),
            }
        if not self.peers and not self.failed:
            return result, True
        forms, agrees = {}, not self.failed
        for form in self.peers:
            loss, same = self._compare_losses(form)
            agrees = agrees and same
            forms[form] = {
                "programs": {name: speed(f"{form}_{name}", p.flops) for name, p in self.compiled.items()},
                "ratio": {name: ratio(seconds[name], seconds[f"{form}_{name}"]) for name in self.runs},
                "memory_mb": self.peer_memory[form],
                "loss": loss,
            }
        peer = next(iter(self.peers.values()), None)
        facts = {"device": peer.name, "threads": peer.threads, "versions": peer.versions} if peer else {}
        failed = {form: {"error": text} for form, text in self.failed.items()}
        result["peer"] = {"name": "torch", **facts, "forms": forms | failed}
        return result, agrees

    def _chip_peak(self) -> float | None:
        from jaxkd.experiment.plan import bf16_peak  # after the check of missing packages

        mesh = self.step.mesh
        peak = bf16_peak(mesh.devices.flat[0].device_kind)
        return peak * mesh.devices.size if peak and self.step.config.precision.compute == "bfloat16" else None

    def _facts(self) -> dict[str, Any]:
        step, device = self.step, self.step.mesh.devices.flat[0]
        return {
            "config": step.options.config,
            "student": step.task.student.spec.name,
            "teacher": step.config.teacher.name or None,
            "weights": "files of the config" if step.loaded else "random",
            "batch_size": step.options.batch_size,
            "dtype": str(jnp.dtype(step.config.precision.compute)),
            "repeats": step.options.repeats,
            "clock": step.options.clock,
            "device": f"{step.mesh.devices.size} x {device.device_kind} ({device.platform})",
            "host": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version()}
            | {package: version(package) for package in ("jax", "jaxlib", "flax", "optax")},
        }

    def _compare_losses(self, form: str) -> tuple[dict[str, Any], bool]:
        """The loss of the same weights and images in both frameworks, and whether it is the same."""
        given, found = self.first_loss, self.peer_losses[form]
        tolerance = TOLERANCE[str(jnp.dtype(self.step.config.precision.compute))]
        difference = abs(given - found) / abs(found)
        random = [rate for rate in RATES if getattr(self.step.task.student.model, rate, 0.0)]
        agrees = bool(random) or difference <= tolerance
        say(f"loss of the first step: jaxkd {given:.6f}, {form} {found:.6f}, relative difference {difference:.1e}")
        if not agrees:
            say(f"The losses differ by more than {tolerance:g}: the two compute different things; the ratios are void.")
        return {
            "jaxkd": given,
            "peer": found,
            "relative_difference": float(f"{difference:.3g}"),
            "agrees": agrees,
            "note": f"not comparable: {', '.join(random)} draws other masks" if random else "",
        }, agrees


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 1 that the peer failed or computes another loss, 2 a user error."""
    try:
        return measure(*parse(sys.argv[1:] if argv is None else argv))
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2


def measure(options: argparse.Namespace, config: Any) -> int:
    """Compiles, times and prints; see `main`."""
    result, agrees = {}, True
    for measurement, last in _stages(options, config):
        if last or options.out:
            result, agrees = measurement.time()
        if options.out:
            path = Path(options.out)
            partial = path.with_name(path.name + ".partial")
            partial.write_text(json.dumps(result | {"complete": last}, indent=2))
            partial.replace(path)
    print(json.dumps(result, indent=2))
    return 0 if agrees else 1


def _stages(options: argparse.Namespace, config: Any) -> Iterator[tuple[Measurement, bool]]:
    """The measurement with more and more programs, the most important ones first, and whether it has all of them."""
    measurement = Measurement(build_step(options, config))
    yield measurement, False
    forms = options.forms.split(",") if options.peer else []
    for form in ("eager", "compile_blocks"):
        if form in forms:
            measurement.add_peer(form)
            yield measurement, False
    measurement.add_parts()
    if "compile" in forms:  # compiles for minutes
        yield measurement, False
        measurement.add_peer("compile")
    yield measurement, True


def _page_faults(run: Any) -> int | None:
    """Pages of memory that one more call touches for the first time; None where the system does not count them."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _paired_maps(task: Any, teacher_out: Any) -> list[tuple[tuple, tuple]]:
    """(student, teacher) shapes, without batch, of the maps that the objective pairs."""
    if not task.objective.student_taps:
        return RECIPE_MAPS
    student, taps = task.student.model, task.objective.student_taps
    images = jax.ShapeDtypeStruct((1, *task.student.image_size, 3), jnp.float32)
    variables = jax.eval_shape(student.init, jax.random.key(0), images)
    maps = jax.eval_shape(lambda v, x: student.apply(v, x, taps=taps), variables, images)[1]
    shapes = [(maps[s].shape[1:], teacher_out[1][t].shape[1:]) for s, t in task.objective.pairs]
    return shapes if all(len(m) == 3 for pair in shapes for m in pair) else RECIPE_MAPS


if __name__ == "__main__":
    sys.exit(main())
