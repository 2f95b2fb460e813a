"""benchmarks/dynamics.py: what it prints and how it fails, not how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.benchmarks


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import dynamics

    return dynamics


def test_prints_the_cost_of_every_part():
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}
    command = [sys.executable, "benchmarks/dynamics.py", "--config=configs/deit_cait.py", "--batch-size=2"]
    command += [f"--config.{side}.args.{k}={v}" for side in ("student", "teacher") for k, v in small.items()]
    command += [
        "--config.data.source=embedded:digits",
        "--config.teacher.weights=none",
        "--config.distill.pairs=((0, 0), (1, 1))",
        "--repeats=2",
        "--every=10",
        "--ranks",
        "--blocks=1",
        "--config.ema.decay=0.0",
        "--config.dynamics.rank_images=1",
    ]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)  # nothing but the object is on stdout
    assert result["every_steps"] == result["dynamics"]["every_steps"] == 10
    assert set(result["blocks"]) == {"plain_step", "statistics_step"} and "median" in result["measured_lost_percent"]
    assert result["dynamics"]["layers"][0] == "block_0"
    names = ("statistics_step", "without_ranks", "without_gradients", "without_both")
    assert set(result["lost_percent"]) == set(names)
    assert set(result["programs"]) == {"plain_step", *names, "energies_gram", "energies_svd"}
    assert all(program["ms"]["median"] > 0 for program in result["programs"].values())
    assert result["programs"]["statistics_step"]["flops"] > result["programs"]["plain_step"]["flops"]


def test_what_is_lost(benchmark):
    lost = benchmark.lost(np.array([2.0, 3.0, 4.0]), np.array([1.0, 2.0, 2.0]), 100)
    assert lost == {"median": 0.5, "min": 1.0}


def test_mistakes_are_one_paragraph(benchmark, capsys):
    assert benchmark.main(["--every=0"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("jaxkd: ") and "must all be at least 1" in err
