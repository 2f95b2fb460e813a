"""benchmarks/input_pipeline.py: what it prints and how it fails, not how long anything takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
OURS = {"pillow", "region", "region_dct"}
TINY = ("--image-size=32", "--batch-size=4", "--turns=2", "--batches=2", "--profile=6", "--rates", "100")

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for i, folder in enumerate(("", "train/cat", "train/dog")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (90 + i, 120, 3), np.uint8)).save(tmp_path / folder / f"{i}.jpg")
    return tmp_path


def printed(*options: str) -> dict:
    result = subprocess.run(
        [sys.executable, "benchmarks/input_pipeline.py", *TINY, *options],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)  # nothing but the object is on stdout


def check(result: dict, names: set[str]) -> None:
    assert set(result["throughput"]) == names
    for rates in result["throughput"].values():
        assert 0 < rates["images_per_second"]["median"] <= rates["images_per_second"]["best"]
        assert rates["cpu_ms_per_image"] * rates["images_per_second_per_core"] == pytest.approx(1000, rel=0.01)
        cores = rates["cores_for_images_per_second"]["100"]
        assert cores == pytest.approx(100 / rates["images_per_second_per_core"], abs=0.06)
    assert result["images"]["files"] == 3  # at any depth
    assert set(result["stages_cpu_ms_per_image"]["decode_crop_resize"]) == OURS
    assert min(result["stages_cpu_ms_per_image"]["ours"].values()) >= 0
    assert set(result["device"]["ms_per_image"]) == {"normalise", "normalise_and_erase"}
    assert result["timed_images"] == 2 * 2 * 4 and result["workers"] >= 1


def test_prints_rates_stages_and_cores(images):
    result = printed(f"--images={images}", "--workers=1")
    check(result, OURS)
    assert "ratio" not in result and "timm" not in result["stages_cpu_ms_per_image"]


@pytest.mark.parity
def test_prints_ratios_to_the_peer(images, timm):
    result = printed(f"--images={images}", "--peer=torch")
    check(result, OURS | {"timm", "timm_prefetcher"})
    assert set(result["ratio"]) == {f"{o}_to_{t}" for o in OURS for t in ("timm", "timm_prefetcher")}
    times = result["throughput"]
    expected = times["timm"]["cpu_ms_per_image"] / times["region"]["cpu_ms_per_image"]
    assert result["ratio"]["region_to_timm"]["cpu"] == pytest.approx(expected, rel=0.01)  # above 1: we are faster
    assert set(result["stages_cpu_ms_per_image"]["timm"]) >= {"RandAugment", "Normalize", "RandomErasing"}
    assert result["versions"]["timm"] == timm.__version__


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images=photos", "--turns=0"), "--turns=0 must be at least 1"),
        (("--images=photos", "--batch-size=0"), "--batch-size=0 must be at least 1"),
        (("--images=/no/such/folder",), 'There is no image below --images="/no/such/folder"'),
    ],
)
def test_mistakes_are_one_paragraph(options, words, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import input_pipeline

    assert input_pipeline.main(list(options)) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("jaxkd: ") and words in err
