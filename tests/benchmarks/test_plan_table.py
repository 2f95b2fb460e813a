"""benchmarks/plan_table.py: a plan that fails is a row of the table too."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("script", "words"),
    [("exit 3", "jaxkd.plan ended with code 3 and no message"), ("echo one >&2; echo two >&2; exit 2", "two")],
)
def test_a_plan_that_fails(tmp_path, monkeypatch, capsys, script, words):
    spec = importlib.util.spec_from_file_location("plan_table", ROOT / "benchmarks" / "plan_table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(python, 0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert table.main([f"--out={tmp_path}/plans.json", "--slices=v5e:4x4"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows == [f"| {name} | v5e:4x4 | {words} |" for name in table.RECIPES]
