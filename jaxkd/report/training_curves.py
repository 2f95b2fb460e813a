"""Figures of a comparison of runs: accuracy and loss of several runs over their epochs, or PSNR over their steps."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxkd.report import style

STYLES = (("#1f3b73", "-"), ("#c44536", "--"), ("#2a8c55", "-."), ("#8b5fbf", ":"))
MARKERS = ("o", "s", "^", "D")
COLUMNS = 3  # panels beside one another
AVERAGE = "ema_"  # before the metric of a moving average


@style.applied()
def draw_curves(runs: dict[str, list[dict[str, Any]]], path: Path, *, caption: str = "") -> None:
    """Writes a PNG with the held-out top-1 and loss of each run against its epochs."""
    figure, axes = style.panels(2, width=5, height=3.5)
    for (name, rows), (colour, dash) in zip(runs.items(), STYLES * len(runs), strict=False):
        rows = [r for r in rows if isinstance(r.get("loss"), int | float)]
        epochs = [r["epoch"] for r in rows]
        last = f"{name.replace('_', ' ')} ({rows[-1]['top1']:.1f} %)" if rows else name
        axes[0].plot(epochs, [r["top1"] for r in rows], dash, color=colour, label=last, linewidth=1.8)
        axes[1].plot(epochs, [r["loss"] for r in rows], dash, color=colour, label=last, linewidth=1.8)
    tops = sorted(r["top1"] for rows in runs.values() for r in rows)
    if tops:  # the first epochs would flatten what matters
        axes[0].set_ylim(max(0.0, tops[len(tops) // 4] - 8), 100.5)
    axes[0].set(xlabel="epoch", ylabel="top-1 on held-out images (%)", title="Accuracy")
    axes[1].set(xlabel="epoch", ylabel="cross-entropy on held-out images (nats)", title="Loss", yscale="log")
    axes[0].legend(loc="lower right")
    if caption:
        figure.supxlabel(caption, fontsize=8, color="#555555")
    style.write_figure(figure, path, dpi=130)


def read_bicubic(workdir: Path) -> dict[str, float]:
    """Scores of bicubic upscaling on the sets of a super-resolution run, from its bicubic.json; {} if absent."""
    try:
        return json.loads((workdir / "bicubic.json").read_text())
    except (OSError, ValueError):
        return {}


def score_names(rows: Mapping[str, Any], bicubic: Mapping[str, float]) -> tuple[str, ...]:
    """The metrics `<set>/psnr_y_crop4` and so on of raw weights, in the order of the sets.

    Args:
      rows: an evaluation's metrics.
      bicubic: what bicubic scores; its names are the raw ones, also of a set called "ema_x".
    """
    scores = [name for name in rows if "/psnr" in name or "/ssim" in name]
    return tuple(n for n in scores if n in bicubic or not (n.startswith(AVERAGE) and n.removeprefix(AVERAGE) in scores))


def scores_caption(source: str, seed: int, result: Mapping[str, Any], runs: int = 1) -> str:
    """Caption: the data on which super-resolution runs were measured."""
    trained, scored = result["train_images"], result["val_images"]
    return (
        f"{source}: {trained:,} training image{'s' if trained != 1 else ''}; {scored:,} scored over all sets. "
        f"{'One run' if runs == 1 else 'One run each'}, seed {seed}."
    )


@style.applied()
def draw_scores(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, bicubic: Mapping[str, float], caption: str = ""
) -> None:
    """Writes a PNG with the PSNR of each run against its steps, a panel for each set of images.

    Solid lines are the moving average and dashed ones the raw weights; a run without an average has a solid one.
    """
    found = [name for rows in runs.values() for row in rows for name in score_names(row, bicubic)]
    names = [name for name in dict.fromkeys(found) if "/psnr" in name] or [""]
    figure, axes = style.panels(len(names), columns=COLUMNS, width=4.2 if len(names) > 1 else 6.4, height=3.8)
    hidden = sum(_draw_set(axis, name, runs, bicubic.get(name)) for axis, name in zip(axes, names, strict=True))
    averaged = any(name.startswith(AVERAGE) for rows in runs.values() for row in rows for name in row)
    said = (
        "Solid, and the first number: moving average of the weights; dashed, second: raw weights. " if averaged else ""
    )
    if hidden:
        said += f"Left out, below an axis: {hidden} score{'s' if hidden > 1 else ''}."
    width = int(14 * figure.get_figwidth())
    text = "\n".join(textwrap.fill(part, width) for part in (caption, said.strip()) if part)
    if text:
        figure.supxlabel(text, fontsize=8, color="#555555")
    style.write_figure(figure, path, dpi=130)


def _draw_set(axis: Any, name: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], bicubic: float | None) -> int:
    """One panel; returns how many points are left out because they lie below it."""
    curves = {run: {kind: _points(rows, kind + name) for kind in (AVERAGE, "")} for run, rows in runs.items()}
    shown = sorted(v for kinds in curves.values() for points in kinds.values() for _, v in points)
    lines = [bicubic] if bicubic is not None and math.isfinite(bicubic) else []
    bottom = -math.inf
    if shown:
        ends = [points[-1][1] for kinds in curves.values() for points in kinds.values() if points]
        bottom, top = score_limits(shown, [*ends, *lines])
        axis.set_ylim(bottom, top)
    styles = zip(curves.items(), STYLES * len(curves), MARKERS * len(curves), strict=False)
    for (run, kinds), (colour, _), marker in styles:
        ends = " / ".join(f"{points[-1][1]:.2f}" for points in kinds.values() if points)
        label = f"{run.replace('_', ' ')}  {ends or 'no score'}"
        for kind, points in kinds.items():
            main = bool(points) if kind else not kinds[AVERAGE]
            drawn = {"linewidth": 1.8, "label": label} if main else {"linewidth": 1.1, "linestyle": (0, (4, 2))}
            points = [(step, value) for step, value in points if value >= bottom]
            steps, values = [step for step, _ in points], [value for _, value in points]
            axis.plot(steps, values, color=colour, marker=marker, markersize=4 if main else 2.5, **drawn)
    for value in lines:
        axis.axhline(value, color="#777777", linestyle=":", linewidth=1.5, label=f"bicubic  {value:.2f}")
    group, _, metric = name.partition("/")
    axis.set(xlabel="step", ylabel=f"{metric} (dB)", title=group)
    axis.legend(loc="lower right", fontsize=8)
    return sum(value < bottom for value in shown)


def score_limits(scores: Sequence[float], kept: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis of PSNR, in dB, without the lowest quarter of the scores where it lies far below the others.

    The first scores, above all of an average that still remembers random weights, would flatten what matters.

    Args:
      scores: finite, at least one.
      kept: further values that stay inside: last scores, bicubic.
    """
    scores = sorted(scores)
    low, high = min([scores[len(scores) // 4], *kept]), max([scores[-1], *kept])
    room = max(high - low, 0.05)
    return low - 0.45 * room, high + 0.08 * room  # below there is room for the legend


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, score) of one curve where it is finite; metrics.jsonl has a text, such as "nan", elsewhere."""
    kept = [(row["step"], row.get(name)) for row in rows]
    return [(step, value) for step, value in kept if isinstance(value, int | float) and math.isfinite(value)]
