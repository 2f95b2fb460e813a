"""The campaign of faults itself: a few attempts of each kind that needs no process, and what it says of a loss."""

from __future__ import annotations

import json

import pytest

from tests.faults import __main__ as faults


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in faults.KINDS if kind not in faults.SLOW])
def test_nothing_is_lost(kind, tmp_path):
    for seed in range(5):
        assert faults.attempt(kind, seed, tmp_path) == "", (kind, seed)


def test_a_loss_is_printed_counted_and_repeated(monkeypatch, tmp_path, capsys):
    def lose(rng, folder):
        if rng.random() < 0.5:
            raise ValueError("a number")
        return ""

    monkeypatch.setitem(faults.KINDS, "images", (lose, "a fault"))
    file = tmp_path / "faults.json"
    assert faults.main(["--minutes=0.001", "--kinds=images", f"--json={file}"]) == 1
    row = json.loads(file.read_text())["images"]
    out = capsys.readouterr().out
    assert 0 < len(row["lost"]) < row["tried"]
    assert f"| images | a fault | {row['tried']} | {row['tried'] - len(row['lost'])} | {len(row['lost'])} |" in out
    seed, text = row["lost"][0]
    assert text == "ValueError: a number" and f"LOST images:{seed}: {text}" in out
    assert faults.main([f"--only=images:{seed}"]) == 1 and text in capsys.readouterr().out
