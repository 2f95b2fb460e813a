"""Facts of compiled train steps on eight simulated devices, as JSON: run in a process of its own."""

from __future__ import annotations

import json
import math
import re
import sys

import jax
import jax.numpy as jnp

from jaxkd import distill, parallel, tasks, train
from jaxkd.weights import build_network

SIZES = {"img_size": 32, "patch_size": 16, "num_classes": 10}


def facts(batch_size: int, data: int, fsdp: int) -> dict:
    """Bytes of the train state on one device, and the sizes of all gathered arrays, of a SpectralKD step."""
    student = build_network("deit_tiny_patch16_224", SIZES | {"embed_dim": 192, "depth": 2})
    teacher = build_network("cait_s24_224", SIZES | {"embed_dim": 96, "depth": 2, "num_heads": 4})
    terms = ({"loss": "ce", "weight": 0.1}, {"loss": "kl", "weight": 0.9}, {"loss": "spectral", "weight": 0.2})
    pairs = (("block_0", "block_0"), ("block_1", "block_1"))
    objective = distill.build_objective(terms, pairs=pairs)
    task = tasks.DistillationTask(student, teacher, objective)
    mesh, tx = parallel.make_mesh(data, fsdp=fsdp), train.make_optimizer(1e-3, clip_norm=1.0)
    state = jax.eval_shape(lambda: train.create_state(*task.init(jax.random.key(0)), tx, ema=True))
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, 32, 32, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = train.compile_train_step(task, tx, mesh, state, ema_decay=0.9)
    text = step.lower(state, batch, key, jax.eval_shape(lambda: task.constants)).compile().as_text()
    shardings = jax.tree.leaves(parallel.tree_shardings(state, mesh))
    parts = [
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(state), shardings, strict=True)
    ]
    gathered = re.findall(r"= \w+\[([\d,]*)\][^=]*? all-gather\(", text)
    return {"state": sum(parts), "gathered": sorted(math.prod(map(int, s.split(","))) for s in gathered if s)}


if __name__ == "__main__":
    print(json.dumps([facts(*case) for case in json.loads(sys.argv[1])]))
