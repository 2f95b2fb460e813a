"""Statistics of a small distillation, as a function and as a program for other numbers of devices.

python observe.py OUT.npz        writes the statistics of three steps on all devices, and the shapes of batched FFTs
"""

from __future__ import annotations

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, distill, models, parallel, tasks, train, weights
from jaxkd.analysis import pipeline

BATCH, CLASSES, SIZE = 16, 5, 32
STUDENT = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_path_rate": 0.3}
TEACHER = {"img_size": SIZE, "patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 2}


def network(name: str, args: dict, seed: int) -> weights.Network:
    """A network of the zoo with random weights, drawn by NumPy."""
    model = models.create(name, num_classes=CLASSES, **args)
    size = args["img_size"]
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    return weights.Network(model, models.spec(name), (size, size), CLASSES, variables, "random weights")


def distillation(**more) -> tasks.DistillationTask:
    """soft+spectral, deit <- cait, with stochastic depth in the student, erasing and mixing."""
    student, teacher = network("deit_tiny_patch16_224", STUDENT, 3), network("cait_xxs24_224", TEACHER, 7)
    pairs = (("block_0", "block_0"), ("block_1", "block_1"))
    more = {"erase": data.EraseConfig(0.5, "pixel"), "mix": data.MixConfig(mixup=0.8)} | more
    return tasks.DistillationTask(student, teacher, distill.preset("soft+spectral", pairs=pairs), **more)


def batch_of(step: int) -> dict[str, np.ndarray]:
    """Sixteen images, one of which could not be read."""
    rng = np.random.default_rng(step)
    images = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    return {"image": images, "label": rng.integers(0, CLASSES, BATCH), "mask": np.arange(BATCH) != 2}


def steps(mesh: jax.sharding.Mesh, *, images: int = 11, rank_images: int = 3, accumulate: int = 1) -> dict:
    """Statistics of three steps, the parameters after them, and the shapes that each device transforms."""
    task = distillation()
    dynamics = pipeline.Dynamics(task, mesh, images=images, rank_images=rank_images)
    tx = train.make_optimizer(1e-3)

    def start():
        return train.create_state(*task.init(jax.random.key(0)), tx, ema=False)

    constants, state = (parallel.put_on_mesh(tree, mesh) for tree in (task.constants, start()))
    abstract = jax.eval_shape(start)
    fn = train.compile_train_step(task, tx, mesh, abstract, statistics=dynamics, accumulate=accumulate)
    key, out = jax.random.key(1), {}
    given = parallel.put_batch(batch_of(0), mesh)
    fn = fn.lower(state, given, key, constants).compile()
    for step in range(3):
        state, metrics = fn(state, parallel.put_batch(batch_of(step), mesh), key, constants)
        out |= {f"{step}.{name}": np.asarray(value) for name, value in metrics["statistics"].items()}
    sizes = [jnp.abs(x).sum() for x in jax.tree.leaves(state.params)]
    shapes = re.findall(r"c64\[(\d+),4,4,13\]\S* fft\(", fn.as_text())
    return out | {"params": np.asarray(sizes), "transformed": np.array(sorted(set(map(int, shapes))))}


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    np.savez(sys.argv[1], **steps(parallel.make_mesh()))
