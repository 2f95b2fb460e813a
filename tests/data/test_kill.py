"""Kill -9 at random steps of an epoch over real files: nothing is seen twice, nothing is missed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import consume
import pytest

CONSUME = Path(__file__).with_name("consume.py")
STEPS = 40
KILLS = int(os.environ.get("JAXKD_KILLS", "3"))


@pytest.fixture
def photographs(tmp_path, picture):
    """tmp/photos/train with 120 JPEGs in 4 classes."""
    for i in range(120):
        where = tmp_path / "photos" / "train" / f"class_{i % 4}"
        where.mkdir(parents=True, exist_ok=True)
        picture(40 + i % 17, 50 + i % 13, seed=i).save(where / f"{i:03d}.jpg")
    return tmp_path / "photos"


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow
def test_killed_runs_add_up_to_the_uninterrupted_one(tmp_path, photographs):
    workers, repeats = 2, 3

    def command(name: str, processes: int) -> list[str]:
        state, log = tmp_path / f"{name}.json", tmp_path / f"{name}.log"
        return [str(x) for x in (sys.executable, CONSUME, photographs, state, log, STEPS, processes, repeats)]

    consume.main(*command("whole", 0)[2:])
    expected = dict(line.split() for line in lines(tmp_path / "whole.log"))
    assert len(expected) == STEPS and len(set(expected.values())) == STEPS

    rng, log = random.Random(10 * workers + repeats), tmp_path / "killed.log"
    points = sorted(rng.sample(range(1, STEPS - 1), KILLS))
    for kill_after in points:
        victim = subprocess.Popen(command("killed", workers))
        while victim.poll() is None and len(lines(log)) < kill_after:
            time.sleep(0.002)
        victim.kill()
        victim.wait()
    subprocess.run(command("killed", workers), check=True)
    seen = [line.split() for line in lines(log)]
    # A step that was killed between training and saving is trained again, on the same images.
    assert all(expected[position] == digest for position, digest in seen)
    assert {position for position, _ in seen} == set(expected)
    assert len(seen) <= STEPS + KILLS
