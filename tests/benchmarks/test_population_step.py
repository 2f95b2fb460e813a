"""benchmarks/population.py: what it prints and how it fails, not how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--config=configs/deit_cait.py:embedded", "--batch-size=2", "--repeats=2", "--members=2")
SHALLOW = ("--config.student.args.depth=1", "--config.teacher.args.depth=1", "--config.distill.pairs=((0,0),)")

pytestmark = pytest.mark.benchmarks


@pytest.mark.parity
def test_two_students_against_two_steps_and_two_of_pytorch(timm, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "benchmarks/population.py", *TINY, *SHALLOW, "--peer=torch", f"--out={out}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result, written = json.loads(done.stdout), json.loads(out.read_text())
    assert written.pop("complete") and written == result
    row = result["populations"]["2"]
    assert 0 < row["ms"]["min"] <= row["ms"]["median"] and 1.0 < row["flops_to_one"] < 2.0
    medians = result["one_student"]["ms"]["median"], row["ms"]["median"]
    assert row["to_separate"]["median"] == pytest.approx(2 * medians[0] / medians[1], rel=0.01)
    assert row["to_peer"]["median"] > 0 and result["peer"]["versions"]["torch"]
    losses = result["first_losses"]  # the same weights and images everywhere
    assert losses["2"] == pytest.approx(losses["separate"], rel=1e-4)
    assert losses["peer"] == pytest.approx(losses["separate"], rel=1e-4)


def test_mistakes_are_one_paragraph(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import population

    assert population.main(["--members=1,two"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("jaxkd: ") and "--members numbers of at least 2" in err
