"""What a run says of itself before its first step."""

from __future__ import annotations

import time
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from jaxkd import parallel, train
from jaxkd.experiment.experiment import Problem


def announce(
    console: Console | None,
    problem: Problem,
    settings: train.LoopSettings,
    mesh: Mesh,
    workdir: Path,
    *,
    resumed: int | None,
    state: train.TrainState,
) -> None:
    """Prints networks, objective, data, length, devices and time; silent without a console and on other hosts."""
    if console is None or not parallel.is_main_host():
        return
    config, task = problem.config, problem.task
    count = sum(p.size for p in jax.tree.leaves(state.params["student"]))
    teacher = getattr(task, "teacher", None)
    learns = f" <- {teacher.spec.name} ({teacher.origin})" if teacher else ""
    every = config.dynamics.every_steps
    lines = [
        f"{config.student.name} ({count:,} parameters, {task.student.origin}){learns}",
        *problem.about,
        f"{settings.total_steps:,} steps of {settings.batch_size} on {mesh.devices.size} x "
        f"{mesh.devices.flat[0].device_kind} · {workdir}"
        + ("" if resumed is None else f" · continues after step {resumed:,}"),
        *([f"statistics of the layers at step 1 and every {every:,} steps"] if every else []),
        time.strftime("%Y-%m-%d %H:%M:%S"),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
