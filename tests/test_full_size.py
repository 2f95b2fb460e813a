"""The published networks at full size on real JPEGs, from the command line, with a state dict made by timm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxkd import train

ROOT = Path(__file__).resolve().parent.parent
LOSSES = ("loss", "ce", "kl", "spectral", "grad_norm")


@pytest.mark.slow
@pytest.mark.parity
def test_deit_tiny_from_cait_s24_trains(timm, shared_data, tmp_path):
    from safetensors.torch import save_file
    from torch import manual_seed

    images = sorted((shared_data("imagenet1k_sample_256") / "img").glob("*.jpg"))
    for split, chosen in (("train", images), ("val", images[::50])):
        for image in chosen:
            (tmp_path / "data" / split / image.name[:9]).mkdir(parents=True)
            (tmp_path / "data" / split / image.name[:9] / image.name).symlink_to(image)
    manual_seed(0)
    teacher = timm.create_model("cait_s24_224", pretrained=False)
    save_file(teacher.state_dict(), tmp_path / "cait.safetensors")
    command = [
        *(sys.executable, "-m", "jaxkd.main", f"--config={ROOT}/configs/deit_cait.py", f"--workdir={tmp_path}/run"),
        f"--config.data.source={tmp_path}/data",
        f"--config.teacher.weights={tmp_path}/cait.safetensors",
        "--config.train.batch_size=4",
        "--config.train.steps=2",
        "--config.checkpoint.every_steps=2",
        "--config.log.every_steps=1",
        "--config.data.workers=2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = train.read_metrics(tmp_path / "run", "train")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row[name]) and row[name] > 0 for row in rows for name in LOSSES)
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["finished"] and result["val_images"] == len(images[::50])
