"""A population of six small students and the single runs that its members stand for, as functions and as a program.

python population_runs.py OUT.npz 8x1 2x4      writes what the steps of each mesh make of the population
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np

from jaxkd import parallel
from jaxkd.config import fields
from jaxkd.experiment import Experiment, build

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
TEACHER = SMALL | {"depth_token_only": 1}
STEPS, BATCH = 20, 32
MEMBERS = {"seed": (0, 3), "distill.preset": ("none", "soft", "spectral")}


def config(**changes: Any):
    """Students that differ in seed and objective, with clipping, an average, stochastic depth and mixed images."""
    both = {"student": SMALL, "teacher": TEACHER}
    given = {f"{side}.args.{k}": v for side, args in both.items() for k, v in args.items()}
    given |= {
        "task": "distillation",
        "data.source": "embedded:digits",
        "data.workers": 0,
        "data.mix.mixup": 0.5,
        "student.args.drop_path_rate": 0.2,
        "teacher.name": "cait_xxs24_224",
        "teacher.weights": "none",
        "distill.pairs": ((0, 0), (1, 1)),
        "train.batch_size": BATCH,
        "train.steps": STEPS,
        "optimizer.clip_norm": 1.0,
        "optimizer.reference_batch": 0,
        "optimizer.eps": 1e-6,  # smaller ones divide rounding errors by the root of tiny second moments
        "schedule.warmup_epochs": 0,
        "ema.decay": 0.9,
        "population": MEMBERS,
    }
    return fields.change(fields.base(), given | changes).lock()


def experiment(one: Any, mesh: jax.sharding.Mesh) -> Experiment:
    """Built with networks of random weights; the teacher's are the same in every call."""
    return build(one, mesh, load=False)


def train(built: Experiment, steps: int = STEPS) -> tuple[Any, dict[str, np.ndarray]]:
    """The state after some steps, and name -> the metrics of each step."""
    state, step, rows = built.init_state(), built.compile_step(), []
    for _ in range(steps):
        batch = parallel.put_batch(next(built.pipeline), built.mesh)
        state, metrics = step(state, batch, built.key, built.constants)
        rows.append(jax.device_get(metrics))
    return state, {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def summary(state: Any, metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics, sums of parameters and average of each member, and how a matrix lies on the devices."""
    metrics = dict(metrics)
    for name, tree in (("params", state.params), ("ema", state.ema)):
        leaves = [np.abs(np.asarray(x)).reshape(len(x), -1).sum(1) for x in jax.tree.leaves(tree)]
        metrics[name] = np.stack(leaves, 1)
    kernel = state.params["student"]["blocks_0"]["attn"]["qkv"]["kernel"]
    return metrics | {"shard": np.array(kernel.addressable_shards[0].data.shape)}


def main(out: str, *meshes: str) -> None:
    """Writes arrays `<mesh>/<name>`."""
    arrays = {}
    for words in meshes:
        mesh = parallel.make_mesh(*map(int, words.split("x")))
        arrays |= {f"{words}/{k}": v for k, v in summary(*train(experiment(config(), mesh))).items()}
    np.savez(out, **arrays)


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    main(*sys.argv[1:])
