"""Cost of a cache of the teacher's logits on disk, its error, and the time that it saves in a step.

    python benchmarks/teacher_cache.py --config=configs/deit_cait.py --config.distill.preset=soft --repeats=0
    python benchmarks/teacher_cache.py --config=configs/deit_cait.py:embedded --config.distill.preset=soft \\
        --config.teacher.weights=runs/first_light/teacher --top-k=1,2,3,5

The second command reads the teacher that `jaxkd.main` with the same config has trained in runs/first_light.

Steps: the train step that runs the teacher, the one that reads its logits from the batch, and the pass that writes
them, on random images, in turns in one process. "flops" are 2 for each multiply-add of matrix products and
convolutions, for all images of a batch; with --repeats=0 they are counted and nothing is compiled.

Loss: where config.teacher.weights is a local file or a work directory, the logits of --batches training batches, as the
run augments them, are written to a temporary folder with all classes in float32, and read again. For each k of --top-k
and each type of number: the mean KL divergence from the teacher's distribution to the stored one in nats (temperature
1), the share of images with the same likeliest class, and the bytes of an image and view on disk, with its checksum.
Prints one JSON object; fields of the config are changed as on the command line of jaxkd.main.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
from timing import interleaved, ratio, summary

from jaxkd import losses, parallel, train
from jaxkd import main as jaxkd_main
from jaxkd.config.fields import change
from jaxkd.config.validate import forget_unread
from jaxkd.distill import LogitFormat
from jaxkd.errors import ConfigError, JaxkdError
from jaxkd.experiment import Experiment, build, teacher_cache
from jaxkd.experiment.plan.program import abstract_arguments
from jaxkd.models.flops import multiply_adds


def parse(argv: list[str]) -> tuple[argparse.Namespace, Any]:
    """(options, config); other options go to the parser of jaxkd.main."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/deit_cait.py", help="a config file, perhaps with :arguments")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step (32)")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each program (10); 0: count only")
    parser.add_argument("--top-k", default="1,5", help="numbers of classes to keep (1,5)")
    parser.add_argument("--batches", type=int, default=40, help="batches whose logits are compared (40)")
    options, rest = parser.parse_known_args(argv)
    try:
        options.top_k = [int(k) for k in options.top_k.split(",")]
    except ValueError:
        options.top_k = [0]
    if min(options.batch_size, options.batches, *options.top_k) < 1 or options.repeats < 0:
        raise ConfigError(
            "--batch-size, --batches and each of --top-k must be at least 1, and --repeats at least 0. Leave them out "
            "for 32, 40, 1,5 and 10."
        )
    extra = [f"--config={options.config}", "--workdir=unused", f"--config.train.batch_size={options.batch_size}"]
    config = change(jaxkd_main.parse([*extra, *rest]).config, {"stages": ()}).lock()
    given = {word.partition("=")[0].removeprefix("--config.") for word in rest}
    return options, forget_unread(config, given) if "distill.preset" in given else config


def build_both(config: Any, folder: str, **options: Any) -> dict[str, Experiment]:
    """The run with the teacher and the run with a cache in `folder`."""
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model, fsdp=config.mesh.fsdp)
    without = {"teacher.cache.path": "", "teacher.cache.top_k": 0, "teacher.cache.dtype": "float32"}
    return {
        "teacher": build(change(config, without).lock(), mesh, **options),
        "cache": build(change(config, {"teacher.cache.path": folder}).lock(), mesh, **options),
    }


def random_batch(experiment: Experiment) -> dict[str, np.ndarray]:
    """A batch of random pixels, with logits where the step reads them."""
    rng, batch = np.random.default_rng(0), {}
    shapes = dict(experiment.abstract_batch)
    batch["image"] = rng.integers(0, 256, shapes["image"].shape, np.uint8)
    batch["label"] = rng.integers(0, experiment.task.student.num_classes, shapes["label"].shape).astype(np.int32)
    batch["mask"] = np.ones(shapes["mask"].shape, bool)
    stored = experiment.task.stored
    if stored is not None:
        logits = rng.normal(0, 2, (len(batch["label"]), stored.num_classes)).astype(np.float32)
        batch |= jax.device_get(stored.pack(logits))
    return batch


def steps(experiments: dict[str, Experiment], repeats: int) -> dict[str, Any]:
    """FLOPs of the programs and, with `repeats`, their times."""
    compiled = {name: one.compile_step() for name, one in experiments.items()}
    keys = {name: one.key for name, one in experiments.items()}  # real ones, before any shapes are asked for
    given = {name: abstract_arguments(one) for name, one in experiments.items()}
    cache, variables = experiments["cache"], experiments["teacher"].task.abstract_constants
    compiled["write"] = train.compile_batch_map(cache.task.logits_to_store, cache.mesh)
    images = {k: v for k, v in given["teacher"][1].items()}
    given["write"] = (images, given["teacher"][2], jax.ShapeDtypeStruct((), np.int32), variables)
    rows = {name: {"flops": 2.0 * multiply_adds(compiled[name].trace(*given[name]).jaxpr.jaxpr)} for name in compiled}
    if not repeats:
        return rows
    runs, states = {}, {name: one.init_state() for name, one in experiments.items()}

    def run(name: str) -> None:
        one = experiments[name]
        states[name], metrics = compiled[name](states[name], batches[name], keys[name], one.constants)
        jax.block_until_ready(metrics)

    batches = {name: parallel.put_batch(random_batch(one), one.mesh) for name, one in experiments.items()}
    runs = {name: (lambda name=name: run(name)) for name in experiments}
    constants, key = experiments["teacher"].constants, keys["teacher"]
    runs["write"] = lambda: jax.block_until_ready(compiled["write"](batches["teacher"], key, np.int32(0), constants))
    for one in runs.values():
        one()
    seconds = interleaved(runs, repeats)
    for name, own in seconds.items():
        rows[name]["ms"] = summary(own)
    rows["cache"]["teacher_to_cache"] = ratio(seconds["cache"], seconds["teacher"])
    return rows


def stored_logits(config: Any, folder: str, batches: int) -> tuple[np.ndarray, float]:
    """((images, K) log-probabilities of training images, bytes of an image in the folder that they were written to)."""
    changes = {"teacher.cache.path": folder, "teacher.cache.top_k": 0, "teacher.cache.dtype": "float32"}
    mesh = parallel.make_mesh(config.mesh.data, config.mesh.model, fsdp=config.mesh.fsdp)
    one = build(change(config, changes).lock(), mesh)
    teacher_cache.fill(
        one.task,
        one.pipeline,
        steps=batches,
        key=one.key,
        mesh=mesh,
        accumulate=config.optimizer.accumulate,
        console=None,
        stop=train.StopRequest(),
    )
    found = np.concatenate([next(one.pipeline)["teacher_log_probs"] for _ in range(batches)])
    one.pipeline.close()
    written = sum(part.count for part in one.pipeline.store.parts(batches)) * config.train.batch_size
    return found, sum(path.stat().st_size for path in Path(folder).rglob("*.bin")) / written


def loss_of(exact: np.ndarray, top_k: int, dtype: str) -> dict[str, float]:
    """Distance of the stored form from the teacher's distribution."""
    form = LogitFormat(exact.shape[1], top_k, dtype)
    found = form.unpack(form.pack(exact))
    kl = np.asarray(losses.kl(found, exact), np.float64)
    return {
        "top_k": top_k or exact.shape[1],
        "dtype": dtype,
        "bytes": form.bytes_per_image + 4,
        "kl_nats": float(f"{kl.mean():.3g}"),
        "same_class_percent": round(100 * float((found.argmax(1) == exact.argmax(1)).mean()), 3),
    }


def measure(options: argparse.Namespace, config: Any) -> dict[str, Any]:
    """The JSON object."""
    with tempfile.TemporaryDirectory() as folder:
        experiments = build_both(config, folder, load=False, open_data=bool(config.data.source))
        known = experiments["cache"]
        result: dict[str, Any] = {
            "config": options.config,
            "student": known.task.student.spec.name,
            "teacher": known.task.teacher.spec.name,
            "classes": known.task.teacher.num_classes,
            "batch_size": options.batch_size,
            "dtype": config.precision.compute,
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "host": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version(), "jax": version("jax")},
            "steps": steps(experiments, options.repeats),
        }
        if not (config.teacher.weights and Path(config.teacher.weights).expanduser().exists()):
            return result
        exact, size = stored_logits(config, folder, options.batches)
    probabilities = np.exp(exact.astype(np.float64))
    result["logits"] = {
        "data": config.data.source,
        "images": len(exact),
        "bytes_on_disk_float32_all": round(size, 2),
        "mean_entropy_nats": round(float(-(probabilities * exact).sum(1).mean()), 3),
        "forms": [loss_of(exact, k, d) for d in ("float32", "float16") for k in (*options.top_k, 0)],
    }
    return result


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 2 a user error."""
    try:
        print(json.dumps(measure(*parse(sys.argv[1:] if argv is None else argv)), indent=1))
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
