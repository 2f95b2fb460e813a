"""benchmarks/superres.py and before_after.py: what they print and how they fail, not how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--scales=3", "--size=31x20", "--repeats=2", "--batch-size=2")

pytestmark = pytest.mark.benchmarks


def run(*command: str) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )


def test_every_program_is_timed_and_measured():
    result = run("benchmarks/superres.py", *TINY)
    assert result.returncode == 0, result.stderr[-2000:]
    printed = json.loads(result.stdout)  # nothing but the object is on stdout
    scale = printed["scales"]["x3"]
    assert scale["input"] == [7, 11] and set(scale["programs"]) == {"jaxkd"}
    ours = scale["programs"]["jaxkd"]
    assert 0 < ours["latency_ms"]["min"] <= ours["latency_ms"]["median"] and ours["images_per_second"] > 0
    assert ours["share_of_peak"] > 0 and ours["memory_mb"] >= 0
    # papers: 175.1 G multiply-adds for 1280x720, which is 427 x 240 small pixels
    assert scale["gflop"] == pytest.approx(2 * 175.1 * 77 / (1280 * 720 / 9), rel=0.03)
    assert "difference" not in scale


@pytest.mark.parity
@pytest.mark.parametrize("model", ["mdbn", "edsr"])
def test_the_peer_makes_the_same_image(model):
    pytest.importorskip("torch")
    result = run("benchmarks/superres.py", *TINY, f"--model={model}", "--peer=torch", "--no-compile", "--no-memory")
    assert result.returncode == 0, result.stderr[-2000:]
    scale = json.loads(result.stdout)["scales"]["x3"]
    assert set(scale["programs"]) == {"jaxkd", "eager", "channels_last"}
    assert scale["agree"] and max(scale["difference"].values()) < 1e-4
    for kind in ("latency", "throughput"):
        fastest = scale[f"{kind}_fastest_peer"]
        assert fastest in ("eager", "channels_last") and scale[f"{kind}_fastest_peer_to_jaxkd"]["median"] > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("superres.py", "--scales=5"), "--scales=[5]"),
        (("superres.py", "--scales=a"), "--scales=a"),
        (("superres.py", "--size=1280"), "--size=(1280,)"),
        (("superres.py", "--repeats=0"), "--repeats=0"),
        (("before_after.py", "--out=a.png"), "--weights=[]"),
        (("before_after.py", "--out=a.png", "--weights=A=/nowhere"), "LABEL=WORKDIR"),
    ],
)
def test_a_wrong_option_is_one_sentence(wrong, said):
    result = run(f"benchmarks/{wrong[0]}", *wrong[1:])
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def trained(tmp_path):
    """A work directory of a tiny network after one step."""
    pytest.importorskip("skimage")
    options = "student.args.num_feat=4 student.args.num_block=1 schedule.steps=1 train.batch_size=1"
    made = run(
        *("-m", "jaxkd.main", "--config=configs/mdbn_x4.py:embedded", f"--workdir={tmp_path / 'run'}"),
        *(f"--config.{option}" for option in options.split()),
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return tmp_path / "run"


def test_before_and_after(trained, tmp_path):
    from PIL import Image

    out = tmp_path / "before_after.png"
    made = run("benchmarks/before_after.py", f"--weights=tiny={trained}", f"--out={out}")
    assert made.returncode == 0, made.stderr[-2000:]
    printed = json.loads(made.stdout)
    assert {Path(p).name for p in printed["psnr_y"]} == {"chelsea.png", "coffee.png"}
    assert all(scores["bicubic"] > 25 and scores["tiny"] > 5 for scores in printed["psnr_y"].values())
    assert min(Image.open(out).size) > 400
    photo = next(p for p in printed["psnr_y"] if "coffee" in p)
    for wrong, said in (
        ((f"--image={photo}:0,0,500,10",), "leaves"),
        ((f"--image={photo}:0,0,0,10",), "is not a file and a box"),
        ((f"--weights=tiny={trained}",), "not told apart"),
        ((f"--out={tmp_path / 'missing' / 'a.png'}",), "folder that exists"),
    ):
        made = run("benchmarks/before_after.py", f"--weights=tiny={trained}", f"--out={out}", *wrong)
        assert made.returncode == 2 and said in made.stderr and "Traceback" not in made.stderr, (wrong, made.stderr)
