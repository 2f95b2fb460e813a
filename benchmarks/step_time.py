"""How fast a distillation step is, in parts, against the machine's own peak and against PyTorch.

    python benchmarks/step_time.py --config=configs/deit_cait.py --batch-size=8 --peer=torch > step_time.json

Compiles and times the teacher's forward pass, the student's forward and backward pass and the whole train step that
`jaxkd.main` would run with this config, and both forms of the spectral loss. The two parts start from images that are
normalised, erased and mixed as the config says; the whole step does that itself. Images are random, and so are weights
that are not in a local file: no data set and no network access are needed. Prints one JSON object; progress goes to
stderr. Fields of the config are changed as on the command line of jaxkd.main (--config.precision.compute=bfloat16).

All programs run in turns in one process, so that whatever else the machine does falls on all of them. Ratios are the
result; absolute times are of this machine at this time. With --peer=torch, a ratio above 1 says that we are faster;
the peer is given prepared images in the whole step too, so that both compute the same loss, which is checked.
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

import jax
import jax.numpy as jnp
import numpy as np
from timing import Compiled, compile_program, interleaved, matrix_products, ratio, summary

from jaxkd import losses
from jaxkd.errors import ConfigError, JaxkdError
from jaxkd.losses.spectral import DEFAULT_METHOD, METHODS

PyTree = Any
# Loss of the same weights and images, ours against the peer's; bfloat16 rounds in another order in every product.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
RECIPE_MAPS = [((14, 14, 192), (14, 14, 384))] * 8  # DeiT-Tiny and CaiT-S24, where a config pairs no maps


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> tuple[argparse.Namespace, Any]:
    """(options, config); what is not ours goes to the parser of jaxkd.main.

    Raises:
      ConfigError: a wrong option, or a package that configs need and that is not installed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/deit_cait.py", help="a config file, perhaps with :arguments")
    parser.add_argument("--batch-size", type=int, default=8, help="images a step (8)")
    parser.add_argument("--repeats", "--steps", type=int, default=10, help="timed calls of each program (10)")
    parser.add_argument("--peer", choices=("torch",), help="also time PyTorch with timm's networks")
    options, rest = parser.parse_known_args(argv)
    if options.batch_size < 1 or options.repeats < 1:
        raise ConfigError(
            f"--batch-size={options.batch_size} and --repeats={options.repeats} must both be at least 1. Nothing would "
            "be timed. Leave them out for 8 and 10."
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
    config, _, _ = main.parse([*extra, *rest])
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
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model)
    experiment = build(config.lock(), mesh, load=load, open_data=False)
    task = experiment.task
    if task.constants and not load:
        # As at the start of a training run, so that features have the sizes that features have.
        images = jnp.zeros((1, *task.teacher.image_size, 3), jnp.float32)
        task.constants = jax.jit(task.teacher.model.init)(jax.random.key(config.seed + 7), images)
    return experiment.config, task, experiment.optimizer, experiment.schedule, load


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


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 1 that the peer computes another loss, 2 that the user can mend something."""
    try:
        return measure(*parse(sys.argv[1:] if argv is None else argv))
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2


def measure(options: argparse.Namespace, config: Any) -> int:
    """Compiles, times and prints; see `main`."""
    from jaxkd import parallel, train

    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model)
    parallel.check_batch("--batch-size", options.batch_size, mesh, accumulate=config.optimizer.accumulate)
    config, task, optimizer, schedule, loaded = prepare(config)
    dtype = jnp.dtype(config.precision.compute)
    rng = np.random.default_rng(config.seed)
    host = {
        "image": rng.integers(0, 256, (options.batch_size, *task.student.image_size, 3), np.uint8),
        "label": rng.integers(0, task.student.num_classes, options.batch_size).astype(np.int32),
    }
    batch, key = parallel.put_batch(host, mesh), jax.random.key(config.seed + 1)
    task.constants = parallel.put_on_mesh(task.constants, mesh)
    params, mutable = jax.jit(task.init)(jax.random.key(config.seed))
    first = jax.random.fold_in(key, 0)  # the key of the first step
    inputs = jax.jit(task.inputs)(batch, first, task.constants)
    peer = None
    if options.peer:
        from peer_torch import TorchPeer

        rate = float(schedule(np.int32(0)))
        peer = TorchPeer(config, task, params, np.asarray(inputs.x), np.asarray(inputs.batch["label"]), rate)
    state = train.create_state(params, mutable, optimizer, ema=config.ema.decay > 0)
    holder = {"state": parallel.put_on_mesh(state, mesh)}
    params = parallel.put_on_mesh(params, mesh)

    def student_loss(params: PyTree, mutable: PyTree, inputs: train.Inputs) -> jax.Array:
        return task.student_loss(params, mutable, inputs, first, jnp.int32(0))[0]

    say("compiling ...")
    compiled: dict[str, Compiled] = {}
    runs: dict[str, Any] = {}
    if task.objective.needs_teacher:
        compiled["teacher_forward"] = compile_program(jax.jit(task.teacher_forward), inputs.x, task.constants)
        call = compiled["teacher_forward"].call
        runs["teacher_forward"] = lambda: jax.block_until_ready(call(inputs.x, task.constants))
    given = (params, mutable, inputs)
    gradient = compile_program(jax.jit(jax.value_and_grad(student_loss)), *given)
    compiled["student_forward_backward"] = gradient
    runs["student_forward_backward"] = lambda: jax.block_until_ready(gradient.call(*given))
    step = train.compile_train_step(
        task, optimizer, mesh, state, accumulate=config.optimizer.accumulate, ema_decay=config.ema.decay
    )
    compiled["train_step"] = compile_program(step, holder["state"], batch, key, task.constants)

    def train_step() -> float:
        holder["state"], metrics = compiled["train_step"].call(holder["state"], batch, key, task.constants)
        jax.block_until_ready(holder["state"])
        return float(metrics["loss"])

    runs["train_step"] = train_step
    first_loss = train_step()
    maps = _paired_maps(config, task, inputs.teacher)
    spectral = spectral_programs(options.batch_size, maps)
    products = matrix_products(dtype)

    turns = {f"matrix_{side}": run for side, (_, run) in products.items()}
    for name, run in runs.items():
        turns[name] = run
        if peer:
            turns[f"peer_{name}"] = getattr(peer, name)
    turns |= {f"spectral_{method}": run for method, (_, run) in spectral.items()}
    peer_loss = peer.train_step() if peer else None
    say(f"timing {len(turns)} programs in turns, {options.repeats} times each ...")
    seconds = interleaved(turns, options.repeats)

    rates = {side: flops / seconds[f"matrix_{side}"].min() for side, (flops, _) in products.items()}
    peak = max(rates.values())

    def described(name: str, program: Compiled) -> dict[str, Any]:
        best = float(seconds[name].min())
        return {
            "ms": summary(seconds[name]),
            "images_per_second": round(options.batch_size / float(np.median(seconds[name])), 2),
            "flops": program.flops,
            "share_of_peak": round(program.flops / best / peak, 4),
            "compile_seconds": round(program.seconds, 2),
        }

    device = mesh.devices.flat[0]
    result: dict[str, Any] = {
        "config": options.config,
        "student": task.student.spec.name,
        "teacher": config.teacher.name or None,
        "weights": "files of the config" if loaded else "random",
        "batch_size": options.batch_size,
        "dtype": str(dtype),
        "repeats": options.repeats,
        "device": f"{mesh.devices.size} x {device.device_kind} ({device.platform})",
        "host": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("jax", "jaxlib", "flax", "optax")},
        "matrix_peak": {
            "flops_per_second": peak,
            "side": max(rates, key=lambda side: rates[side]),
            "sweep": {str(side): rate for side, rate in rates.items()},
        },
        "programs": {name: described(name, program) for name, program in compiled.items()},
        "spectral_loss": {
            "pairs": [" and ".join(str((options.batch_size, *shape)) for shape in pair) for pair in maps],
            "default": DEFAULT_METHOD,
            **{method: described(f"spectral_{method}", program) for method, (program, _) in spectral.items()},
            "closed_to_fft": ratio(seconds["spectral_closed"], seconds["spectral_fft"]),
        },
    }
    agrees = True
    if peer:
        result["peer"], agrees = _compared(peer, task, seconds, runs, first_loss, peer_loss, TOLERANCE[str(dtype)])
    print(json.dumps(result, indent=2))
    return 0 if agrees else 1


def _paired_maps(config: Any, task: Any, answer: Any) -> list[tuple[tuple, tuple]]:
    """(student, teacher) shapes, without batch, of the maps that the config pairs."""
    from jaxkd import distill, models

    if not task.objective.student_taps:
        return RECIPE_MAPS
    student, teacher = task.student.model, task.teacher.model
    pairs = distill.resolve_pairs(config.distill.pairs, models.tap_names(student), models.tap_names(teacher))
    images = jax.ShapeDtypeStruct((1, *task.student.image_size, 3), jnp.float32)
    variables = jax.eval_shape(student.init, jax.random.key(0), images)
    taps = task.objective.student_taps
    ours = jax.eval_shape(lambda v, x: student.apply(v, x, taps=taps), variables, images)[1]
    shapes = [(ours[s].shape[1:], answer[1][t].shape[1:]) for s, t in pairs]
    return shapes if all(len(m) == 3 for pair in shapes for m in pair) else RECIPE_MAPS


def _compared(
    peer: Any, task: Any, seconds: dict[str, np.ndarray], names: Any, ours: float, theirs: float, tolerance: float
) -> tuple[dict[str, Any], bool]:
    """What the peer measured beside us, and whether its loss of the same weights and images is ours."""
    difference = abs(ours - theirs) / abs(theirs)
    rates = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
    random = [rate for rate in rates if getattr(task.student.model, rate, 0.0)]
    agrees = bool(random) or difference <= tolerance
    say(f"loss of the first step: ours {ours:.6f}, the peer's {theirs:.6f}, relative difference {difference:.1e}")
    if not agrees:
        say(f"The losses differ by more than {tolerance:g}: these are two different computations, and the ratios void.")
    return {
        "name": "torch",
        "device": peer.name,
        "threads": peer.threads,
        "versions": peer.versions,
        "ms": {name: summary(seconds[f"peer_{name}"]) for name in names},
        "ratio": {name: ratio(seconds[name], seconds[f"peer_{name}"]) for name in names},
        "loss": {
            "ours": ours,
            "peer": theirs,
            "relative_difference": float(f"{difference:.3g}"),
            "agrees": agrees,
            "note": f"not comparable: {', '.join(random)} draws other masks" if random else "",
        },
    }, agrees


if __name__ == "__main__":
    sys.exit(main())
