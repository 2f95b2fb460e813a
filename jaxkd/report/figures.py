"""All figures of an analysis, from its results alone: drawn where there are numbers, else left out with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.report import depth_figures, lowrank_figures, sep_figures, similarity_figures, spectrum_figures, style
from jaxkd.report.plan import LAYERS, PAIRS, RANKS, SEP, SPECTRA, Figure, Plan
from jaxkd.report.results import Results, in_units, label_of, pick

FAMILIES = (LAYERS, SPECTRA, RANKS, SEP, PAIRS)  # in the order of the report
MODULES = (depth_figures, spectrum_figures, lowrank_figures, sep_figures, similarity_figures)
PLANS: tuple[Plan, ...] = tuple(
    sorted((plan for module in MODULES for plan in module.PLANS), key=lambda plan: FAMILIES.index(plan.family))
)


def plans_for(results: Results) -> tuple[Plan, ...]:
    """`PLANS`, and a figure of the statistics that were registered by others, if the results have any."""
    return (*PLANS, *depth_figures.other_plans(results))


def _reasons(plan: Plan, sources: Sequence[dict[str, Any]]) -> str:
    """The notes of the models without these numbers that speak of them, each once."""
    notes = [n for s in sources if not plan.has(s) for n in s.get("notes") or []]
    return " ".join(dict.fromkeys(n for n in notes if any(word in n.lower() for word in plan.words)))


def _missing(plan: Plan, results: Results) -> str:
    """A sentence on the models (or pairs) that a drawn figure cannot show, or ""."""
    without = [s for s in plan.sources(results) if not plan.has(s)]
    if not without:
        return ""
    names = [f"{s['student']} with {s['teacher']}" if plan.family == PAIRS else label_of(s) for s in without]
    return f"\nNot shown, for want of these numbers: {', '.join(names)}. {_reasons(plan, without)}".rstrip()


def write_figures(results: Results, folder: Path) -> list[Figure]:
    """Draws every figure that the results have numbers for, as PNG and PDF.

    Returns:
      The figures in the order of the report. `left_out` names the others.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for plan in plans_for(results):
        if any(map(plan.has, plan.sources(results))):
            with style.applied():
                png, pdf = style.save(style.in_units(plan.draw(results), results), folder, plan.name)
            caption = in_units(results, plan.caption(results)) + _missing(plan, results)
            title, family = in_units(results, plan.title), in_units(results, plan.family)
            done.append(Figure(plan.name, title, family, png, pdf, caption))
    return done


def left_out(results: Results) -> list[tuple[str, str]]:
    """(title, reason) of every figure that the results have no numbers for; the reason is never empty.

    Notes of all models and further things that do not exist stand in the settings, as "notes" and "left_out".
    """
    shared, out = {"notes": pick(results, "settings", "notes")}, []
    for plan in PLANS:
        sources = plan.sources(results)
        if any(map(plan.has, sources)):
            continue
        title = in_units(results, plan.title)
        if plan.family == PAIRS and not sources:
            out.append((title, "Needs two models, a teacher and a student; these results compare none."))
            continue
        names = dict.fromkeys(keys[1] if keys[0] in ("per_layer", "last") else keys[0] for keys in plan.needs)
        missing = f"The results hold no numbers for {' or '.join(names).replace('_', ' ')}."
        out.append((title, _reasons(plan, [*sources, shared]) or missing))
    return out + [(title, reason) for title, reason in pick(results, "settings", "left_out") or []]
