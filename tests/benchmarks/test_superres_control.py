"""benchmarks/gpu_superres_control.sh at a size of seconds, and the tables of its results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from pictures import smooth_pictures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def control(out: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "benchmarks/gpu_superres_control.sh", *options],
        cwd=ROOT,
        env=os.environ | {"OUT": str(out), "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wrong_option_or_missing_data_run_nothing(tmp_path):
    done = control(tmp_path / "out", "--tinny", DATA=str(tmp_path))
    assert done.returncode == 2 and "--tinny" in done.stderr
    done = control(tmp_path / "out", "--tiny", DATA=str(tmp_path))
    assert done.returncode == 2 and "sr_t91 is missing" in done.stderr and not list((tmp_path / "out").iterdir())
    done = control(tmp_path / "out", "--tiny", DATA=str(tmp_path), BUDGET="9 minutes")
    assert done.returncode == 2 and "BUDGET=9 minutes is no number of minutes" in done.stderr
    done = control(tmp_path / "out", "--tiny", DATA=str(tmp_path), BUDGET="8.9")
    assert done.returncode == 2 and done.stderr.startswith(f"{tmp_path}/sr_t91 is missing"), "a fraction is a number"


@pytest.mark.benchmarks
@pytest.mark.slow
def test_one_run_leaves_its_scores_and_no_time_starts_none(tmp_path):
    pictures = smooth_pictures(tmp_path, train=4, val=1)
    data = tmp_path / "carry"
    data.mkdir()
    for name, split in (
        ("t91", "train"),
        ("bsd200_train", "train"),
        ("set5", "val"),
        ("set14", "val"),
        ("bsd100", "val"),
    ):
        (data / f"sr_{name}").symlink_to(pictures / split)
    out = tmp_path / "out"
    done = control(out, "--tiny", DATA=str(data), RUNS="mdbn_skip-seed1 edsr-seed7")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["control.json", "runs.tar.gz", "tables.md"]
    with tarfile.open(out / "runs.tar.gz") as archive:
        archive.extractall(tmp_path / "kept", filter="data")
    run = tmp_path / "kept" / "mdbn_skip-seed1"
    assert [p.name for p in run.parent.iterdir() if p.is_dir()] == [run.name]
    config = json.loads((run / "config.json").read_text())
    assert config["seed"] == 1 and config["student"]["args"]["global_skip"] == "bicubic"
    scores = [json.loads((run / f"scores_{v}.json").read_text()) for v in ("raw", "ema")]
    assert [set(s["images"]) for s in scores] == [{"Set5", "Set14", "BSD100"}] * 2
    assert scores[0]["metrics"] != scores[1]["metrics"]
    found = json.loads((out / "control.json").read_text())["runs"][run.name]
    assert found["scores"] == {"raw": scores[0]["metrics"], "ema": scores[1]["metrics"]}
    assert [row["step"] for row in found["curve"]] == [2, 4] and "Set5/psnr_y_crop4" in found["curve"][0]
    assert f"| {scores[0]['metrics']['Set5/psnr_y_crop4']:.2f} / " in done.stdout
    late = control(tmp_path / "late", "--tiny", DATA=str(data), BUDGET="0.3")
    assert late.returncode == 0 and "Not finished or not scored: mdbn-seed0, mdbn_range-seed0" in late.stdout


def one_run(stage: str, seed: int, psnr: float, **more) -> dict:
    scores = {f"Set5/{k}_y_crop4": v for k, v in (("psnr", psnr), ("ssim", psnr / 40))}
    average = {name: value - 1 for name, value in scores.items()}
    return {
        "stage": stage,
        "seed": seed,
        "steps": 4000,
        "parameters": 1_665_283,
        "ema": {"decay": 0.999},
        "scores": {"raw": scores, "ema": average},
        "bicubic": {"Set5/psnr_y_crop4": 28.43, "Set5/ssim_y_crop4": 0.8111},
        **more,
    }


def test_tables_show_means_seeds_differences_and_what_is_missing():
    import superres_control_table

    runs = {
        "mdbn-seed0": one_run("mdbn", 0, 29.0),
        "mdbn-seed1": one_run("mdbn", 1, 30.0),
        "edsr-seed1": one_run("edsr", 1, 31.25),
        "mdbn_range-seed0": one_run("mdbn_range", 0, 30.5),
        "mdbn_range-warmup-seed0": one_run("mdbn_range", 0, 33.0, ema={"decay": 0.999, "warmup": True}),
        "edsr-seed0": one_run("edsr", 0, 0.0, scores={}),
    }
    about = {"device": "H100", "runs": " ".join(runs)}
    text = "\n".join(superres_control_table.lines({"about": about, "runs": runs}))
    assert "| bicubic |  |  | 28.43 / 0.8111 |" in text
    assert "| MDBN as published: [0, 1], no mean | 1.67 M | 4000 | 29.50 / 0.7375 (29.00, 30.00) |" in text
    assert "| MDBN, range and mean of EDSR | 1.67 M | 4000 | 30.50 / 0.7625 |" in text, (
        "the warm-up is a run of its own"
    )
    assert "| edsr - mdbn | as published: range, mean and blocks | +1.25 |" in text
    assert "| mdbn_range - mdbn | range and mean, same network | +1.50 |" in text and "edsr - mdbn_range" not in text
    assert "| mdbn_range-warmup-seed0 | 0.999, warm-up | 33.00 | 32.00 |" in text
    assert "Not finished or not scored: edsr-seed0." in text


def test_tables_of_the_work_directories_of_two_seeds(tmp_path, capsys):
    import superres_control_table

    for seed, psnr in enumerate((29.0, 30.0)):
        folder, run = tmp_path / f"seed{seed}" / "mdbn", one_run("mdbn", seed, psnr)
        folder.mkdir(parents=True)
        metrics = {**run["scores"]["raw"], **{f"ema_{k}": v for k, v in run["scores"]["ema"].items()}}
        result = {"metrics": metrics, "step": 4000, "parameters": run["parameters"]}
        (folder / "config.json").write_text(json.dumps({"seed": seed, "ema": run["ema"]}))
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "bicubic.json").write_text(json.dumps(run["bicubic"]))
        (folder / "metrics.jsonl").write_text(json.dumps({"kind": "eval", "step": 4000, **metrics}) + "\n")
    kept = tmp_path / "kept.json"
    superres_control_table.main([str(tmp_path / "seed0"), str(tmp_path / "seed1"), f"--keep={kept}"])
    text = capsys.readouterr().out
    assert "| MDBN as published: [0, 1], no mean | 1.67 M | 4000 | 29.50 / 0.7375 (29.00, 30.00) |" in text
    assert "| bicubic |  |  | 28.43 / 0.8111 |" in text and "| mdbn-seed1 | 0.999 | 30.00 | 29.00 |" in text
    superres_control_table.main([str(kept)])
    assert capsys.readouterr().out == text
    for sources, words in (
        ([tmp_path / "seed0", tmp_path / "seed0"], "has the run mdbn-seed0 once more"),
        ([tmp_path / "seed0" / "mdbn"], "There are no runs in"),
        ([tmp_path / "no"], "cannot be read"),
    ):
        with pytest.raises(SystemExit, match=words):
            superres_control_table.main([str(source) for source in sources])
    (tmp_path / "seed1" / "mdbn" / "result.json").write_text(json.dumps(result | {"step": 400}))
    with pytest.raises(SystemExit, match="different lengths"):
        superres_control_table.main([str(tmp_path / "seed0"), str(tmp_path / "seed1")])
