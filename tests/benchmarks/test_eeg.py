"""benchmarks/eeg.py: what it prints, not how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--subjects=2", "--sentences=6", "--words=2-4", "--batch-size=4")

pytestmark = pytest.mark.benchmarks


def run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "benchmarks/eeg.py", *TINY, *options],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_every_format_is_timed_and_files_are_used_again(tmp_path):
    pytest.importorskip("h5py", reason="needs the extra `eeg`")
    first = run(f"--folder={tmp_path}")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert set(result["formats"]) == {"zuco1", "zuco2", "pickle"} and result["corpus"]["readings"] == 12
    for one in result["formats"].values():
        assert all(seconds > 0 for seconds in one["seconds"].values()) and one["dominates"]
    assert result["epoch"]["steps"] == result["epoch_from_cache"]["steps"] == 3
    again = json.loads(run(f"--folder={tmp_path}", "--formats", "pickle").stdout)
    assert set(again["formats"]) == {"pickle"} and again["formats"]["pickle"]["seconds"]["write"] is None


def test_files_of_another_corpus_are_refused(tmp_path):
    assert run(f"--folder={tmp_path}", "--formats", "pickle").returncode == 0
    other = run(f"--folder={tmp_path}", "--formats", "pickle", "--sentences=7")
    assert other.returncode == 1 and "holds another corpus" in other.stderr and "Traceback" not in other.stderr
