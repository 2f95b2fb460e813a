"""benchmarks/plan_table.py: a plan that fails is a row of the table too, and a finished one is not made again."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table():
    spec = importlib.util.spec_from_file_location("plan_table", ROOT / "benchmarks" / "plan_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer(tmp_path, monkeypatch, script):
    """Runs `script` of the shell in place of Python."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(python, 0o755)
    monkeypatch.setattr(sys, "executable", str(python))


@pytest.mark.parametrize(
    ("script", "words"),
    [("exit 3", "jaxkd.plan ended with code 3 and no message"), ("echo one >&2; echo two >&2; exit 2", "two")],
)
def test_a_plan_that_fails(table, tmp_path, monkeypatch, capsys, script, words):
    answer(tmp_path, monkeypatch, script)
    assert table.main([f"--out={tmp_path}/plans.json", "--slices=v5e:4x4"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows == [f"| {name} | v5e:4x4 | {words} |" for name in table.RECIPES]


def test_finished_plans_are_kept_and_failed_ones_tried_again(table, tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "plans.json", tmp_path / "calls"
    argv = [f"--out={out}", "--slices=v5e:4x4"]
    answer(tmp_path, monkeypatch, "exit 3")
    table.main(argv)
    refused = json.dumps({"roofline_ms": None, "refusal": "It needs more memory."})
    answer(tmp_path, monkeypatch, f"echo called >> {calls}; echo '{refused}'")
    for _ in range(2):
        table.main(argv)
    assert calls.read_text().split() == ["called"] * len(table.RECIPES)  # by the first of the two
    last = capsys.readouterr().out.splitlines()[-len(table.RECIPES) :]
    assert last == [f"| {name} | v5e:4x4 | It needs more memory. |" for name in table.RECIPES]
