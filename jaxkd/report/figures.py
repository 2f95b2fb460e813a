"""All figures of an analysis, from its results alone: which there are, what each needs, and why one is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxkd.report import (
    captions,
    depth_figures,
    lowrank_figures,
    sep_figures,
    similarity_figures,
    spectrum_figures,
    style,
)
from jaxkd.report.results import Results, has_numbers, label_of, models_of, pick

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A figure on disk; its caption is plain text, one paragraph a line (shows, numbers, cannot show)."""

    name: str
    title: str
    png: Path
    pdf: Path
    caption: str


@dataclass(frozen=True)
class Plan:
    """A figure that can be drawn.

    Attributes:
      name: stem of its files.
      title: heading.
      family: section of the report.
      draw: results -> matplotlib figure.
      needs: paths into a model (or into a comparison) of which one at least must hold numbers.
      words: that a note contains if it tells why the numbers are missing.
    """

    name: str
    title: str
    family: str
    draw: Callable[[Results], Any]
    needs: tuple[Keys, ...]
    words: Keys


def _stats(*names: str) -> tuple[Keys, ...]:
    return tuple(("per_layer", name, "mean") for name in names)


LAYERS, SPECTRA, RANKS, SEP, PAIRS = (
    "Layer by layer",
    "Spectra",
    "Directions per image and in all",
    "Spectral energy pattern (SEP)",
    "Teacher and student",
)
PLANS = (
    Plan("intensity", "Spectral intensity by depth", LAYERS, depth_figures.draw_intensity, _stats("intensity"),
         ("intensity", "spectrum")),
    Plan("entropy", "Entropy by depth", LAYERS, depth_figures.draw_entropy, _stats("entropy", "entropy_own_range"),
         ("entropy",)),
    Plan("activation", "Activation magnitude by depth", LAYERS, depth_figures.draw_activation,
         _stats("activation_mean", "activation_max"), ("activation",)),
    Plan("gradient", "Gradient magnitude by depth", LAYERS, depth_figures.draw_gradient, _stats("gradient"),
         ("gradient",)),
    Plan("feature_shape", "Effective directions and outliers by depth", LAYERS, depth_figures.draw_shape,
         _stats(*depth_figures.SHAPES), ("participation", "stable rank", "kurtosis", "massive")),
    Plan("channel_spectrum_map", "Channel spectrum of all layers", SPECTRA, spectrum_figures.draw_spectrum_map,
         (("spectrum",),), ("spectrum",)),
    Plan("channel_spectrum", "Channel spectrum of the first, middle and last layer", SPECTRA,
         spectrum_figures.draw_spectrum_curves, (("spectrum",),), ("spectrum",)),
    Plan("radial", "Spatial spectrum by radius", SPECTRA, spectrum_figures.draw_radial, (("radial",),),
         ("radial", "spatial", "grid")),
    Plan("spatial", "Spatial spectrum in two dimensions", SPECTRA, spectrum_figures.draw_spatial, (("spatial",),),
         ("spatial", "grid")),
    Plan("ranks_by_layer", "Per-image rank by depth", RANKS, depth_figures.draw_ranks_by_layer,
         _stats("rank_99", "rank_95", "rank_90", "rank_80"), ("rank",)),
    Plan("rank_histogram", "One image's own directions beside the directions shared by all", RANKS,
         lowrank_figures.draw_rank_histogram,
         tuple(keys for t in lowrank_figures.SHOWN for keys in (
             ("last", "ranks", t, "values"), ("last", "pca", "uncentred", "required_d", t, "values"))),
         ("rank", "pca", "required")),
    Plan("pca", "Principal directions of all tokens, and what they hold of an image", RANKS, lowrank_figures.draw_pca,
         (("last", "pca", "uncentred", "eigenvalues"), ("last", "pca", "centred", "eigenvalues")), ("pca",)),
    Plan("sep", "SEP beside its null models", SEP, sep_figures.draw_sep, (("last", "sep", "full", "mean"),),
         ("sep", "energy pattern", "null")),
    Plan("permutation", "Permuting the channels", SEP, sep_figures.draw_permutation,
         (("last", "permutation", "original"),), ("permut",)),
    Plan("cka", "Similarity of all layers (linear CKA)", PAIRS, similarity_figures.draw_cka, (("cka",),), ("cka",)),
    Plan("principal_cosines", "Principal angles of the last layers", PAIRS, similarity_figures.draw_cosines,
         (("principal_cosines",),), ("principal", "angle", "cosine")),
)  # fmt: skip


def _sources(plan: Plan, results: Results) -> list[dict[str, Any]]:
    return (results.get("comparisons") or []) if plan.family == PAIRS else models_of(results)


def _has(plan: Plan, source: dict[str, Any]) -> bool:
    return any(has_numbers(pick(source, *keys)) for keys in plan.needs)


def _reasons(plan: Plan, sources: Sequence[dict[str, Any]]) -> str:
    """The notes of the models without these numbers that speak of them, each once."""
    notes = [n for s in sources if not _has(plan, s) for n in s.get("notes") or []]
    return " ".join(dict.fromkeys(n for n in notes if any(word in n.lower() for word in plan.words)))


def _missing(plan: Plan, results: Results) -> str:
    """A sentence on the models (or pairs) that a drawn figure cannot show, or ""."""
    without = [s for s in _sources(plan, results) if not _has(plan, s)]
    if not without:
        return ""
    names = [f"{s['student']} with {s['teacher']}" if plan.family == PAIRS else label_of(s) for s in without]
    return f"Not shown, for want of these numbers: {', '.join(names)}. {_reasons(plan, without)}".strip()


def write_figures(results: Results, folder: Path) -> list[Figure]:
    """Draws every figure that the results have numbers for, as PNG and PDF.

    Args:
      results: see `analysis.reading`; any statistic may be absent or null.
      folder: made if it is not there; files of the same names are replaced.

    Returns:
      The figures in the order of the report. `left_out` names the others.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for plan in PLANS:
        if not any(_has(plan, s) for s in _sources(plan, results)):
            continue
        with style.look():
            png, pdf = style.save(plan.draw(results), folder, plan.name)
        parts = [captions.write_caption(plan.name, results), _missing(plan, results)]
        done.append(Figure(plan.name, plan.title, png, pdf, "\n".join(p for p in parts if p)))
    return done


def left_out(results: Results) -> list[tuple[str, str]]:
    """(title, reason) of every figure that the results have no numbers for; the reason is never empty."""
    out = []
    for plan in PLANS:
        sources = _sources(plan, results)
        if any(_has(plan, s) for s in sources):
            continue
        if plan.family == PAIRS and not sources:
            out.append((plan.title, "Needs two models, a teacher and a student; these results compare none."))
            continue
        names = dict.fromkeys(keys[1] if keys[0] in ("per_layer", "last") else keys[0] for keys in plan.needs)
        what = " or ".join(names)
        missing = f"The results hold no numbers for {what.replace('_', ' ')}."
        out.append((plan.title, _reasons(plan, sources) or missing))
    return out


def family_of(name: str) -> str:
    """Section of the report in which the figure `name` stands."""
    return next(plan.family for plan in PLANS if plan.name == name)
