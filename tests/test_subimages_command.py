"""`jaxkd subimages`: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxkd import subimages

ROOT = Path(__file__).resolve().parent.parent


def without_progress(text: str) -> str:
    """What a command printed but for lines of progress, which a busy machine has time to print."""
    return re.sub(r"(?m)^[\w: ]*\d+/\d+.*\n", "", text)


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(root / f"{i}.png")
    return root


def test_as_a_program_it_cuts_then_finds_everything_done(images, tmp_path):
    command = [sys.executable, "-m", "jaxkd.subimages", f"--in={images}", f"--out={tmp_path / 'out'}"]
    command += ["--size=32", "--step=16"]
    for written in (18, 0):
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
        )
        assert done.returncode == 0 and not without_progress(done.stderr)
        line, data = done.stdout.strip().splitlines()
        assert line.startswith(f"18 sub-images of 3 images, {written} new, 0 images unreadable, ")
        assert json.loads(data) == {"images": 3, "subimages": 18, "written": written, "small": 0, "failed": []}


def test_unreadable_images_show_in_the_exit_code(images, tmp_path, capsys):
    (images / "1.png").write_bytes(b"no image")
    assert subimages.main([f"--in={images}", f"--out={tmp_path / 'out'}", "--size=50"]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("4 sub-images of 2 images, 2 of them smaller than 50 and kept whole there, 4 new, 1 ")
    err = without_progress(shown.err)
    assert err.startswith("jaxkd: left out. The file") and "1.png" in err and err.count("\n") == 1


def test_ctrl_c(images, tmp_path, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(subimages, "cut_folder", interrupt)
    assert subimages.main([f"--in={images}", f"--out={tmp_path / 'out'}"]) == 3
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "the following arguments are required: --in, --out"),
        ("--in=x", "the following arguments are required: --out"),
        ("--in=nowhere --out=x", 'The folder "nowhere" does not exist'),
        ("--in=x --out=y --size=0", "size=0 is out of range"),
        ("--in=x --out=y --workers=-1", "--workers=-1 is out of range"),
        ("--in=x --out=y --sise=3", "was not understood"),
        ("--in=images --out=/proc/nothing", "cannot be read or written"),
    ],
)
def test_a_mistyped_command(images, tmp_path, monkeypatch, complaint_of, arguments, words):
    monkeypatch.chdir(tmp_path)
    text = complaint_of(subimages.main, arguments.split())
    assert "\n" not in text and words in text
    assert [p.name for p in tmp_path.iterdir()] == ["images"]
