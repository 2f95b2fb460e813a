"""The plan of a study: what is left to train, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxkd.experiment.study.cost import Cost, predict_seconds
from jaxkd.experiment.study.grid import Grid, Run
from jaxkd.train.progress import duration


def print_plan(
    grid: Grid,
    todo: Sequence[tuple[str, tuple[Run, ...], Cost]],
    times: Sequence[dict[str, Any]],
    tflops: float,
    console: Console | None,
) -> dict[str, Any]:
    """Prints each unit with its runs, steps, operations and predicted time; returns the sums.

    Args:
      grid: the study.
      todo: (title, runs, cost) of what is left, in order.
      times: measured units, see `cost.predict_seconds`.
      tflops: rate where nothing was measured; 0 for none.
      console: where the table goes.

    Returns:
      `{"finished": no runs left, "runs", "units", "steps", "pflop", "hours" (None where no rate is known)}`.
    """
    table = Table(title="Left to train, in this order", title_justify="left")
    for column in ("", "runs", "steps", "images a run", "PFLOP", "time"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=bool(column))
    seconds = [predict_seconds(cost, times, tflops) for _, _, cost in todo]
    for (title, runs, cost), time in zip(todo, seconds, strict=True):
        shown = "?" if time is None else duration(time)
        cells = (f"{len(runs) or 1}", f"{cost.steps:,}", f"{cost.images:,}", f"{cost.flop / 1e15:.4g}", shown)
        table.add_row(title, *cells)
    hours = sum(seconds) / 3600 if all(s is not None for s in seconds) else None
    runs, steps = sum(len(r) for _, r, _ in todo), sum(cost.steps for _, _, cost in todo)
    pflop = sum(cost.flop for _, _, cost in todo) / 1e15
    if console is not None:
        console.print(table)
        total = f"{runs} of {len(grid.runs)} runs left in {len(todo)} units: {steps:,} steps, {pflop:.4g} PFLOP"
        rate = "pass --tflops for an estimate of the time" if hours is None else f"{hours:.2f} h"
        by = "" if hours is None else f" (by {'what was measured here' if times else f'{tflops:g} TFLOP/s'})"
        console.print(f"{total}, {rate}{by}; {len(grid.comparisons)} comparisons", markup=False, highlight=False)
    return {
        "finished": not todo,
        "runs": runs,
        "units": len(todo),
        "steps": steps,
        "pflop": pflop,
        "hours": hours,
        "stopped": False,
    }
