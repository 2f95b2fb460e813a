"""Runs that are killed many times and continued, and their comparison with an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxkd import main, train
from jaxkd.train.checkpoint import restore_item

ROOT = Path(__file__).resolve().parent.parent


def train_command(argv: Sequence[str], workdir: Path) -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "jaxkd.main", *argv, f"--workdir={workdir}"]


def finish(argv: Sequence[str], workdir: Path) -> None:
    """Runs to the end, in this process."""
    assert main.main([*argv, f"--workdir={workdir}"]) == 0


def run_killed(argv: Sequence[str], workdir: Path, *, kills: int, seconds: float = 15.0, seed: int = 0) -> list[int]:
    """Starts a run, kills it with SIGKILL at random moments, and then lets it finish.

    Args:
      argv: of `jaxkd.main`, without the work directory.
      workdir: of the run.
      kills: how many times it is killed.
      seconds: that a process takes to start and to train for a while. Every other kill comes at a random moment of
        it, the others shortly after a new checkpoint, so that the run moves on.
      seed: of the moments.

    Returns:
      The step of the newest checkpoint at each kill, 0 for none.
    """
    rng, steps = random.Random(seed), []
    for kill in range(kills):
        before = train.checkpoint_steps(workdir)[-1:]
        victim = subprocess.Popen(train_command(argv, workdir), cwd=ROOT, stdout=subprocess.DEVNULL)
        if kill % 2:
            time.sleep(rng.uniform(0, seconds))
        else:
            deadline = time.monotonic() + 10 * seconds
            while victim.poll() is None and time.monotonic() < deadline:
                if train.checkpoint_steps(workdir)[-1:] != before:
                    break
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.02 * seconds))
        victim.kill()
        victim.wait()
        steps.append((train.checkpoint_steps(workdir) or [0])[-1])
    finish(argv, workdir)
    return steps


def differences(one: Path, other: Path) -> list[str]:
    """The parts of the newest checkpoints of two runs that differ: parameters, optimiser, average, clock, position."""
    folders = [run / "checkpoints" / str(train.checkpoint_steps(run)[-1]) for run in (one, other)]
    if folders[0].name != folders[1].name:
        return [f"step: {folders[0].name} and {folders[1].name}"]
    found = []
    for item in ("params", "ema", "rest"):  # rest: step, optimiser, mutable collections
        trees = [jax.tree_util.tree_leaves_with_path(restore_item(folder / item)) for folder in folders]
        if [path for path, _ in trees[0]] != [path for path, _ in trees[1]]:
            found.append(f"{item}: its arrays")
            continue
        for (path, a), (_, b) in zip(*trees, strict=True):
            if not np.array_equal(a, b):
                found.append(f"{item}{jax.tree_util.keystr(path)}")
    metas = [json.loads((folder / "meta" / "metadata").read_text()) for folder in folders]
    positions = [json.loads((folder / "data" / "metadata").read_text()) for folder in folders]
    found += ["position in the data"] * (positions[0] != positions[1])
    found += ["images of the clock"] * (metas[0]["clock"]["images"] != metas[1]["clock"]["images"])
    results = [json.loads((run / "result.json").read_text()) for run in (one, other)]
    found += [k for k in ("metrics", "step", "images_trained") if results[0][k] != results[1][k]]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
