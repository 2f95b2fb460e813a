"""`--profile`: which operations of a train step take the time, by module, and what bounds them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from jaxkd import parallel, train
from jaxkd.errors import ConfigError
from jaxkd.experiment.build import Experiment
from jaxkd.experiment.plan.chips import Chip, chip_of
from jaxkd.experiment.plan.hlo import module_of
from jaxkd.experiment.plan.operation_cost import Operations
from jaxkd.train import trace_events
from jaxkd.train.profile import WARMUP, first_traced

FOLDER = "profile"
PROGRAM = "jit_step_fn"  # name of the compiled step
ROWS = 10


@dataclass
class Row:
    """Operations of one kind in one module; blocks that differ only in their number count together.

    Attributes:
      operation: kind, such as "loop_multiply_fusion".
      module: "Deit/blocks_*/attn/qkv, backward"; "" where the program does not say it.
      milliseconds: of a step.
      share: of the time of all operations.
      calls: in a step.
      bound: "compute", "memory", or "" where that is not known.
    """

    operation: str
    module: str
    milliseconds: float
    share: float
    calls: float
    bound: str


def make_profile(
    steps: int,
    workdir: Path,
    experiment: Experiment,
    done: int,
    console: Console | None,
    *,
    stage: str = "",
) -> train.StepProfile | None:
    """The profile of a run that continues after `done` steps; None where `steps` is 0 or a stage is too short.

    Raises:
      ConfigError: the run is too short.
    """
    if not steps:
        return None
    loop, every = experiment.settings, experiment.config.dynamics.every_steps
    most = loop.total_steps - done - WARMUP
    if steps > most:
        left = f"{loop.total_steps - done:,} steps left, of which the first {WARMUP} are not traced"
        if stage:
            _say(console, f"{stage} has {left}: no profile.")
            return None
        advice = f"Give at most {most:,}" if most > 0 else "Leave it out, or train for longer"
        raise ConfigError(f"--profile={steps}, and the run has {left}. {advice}.")

    def other_work(step: int) -> bool:
        due = loop.due(step)
        return due.evaluate or due.save or (every > 0 and (step + 1) % every == 0)

    return train.StepProfile(
        workdir / FOLDER,
        after=first_traced(other_work, done, loop.total_steps, steps),
        steps=steps,
        report=partial(print_profile, console=console),
        say=partial(_say, console),
        active=parallel.is_main_host(),
    )


def rows(
    events: Iterable[trace_events.Event], program: str, *, steps: int, chip: Chip | None, most: int = ROWS
) -> list[Row]:
    """The most expensive operations of a trace of `steps` steps, most expensive first.

    Args:
      events: of the trace.
      program: text of the compiled step; "" leaves modules and bounds out.
      steps: over which times are averaged.
      chip: whose peaks say what bounds an operation.
      most: how many.
    """
    known, found = Operations(program), trace_events.operations(events, {}, module=PROGRAM)
    total = sum(one.microseconds for one in found)
    times: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    bounds: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for one in found:
        cost = known.cost(one.name) or known.cost(one.kernel)
        key = re.sub(r"[._]\d+$", "", one.name), module_of(cost.source if cost else one.where)
        times[key][0] += one.microseconds
        times[key][1] += one.calls
        bounds[key][cost.bound(chip) if cost else ""] += one.microseconds
    ranked = sorted(times.items(), key=lambda item: -item[1][0])[:most]
    return [
        Row(*key, time / 1e3 / steps, time / total if total else 0.0, calls / steps, max(b := bounds[key], key=b.get))
        for key, (time, calls) in ranked
    ]


def print_profile(trace: train.StepTrace, *, console: Console | None) -> None:
    """Prints the most expensive operations, and where the trace is."""
    file, kind = trace_events.newest_trace(trace.folder), jax.devices()[0].device_kind
    events, chip = trace_events.read_events(trace.folder), chip_of(kind)
    if console is None:
        return
    table = Table(
        title=f"Most expensive operations of {trace.steps} steps of {1e3 * trace.seconds / trace.steps:.1f} ms"
    )
    table.add_column("operation")
    table.add_column("module", overflow="fold")
    for name in ("calls a step", "ms a step", "share"):
        table.add_column(name, justify="right")
    table.add_column("bound by")
    for row in rows(events, trace.program, steps=trace.steps, chip=chip):
        numbers = f"{row.calls:g}", f"{row.milliseconds:.3f}", f"{100 * row.share:.1f} %"
        table.add_row(row.operation, row.module, *numbers, row.bound or ("unknown chip" if chip is None else ""))
    console.print(table)
    if len(events) >= trace_events.MOST_EVENTS:
        _say(
            console,
            f"The trace is cut at {trace_events.MOST_EVENTS:,} events, so its times are too small. Trace fewer steps.",
        )
    if chip is None:
        _say(console, f'The peaks of "{kind}" are not known, so what bounds an operation is not either.')
    _say(console, f"Trace: {file}; open it in ui.perfetto.dev (Open trace file).")


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
