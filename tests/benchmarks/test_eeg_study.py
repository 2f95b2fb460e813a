"""benchmarks/eeg_controls.py and benchmarks/eeg_granularity.py at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.benchmarks


def run(program: str, *options: str) -> dict:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{program}", "--epochs=2", *options],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_network_on_signal_beats_chance_and_not_the_best_decoder():
    result = run("eeg_controls.py", "--parts", "oracle", "--seeds=1", "--sentences=200")["oracle"]
    assert result["mean_chance5"] < result["mean_top5"] < result["mean_oracle5"] + 3


def test_curves_over_the_number_of_anchors_are_drawn(tmp_path):
    result = run("eeg_granularity.py", "--seeds=1", "--sentences=100", f"--figure={tmp_path / 'curve.png'}")["snr"]
    best = {snr: result[snr]["best decoder"]["3"]["top5"] for snr in ("4", "9", "16")}
    assert best["4"] < best["9"] <= best["16"] and (tmp_path / "curve.png").stat().st_size > 10_000
    assert set(result["4"]["network"]) == set(result["4"]["best decoder"])
