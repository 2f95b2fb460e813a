"""A run that continues on other devices than it began on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxkd import main

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {
    **{"student.args.depth": 1, "student.args.embed_dim": 24, "train.batch_size": 32, "train.epochs": 5},
    **{"eval.every_epochs": 1, "eval.every_steps": 5, "checkpoint.every_epochs": 0, "checkpoint.every_steps": 5},
    **{"log.tensorboard": False, "log.every_steps": 5},
}


def command(workdir, steps, **more):
    given = FIELDS | {"train.steps": steps} | more
    fields = [f"--config.{name}={value}" for name, value in given.items()]
    return [f"--config={ROOT}/configs/supervised.py:embedded", f"--workdir={workdir}", *fields]


def last_evaluation(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "eval"][-1]


@pytest.mark.slow
def test_a_state_that_was_split_over_eight_devices_goes_on_whole_on_one(tmp_path):
    split = command(tmp_path / "split", 5, **{"mesh.fsdp": 4})
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    subprocess.run([sys.executable, "-m", "jaxkd.main", *split], env=environment, cwd=ROOT, check=True, timeout=300)
    assert main.main(command(tmp_path / "split", 10)) == 0
    assert main.main(command(tmp_path / "whole", 10)) == 0
    found, expected = (last_evaluation(tmp_path / name) for name in ("split", "whole"))
    assert found["step"] == expected["step"] == 10
    for name in ("loss", "ema_loss"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
