"""Time of all statistics of two networks over random images: `jaxkd.analyze` as a user runs it, without figures.

    python benchmarks/gpu_analysis.py --count=1000 --batch-size=64 > analysis.json
    python benchmarks/gpu_analysis.py --count=8 --batch-size=4 --tiny

CaiT-S24 and DeiT-Tiny with random weights, read from files: spectrum, entropy, activation and gradient of every block,
ranks of every image and layer, PCA and SEP of the last layer with permutations, and the comparison of the two networks.
The images are JPEG files, so decoding counts. A first analysis of two batches pays for most of the compilation and is
reported separately. Prints one JSON object; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from jaxkd import analyze, models, weights

NETWORKS = ("cait_s24_224", "deit_tiny_patch16_224")
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def write_images(folder: Path, count: int, *, seed: int = 0) -> None:
    """JPEG files of 256 x 256 pixels: coarse random colours with finer noise, about as large as photographs'."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).resize((256, 256), Image.BICUBIC)
        image = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (256, 256, 3), np.int16)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)


def write_weights(file: Path, name: str, args: dict[str, Any], *, seed: int = 0) -> None:
    """Random weights of a network in timm's format, drawn by NumPy: an initialiser takes 20 s to compile on a GPU."""
    rng = np.random.default_rng(seed)
    model = models.create(name, **args)
    size = args.get("img_size", 224)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = path[-1].key == "scale" or path[-1].key.startswith("gamma")
        return np.ones(leaf.shape, leaf.dtype) if scale else rng.normal(0, 0.02, leaf.shape).astype(leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    save_file({k: np.ascontiguousarray(v) for k, v in weights.to_timm(model, variables).items()}, file)


def arguments(options: argparse.Namespace, images: Path, out: Path) -> list[str]:
    """The command line of jaxkd.analyze."""
    argv = []
    for name in NETWORKS:
        args = SMALL if options.tiny else {}
        file = images.parent / f"{name}.safetensors"
        if not file.exists():
            write_weights(file, name, args)
        argv += [f"--model={name}", f"--weights={file}", *(f"--model-arg={key}={value}" for key, value in args.items())]
    argv += [f"--images={images}", f"--out={out}", f"--batch-size={options.batch_size}", "--no-figures"]
    return [*argv, f"--permutations={options.permutations}", "--saliency=0"]


def analyse(options: argparse.Namespace, images: Path, out: Path) -> tuple[float, dict[str, Any]]:
    """(seconds of the whole command, its results)."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        code = analyze.main(arguments(options, images, out))
    if code:
        raise SystemExit(code)
    return time.perf_counter() - start, json.loads((out / "results.json").read_text())


def describe(options: argparse.Namespace, results: dict[str, Any], seconds: float, first: float) -> dict[str, Any]:
    """The JSON object of an analysis that took `seconds`, after a first one that took `first`."""
    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    count = results["models"][0]["images"]
    return {
        "images": count,
        "batch_size": options.batch_size,
        "permutations": options.permutations,
        "networks": {m["label"]: {"layers": len(m["layers"])} for m in results["models"]},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "host": f"{os.cpu_count()} cores",
        "versions": {package: version(package) for package in ("jax", "jaxlib")},
        "seconds_of_first": {"images": 2 * options.batch_size, "seconds": round(first, 2)},
        "seconds": round(seconds, 2),
        "images_per_second": round(count / seconds, 2),
        "memory_mb": round(peak / 2**20, 1) if peak else None,
    }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="images (1000)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--permutations", type=int, default=100, help="channel permutations of SEP (100)")
    parser.add_argument("--tiny", action="store_true", help="networks of three small blocks")
    parser.add_argument("--out", default="", help="file for the first analysis, in case the second does not end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "first", 2 * options.batch_size, seed=1)
        first, results = analyse(options, folder / "first", folder / "report_first")
        if options.out:
            Path(options.out).write_text(json.dumps(describe(options, results, first, first)))
        write_images(folder / "images", options.count)
        seconds, results = analyse(options, folder / "images", folder / "report")
    print(json.dumps(describe(options, results, seconds, first), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
