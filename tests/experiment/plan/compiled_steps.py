"""Collectives of steps on eight simulated devices as JSON: SpectralKD in both forms, and a term that gathers.

python compiled_steps.py      writes {"closed 16": [[kind, bytes, count, module], ...], "closed 32": ..., ...}
The step of "closed" computes the layers' statistics too.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp

from jaxkd import distill, parallel
from jaxkd.config import fields
from jaxkd.experiment.plan.program import build_experiment, compile_experiment

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 10}


@distill.register_term("plain_fft")
def plain_fft(student, teacher, batch, *, pairs):
    """A wrong form of the FFT loss, outside `shard_map`: XLA gathers the maps of all devices for it."""
    maps = [student[1][s] - teacher[1][t] for s, t in pairs]
    return sum(jnp.abs(jnp.fft.rfft2(m.astype(jnp.float32), axes=(1, 2))).mean(axis=(1, 2, 3)) for m in maps)


TERMS = {
    "closed": {"distill.preset": "soft+spectral", "distill.spectral_method": "closed"},
    "fft": {"distill.preset": "soft+spectral", "distill.spectral_method": "fft"},
    "gathered": {"distill.terms": ({"loss": "ce"}, {"loss": "plain_fft"})},
}


def config(**changes):
    """DeiT <- CaiT with the spectral loss, and statistics of its layers, with decompositions."""
    given = {f"{side}.args.{k}": v for side in ("student", "teacher") for k, v in SMALL.items()}
    given |= {"task": "distillation", "teacher.name": "cait_xxs24_224", "teacher.weights": "none"}
    given |= {"distill.pairs": ((0, 0), (1, 1)), "optimizer.reference_batch": 0}
    given |= {"dynamics.every_steps": 1, "dynamics.images": 8, "dynamics.rank_images": 8}
    return fields.change(fields.base(), given | changes).lock()


def main() -> None:
    """Compiles and prints."""
    mesh, found = parallel.make_mesh(), {}
    assert mesh.devices.size == 8 == jax.device_count()
    for method, terms in TERMS.items():
        for batch in (16, 32):
            experiment = build_experiment(config(**terms), mesh, batch_size=batch)
            compiled = compile_experiment(experiment, statistics=method == "closed")
            found[f"{method} {batch}"] = [[c.kind, c.size, c.count, c.source] for c in compiled.program.collectives()]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
