"""benchmarks/step_time.py: what it prints and how it fails, not how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "student": {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "teacher": {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4},
}
ARGS = tuple(f"--config.{side}.args.{name}={value}" for side, args in SMALL.items() for name, value in args.items())
RECIPE = ("--config=configs/deit_cait.py", "--config.data.source=embedded:digits", "--config.teacher.weights=none")
TINY = (*RECIPE, *ARGS, "--config.distill.pairs=((0, 0), (1, 2))", "--batch-size=2", "--repeats=2")
PARTS = ("teacher_forward", "student_forward_backward", "train_step")

pytestmark = pytest.mark.benchmarks


def run(*command: str) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )


def printed(*options: str) -> dict:
    result = run("benchmarks/step_time.py", *TINY, *options)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)  # nothing but the object is on stdout


def check_program(program: dict, peak: float) -> None:
    ms = program["ms"]
    assert 0 < ms["min"] <= ms["median"] and ms["spread"] >= 0
    share = program["flops"] / (1e-3 * ms["min"]) / peak
    assert program["share_of_peak"] == pytest.approx(share, rel=0.02, abs=1e-4)
    assert share < 1.5  # a small program cannot beat the best matrix product by half
    assert program["flops"] > 0 and program["compile_seconds"] > 0
    assert program["images_per_second"] == pytest.approx(2e3 / ms["median"], rel=0.01)


def test_prints_every_part_of_the_step_and_both_forms_of_the_loss():
    result = printed("--config.ema.decay=0.0")
    assert set(result["programs"]) == set(PARTS)
    for program in (*result["programs"].values(), result["spectral_loss"]["closed"], result["spectral_loss"]["fft"]):
        check_program(program, result["matrix_peak"]["flops_per_second"])
    flops = {name: program["flops"] for name, program in result["programs"].items()}
    # The step is the two other parts and the optimiser, compiled as one.
    together = flops["teacher_forward"] + flops["student_forward_backward"]
    assert 0.9 * together < flops["train_step"] < 1.5 * together
    assert result["matrix_peak"]["flops_per_second"] == max(result["matrix_peak"]["sweep"].values())
    assert result["spectral_loss"]["pairs"] == ["(2, 4, 4, 48) and (2, 4, 4, 64)"] * 2
    assert result["spectral_loss"]["closed_to_fft"]["median"] > 0
    assert (result["batch_size"], result["dtype"], result["weights"]) == (2, "float32", "random")
    assert "peer" not in result


@pytest.mark.parity
def test_the_peer_computes_the_same_loss(timm, tmp_path):
    result = printed("--peer=torch", f"--out={tmp_path / 'out.json'}")
    eager = result["peer"]["forms"]["eager"]
    assert eager["loss"]["agrees"] and eager["loss"]["relative_difference"] < 1e-5
    assert set(eager["ratio"]) == set(eager["programs"]) == set(PARTS)
    assert all(ratio["median"] > 0 for ratio in eager["ratio"].values())
    assert eager["programs"]["train_step"]["images_per_second"] > 0 and eager["memory_mb"] is None
    written = json.loads((tmp_path / "out.json").read_text())
    assert written.pop("complete") and written == result and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-size=0",), "must both be at least 1"),
        (("--config=configs/deit_cat.py",), "is not a file"),
        (("--config.student.nmae=x",), "is not a field of the config"),
        (("--config=configs/supervised.py:embedded", "--peer=torch"), "mirrors a teacher"),
    ],
)
def test_mistakes_are_one_paragraph(options, words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import step_time

    assert step_time.main(list(options)) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("jaxkd: ") and words in err


def test_a_missing_package_is_named():
    program = (
        "import sys; sys.modules['ml_collections'] = None; sys.path.insert(0, 'benchmarks'); import step_time;"
        "sys.exit(step_time.main([]))"
    )
    result = run("-c", program)
    assert result.returncode == 2, result.stderr[-2000:]
    assert result.stderr.startswith("jaxkd: The package ml_collections is not installed.")
