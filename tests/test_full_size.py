"""The published networks at full size on real JPEGs, from the command line, with a state dict made by timm."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxkd import train

ROOT = Path(__file__).resolve().parent.parent
LOSSES = ("loss", "ce", "kl", "spectral", "grad_norm")


@pytest.mark.slow
@pytest.mark.parity
def test_deit_tiny_from_cait_s24_killed_and_resumed_is_the_uninterrupted_run(timm, shared_data, tmp_path):
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
    argv = [
        *(sys.executable, "-m", "jaxkd.main", f"--config={ROOT}/configs/deit_cait.py"),
        f"--config.data.source={tmp_path}/data",
        f"--config.teacher.weights={tmp_path}/cait.safetensors",
        "--config.train.batch_size=8",
        "--config.train.steps=6",
        "--config.checkpoint.every_steps=3",
        "--config.log.every_steps=1",
        "--config.data.workers=2",
    ]
    whole = subprocess.run([*argv, f"--workdir={tmp_path}/whole"], cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr

    victim = subprocess.Popen([*argv, f"--workdir={tmp_path}/killed"], cwd=ROOT, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "checkpoints" / "3"
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and victim.poll() is None and not checkpoint.is_dir():
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL and checkpoint.is_dir()
    assert not (tmp_path / "killed" / "result.json").exists()
    again = subprocess.run([*argv, f"--workdir={tmp_path}/killed"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "continues after step 3" in again.stdout

    expected, got = (
        [[row[k] for k in LOSSES] for row in train.read_metrics(tmp_path / name, "train")]
        for name in ("whole", "killed")
    )
    assert len(expected) == 6
    assert expected == got
