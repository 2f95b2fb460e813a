"""benchmarks/block_parts.py at toy size: what it prints, not how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.benchmarks, pytest.mark.parity]


def test_every_part_has_both_times_and_their_ratio(timm):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "benchmarks/block_parts.py", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["shape"] == [2, 5, 12]
    assert {name: part.get("count") for name, part in result["parts"].items()} == {
        **{"norm": 2, "qkv": 1, "attention": 1, "proj": 1, "fc1": 1, "gelu": 1, "fc2": 1},
        **{"block": None, "4 blocks": None, "12 blocks": None, "network": None},
    }
    for part in result["parts"].values():
        medians = part["torch_ms"]["median"], part["jaxkd_ms"]["median"]
        assert part["ratio"]["median"] == pytest.approx(medians[0] / medians[1], rel=0.01)
