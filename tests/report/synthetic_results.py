"""Results dictionaries of the agreed form, made without the code that makes real ones.

The low-rank and SEP parts come from small random tokens through plain NumPy, so that their identities hold (the 50 %
point, rank <= min(N, D)); the profiles over layers are smooth curves with noise. `python synthetic_results.py out.json`
writes one at full size for looking at.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

STATISTICS = ("intensity", "entropy", "entropy_own_range", "activation_mean", "activation_max", "kurtosis")
STATISTICS += ("massive_share", "participation_ratio", "stable_rank", "gradient")
LEVELS = (50, 60, 70, 80, 90)
SIZES = {  # label -> depth, width, grid side
    "cait_s24_224": (24, 384, 14),
    "deit_tiny_patch16_224": (12, 192, 14),
    "swin_tiny_patch4_window7_224, distilled from cait_s24_224": (4, 768, 7),
}
SMALL = {
    "cait_s24_224": (6, 24, 4),
    "deit_tiny_patch16_224": (4, 16, 4),
    "swin_tiny_patch4_window7_224, distilled from cait_s24_224": (3, 32, 2),
}


def over_images(values: np.ndarray) -> dict[str, Any]:
    """(L, n) or (n,) -> the statistics over images of one quantity."""
    low, middle, high = np.percentile(values, (25, 50, 75), axis=-1)
    return {
        "mean": values.mean(-1).tolist(),
        "sd": values.std(-1).tolist(),
        "median": middle.tolist(),
        "q25": low.tolist(),
        "q75": high.tolist(),
        "p99": np.percentile(values, 99, axis=-1).tolist(),
    }


def scalar_over_images(values: np.ndarray) -> dict[str, Any]:
    return over_images(values) | {
        "min": float(values.min()),
        "max": float(values.max()),
        "values": values.astype(float).tolist(),
    }


def sep(tokens: np.ndarray) -> np.ndarray:
    energy = np.abs(np.fft.fft(tokens, axis=-1)) ** 2
    return 100 * np.cumsum(energy, -1) / energy.sum(-1, keepdims=True)


def make_tokens(rng: np.random.Generator, n: int, count: int, width: int) -> np.ndarray:
    """(n, N, D): a few directions per image out of many, a shared mean and some noise."""
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0] * np.exp(-np.arange(width) / (0.6 * width))[:, None]
    chosen = max(2, min(count, width) // 3)
    out = np.zeros((n, count, width))
    for i in range(n):
        k = int(rng.integers(chosen // 2 + 1, chosen + 1))
        out[i] = rng.normal(size=(count, k)) * np.exp(-np.arange(k) / k * 2) @ basis[rng.permutation(width)[:k]]
    return out + 0.02 * rng.normal(size=out.shape) + 0.03 * rng.normal(size=width)


def ranks_of(energies: np.ndarray) -> dict[str, np.ndarray]:
    share = np.cumsum(energies, -1) / energies.sum(-1, keepdims=True)
    return {t: (share < int(t) / 100 - 1e-12).sum(-1) + 1 for t in ("99", "95", "90", "80")}


def pca_of(tokens: np.ndarray, centre: bool) -> dict[str, Any]:
    flat = tokens.reshape(-1, tokens.shape[-1])
    tokens = tokens - flat.mean(0) * centre
    flat = flat - flat.mean(0) * centre
    values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    energy = ((tokens @ vectors) ** 2).sum(1)
    captured = np.cumsum(energy, -1) / energy.sum(-1, keepdims=True)
    return {
        "eigenvalues": values.tolist(),
        "global_d": {t: int(r[0]) for t, r in ranks_of(values[None]).items()},
        "required_d": {
            t: scalar_over_images((captured < int(t) / 100 - 1e-12).sum(-1) + 1.0) for t in ("80", "90", "95", "99")
        },
        "captured": {
            k: np.percentile(captured, q, axis=0).tolist() for k, q in (("median", 50), ("p10", 10), ("p1", 1))
        },
    }


def last_of(rng: np.random.Generator, n: int, grid: int, width: int, permutations: int = 5) -> dict[str, Any]:
    """The "last" entry: ranks, PCA, SEP, permutation robustness and nulls of random tokens."""
    count = grid * grid
    tokens = make_tokens(rng, n, count, width)
    curves = sep(tokens)
    mean = curves.mean((0, 1))
    image_curves = curves.mean(1)

    def widths(of: np.ndarray) -> np.ndarray:  # (..., D) -> (..., 5)
        return np.stack([np.argmax(of >= a, -1) + 1 for a in LEVELS], -1) / width

    permuted = np.stack([sep(tokens[..., rng.permutation(width)]).mean(1) for _ in range(permutations)])
    original, trials = widths(image_curves), widths(permuted)  # (n, 5), (R, n, 5)
    delta = trials.mean(1) - original.mean(0)
    spread = (trials.mean(0) - original).std(0) / np.sqrt(n)
    one_hot = np.eye(width)[rng.integers(0, width, (n, count))]
    nulls = {
        "gaussian": rng.normal(size=tokens.shape),
        "one_hot": one_hot,
        "permutation": rng.permuted(tokens, axis=-1),
    }
    nulls["subspace"] = rng.normal(size=(n, count, max(2, width // 6))) @ rng.normal(size=(max(2, width // 6), width))
    folded = np.fft.rfft(tokens, axis=-1)
    weight = np.full(width // 2 + 1, 2.0)
    weight[0] = 1
    folded = np.cumsum(np.abs(folded) ** 2 * weight, -1)
    folded = (100 * folded / folded[..., -1:]).reshape(-1, width // 2 + 1)

    def null_of(x: np.ndarray) -> dict[str, Any]:
        energies = np.linalg.svd(x[:4], compute_uv=False) ** 2
        z = (x - x.mean()) / x.std()
        return {
            "sep": sep(x).mean((0, 1)).tolist(),
            "ranks": {t: float(r.mean()) for t, r in ranks_of(energies).items()},
            "participation_ratio": float((energies.sum(-1) ** 2 / (energies**2).sum(-1)).mean()),
            "stable_rank": float((energies.sum(-1) / energies[:, 0]).mean()),
            "kurtosis": float((z**4).mean()),
        }

    def sep_part(c: np.ndarray) -> dict[str, Any]:
        curve = c.mean(0)
        bandwidth = {str(a): int(np.argmax(curve >= a)) + 1 for a in LEVELS}
        return {
            "mean": curve.tolist(),
            "sd": c.std(0).tolist(),
            "bandwidth": bandwidth,
            "tokens": n * count,
            "zero_tokens": 0,
        }

    return {
        "layer": "block_last",
        "D": width,
        "N": count,
        "ranks": {t: scalar_over_images(r) for t, r in ranks_of(np.linalg.svd(tokens, compute_uv=False) ** 2).items()},
        "pca": {"uncentred": pca_of(tokens, False), "centred": pca_of(tokens, True)},
        "sep": {"full": sep_part(curves.reshape(-1, width)), "folded": sep_part(folded)},
        "permutation": {
            "permutations": permutations,
            "bootstrap": 2000,
            "images": n,
            "thresholds": list(LEVELS),
            "original": original.mean(0).tolist(),
            "permuted": trials.mean((0, 1)).tolist(),
            "delta": delta.mean(0).tolist(),
            "delta_sd": delta.std(0).tolist(),
            "delta_p5": np.percentile(delta, 5, axis=0).tolist(),
            "delta_p95": np.percentile(delta, 95, axis=0).tolist(),
            "ci": [[m - 2 * s, m + 2 * s] for m, s in zip(delta.mean(0).tolist(), spread.tolist(), strict=True)],
            "curve_l1_mean": float(np.abs(permuted.mean(1) - mean).mean() / 100),
            "curve_l1_sd": float(np.abs(permuted.mean(1) - mean).mean(-1).std() / 100),
            "curve_mean": permuted.mean((0, 1)).tolist(),
            "curve_p5": np.percentile(permuted.mean(1), 5, axis=0).tolist(),
            "curve_p95": np.percentile(permuted.mean(1), 95, axis=0).tolist(),
        },
        "nulls": {k: null_of(x) for k, x in nulls.items()},
    }


def model(label: str, depth: int, width: int, grid: int, *, images: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    staged = "swin" in label
    channels = [width // 2 ** (depth - 1 - i) if staged else width for i in range(depth)]
    grids = [grid * 2 ** (depth - 1 - i) if staged else grid for i in range(depth)]
    x = np.linspace(0, 1, depth)[:, None]
    shape = 0.5 + 2.2 * (x - 0.42) ** 2 + 1.5 * np.exp(-x * 9) + 2 * np.exp((x - 1) * 7)
    scale = {"entropy": 1.2, "entropy_own_range": 1.4, "activation_max": 22.0, "kurtosis": 6.0, "massive_share": 0.05}
    scale |= {"participation_ratio": 7.0, "stable_rank": 3.0, "gradient": 1e-4}
    per_layer = {}
    for name in STATISTICS:
        noise = np.exp(0.15 * rng.normal(size=(depth, images)) + 0.05 * rng.normal(size=(depth, 1)))
        per_layer[name] = over_images(scale.get(name, 1.0) * shape * noise)
    limit = np.minimum(np.asarray(grids) ** 2, channels)[:, None]
    for level, share in (("99", 0.75), ("95", 0.5), ("90", 0.35), ("80", 0.2)):
        noisy = limit * share * (0.6 + 0.4 * x) * np.exp(0.1 * rng.normal(size=(depth, images)))
        per_layer[f"rank_{level}"] = over_images(np.clip(np.round(noisy), 1, limit))
    spectrum, radial, frequency, spatial = [], [], [], []
    for i in range(depth):
        c, g = channels[i], grids[i]
        k = np.minimum(np.arange(c), c - np.arange(c))
        spectrum.append(
            shape[i, 0] * (0.04 + 0.3 * np.exp(-k * 12 / c) * (1 - x[i, 0])) * np.exp(0.1 * rng.normal(size=c))
        )
        rings = np.arange(g // 2 + 1)
        frequency.append((rings / g).tolist())
        radial.append((shape[i, 0] * np.exp(-rings * (3 - 2 * x[i, 0]) / g * 2)).tolist())
        offset = (np.arange(g) - g // 2) / g
        spatial.append(
            (1 - (4 - 3 * x[i, 0]) * np.hypot(offset[:, None], offset[None]) + 0.03 * rng.normal(size=(g, g))).tolist()
        )
    layers = [f"stage_{i}" if staged else f"block_{i}" for i in range(depth)]
    return {
        "label": label,
        "name": label.split(",")[0],
        "weights": "random, seed 0",
        "parameters": 46_916_000 if label.startswith("cait") else None,
        "image_size": [224, 224],
        "images": images,
        "broken": [],
        "layers": layers,
        "tokens": [g * g for g in grids],
        "channels": channels,
        "grids": [[g, g] for g in grids],
        "per_layer": per_layer,
        "gradient_of": "class",
        "spectrum": [s.tolist() for s in spectrum],
        "spectrum_sd": [(0.15 * s).tolist() for s in spectrum],
        "radial": radial,
        "radial_frequency": frequency,
        "spatial": spatial,
        "last": last_of(rng, images, grid, width) | {"layer": layers[-1]},
        "notes": [],
    }


def make(models: int = 2, *, images: int = 12, full: bool = False, seed: int = 0) -> dict[str, Any]:
    """Complete results of 1 to 3 models; every list is plain Python, as after `json.load`."""
    sizes = list((SIZES if full else SMALL).items())[:models]
    made = [model(label, *size, images=images, seed=seed + i) for i, (label, size) in enumerate(sizes)]
    rng = np.random.default_rng(seed)
    comparisons = []
    for student in made[1:]:
        teacher, rows, columns = made[0], len(student["layers"]), len(made[0]["layers"])
        near = np.abs(np.linspace(0, 1, rows)[:, None] - np.linspace(0, 1, columns)[None])
        small = min(student["last"]["D"], teacher["last"]["D"])
        comparisons.append(
            {
                "teacher": teacher["label"],
                "student": student["label"],
                "teacher_layers": teacher["layers"],
                "student_layers": student["layers"],
                "cka": (0.9 * np.exp(-2 * near) + 0.05 * rng.normal(size=near.shape)).clip(0, 1).tolist(),
                "principal_cosines": np.sort(rng.beta(3, 1.5, small // 2))[::-1].tolist(),
                "principal_dims": {"teacher": teacher["last"]["D"] // 2, "student": small // 2},
                "suggestion": {
                    "pairs": [[0, 0], [1, 1], [rows - 1, columns - 1]],
                    "supported": True,
                    "reason": "The profile is high in the first two and the last six blocks.",
                },
                "notes": [],
            }
        )
    settings = {"images": images, "seed": 2026, "source": "imagenet1k_sample_256", "chunk": 32, "bins": 100}
    settings |= {"entropy_range": "chunk", "range": None, "permutations": 5, "bootstrap": 2000, "device": "2 CPU cores"}
    settings |= {"precision": "highest", "versions": {"jaxkd": "0.1.0", "jax": "0.10.2"}, "seconds": 61.2}
    settings |= {
        "command": "python -m jaxkd.analyze --model=cait_s24_224 --images=imgs --out=out",
        "date": "2026-11-24",
    }
    return {"settings": settings, "models": made, "comparisons": comparisons, "saliency": []}


def make_broken(models: int = 3, *, images: int = 12) -> dict[str, Any]:
    """As `make`, with what real runs lack: statistics not asked for, nulls, one image, names from outside."""
    results = make(models, images=images)
    first, last = results["models"][0], results["models"][-1]
    for model_ in results["models"]:
        del model_["per_layer"]["gradient"]
        model_["notes"].append("Gradients were not asked for (--gradients), so there is no gradient magnitude.")
    del first["per_layer"]["massive_share"]
    first["label"] = 'a<b>&"$x_1$'
    first["per_layer"]["entropy"]["mean"][1] = None
    first["per_layer"]["entropy"]["sd"][1] = None
    first["spatial"] = None
    first["radial"][0] = first["radial_frequency"][0] = None
    first["last"]["permutation"] = None
    first["notes"].append("Permutation robustness needs two images or more, so it is undefined for <one> image.")
    last["last"]["nulls"] = {"gaussian": last["last"]["nulls"]["gaussian"]}
    last["last"]["pca"]["centred"] = None
    last["grids"] = [None] * len(last["layers"])
    last["spatial"] = last["radial"] = last["radial_frequency"] = [None] * len(last["layers"])
    for comparison in results["comparisons"]:
        comparison["teacher"] = first["label"]
        comparison["cka"] = comparison["suggestion"] = None
        comparison["notes"] = ["CKA needs four images or more; it is undefined here."]
    results["saliency"] = [{"model": first["label"], "image": "<cat>.jpg", "class": 3, "png": "gone.png", "gif": None}]
    return results


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump(make(int(sys.argv[2]), images=int(sys.argv[3]), full=True), file)
