"""benchmarks/eeg_real.py on small files with known answers."""

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


def run(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "benchmarks/eeg_real.py", f"--data={folder}", "--permutations=99"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def write_stimuli(folder: Path) -> None:
    folder.mkdir()
    rows = ["ZuCo1,NR,A dog runs far away.", "ZuCo1,NR,Some other words.", "ZuCo2,NR,a DOG runs far away"]
    (folder / "zuco_sentences.csv").write_text("corpus,task,sentence\n" + "\n".join(rows) + "\n")


def write_tokens(folder: Path) -> None:
    """Two bands carry the letters, and no gaze feature does."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for _ in range(40):
        for letters in rng.integers(2, 12, 9).tolist():
            word = "".join(rng.choice(list("abcdefgh"), letters))
            features = rng.integers(0, 8, 25)
            features[17:19] = letters
            lines.append("\t".join([word, *map(str, features.tolist()), "O"]))
        lines.append("")
    (folder / "zuco.8.tsv").write_text("\n".join(lines))


def write_potentials(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    shape, subjects = rng.standard_normal((4, 3, 287)), 5
    potential = np.tile(shape, (subjects, 1, 1)) + 0.1 * rng.standard_normal((4 * subjects, 3, 287))
    subject, code = np.repeat(np.arange(subjects), 4), np.tile([30, 40, 50, 60], subjects)
    np.savez(
        folder / "erps.npz", erp_microvolt=potential, subject=subject, code=code, time_ms=-148.5 + 4 * np.arange(287)
    )


def test_planted_effects_are_found_and_absent_ones_are_not(tmp_path):
    write_stimuli(tmp_path / "zuco_texts")
    write_tokens(tmp_path / "zuco_aggregated_eeg")
    write_potentials(tmp_path / "erp_semantic_priming")
    found = run(tmp_path)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["stimuli"]["distinct"] == 2 and result["stimuli"]["in_both"] == {"ZuCo1 NR and ZuCo2 NR": 1}
    rows = result["averaged_eeg"]["rows"]
    assert rows["eight bands of EEG"]["top1"] == rows["EEG without gaze"]["top1"] == 1.0
    assert rows["17 gaze features"]["top5"] < 0.4 and rows["eight bands of EEG"]["chance5"] == 0.125
    assert result["potentials"]["accuracy"] == 1.0 and result["potentials"]["p"] == 0.01


def test_a_missing_file_is_one_sentence(tmp_path):
    found = run(tmp_path)
    assert found.returncode == 1 and "is not there" in found.stderr and "Traceback" not in found.stderr
