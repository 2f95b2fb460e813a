"""A short computation whose result is known, for `jaxkd doctor`: does this installation train and compute correctly?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

CHANGES: dict[str, Any] = {
    "task": "distillation",
    "teacher.name": "deit_tiny_patch16_224",
    "teacher.weights": "none",  # not read: both networks stay random
    "distill.preset": "soft+spectral",
    "distill.pairs": "last",
    "distill.alpha": 0.5,
    "distill.temperature": 1.0,
    "distill.feature_weight": 0.2,
    "train.batch_size": 2,
    "optimizer.reference_batch": 0,
    "schedule.steps": 2,
    "schedule.warmup_epochs": 0,
    "ema.decay": 0.0,
}
NETWORK = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 3, "num_classes": 5}


def train_step() -> Mapping[str, float]:
    """Metrics of one step of distillation between tiny networks on two synthetic images, on the first device.

    Raises:
      RuntimeError: the loss is not finite, or no parameter moved.
    """
    import jax

    from jaxkd import parallel
    from jaxkd.config import fields
    from jaxkd.experiment.build import build

    changes = CHANGES | {
        f"{side}.args.{name}": value for side in ("student", "teacher") for name, value in NETWORK.items()
    }
    mesh = parallel.make_mesh(devices=jax.local_devices()[:1])
    experiment = build(fields.change(fields.base(), changes).lock(), mesh, load=False, open_data=False)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, NETWORK["img_size"], NETWORK["img_size"], 3), np.uint8)
    batch = parallel.put_batch({"image": images, "label": np.arange(2, dtype=np.int32)}, mesh)
    state = experiment.init_state()
    before = jax.device_get(state.params)
    state, metrics = experiment.compile_step()(state, batch, experiment.key, experiment.constants)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, jax.device_get(state.params))
    found = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
    if not np.isfinite(found["loss"]) or not any(jax.tree.leaves(moved)):
        raise RuntimeError(
            f"one step gave loss={found['loss']}, and the parameters moved: {any(jax.tree.leaves(moved))}"
        )
    return found


def spectral_difference() -> float:
    """Largest relative difference between `losses.spectral` and its definition, computed by NumPy's FFT."""
    from jaxkd import losses

    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 7, 6, 8)).astype(np.float32)
    spectrum = np.fft.rfft2((student - teacher).astype(np.float64), axes=(1, 2), norm="ortho")
    expected = np.concatenate([spectrum.real, spectrum.imag], axis=-1).reshape(len(student), -1)
    expected = (expected**2).mean(axis=1)
    return float(np.max(np.abs(np.asarray(losses.spectral(student, teacher)) / expected - 1)))
