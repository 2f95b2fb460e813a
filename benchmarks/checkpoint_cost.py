"""Time of saving and restoring a checkpoint with and without checksums.

    python benchmarks/checkpoint_cost.py --model=deit_tiny_patch16_224 --repeats=5 > checkpoint_cost.json

Writes the train state of a network (parameters, moving average, AdamW's moments) of random numbers to a temporary
folder, and restores it. `blocking_s` is the time until training could go on, `save_s` the time until the checkpoint is
complete, `restore_s` that of a restore. With and without checksums take turns; medians. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import models, parallel, train
from jaxkd.train import checkpoint


def make_state(name: str) -> train.TrainState:
    """The train state of a network, with its moving average and random parameters."""
    model = models.create(name)
    image = jax.ShapeDtypeStruct((1, *models.spec(name).input_size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    student = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
    params = {"student": student, "projectors": {}}
    state = train.create_state(params, {}, train.make_optimizer(1e-3), ema=True)
    # Moments of zeros would be compressed to nothing.
    moments = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype) if x.ndim else x, state.opt_state)
    return state.replace(opt_state=moments)


def measure(state: train.TrainState, folder: Path, *, checksums: bool) -> dict[str, float]:
    """Seconds of one save and one restore, and the bytes of the checkpoint."""
    abstract, mesh = jax.eval_shape(lambda: state), parallel.make_mesh()
    checkpoints = train.Checkpoints(folder)
    with mock.patch.object(checkpoint, "write_manifest", checkpoint.write_manifest if checksums else lambda _: None):
        start = time.perf_counter()
        checkpoints.save(state, data={}, meta={})
        blocking = time.perf_counter() - start
        checkpoints.wait()
        save = time.perf_counter() - start
    start = time.perf_counter()
    restored, _, _ = checkpoints.restore(0, abstract, mesh)
    jax.block_until_ready(restored)
    restore = time.perf_counter() - start
    checkpoints.close()
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return {"blocking_s": blocking, "save_s": save, "restore_s": restore, "bytes": size}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    state = make_state(args.model)
    rows: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    for turn in range(args.repeats + 1):
        for name in rows:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(state, Path(folder), checksums=name == "with")
            if turn:  # the first of each warms up
                rows[name].append(row)
    medians = {n: {k: round(statistics.median(r[k] for r in many), 4) for k in many[0]} for n, many in rows.items()}
    print(json.dumps({"model": args.model, "repeats": args.repeats, "machine": platform.platform(), **medians}))


if __name__ == "__main__":
    main()
