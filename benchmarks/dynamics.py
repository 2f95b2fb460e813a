"""Cost of statistics of the layers in a training run, in percent of its throughput.

    python benchmarks/dynamics.py --config=configs/deit_cait.py --batch-size=8 > dynamics.json

Compiles the train step that `jaxkd.main` would run with this config, the step with `dynamics.every_steps` on, and the
latter without its gradients, without its ranks and without both, and times them in turns in one process. Images are
random, and so are weights that are not in a local file. With one step of statistics every n, training loses
(t_statistics - t_plain) / (n t_plain) of its time. Prints one JSON object; progress goes to stderr. Fields of the
config are changed as on the command line of jaxkd.main (--config.dynamics.images=8).

With --blocks, that is measured as well and not only computed: whole blocks of n steps, with one step of statistics and
without, in turns (n steps of the full-size networks take long; meant for small ones).

On a CPU the decompositions are LAPACK's, and OpenBLAS' own threads wait for one another where other processes want the
same cores: the ranks then took tens of times as long, up to a whole step. Here they have one thread unless
OPENBLAS_NUM_THREADS says otherwise.

Besides, with --ranks, both ways to the energies of an image's tokens are timed as the step computes them: singular
values of the tokens, and eigenvalues of the smaller Gram matrix.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
from timing import Compiled, Run, compile_program, interleaved, summary

from jaxkd.analysis import pipeline
from jaxkd.errors import ConfigError, JaxkdError

PARTS = {
    "statistics_step": {},
    "without_ranks": {"ranks": False},
    "without_gradients": {"gradients": False},
    "without_both": {"ranks": False, "gradients": False},
}


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> tuple[argparse.Namespace, Any]:
    """(options, config); what is not ours goes to the parser of jaxkd.main.

    Raises:
      ConfigError: a wrong option.
    """
    from jaxkd import main

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/deit_cait.py", help="a config file, perhaps with :arguments")
    parser.add_argument("--batch-size", type=int, default=8, help="images a step (8)")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each program (10)")
    parser.add_argument("--every", type=int, default=100, help="steps between two with statistics (100)")
    parser.add_argument("--blocks", type=int, default=0, help="timed blocks of --every steps, of each kind (0)")
    parser.add_argument("--ranks", action="store_true", help="also time SVD against eigenvalues of the Gram matrix")
    options, rest = parser.parse_known_args(argv)
    if min(options.batch_size, options.repeats, options.every) < 1:
        raise ConfigError(
            f"--batch-size={options.batch_size}, --repeats={options.repeats} and --every={options.every} must all be "
            "at least 1. Nothing would be timed. Leave them out for 8, 10 and 100."
        )
    extra = [f"--config={options.config}", "--workdir=unused", f"--config.train.batch_size={options.batch_size}"]
    config = main.parse([*extra, f"--config.dynamics.every_steps={options.every}", *rest]).config
    return options, config


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 2 that the user can mend something."""
    try:
        options, config = parse(sys.argv[1:] if argv is None else argv)
        print(json.dumps(measure(options, config), indent=2))
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2
    return 0


def build_experiment(config: Any) -> tuple[Any, bool]:
    """(what `jaxkd.main` would train, without a data set, and whether weights were read: all must be local files)."""
    from jaxkd import parallel
    from jaxkd.config.fields import change
    from jaxkd.experiment import build

    files = [Path(n.weights).expanduser() for n in (config.student, config.teacher) if n.weights]
    load = bool(files) and all(file.exists() for file in files)
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model, fsdp=config.mesh.fsdp)
    return build(change(config, {"stages": ()}).lock(), mesh, load=load, open_data=False), load


def measure(options: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Compiles and times; what is printed."""
    from jaxkd import parallel

    experiment, loaded = build_experiment(config)
    config, task, mesh = experiment.config, experiment.task, experiment.mesh
    rng = np.random.default_rng(config.seed)
    images = rng.integers(0, 256, (options.batch_size, *task.student.image_size, 3), np.uint8)
    labels = rng.integers(0, task.student.num_classes, options.batch_size).astype(np.int32)
    batch = parallel.put_batch({"image": images, "label": labels}, mesh)
    given = (batch, experiment.key, experiment.constants)
    holder = {"state": experiment.init_state()}
    settings = config.dynamics.to_dict()
    settings.pop("every_steps")

    def program(**less: bool) -> Compiled:
        statistics = pipeline.Dynamics(task, mesh, **settings | less)
        step = dataclasses.replace(experiment, statistics=statistics).compile_step(statistics=True)
        return compile_program(step, holder["state"], *given)

    def run(compiled: Compiled) -> Any:
        def step() -> None:
            holder["state"], metrics = compiled.call(holder["state"], *given)
            jax.block_until_ready((holder["state"], metrics))

        return step

    say("compiling ...")
    programs = {"plain_step": compile_program(experiment.compile_step(), holder["state"], *given)}
    programs |= {name: program(**less) for name, less in PARTS.items()}
    layers = experiment.statistics.layers
    turns = {name: run(compiled) for name, compiled in programs.items()}
    if options.ranks:
        turns |= {f"energies_{method}": run for method, run in energy_programs(task, layers, config).items()}
    say(f"timing {len(turns)} programs in turns, {options.repeats} times each ...")
    seconds = interleaved(turns, options.repeats)
    plain = seconds["plain_step"]
    blocks = measured_blocks(turns, options.every, options.blocks) if options.blocks else {}
    device = mesh.devices.flat[0]
    return {
        "config": options.config,
        "student": task.student.spec.name,
        "teacher": config.teacher.name or None,
        "weights": "files of the config" if loaded else "random",
        "batch_size": options.batch_size,
        "dynamics": {**config.dynamics.to_dict(), "layers": list(layers)},
        "dtype": config.precision.compute,
        "repeats": options.repeats,
        "device": f"{mesh.devices.size} x {device.device_kind} ({device.platform})",
        "host": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("jax", "jaxlib")},
        "programs": {
            name: {
                "ms": summary(seconds[name]),
                **({"compile_seconds": round(c.seconds, 2), "flops": c.flops} if c is not None else {}),
            }
            for name, c in ((name, programs.get(name)) for name in turns)
        },
        "openblas_threads": os.environ["OPENBLAS_NUM_THREADS"],
        "every_steps": options.every,
        "lost_percent": {name: lost(seconds[name], plain, options.every) for name in PARTS},
        **blocks,
    }


def measured_blocks(turns: Mapping[str, Run], every: int, count: int) -> dict[str, Any]:
    """Seconds of blocks of `every` steps, and what is lost where one of them computes statistics."""

    def block(first: Run) -> Run:
        def steps() -> None:
            first()
            for _ in range(every - 1):
                turns["plain_step"]()

        return steps

    say(f"timing {count} blocks of {every} steps of each kind ...")
    seconds = interleaved({name: block(turns[name]) for name in ("plain_step", "statistics_step")}, count)
    return {
        "blocks": {name: {"ms": summary(values)} for name, values in seconds.items()},
        "measured_lost_percent": lost(seconds["statistics_step"], seconds["plain_step"], 1),
    }


def lost(statistics: np.ndarray, plain: np.ndarray, every: int) -> dict[str, float]:
    """Percent of a run's time that one step of statistics every `every` steps adds: by medians, and by minima."""
    return {
        "median": round(100 * float(np.median(statistics - plain) / np.median(plain)) / every, 3),
        "min": round(100 * float(statistics.min() / plain.min() - 1) / every, 3),
    }


def energy_programs(task: Any, layers: tuple[str, ...], config: Any) -> dict[str, Any]:
    """Method -> run of the decompositions of one step of statistics, on random tokens."""
    import jax.numpy as jnp

    from jaxkd.analysis.lowrank import image_energies

    count = min(config.dynamics.rank_images, config.train.batch_size)
    images = jnp.zeros((count, *task.student.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda v, x: task.student.model.apply(v, x, taps=layers)[1],
        jax.eval_shape(task.student.model.init, jax.random.key(0), images),
        images,
    )
    groups: dict[tuple[int, int], int] = {}
    for shape in (shapes[name].shape for name in layers):
        size = (int(np.prod(shape[1:-1])), shape[-1])
        groups[size] = groups.get(size, 0) + count
    tokens = [jax.random.normal(jax.random.key(i), (m, *size)) for i, (size, m) in enumerate(groups.items())]
    runs = {}
    for method in ("gram", "svd"):
        function = jax.jit(lambda tokens, method=method: [image_energies(x, method=method) for x in tokens])
        runs[method] = lambda f=function: jax.block_until_ready(f(tokens))
        runs[method]()
    return runs


if __name__ == "__main__":
    sys.exit(main())
