"""benchmarks/teacher_cache.py: what it prints and how it fails, not how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_weights import random_variables

from jaxkd import models, weights

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--config=configs/lift_cait.py:embedded", "--config.distill.preset=soft", "--batch-size=8", "--batches=2")
SHALLOW = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}

pytestmark = pytest.mark.benchmarks


def test_fewer_classes_cost_less_and_lose_more(tmp_path):
    model = models.create("cait_s24_224", num_classes=10, **SHALLOW)
    weights.save_safetensors(tmp_path / "teacher.safetensors", model, random_variables(model))
    args = [f"--config.teacher.args.{name}={value}" for name, value in SHALLOW.items()]
    args += ["--config.student.args.depth=1", f"--config.teacher.weights={tmp_path / 'teacher.safetensors'}"]
    command = [sys.executable, "benchmarks/teacher_cache.py", *TINY, *args, "--repeats=1", "--top-k=2"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    steps, logits = result["steps"], result["logits"]
    assert 0 < steps["write"]["flops"] < steps["teacher"]["flops"]
    assert steps["teacher"]["flops"] - steps["cache"]["flops"] == pytest.approx(steps["write"]["flops"], rel=0.01)
    assert all(row["ms"]["median"] > 0 for row in steps.values())
    forms = {(row["top_k"], row["dtype"]): row for row in logits["forms"]}
    assert 44 < logits["bytes_on_disk_float32_all"] < 44.1 and forms[10, "float32"]["bytes"] == 44
    assert forms[2, "float16"]["bytes"] == 3 * 2 + 2 + 4
    assert forms[10, "float32"]["kl_nats"] < 1e-6 < forms[2, "float32"]["kl_nats"]


def test_mistakes_are_one_paragraph(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import teacher_cache

    assert teacher_cache.main(["--top-k=all"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("jaxkd: ") and "each of --top-k must be at least 1" in err
