"""Golden cases of the distillation losses (`tests/golden/kd_zoo.npz`) and the comparison with them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PATH = Path(__file__).resolve().parent.parent / "golden" / "kd_zoo.npz"
# Inputs with one row per example, which a masked example may fill with NaN; all others are parameters or masks.
EXAMPLES = ("student", "teacher", "class_logits", "distill_logits")
PARAMETERS = ("_kernel", "_bias")


@functools.cache
def _file() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(PATH) as file:
        arrays = {key: file[key] for key in file.files if key != "meta"}
        return arrays, json.loads(str(file["meta"]))


def names(*functions: str) -> list[str]:
    """("dist",) -> ["dist/default", "dist/t4", "dist/t4_unscaled"]."""
    return [name for name in _file()[1] if name.split("/")[0] in functions]


def hyper(name: str) -> dict[str, Any]:
    """Hyperparameters of the case `name`."""
    return dict(_file()[1][name]["hyper"])


def arrays(name: str, group: str = "") -> dict[str, np.ndarray]:
    """Arrays of the case `name`: its inputs, or those of the group "out", "grad" or "where_grad"."""
    prefix = f"{name}/{group}/" if group else f"{name}/"
    found = {key.removeprefix(prefix): value for key, value in _file()[0].items() if key.startswith(prefix)}
    results = ("loss", "where", "where_loss")
    return found if group else {key: x for key, x in found.items() if "/" not in key and key not in results}


def close(actual: Any, expected: np.ndarray, tolerance: float, label: str = "") -> None:
    """Compares with `tolerance` times the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{label}: {actual.shape} is not {expected.shape}"
    bound = tolerance * np.abs(expected).max()
    assert np.abs(actual - expected).max() <= bound, f"{label}: {np.abs(actual - expected).max()} > {bound}"


def check(
    name: str,
    call: Callable[[Mapping[str, jax.Array], jax.Array | None], jax.Array],
    outputs: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]] | None = None,
    *,
    loss_tolerance: float = 1e-5,
    grad_tolerance: float = 1e-5,
    masked: bool = True,
) -> None:
    """Checks loss, outputs and gradients of one case, of all examples and with two examples masked that hold NaN.

    Args:
      name: of the case.
      call: (inputs, where) -> loss.
      outputs: inputs -> the values saved as `out/*`.
      loss_tolerance: relative to the largest value of the array, also for `out/*`.
      grad_tolerance: likewise.
      masked: whether the case is also checked with a mask.
    """
    inputs, saved = arrays(name), _file()[0]
    grads, where_grads = arrays(name, "grad"), arrays(name, "where_grad")
    size = next(x.shape[0] for key, x in inputs.items() if _has_examples(key))
    where = saved.get(f"{name}/where", (np.arange(size) % (size - 2)) != 1)  # examples 1 and B - 1 are left out
    spoilt = {key: _spoil(x, where) if _has_examples(key) else x for key, x in inputs.items()}

    @jax.jit
    def run(inputs, spoilt):
        def total(trained, rest, where):
            loss = call({**rest, **trained}, where)
            return jnp.sum(loss), loss

        def evaluate(given, where):
            return jax.grad(total, has_aux=True)({key: given[key] for key in grads}, given, where)

        return evaluate(inputs, None), evaluate(spoilt, jnp.asarray(where)), outputs(inputs) if outputs else {}

    (gradient, loss), (masked_gradient, masked_loss), values = run(inputs, spoilt)
    assert loss.dtype == jnp.float32
    close(loss, saved[f"{name}/loss"], loss_tolerance, "loss")
    for key, expected in grads.items():
        close(gradient[key], expected, grad_tolerance, f"gradient of {key}")
    assert set(values) == set(arrays(name, "out"))
    for key, expected in arrays(name, "out").items():
        close(values[key], expected, loss_tolerance, key)
    if not masked:
        return
    if where_grads:
        close(masked_loss, saved[f"{name}/where_loss"], loss_tolerance, "masked loss")
        for key, expected in where_grads.items():
            close(masked_gradient[key], expected, grad_tolerance, f"masked gradient of {key}")
        return
    # A loss per example is the same with the mask. Only rows are known of the gradients, so parameters must be finite.
    close(masked_loss, np.where(where, saved[f"{name}/loss"], 0.0), loss_tolerance, "masked loss")
    for key, x in grads.items():
        if _has_examples(key):
            expected = np.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0)
            close(masked_gradient[key], expected, grad_tolerance, f"masked gradient of {key}")
        else:
            assert np.isfinite(masked_gradient[key]).all(), f"masked gradient of {key}"


def _spoil(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[~where] = np.nan
    return x


def _has_examples(key: str) -> bool:
    return key.startswith(EXAMPLES) and not key.endswith(PARAMETERS)
