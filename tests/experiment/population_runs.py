"""Populations of small students and the single runs that their members stand for, as functions and as a program.

python population_runs.py large OUT.npz 8x1 2x4      writes what the steps of each mesh make of the population
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np

from jaxkd import parallel
from jaxkd.config import fields
from jaxkd.config.studies import projected
from jaxkd.experiment import Experiment, build

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
TEACHER = SMALL | {"depth_token_only": 1}
STEPS, BATCH = 20, 32
SMALL_STEPS = 4
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


def small() -> Any:
    """Two students of one block: a published projector that is frozen, and one that trains at a rate of its own."""
    heads = ("linear_batchnorm", "batchnorm")
    two = (
        {"name": "frozen", "seed": 0, "optimizer.learning_rate": 2e-3, **projected(*heads, frozen=True)},
        {"name": "trained", "seed": 3, "optimizer.weight_decay": 0.5, **projected(*heads)},
    )
    changes = {"population": two, "distill.projector_learning_rate": 5e-3, "distill.pairs": None}
    changes |= {"student.args.depth": 1, "student.args.drop_path_rate": 0.0, "data.mix.mixup": 0.0}
    changes |= {"teacher.name": "deit_tiny_patch16_224", "teacher.args.depth": 1, "teacher.args.embed_dim": 36}
    # The shifts of both BatchNorms and the bias in front of one have a gradient of 0, whose rounding eps has to exceed.
    changes |= {"optimizer.eps": 1e-3, "train.batch_size": 8, "teacher.args.depth_token_only": None}
    return config(**changes)


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


def arrays_of(state: Any, metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics with the steps last, parameters, average and statistics of projectors; of a population members first."""
    found = {f"metrics/{name}": values.T for name, values in metrics.items()}
    trees = {"params": state.params, "ema": state.ema, "statistics": state.mutable.get("projectors", {})}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        found["/".join(key.key for key in path)] = np.asarray(leaf)
    return found


def program(kind: str) -> tuple[Any, int]:
    """The config and the number of steps of a population: "large" or "small"."""
    return (config(), STEPS) if kind == "large" else (small(), SMALL_STEPS)


def main(kind: str, out: str, *meshes: str) -> None:
    """Writes arrays `<mesh>/<name>` and how a matrix lies on the devices, `<mesh>/shard`."""
    arrays: dict[str, np.ndarray] = {}
    given, steps = program(kind)
    for words in meshes:
        state, metrics = train(experiment(given, parallel.make_mesh(*map(int, words.split("x")))), steps)
        kernel = state.params["student"]["blocks_0"]["attn"]["qkv"]["kernel"]
        shard = {"shard": np.array(kernel.addressable_shards[0].data.shape)}
        arrays |= {f"{words}/{name}": values for name, values in (arrays_of(state, metrics) | shard).items()}
    np.savez(out, **arrays)


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    main(*sys.argv[1:])
