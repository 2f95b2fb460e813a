"""Networks, losses and statistics on this device against golden arrays, at the highest matmul precision.

    python benchmarks/gpu_goldens.py > goldens.json

Compares what the tests compare on a CPU, at their tolerances: small timm networks (logits and every block or stage),
MDBN, distillation losses with gradients and whole objectives, spectrum, entropy, ranks, PCA and SEP. The arrays are
read from carry/golden, tests/golden or the folder in the variable GOLDENS, the first that has a file. Prints one JSON
object with the device, its driver, versions, and for each case the largest absolute and relative error; progress goes
to stderr. Exit code 1 says that a case differs or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import analysis, distill, losses, models, weights

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "carry" / "golden", ROOT / "tests" / "golden", *map(Path, filter(None, [os.environ.get("GOLDENS")])))
NETWORKS = ("deit", "deit_distilled", "cait", "swin", "swin_nonsquare")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "timm", "jax-cuda13-plugin", "jax-cuda12-plugin")
PAIRS = (("block_0", "block_1"), ("block_2", "block_5"))  # names for the maps of the golden objectives
SETTINGS = ((1.0, 0.9, 1.0, 0.2), (3.0, 0.5, 2.0, 0.05))  # temperature, alpha, beta, weight
Check = tuple[str, Any, Any, float, float]  # name, found, expected, rtol, atol


def load(name: str) -> Any:
    """The arrays of a golden file. Raises FileNotFoundError."""
    for folder in FOLDERS:
        if (folder / f"{name}.npz").exists():
            return np.load(folder / f"{name}.npz")
    raise FileNotFoundError(f"{name}.npz is in none of {', '.join(str(f) for f in FOLDERS)}")


def nhwc(x: np.ndarray) -> jax.Array:
    """(B, C, H, W) -> (B, H, W, C)."""
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)))


def check_network(name: str) -> Iterator[Check]:
    """A timm network: logits and every block or stage."""
    data = load(name)
    meta = json.loads(str(data["meta"]))
    args = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["kwargs"].items()}
    model = models.create(meta["model"], **args)
    state = {k.removeprefix("state/"): data[k] for k in data.files if k.startswith("state/")}
    kind = "stage_" if name.startswith("swin") else "block_"
    taps = tuple(t for t in models.tap_names(model) if t.startswith(kind) and "." not in t)
    recorded = sorted(k for k in data.files if k.startswith("intermediate_"))
    apply = jax.jit(partial(model.apply, taps=taps))
    logits, features = apply(weights.from_timm(model, state), nhwc(data["input_nchw"]))
    yield "logits", logits, data["logits"], 1e-4, 1e-4
    for tap, key in zip(taps, recorded, strict=True):
        yield tap, features[tap], nhwc(data[key]), 1e-4, 1e-4


def check_mdbn() -> Iterator[Check]:
    """MDBN at three scales."""
    data = load("mdbn_and_sr_metrics")
    for scale in (2, 3, 4):
        prefix = f"x{scale}/state/"
        state = {k.removeprefix(prefix): data[k] for k in data.files if k.startswith(prefix)}
        model = models.create(f"mdbn_x{scale}", num_feat=12, num_block=2)
        output, _ = jax.jit(model.apply)(weights.from_basicsr(model, state), nhwc(data[f"x{scale}/input_nchw"]))
        yield f"x{scale}", output, nhwc(data[f"x{scale}/output_nchw"]), 1e-4, 1e-4


def check_losses() -> Iterator[Check]:
    """The spectral loss with its gradient in both forms, and the whole objectives."""
    data = load("kd_losses")
    for case in range(4):
        student, teacher = (nhwc(data[f"spectral{case}_{k}"]) for k in ("student", "teacher"))
        for method in ("closed", "fft"):
            loss = jax.jit(jax.value_and_grad(lambda s, t, m=method: losses.spectral(s, t, method=m).mean()))
            value, gradient = loss(student, teacher)
            yield f"spectral{case} {method}", value, data[f"spectral{case}_loss"], 1e-5, 0.0
            expected = nhwc(data[f"spectral{case}_grad_student"])
            yield f"spectral{case} {method} gradient", gradient, expected, 1e-5, 1e-7
    for kind in ("soft", "hard", "fft"):
        for temperature, alpha, beta, weight in SETTINGS:
            yield _check_objective(data, kind, temperature, alpha, beta * weight, f"beta{beta}_w{weight}")


def _check_objective(data: Any, kind: str, temperature: float, alpha: float, weight: float, suffix: str) -> Check:
    key = f"{kind}_tau{temperature}_alpha{alpha}_{suffix}"
    student = (jnp.asarray(data["student_logits"]), {s: nhwc(data[f"{key}_fs{i}"]) for i, (s, _) in enumerate(PAIRS)})
    teacher = (jnp.asarray(data["teacher_logits"]), {t: nhwc(data[f"{key}_ft{i}"]) for i, (_, t) in enumerate(PAIRS)})
    if kind == "fft":
        objective = distill.preset("spectral", pairs=PAIRS, feature_weight=weight, ce_weight=1 - alpha)
        names = ("ce", "spectral")
    else:
        more = {"temperature": temperature} if kind == "soft" else {}
        objective = distill.preset(f"{kind}+spectral", pairs=PAIRS, alpha=alpha, feature_weight=weight, **more)
        names = ("ce", "spectral", "kl" if kind == "soft" else "hard")
    _, terms, _ = objective({}, {}, student, teacher, {"label": jnp.asarray(data["labels"])}, step=0)
    return f"objective {key}", np.stack([terms[f"{name}_weighted"] for name in names]), data[key], 1e-5, 0.0


def check_spectrum_and_entropy() -> Iterator[Check]:
    """Channel spectrum, intensity and entropy of three layers."""
    data = load("channel_spectrum_entropy")
    features = np.transpose(data["features_lbchw"], (0, 1, 3, 4, 2))
    span = (features.min(), features.max())
    for layer, maps in enumerate(features):
        spectrum = jax.jit(analysis.channel_spectrum)(maps)
        yield f"spectrum {layer}", spectrum, data["spectrum_lc"][layer], 1e-5, 1e-7
        yield f"intensity {layer}", jnp.mean(spectrum), data["intensity_l"][layer], 1e-5, 0.0
        yield f"entropy map {layer}", analysis.entropy_map(maps, *span), data["entropy_lbhw"][layer], 0.0, 1e-4
        yield f"entropy {layer}", analysis.channel_entropy(maps, range=span), data["entropy_l"][layer], 0.0, 1e-4


def check_lowrank() -> Iterator[Check]:
    """Ranks exactly; PCA, SEP and its permutations."""
    data = load("lowrank_pca_sep")
    tokens = data["tokens_mnd"]
    for method in ("gram", "svd"):
        yield f"ranks {method}", analysis.energy_ranks(tokens, method=method), data["svd_dims_99_95_90_80"], 0.0, 0.0
    pca, largest = analysis.dataset_pca(tokens), float(data["pca_eigvals"][0])
    yield "eigenvalues", pca.eigenvalues, data["pca_eigvals"], 1e-5, 1e-5 * largest
    curves = analysis.captured_energy(tokens, pca.eigenvectors)
    yield "captured energy", curves, data["pca_curves_md"], 1e-7, 1e-5
    yield "required d", analysis.required_d(curves), data["pca_required_d_80_90_95_99"], 0.0, 0.0
    for mode in ("full", "folded"):
        curve = analysis.sep_curve(tokens, mode == "folded")
        yield f"SEP {mode}", curve, data[f"sep_{mode}_mean"], 1e-5, 0.0
        yield f"bandwidths {mode}", analysis.bandwidths(curve), data[f"sep_{mode}_d_50_60_70_80_90"], 0.0, 0.0
    summary = analysis.sep_permutation(tokens, 5, bootstrap=200)
    yield "permutation ci", np.transpose(summary.ci), data["perm5_bootstrap200_ci_2.5_97.5"], 0.0, 1e-12
    yield "permutation curve l1", summary.curve_l1_mean, data["perm5_curve_l1"].mean(), 1e-5, 0.0


CASES: dict[str, Callable[[], Iterator[Check]]] = {
    **{name: partial(check_network, name) for name in NETWORKS},
    "mdbn": check_mdbn,
    "kd_losses": check_losses,
    "channel_spectrum_entropy": check_spectrum_and_entropy,
    "lowrank_pca_sep": check_lowrank,
}


def compare(name: str, found: Any, expected: Any, rtol: float, atol: float) -> dict[str, Any]:
    """Largest errors of one array, and whether it is within |found - expected| <= atol + rtol |expected|."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return {"name": name, "passed": False, "error": f"shape {found.shape}, expected {expected.shape}"}
    difference, size = np.abs(found - expected), np.abs(expected)
    relative = np.divide(difference, size, out=np.zeros_like(difference), where=size > 0)
    return {
        "name": name,
        "passed": bool(np.all(difference <= atol + rtol * size)),  # NaN is not
        "max_abs": float(difference.max()),
        "max_rel": float(relative.max()),
        # Largest error over largest value: relative errors of numbers near zero say little.
        "max_abs_to_largest": float(difference.max() / max(size.max(), np.finfo(np.float64).tiny)),
        "rtol": rtol,
        "atol": atol,
    }


def run_case(name: str, checks: Callable[[], Iterator[Check]]) -> dict[str, Any]:
    """All checks of one golden file; an exception ends this case only."""
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"passed": False}
    try:
        rows.extend(compare(*check) for check in checks())
        result["passed"] = all(row["passed"] for row in rows)
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"[:1000]
    measured = [row for row in rows if "max_abs" in row]
    for key in ("max_abs", "max_rel", "max_abs_to_largest"):
        result[key] = max((row[key] for row in measured), default=None)
    result["checks"] = len(rows)
    result["failed"] = [row for row in rows if not row["passed"]]
    shown = f"{result['max_abs']:.2e} abs, {result['max_rel']:.2e} rel" if measured else ""
    print(f"{name:26s} {'pass' if result['passed'] else 'FAIL'}  {shown}  {result.get('error', '')}", file=sys.stderr)
    return result


def describe_device() -> dict[str, Any]:
    """Device, driver, host and versions."""
    device = jax.devices()[0]
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "device_kind": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "memory_limit_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "nvidia_smi": _nvidia_smi(),
        "host": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": versions,
    }


def _nvidia_smi() -> dict[str, str] | None:
    fields = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = done.stdout.strip().splitlines()[0].split(", ")
    return dict(zip(fields.split(","), values, strict=False))


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 where every case passes, else 1."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    jax.config.update("jax_default_matmul_precision", "highest")
    result = describe_device()
    result["matmul_precision"] = "highest"
    result["goldens"] = {name: run_case(name, checks) for name, checks in CASES.items()}
    result["passed"] = all(case["passed"] for case in result["goldens"].values())
    print(json.dumps(result, indent=2))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
