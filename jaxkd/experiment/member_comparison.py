"""Comparison of the objectives of a population: means over seeds with intervals, as a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Group

from jaxkd.analysis.comparisons import NO_SPREAD, PairedComparison, mean_interval, paired_comparison
from jaxkd.experiment.fitted_table import Column, FittedTable
from jaxkd.report.study_figures import Method, draw_study

FIGURE = "curves.png"
MEMBERS_FIGURE = "members.png"  # of a population that is no stage
Results = Mapping[str, dict[str, Any]]


def compare_members(
    configs: Mapping[str, ConfigDict], results: Results, workdir: Path, *, figure: str = FIGURE
) -> Group:
    """Top-1 of single runs and of each group of members, and the paired gain over the first group; draws the figure."""
    methods: list[Method] = []
    rows, gains = [], []
    for name, result in results.items():
        if "members" not in result:
            score = result["metrics"]["top1"]
            methods.append(Method(name, (score,), mean_interval((score,))))
            rows.append((name, "1", f"{score:.1f}", "-", "-", _average([result["metrics"].get("ema_top1")]), ""))
            continue
        groups = _groups(result)
        first, reference = next(iter(groups.items()))
        for group, members in groups.items():
            interval = mean_interval(_scores(members))
            methods.append(Method(group, _scores(members), interval))
            gain = None if group == first else _gain(members, reference)
            if gain is not None:
                gains.append((f"{group} - {first}", gain))
            lost = sum(m["diverged_at_step"] is not None for m in members)
            rows.append(
                (
                    group,
                    f"{len(members)}" + (f" ({lost} diverged)" if lost else ""),
                    _number(interval.mean),
                    _range(interval.low, interval.high, interval.n),
                    "-" if gain is None else f"{gain.difference:+.1f} ({_range(gain.low, gain.high, gain.n)})",
                    _average([m["metrics"].get("ema_top1") for m in members]),
                    _average([m.get("best_top1") for m in members]),
                )
            )
    title, notes = _words(configs, results)
    draw_study([(title, methods)], gains, workdir / figure, caption=" ".join(notes))
    columns = (
        Column("objective", justify="left"),
        Column("seeds", 4),
        Column("top-1"),
        Column("95 % interval"),
        Column("gain (95 % interval)", 1),
        Column("EMA top-1", 2),
        Column("best top-1", 3),
    )
    table = FittedTable(f"{title}, in percent: means over seeds and their 95 % intervals", columns, rows)
    return Group(table, *notes)


def _groups(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for member in result["members"]:
        groups.setdefault(member["group"], []).append(member)
    return groups


def _scores(members: list[dict[str, Any]]) -> tuple[float, ...]:
    return tuple(math.nan if m["top1"] is None else m["top1"] for m in members)


def _gain(members: list[dict[str, Any]], reference: list[dict[str, Any]]) -> PairedComparison | None:
    """Paired by seed; None where no seed is in both, or one is there twice."""
    tables = [{m["seed"]: score for m, score in zip(g, _scores(g), strict=True)} for g in (members, reference)]
    seeds = [seed for seed in tables[0] if seed in tables[1]]
    if len(seeds) < 2 or len(tables[0]) < len(members) or len(tables[1]) < len(reference):
        return None
    return paired_comparison([tables[0][s] for s in seeds], [tables[1][s] for s in seeds])


def _words(configs: Mapping[str, ConfigDict], results: Results) -> tuple[str, list[str]]:
    """Title, and sentences that say what the spread is and which network saw more labels."""
    held_out = next(iter(results.values()))["val_images"]
    populations = {name: r for name, r in results.items() if "members" in r}
    name, result = next(iter(populations.items()))
    source = configs[name].data.source
    notes = []
    teachers = [r["train_images"] for n, r in results.items() if n not in populations]
    if teachers and max(teachers) > result["train_images"]:
        notes.append(
            f"The teacher learned from {max(teachers):,} labelled images of {source}, the students from "
            f"{result['train_images']:,} of them: the gain of distillation includes what the further labels are worth."
        )
    notes.append(
        "Seeds differ in initial weights (and dropout); all students see the same images in the same order, so that "
        "the intervals do not cover another choice of images. A gain may be speed of learning: a run with more steps "
        "shows how much of it stays."
    )
    return f"Top-1 on {held_out:,} held-out images of {source}", notes


def _average(values: list[float | None]) -> str:
    return _number(mean_interval([math.nan if v is None else v for v in values]).mean)


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "-"


def _range(low: float, high: float, count: int) -> str:
    if math.isfinite(low):
        return f"{low:.1f} to {high:.1f}"
    return NO_SPREAD if count > 1 else "-"
