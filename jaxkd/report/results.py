"""Access to a results dictionary: nested look-ups, nulls as NaN, short names, numbers in words.

The dictionary is what `analysis.pipeline.analyse` returns and results.json holds; any part of it may be absent or null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Results = dict[str, Any]
THRESHOLDS = ("99", "95", "90", "80")
NULLS = ("gaussian", "subspace", "one_hot", "permutation")


def pick(tree: Any, *keys: str | int) -> Any:
    """`tree[k0][k1]...`, or None as soon as a step is absent or null."""
    for key in keys:
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, list | tuple) and isinstance(key, int) and -len(tree) <= key < len(tree):
            tree = tree[key]
        else:
            return None
    return tree


def array(values: Any) -> np.ndarray:
    """A float64 array of a list that may hold nulls (NaN there); an empty array for None."""
    return np.asarray([] if values is None else values, dtype=np.float64)


def number(value: Any) -> float:
    """A float, NaN for null."""
    return math.nan if value is None else float(value)


def has_numbers(values: Any) -> bool:
    """Whether a (nested) list holds at least one finite number."""
    if isinstance(values, list | tuple | np.ndarray):
        return any(has_numbers(v) for v in values)
    return isinstance(values, int | float | np.number) and math.isfinite(values)


def models_with(results: Results, *keys: str | int) -> list[dict[str, Any]]:
    """The models of which `pick(model, *keys)` holds a finite number, in their order."""
    return [m for m in models_of(results) if has_numbers(pick(m, *keys))]


def models_of(results: Results) -> list[dict[str, Any]]:
    """The analysed networks, in their order; none if the results have none."""
    return results.get("models") or []


def comparisons_of(results: Results) -> list[dict[str, Any]]:
    """The comparisons of a student with the teacher, in their order."""
    return results.get("comparisons") or []


def kept_layer(model: dict[str, Any]) -> int:
    """Index of the layer of `last`, which is not the last one if class-attention blocks follow it."""
    layers, name = model.get("layers") or [], pick(model, "last", "layer")
    return layers.index(name) if name in layers else -1


def label_of(model: dict[str, Any]) -> str:
    """Name of a model in tables and figures."""
    return str(model.get("label") or model.get("name") or "model")


def shorten(text: str, most: int = 26) -> str:
    """The two ends of a long name, "deit_tiny_pa...ar10_best"."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[: most - 3 - half]}...{text[-half:]}"


def short_number(value: Any) -> str:
    """A number in few digits: 308, 0.503, 1.2e-05; "undefined" for null."""
    value = number(value)
    if not math.isfinite(value):
        return "undefined"
    if value == 0 or (value == round(value) and abs(value) < 1e6):
        return f"{value:.0f}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.1e}"


def join_words(words: Iterable[str]) -> str:
    """ "a, b and c"."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "nothing"


def null_line(curve: np.ndarray) -> np.ndarray:
    """Percent that a random channel permutation gives on average for tokens with this curve's share of DC.

    `curve[0]` is the mean share rho of the zero frequency; all other frequencies then share the rest equally, so that
    s(d) = rho + (100 - rho) (d - 1) / (D - 1) (encoding mismatch, reference 4.4).
    """
    size = len(curve)
    return curve[0] + (100.0 - curve[0]) * np.arange(size) / max(1, size - 1)


def in_units(results: Results, text: str) -> str:
    """`text` about images, in the word that the results have for them: "an image" -> "a passage" of EEG words."""
    unit = pick(results, "settings", "unit")
    if not unit:
        return text

    def renamed(found: re.Match) -> str:
        article, initial, plural = found.groups()
        word = unit.capitalize() if initial == "I" else unit
        return f"{article[0] if article else ''}{' ' if article else ''}{word}{plural}"

    return re.sub(r"\b([Aa]n )?([Ii])mage(s?)\b", renamed, text)


def images_in_words(results: Results, models: Sequence[dict[str, Any]] | None = None) -> str:
    """ "n = 100 images", or "n = 98 to 100 images" where models differ (broken files)."""
    chosen = models_of(results) if models is None else models
    counts = sorted({int(m["images"]) for m in chosen if m.get("images")}) or [pick(results, "settings", "images")]
    if counts[0] is None:
        return "n of images not recorded"
    if len(counts) > 1:
        return in_units(results, f"n = {counts[0]} to {counts[-1]} images")
    return in_units(results, f"n = {counts[0]} image{'s' if counts[0] != 1 else ''}")


def seed_in_words(results: Results) -> str:
    """ "seed 2026", or that it was not recorded."""
    seed = pick(results, "settings", "seed")
    return "seed not recorded" if seed is None else f"seed {seed}"


def sentences(results: Results) -> list[str]:
    """The results in a few lines for a terminal: one and its notes for each network, or those of a branch analysis."""
    lines = list(pick(results, "settings", "notes") or [])
    for model in models_of(results):
        lines += [_model_line(model, results), *(f"  {note}" for note in model["notes"])]
    return lines + list(results.get("sentences") or [])


def _model_line(model: dict[str, Any], results: Results) -> str:
    images, layers, last = model["images"], len(model["layers"]), model["last"]
    item = in_units(results, "image")
    counts = f"{images} {item}{'s'[: images > 1]}, {layers} layer{'s'[: layers > 1]}"
    parts = [f"{model['label']}, {model['weights']}: {counts}"]
    if model.get("top1") is not None:
        parts.append(f"top-1 {model['top1']:.1f} %")
    if (rank := pick(last, "ranks", "99", "p99")) is not None:
        directions, energy = f"{rank:.0f} of {last['D']} directions", in_units(results, "an image's energy")
        parts.append(f"{last['layer']} needs {directions} for 99 % of {energy} (99th percentile)")
    if (shared := pick(last, "pca", "uncentred", "required_d", "99", "p99")) is not None:
        parts.append(f"{shared:.0f} in a shared basis")
    if (entropy := pick(model, "per_layer", "entropy", "mean", kept_layer(model))) is not None:
        parts.append(f"entropy {entropy:.2f} bits there")
    return " · ".join(parts)
