"""Stages: which process writes their comparison."""

from __future__ import annotations

from pathlib import Path

from jaxkd import main, parallel
from jaxkd.experiment.sweep import run_stages

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "swin_swin.py"


def test_only_the_first_of_several_processes_compares_the_stages(tmp_path, monkeypatch):
    config = main.parse([f"--config={CONFIG}:embedded", "--workdir=none"]).config
    monkeypatch.setattr(parallel, "is_main_host", lambda: False)
    result = run_stages(config, tmp_path, lambda *args, **options: {"finished": True}, None)
    assert result["finished"] and list(result["stages"]) == ["teacher", "student_alone", "student_distilled"]
    assert not list(tmp_path.iterdir())
