"""Curves of training: loss, learning rate and held-out scores over the steps, of one run or of several."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.metric_rows import read_rows
from jaxkd.report import style
from jaxkd.report.training_curves import read_bicubic, score_limits

FILE = "curves.png"
LOSS, RATE = "loss", "learning rate"
TRAINING, HELD_OUT, AVERAGE, CHANCE = "training", "held out", "held out, EMA", "chance"
DASHES = {TRAINING: "-", HELD_OUT: "--", AVERAGE: "-", CHANCE: ":"}
EMA = "ema_"
MOST_SCORES = 3  # panels of scores
MOST_POINTS = 2000  # of a line
FEW = 6  # members that have a line each
UNITS = {
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "retrieval_top5": "retrieval top-5 (%)",
    "word_top5": "word top-5 (%)",
}
CHANCES = {"retrieval_top5": "retrieval_chance5"}


@dataclass(frozen=True)
class Curve:
    """A line, or a mean with its range.

    Attributes:
      panel: "loss", "learning rate" or the metric's name.
      run: that it belongs to; of a population with the name of the member or group.
      role: one of the keys of `DASHES`.
      steps: (n,) ascending.
      values: (n, m) of m members; NaN where there is no number.
    """

    panel: str
    run: str
    role: str
    steps: np.ndarray
    values: np.ndarray


def curves_of(
    run: str,
    train: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    members: Sequence[Mapping[str, Any]] = (),
    bicubic: Mapping[str, float] | None = None,
) -> list[Curve]:
    """The curves of a run.

    Args:
      run: its name.
      train, evaluations: rows of metrics.jsonl.
      members: "name" and "group" of the members of a population, as result.json holds them; without them a population
        is one mean with its range.
      bicubic: scores of bicubic upscaling, drawn as chance is.

    Returns:
      By panel: loss, scores, learning rate; without those that no row has.
    """
    found = [(LOSS, TRAINING, train, "loss"), (LOSS, HELD_OUT, evaluations, "loss")]
    found += [(LOSS, AVERAGE, evaluations, f"{EMA}loss")]
    for score in scores_in(evaluations):
        found += [(score, HELD_OUT, evaluations, score), (score, AVERAGE, evaluations, EMA + score)]
        if score in CHANCES:
            found.append((score, CHANCE, evaluations, CHANCES[score]))
    found.append((RATE, TRAINING, train, "learning_rate"))
    curves = []
    for panel, role, rows, metric in found:
        steps, values = _points(rows, metric)
        if steps.size:
            parts = _member_parts(run, values.shape[1], members) if values.shape[1] > 1 else {run: [0]}
            curves += [Curve(panel, name, role, steps, values[:, places]) for name, places in parts.items()]
    for score, value in (bicubic or {}).items():
        same = next((c for c in curves if c.panel == score), None)
        if same is not None and math.isfinite(value):
            curves.append(Curve(score, "bicubic", CHANCE, same.steps[-1:], np.full((1, 1), value)))
    return curves


def scores_in(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics worth a panel: top-1, PSNR of each set, retrieval, or the first that a plugin's task writes."""
    names = list(dict.fromkeys(name for row in evaluations for name in row))
    for wanted in (["top1"], [n for n in names if "/psnr" in n and not n.startswith(EMA)], ["retrieval_top5"]):
        if present := [name for name in wanted if name in names]:
            return present[:MOST_SCORES]
    others = [n for n in names if n not in ("kind", "step", "epoch", "loss") and not n.startswith(EMA)]
    return others[:MOST_SCORES]


def _points(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) and values (n, m) of the rows that have the metric."""
    kept = [(row["step"], row[metric]) for row in rows if isinstance(row.get(metric), int | float | list)]
    width = max((len(v) for _, v in kept if isinstance(v, list)), default=1)
    # A single number of a population, such as the learning rate that all members share, is one of each.
    lines = [(s, v if isinstance(v, list) else [v] * width) for s, v in kept]
    lines = [(s, [_number(x) for x in v]) for s, v in lines if len(v) == width]
    if len(lines) > MOST_POINTS:
        lines = [*lines[:: math.ceil(len(lines) / MOST_POINTS)], lines[-1]]
    steps, values = np.array([s for s, _ in lines], np.int64), np.array([v for _, v in lines], float)
    return steps, values.reshape(len(lines), width)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _member_parts(run: str, count: int, members: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Name of a line -> the members that it is the mean of."""
    if len(members) != count:
        return {f"{count} members": list(range(count))}
    groups: dict[str, list[int]] = {}
    for place, member in enumerate(members):
        groups.setdefault(str(member.get("group") or member.get("name")), []).append(place)
    if count <= FEW and len(groups) < count:
        return {str(member.get("name")): [place] for place, member in enumerate(members)}
    return groups


def read_curves(workdir: Path, run: str = "", members: Sequence[Mapping[str, Any]] = ()) -> list[Curve]:
    """The curves of a work directory from its metrics.jsonl; [] where nothing was logged."""
    file = workdir / "metrics.jsonl"
    train, evaluations = read_rows(file, "train", only=("loss", "learning_rate")), read_rows(file, "eval")
    return curves_of(run or workdir.name, train, evaluations, members, read_bicubic(workdir))


@style.applied()
def draw_curves(curves: Sequence[Curve], path: Path, *, caption: str = "") -> None:
    """Writes a PNG with a panel for each kind of curve."""
    from matplotlib.ticker import MaxNLocator

    runs = list(dict.fromkeys(c.run for c in curves if c.role != CHANCE))
    panels = sorted(dict.fromkeys(c.panel for c in curves), key=lambda p: (p == RATE, p != LOSS))
    last = max((int(c.steps[-1]) for c in curves), default=1)
    figure, axes = style.panels(len(panels), columns=3, width=4.2, height=3.4)
    for axis, panel in zip(axes, panels, strict=True):
        shown = [c for c in curves if c.panel == panel]
        for curve in shown:
            _draw(axis, curve, runs)
        named = style.plain(panel, 40)
        axis.set(xlabel="step", title=UNITS.get(panel, f"{named} (dB)" if "/psnr" in panel else named))
        axis.set_xlim(0, 1.02 * max(last, 1))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if panel == LOSS:
            style.log_if_wide(axis, np.concatenate([c.values.ravel() for c in shown]))
        if "/psnr" in panel and (scores := [v for c in shown for v in c.values[np.isfinite(c.values)]]):
            axis.set_ylim(*score_limits(scores, [v for c in shown for v in c.values[-1] if np.isfinite(v)]))
        if panel == RATE:
            axis.set_ylim(bottom=0)
        if len(shown) == 1 and shown[0].steps.size == 1:
            axis.text(0.5, 0.06, "one point only", transform=axis.transAxes, ha="center", fontsize=8, color="#555555")
    text = " ".join(filter(None, (caption, _legend_words(curves))))
    if len(runs) > 1:
        style.add_legend(figure, text, axes)
    else:
        for axis in axes:
            if len(axis.get_legend_handles_labels()[1]) > 1:
                axis.legend(loc="best", fontsize=8)
        figure.supxlabel(textwrap.fill(text, int(figure.get_figwidth() * 17)), fontsize=7.5, color="#555555")
    style.write_figure(figure, path, dpi=style.DPI, metadata={"Software": None})


def _draw(axis: Any, curve: Curve, runs: Sequence[str]) -> None:
    if curve.role == CHANCE:
        label, colour = curve.run if curve.run == "bicubic" else CHANCE, "#777777"
        axis.axhline(curve.values[-1, 0], linestyle=":", color=colour, linewidth=1.4, label=label)
        return
    several = len(runs) > 1
    roles = list(DASHES)
    place = runs.index(curve.run) if several else roles.index(curve.role)
    colour = style.STYLES[place % len(style.STYLES)][0]
    label = style.plain(curve.run, 40) if several else curve.role
    finite = np.isfinite(curve.values)
    count = finite.sum(1)
    middle = np.where(count > 0, np.where(finite, curve.values, 0).sum(1) / np.maximum(count, 1), np.nan)
    few = {"marker": "o", "markersize": 3.5} if curve.steps.size <= 20 else {}
    wide = 1.0 if curve.role == TRAINING and curve.panel == LOSS else 1.6
    axis.plot(curve.steps, middle, DASHES[curve.role], color=colour, linewidth=wide, label=label, **few)
    if curve.values.shape[1] > 1:
        low = np.where(finite, curve.values, np.inf).min(1)
        high = np.where(finite, curve.values, -np.inf).max(1)
        axis.fill_between(curve.steps, low, high, where=count > 0, color=colour, alpha=0.15, linewidth=0)


def _legend_words(curves: Sequence[Curve]) -> str:
    """Meaning of dashes and bands, where several runs share a panel or members a line."""
    words = []
    roles = {c.role for c in curves if c.panel != RATE}
    if len({c.run for c in curves if c.role != CHANCE}) > 1 and HELD_OUT in roles:
        words.append("Solid: training, and the moving average (EMA) on held-out data; dashed: raw weights on these.")
    if any(c.values.shape[1] > 1 for c in curves):
        words.append("Lines: means over members; bands: their ranges.")
    return " ".join(words)


def draw_run(workdir: Path, result: Mapping[str, Any]) -> Path | None:
    """Writes `curves.png` of a run into its work directory; None where nothing was logged.

    Args:
      workdir: of the run.
      result: as result.json holds it, or parts of it: "members", "train_images" and "val_images" are read.
    """
    curves = read_curves(workdir, members=result.get("members") or ())
    if not curves:
        return None
    images = [
        f"{result[k]:,} {words}"
        for k, words in (("train_images", "to train on"), ("val_images", "held out"))
        if result.get(k)
    ]
    caption = f"{style.plain(workdir.name, 60)}. {', '.join(images)}.".removesuffix(" .")
    draw_curves(curves, workdir / FILE, caption=caption)
    return workdir / FILE
