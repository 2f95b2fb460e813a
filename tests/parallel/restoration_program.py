"""A super-resolution step with an FFT loss on eight simulated devices: its losses, and what it gathers, as JSON."""

from __future__ import annotations

import json
import re
import sys

import jax
import numpy as np

from jaxkd import models, parallel, tasks, train
from jaxkd.weights import Network


def step(mesh: jax.sharding.Mesh) -> dict:
    """Terms of three steps of EDSR on random patches."""
    model = models.create("edsr_x2", num_feat=4, num_block=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    student = Network(model, models.spec("edsr_x2"), (0, 0), 0, variables, "random weights")
    task = tasks.RestorationTask(student, fft_weight=0.05, mesh=mesh)
    tx = train.make_optimizer(1e-3)
    state = parallel.put_on_mesh(train.create_state(*task.init(jax.random.key(0)), tx, ema=False), mesh)
    fn, rows = train.compile_train_step(task, tx, mesh, jax.eval_shape(lambda: state)), []
    batch = {
        "lr": rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8),
        "hr": rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8),
        "mask": np.arange(8) != 5,
    }
    batch = parallel.put_batch(batch, mesh)
    text = fn.lower(state, batch, jax.random.key(1), {}).compile().as_text()
    for _ in range(3):
        state, metrics = fn(state, batch, jax.random.key(1), {})
        rows.append({name: float(metrics[name]) for name in ("loss", "fft_l1")})
    return {"rows": rows, "gathers": len(re.findall(r" all-gather\(", text))}


if __name__ == "__main__":
    one, all_devices = parallel.make_mesh(1, 1, jax.devices()[:1]), parallel.make_mesh()
    assert all_devices.size == 8
    json.dump([step(one), step(all_devices)], sys.stdout)
