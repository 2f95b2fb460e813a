"""Summary of a pass as the numbers of a report: means and spread, ranks, PCA, SEP, permutations, null models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxkd.analysis import lowrank, nulls, sep
from jaxkd.analysis.activation import kurtosis
from jaxkd.analysis.layer_statistics import energy_statistics
from jaxkd.analysis.pipeline.accumulators import PERCENTS, Streamed
from jaxkd.analysis.spectrum import radial_frequencies, radial_profile

SHARES = (50, 60, 70, 80, 90)
BLOCK = 32  # images that are read back from the scratch file at once
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class SummaryOptions:
    """Options of the statistics of the kept tokens."""

    permutations: int = 100  # channel permutations of the robustness test; 0 leaves it out
    bootstrap: int = 2000  # draws over images for its confidence intervals; 0 leaves them out
    permutation_images: int = 0  # the first so many images; 0 is all
    null_images: int = 32  # the first so many images are imitated by the null models
    seed: int = 2026  # of permutations (the bootstrap takes seed + 1, as published) and null models


def plain(value: Any) -> Any:
    """NumPy to JSON: nested lists and Python numbers, None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def spread(values: np.ndarray, *, keep: bool = False) -> dict[str, Any]:
    """Mean, population sd, median, quartiles and 99th percentile (linear) over the first axis; NaN is left out.

    Returns:
      numbers or (L,) lists; None where no value is finite.
    """
    values = np.asarray(values, np.float64)
    columns = values.reshape(len(values), -1)
    rows = []
    for column in columns.T:
        fit = column[np.isfinite(column)]
        if not len(fit):
            rows.append([np.nan] * 8)
            continue
        q25, median, q75, p99 = np.percentile(fit, (25, 50, 75, 99))
        rows.append([fit.mean(), fit.std(), median, q25, q75, p99, fit.min(), fit.max()])
    names = ("mean", "sd", "median", "q25", "q75", "p99", "min", "max")
    table = dict(zip(names, np.asarray(rows).T, strict=True))
    out = {k: v if values.ndim > 1 else v[0] for k, v in table.items() if keep or k not in ("min", "max")}
    if keep:
        out["values"] = values
    return plain(out)


def summarise(streamed: Streamed, options: SummaryOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """The numbers of one network, in the form of results.json ("models")."""
    progress = progress or (lambda done, total, phase: None)
    notes = _notes(streamed)
    counts = streamed.valid.sum(axis=0)
    counts = np.where(counts > 0, counts, np.nan)  # a mean over no image is NaN
    spectrum, deviation, spatial = [], [], []
    radial: list[np.ndarray | None] = []
    frequency: list[np.ndarray | None] = []
    for i, name in enumerate(streamed.layers):
        total, square = streamed.spectrum[name]
        mean = total / counts[i]
        spectrum.append(mean)
        deviation.append(np.sqrt(np.maximum(square / counts[i] - mean**2, 0.0)))
        if name in streamed.spatial:
            amplitude = streamed.spatial[name] / counts[i]
            spatial.append(np.log10(np.maximum(amplitude, 1e-12)))  # NaN stays
            radial.append(np.asarray(radial_profile(amplitude.astype(np.float32))))
            frequency.append(radial_frequencies(*amplitude.shape))
        else:
            spatial.append(None)
            radial.append(None)
            frequency.append(None)
    shapes = [streamed.shapes[name] for name in streamed.layers]
    return plain(
        {
            "images": streamed.images,
            "broken": streamed.broken,
            "layers": list(streamed.layers),
            "tokens": [int(np.prod(s[:-1])) if len(s) > 1 else 1 for s in shapes],
            "channels": [s[-1] for s in shapes],
            "grids": [list(s[:2]) if len(s) == 3 else None for s in shapes],
            "per_layer": {key: spread(values) for key, values in streamed.scalars.items()},
            "spectrum": spectrum,
            "spectrum_sd": deviation,
            "radial": radial,
            "radial_frequency": frequency,
            "spatial": spatial,
            "ranges": streamed.ranges,
            "last": _last(streamed, options, notes, progress),
            "notes": notes,
        }
    )


def _notes(streamed: Streamed) -> list[str]:
    notes = []
    for i, name in enumerate(streamed.layers):
        bad = int((~streamed.valid[:, i]).sum())
        if bad:
            notes.append(
                f"{name} held NaN or infinity for {bad} of {streamed.images} images; they are left out of its numbers."
            )
    entropy = streamed.scalars.get("entropy")
    outside = int((np.isnan(entropy) & streamed.valid).any(axis=1).sum()) if entropy is not None else 0
    if outside:
        notes.append(
            f"{outside} of {streamed.images} images have tokens with no value inside the entropy range "
            f"{streamed.ranges[0]}; such a token has no histogram, and the image's entropy is left out."
        )
    if streamed.images == 1:
        notes.append("One image: there is no spread over images, and PCA of the data set is that of this image.")
    if streamed.broken:
        first = ", ".join(streamed.broken[:3])
        notes.append(f"{len(streamed.broken)} images could not be read and are left out: {first}.")
    return notes


def _last(streamed: Streamed, options: SummaryOptions, notes: list[str], progress: Progress) -> dict[str, Any] | None:
    name = streamed.last
    if streamed.spool is None:
        if len(streamed.shapes[name]) < 2:
            why = "it holds one vector per image and no tokens"
        else:
            why = "no image has finite features there"
        notes.append(f"{name}: {why}, so ranks, PCA and SEP do not exist.")
        return None
    tokens = streamed.spool
    size, width = tokens.shape[1:]
    out: dict[str, Any] = {"layer": name, "D": width, "N": size, "ranks": None}
    if "rank_99" in streamed.scalars:
        column = streamed.layers.index(name)
        out["ranks"] = {str(p): spread(streamed.scalars[f"rank_{p}"][:, column], keep=True) for p in PERCENTS}
    assert streamed.moment is not None  # as there are tokens
    moment, total, count = streamed.moment
    if count < width:
        notes.append(
            f"{name}: PCA of {count} tokens in {width} channels; at most {count} directions can carry energy, so "
            "required dimensions are bounded by the sample, not by the network."
        )
    if not np.trace(moment) > 0:
        notes.append(f"{name}: all tokens are zero, so PCA, SEP and ranks say nothing.")
        return out | {"pca": None, "sep": None, "permutation": None, "nulls": None}
    out["pca"] = {}
    for key, centre in (("uncentred", False), ("centred", True)):
        pca = lowrank.pca_from_moments(moment, total, count, centre=centre)
        if not pca.eigenvalues.sum() > 1e-12 * np.trace(moment) / count:
            notes.append(f"{name}: all tokens are equal, so there is no variance and no centred PCA.")
            out["pca"][key] = None
            continue
        out["pca"][key] = _captured(tokens, pca, lambda d, t: progress(d, t, f"PCA, {key}"))  # noqa: B023
    out["sep"] = {key: _sep(sums) for key, sums in streamed.sep.items()}
    if any(s is None for s in out["sep"].values()):
        notes.append(f"{name}: no token has energy, so there is no SEP.")
    elif out["sep"]["full"]["zero_tokens"]:
        zero = out["sep"]["full"]["zero_tokens"]
        notes.append(f"{name}: {zero} tokens without energy are left out of SEP, which divides by it.")
    out["permutation"] = _permutation(tokens, options, name, notes, progress)
    out["nulls"] = _nulls(
        tokens[: options.null_images], options, ranks="rank_99" in streamed.scalars, progress=progress
    )
    return out


def _captured(tokens: np.memmap, pca: Any, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Captured energy of every image in the shared basis, read back in blocks."""
    size, width = len(tokens), pca.eigenvectors.shape[1]
    # Beside the tokens' scratch file, and deleted with it: percentiles over images need all curves.
    curve = np.memmap(f"{tokens.filename}.curves", np.float32, "w+", shape=(size, width))
    required = np.zeros((size, len(PERCENTS)), np.int64)
    for start in range(0, size, BLOCK):
        block = np.asarray(tokens[start : start + BLOCK])
        found = np.asarray(lowrank.captured_energy(block, pca.eigenvectors, pca.mean))
        curve[start : start + BLOCK] = found
        required[start : start + BLOCK] = lowrank.required_d(found, tuple(p / 100 for p in PERCENTS))
        progress(min(start + BLOCK, size), size)
    overall = lowrank.ranks_from_energies(pca.eigenvalues, tuple(p / 100 for p in PERCENTS))
    columns = [np.percentile(curve[:, i : i + BLOCK], (50, 10, 1), axis=0) for i in range(0, width, BLOCK)]
    median, p10, p1 = np.concatenate(columns, axis=1)
    return {
        "eigenvalues": pca.eigenvalues,
        "global_d": {str(p): overall[i] for i, p in enumerate(PERCENTS)},
        "required_d": {str(p): spread(required[:, i], keep=True) for i, p in enumerate(PERCENTS)},
        "captured": {"median": median, "p10": p10, "p1": p1},
    }


def _sep(found: sep.SepStatistics) -> dict[str, Any] | None:
    if not found.tokens:
        return None
    widths = sep.bandwidths(found.mean, SHARES)
    return {
        "mean": found.mean,
        "sd": found.sd,
        "bandwidth": {str(p): widths[i] for i, p in enumerate(SHARES)},
        "tokens": found.tokens,
        "zero_tokens": found.zero_tokens,
    }


def _permutation(
    tokens: np.ndarray, options: SummaryOptions, name: str, notes: list[str], progress: Progress
) -> dict[str, Any] | None:
    if not options.permutations:
        notes.append(f"{name}: no permutation test was asked for.")
        return None
    if not options.bootstrap:
        notes.append(f"{name}: no confidence intervals of the permutation test were asked for.")
    part = tokens[: options.permutation_images or len(tokens)]
    if len(part) < 2:
        notes.append(f"{name}: the permutation test's confidence intervals are over images and need at least two.")
        return None

    def report(done: int, total: int) -> None:
        progress(done, total, "permutations")
        if done == total and options.bootstrap:
            progress(0, options.bootstrap, "bootstrap")

    report(0, len(part))
    found = sep.sep_permutation(
        part,
        permutations=options.permutations,
        seed=options.seed,
        bootstrap=options.bootstrap or None,
        progress=report,
    )
    return asdict(found) if found.images else None


def _nulls(tokens: np.ndarray, options: SummaryOptions, *, ranks: bool, progress: Progress) -> dict[str, Any]:
    """The same statistics of tokens that are known to mean nothing."""
    out: dict[str, Any] = {}
    tokens = np.asarray(tokens)
    if not len(tokens):
        return out
    dimensions = lowrank.energy_ranks(tokens, (0.99,))[:, 0]
    for i, kind in enumerate(nulls.KINDS):
        progress(i, len(nulls.KINDS), "null models")
        drawn = np.asarray(nulls.null_tokens(kind, tokens, options.seed, ranks=dimensions))
        row: dict[str, Any] = {
            "images": len(drawn),
            "sep": sep.sep_curve(drawn),
            "kurtosis": float(np.mean(kurtosis(drawn))),
        }
        if ranks:
            found = energy_statistics(np.asarray(lowrank.image_energies(drawn), np.float64))
            row["ranks"] = {str(p): float(np.mean(found[f"rank_{p}"])) for p in PERCENTS}
            row |= {key: float(np.mean(found[key])) for key in ("participation_ratio", "stable_rank")}
        out[kind] = row
    progress(len(nulls.KINDS), len(nulls.KINDS), "null models")
    return out
