"""Every statistic of CaiT-S24, jaxkd against the published way of working: time, memory, and whether the numbers agree.

    python benchmarks/analysis.py --images=IMAGENET/val --peer=numpy

Both sides run in processes of their own, one after the other, on the same images and the same (random) weights, from
JPEG to numbers: spectrum and entropy (chunks of 32) of 24 layers, ranks of every image and layer, SEP and PCA of the
last layer. Prints one JSON object. The peer needs the extra `parity`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from process_memory import peak_megabytes, restart_peak

from jaxkd import weights
from jaxkd.analysis import pipeline

HERE = Path(__file__).resolve().parent


def write_weights(path: Path) -> None:
    """CaiT-S24 with random but awake LayerScale, in timm's keys."""
    import jax
    import jax.numpy as jnp
    from safetensors.numpy import save_file

    from jaxkd import models

    model = models.create("cait_s24_224")
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    state = {k: np.array(v) for k, v in weights.to_timm(model, variables).items()}
    rng = np.random.default_rng(0)
    for name, value in state.items():
        if "gamma" in name:
            state[name] = rng.normal(0.1, 0.02, value.shape).astype(np.float32)
    save_file(state, str(path))


def ours(images: str, weights: str, count: int, folder: str, batch: int, low_memory: bool) -> dict:
    """One process of ours."""
    import jax

    from jaxkd import parallel
    from jaxkd.analysis.pipeline.dataset_pass import StreamOptions
    from jaxkd.analysis.pipeline.summary import SummaryOptions
    from jaxkd.data.sources.images import open_images

    mesh = parallel.make_mesh()
    source, _ = open_images(images, max_images=count)
    network = weights.load_weights(weights.build_network("cait_s24_224", {}), weights)
    features = pipeline.network_features(network, mesh)
    blocks = tuple(t for t in features.layers if t.startswith("block_"))
    features = pipeline.network_features(network, mesh, layers=blocks)
    del network
    options = pipeline.AnalysisOptions(
        stream=StreamOptions(batch_size=batch, gradients=False, low_memory=low_memory),
        summary=SummaryOptions(permutations=0, null_images=0),
    )
    warm, _ = open_images(images, max_images=min(2 * batch, count))
    start = time.perf_counter()
    pipeline.analyse([features], warm, mesh, options, scratch=folder)
    compile_seconds = time.perf_counter() - start
    before = restart_peak()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        results = pipeline.analyse([features], source, mesh, options, scratch=folder)
        times.append(time.perf_counter() - start)
    model = results["models"][0]
    last = model["last"]
    percents = ("99", "95", "90", "80")
    return {
        "seconds": float(np.median(times)),
        "seconds_of_each": times,
        "seconds_of_forward": _forward_seconds(features, source, batch),
        "first_call_with_compilation": compile_seconds,
        "memory_mb": peak_megabytes(),
        "memory_above_network_mb": peak_megabytes() - before,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "rank_mean": [model["per_layer"][f"rank_{p}"]["mean"] for p in percents],
        "rank_p99": [last["ranks"][p]["p99"] for p in percents],
        "spectrum": model["spectrum"],
        "entropy": model["per_layer"]["entropy"]["mean"],
        "sep": last["sep"]["full"]["mean"],
        "required_d_p99": [last["pca"]["uncentred"]["required_d"][p]["p99"] for p in percents],
    }


def _forward_seconds(features, source, batch: int) -> float:
    """The network alone over as many images: what no analysis of its features can be faster than."""
    import jax

    images = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3)).astype(np.uint8)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(features.forward(images))
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) * len(source) / batch


def entropy_alone() -> dict:
    """Entropy of one image's 24 layers: ours, compiled, against 4,704 calls of np.histogram."""
    import jax

    from jaxkd.analysis.entropy import entropy_map

    x = np.random.default_rng(0).normal(size=(24 * 196, 384)).astype(np.float32)
    low, high = float(x.min()), float(x.max())
    f = jax.jit(lambda v: entropy_map(v, low, high, 100))
    device = jax.device_put(x)
    found = np.asarray(f(device))
    times = []
    for _ in range(9):
        start = time.perf_counter()
        f(device).block_until_ready()
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    expected = []
    for row in x:
        counts, _ = np.histogram(row, bins=100, range=(low, high))
        p = counts[counts > 0] / counts.sum()
        expected.append(-(p * np.log2(p)).sum())
    loop = time.perf_counter() - start
    return {
        "ours_ms": 1e3 * float(np.median(times)),
        "ours_ms_minimum": 1e3 * min(times),
        "numpy_ms": 1e3 * loop,
        "times_as_fast": loop / float(np.median(times)),
        "largest_difference_bits": float(np.abs(found - expected).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--peer", choices=("none", "numpy"), default="none")
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--low-memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        weights, folder = args.ours
        print(json.dumps(ours(args.images, weights, args.count, folder, args.batch_size, args.low_memory)))
        return
    report: dict = {"images": args.count, "network": "cait_s24_224", "entropy": entropy_alone()}
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "cait.safetensors")
        write_weights(Path(weights))
        base = [sys.executable, __file__, "--images", args.images, "--count", str(args.count)]
        runs = {
            "ours": [*base, "--batch-size", str(args.batch_size), "--ours", weights, folder],
            "ours, low memory": [*base, "--batch-size", "4", "--low-memory", "--ours", weights, folder],
        }
        if args.peer == "numpy":
            runs["numpy"] = [
                sys.executable, str(HERE / "peer_analysis.py"), args.images, weights, str(args.count), folder
            ]  # fmt: skip
        found = {name: _run(command) for name, command in runs.items()}
    for name, result in found.items():
        small = {k: v for k, v in result.items() if k not in NUMBERS}
        report[name] = small
    if "numpy" in found:
        peer = found["numpy"]
        for name in ("ours", "ours, low memory"):
            mine = found[name]
            report[name] |= {
                "times_as_fast": peer["total"] / mine["seconds"],
                "memory_share": mine["memory_mb"] / peer["memory_mb"],
                "memory_share_above_network": mine["memory_above_network_mb"] / peer["memory_above_network_mb"],
                "largest_difference": {
                    k: float(np.abs(np.asarray(mine[k]) - np.asarray(peer[k])).max()) for k in NUMBERS
                },
            }
    print(json.dumps(report, indent=1))


NUMBERS = ("rank_mean", "rank_p99", "spectrum", "entropy", "sep", "required_d_p99")


def _run(command: list[str]) -> dict:
    environment = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
