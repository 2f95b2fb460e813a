"""Losses of a contrastive run's first steps on one device and on eight simulated ones, as JSON."""

from __future__ import annotations

import json
import sys

import jax

from jaxkd import parallel
from jaxkd.config import fields, recipes
from jaxkd.experiment.build import build


def losses(mesh: jax.sharding.Mesh) -> list[float]:
    """Loss of five steps."""
    config = recipes.contrastive(fields.base(), "tiny", embedded=True)
    source = "embedded:synthetic_zuco?snr=16&subjects=3&sentences=100&vocabulary=40&words=6-7"
    config = fields.change(config, {"data.source": source, "train.batch_size": 32}).lock()
    experiment = build(config, mesh)
    step, state, found = experiment.compile_step(), experiment.init_state(), []
    for _ in range(5):
        batch = {k: v for k, v in next(experiment.pipeline).items() if k in experiment.abstract_batch}
        state, metrics = step(state, parallel.put_batch(batch, mesh), experiment.key, experiment.constants)
        found.append(float(metrics["loss"]))
    return found


if __name__ == "__main__":
    one, eight = parallel.make_mesh(1, devices=jax.devices()[:1]), parallel.make_mesh()
    assert eight.size == 8
    json.dump([losses(one), losses(eight)], sys.stdout)
