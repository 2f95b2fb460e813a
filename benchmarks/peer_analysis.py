"""The published way of working, for `analysis.py` to be measured against: PyTorch features to .npy, then NumPy loops.

Written from the description of the papers' scripts: one image at a time through timm's network, all layers to one
file per image; then one script after the other over these files. Nothing here is vectorised further than there.
Runs as a process of its own, so that its peak memory is its own:

    python benchmarks/peer_analysis.py IMAGES WEIGHTS COUNT FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

CHUNK, BINS = 32, 100
LEVELS = (0.99, 0.95, 0.90, 0.80)


def main(images: str, weights: str, count: int, folder: str) -> dict:
    from process_memory import peak_megabytes, restart_peak
    from torch_import import import_timm

    torch, timm = import_timm()
    from PIL import Image
    from safetensors.torch import load_file
    from timm.data import create_transform, resolve_data_config

    torch.set_num_threads(os.cpu_count() or 1)
    model = timm.create_model("cait_s24_224", pretrained=False)
    model.load_state_dict(load_file(weights))
    model.eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    files = sorted(Path(images).rglob("*.jp*g"))[:count]
    out, seconds = Path(folder), {}
    taken: list = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: taken.append(output[0].numpy()))
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    taken.clear()
    before = restart_peak()

    start = time.perf_counter()
    paths = []
    with torch.no_grad():
        for i, file in enumerate(files):
            taken.clear()
            model(transform(Image.open(file).convert("RGB"))[None])
            paths.append(out / f"{i:05d}.npy")
            np.save(paths[-1], np.stack(taken))
    seconds["features"] = time.perf_counter() - start

    start = time.perf_counter()
    dims = []
    for path in paths:
        row = []
        for layer in np.load(path):
            energy = np.linalg.svd(layer, compute_uv=False) ** 2
            share = np.cumsum(energy) / energy.sum()
            row.append([int(np.searchsorted(share, level)) + 1 for level in LEVELS])
        dims.append(row)
    seconds["svd"] = time.perf_counter() - start

    start = time.perf_counter()
    spectrum = []
    for path in paths:
        spectrum.append(np.abs(np.fft.fft(np.load(path), axis=-1)).mean(axis=1) / 384)
    seconds["fft"] = time.perf_counter() - start

    start = time.perf_counter()
    entropy = []
    for first in range(0, len(paths), CHUNK):
        features = np.stack([np.load(p) for p in paths[first : first + CHUNK]])  # (B, L, N, C)
        low, high = features.min(), features.max()
        for image in features:
            row = []
            for layer in image:
                total = 0.0
                for token in layer:
                    counts, _ = np.histogram(token, bins=BINS, range=(low, high))
                    p = counts[counts > 0] / counts.sum()
                    total -= (p * np.log2(p)).sum()
                row.append(total / len(layer))
            entropy.append(row)
    seconds["entropy"] = time.perf_counter() - start

    start = time.perf_counter()
    curve, tokens, moment = 0.0, 0, 0.0
    for path in paths:
        x = np.load(path)[-1]
        energy = np.abs(np.fft.fft(x, axis=-1)) ** 2
        curve = curve + (100 * np.cumsum(energy, axis=1) / energy.sum(axis=1, keepdims=True)).sum(axis=0)
        tokens += len(x)
        moment = moment + x.astype(np.float64).T @ x.astype(np.float64)
    _, vectors = np.linalg.eigh(moment / tokens)
    basis = vectors[:, ::-1].astype(np.float32)
    required = []
    for path in paths:
        energy = ((np.load(path)[-1] @ basis) ** 2).sum(axis=0)
        share = np.cumsum(energy) / energy.sum()
        required.append([int(np.searchsorted(share, level)) + 1 for level in LEVELS])
    seconds["pca and sep"] = time.perf_counter() - start
    return {
        "seconds": seconds,
        "total": sum(seconds.values()),
        "memory_mb": peak_megabytes(),
        "memory_above_network_mb": peak_megabytes() - before,
        "disk_mb": sum(p.stat().st_size for p in paths) / 2**20,
        "rank_mean": np.mean(dims, axis=0).T.tolist(),
        "rank_p99": np.percentile(np.asarray(dims)[:, -1], 99, axis=0).tolist(),
        "spectrum": np.mean(spectrum, axis=0).tolist(),
        "entropy": np.mean(entropy, axis=0).tolist(),
        "sep": (curve / tokens).tolist(),
        "required_d_p99": np.percentile(required, 99, axis=0).tolist(),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
