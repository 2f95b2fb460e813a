"""Shared by the tests of launch/: commands in the repository's root, programs that stand in for others, a tiny run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = ROOT / "launch"

NETWORK = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 12, "num_heads": 2}


def training(workdir: Path, steps: int) -> list[str]:
    """Arguments of `jaxkd.main` for a run of a tiny network on the digits of scikit-learn."""
    argv = ["--config=configs/supervised.py:deit_tiny_patch16_224", "--config.data.source=embedded:digits"]
    argv += [f"--config.student.args.{name}={value}" for name, value in NETWORK.items()]
    argv += ["--config.data.workers=0", "--config.train.batch_size=32", f"--config.train.steps={steps}"]
    return [*argv, "--config.checkpoint.every_steps=20", f"--workdir={workdir}"]


def stand_in(folder: Path, name: str, text: str) -> Path:
    """An executable shell script in `folder`, which the caller puts on PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)
    return path


def environment(programs: Path | None = None, **variables: str) -> dict[str, str]:
    """This process's environment without what a cluster or GPUs have set; PATH: `programs`, this Python, the rest."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAX_COORDINATOR", "CUDA_"))}
    folders = [programs, Path(sys.executable).parent, os.environ["PATH"]]
    return kept | {"PATH": ":".join(str(folder) for folder in folders if folder), **variables}


def call(script: str, *argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A script of launch/ that has ended."""
    command = ["bash", str(LAUNCH / script), *argv]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300, **options)


def refusal(script: str, *argv: str, **options: object) -> str:
    """The one line with which a script refuses its arguments."""
    done = call(script, *argv, **options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, (done.returncode, done.stderr)
    return done.stderr
