"""Faults of whole runs: each is compared with a run of the same command that nothing disturbed."""

from __future__ import annotations

import atexit
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import killing

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
ARGS = (
    "--config=configs/supervised.py:deit_tiny_patch16_224",
    *("--config.data.source=embedded:digits", "--config.data.workers=0", "--config.train.batch_size=32"),
    *("--config.student.args.img_size=16", "--config.student.args.patch_size=8", "--config.student.args.depth=1"),
    *("--config.student.args.embed_dim=12", "--config.student.args.num_heads=2", "--config.optimizer.accumulate=2"),
    *(f"--config.train.steps={STEPS}", "--config.checkpoint.every_steps=4", "--config.checkpoint.every_epochs=0"),
    *("--config.eval.every_steps=20", "--config.log.every_steps=4", "--config.optimizer.reference_batch=0"),
    *("--config.ema.decay=0.9", "--config.schedule.warmup_epochs=1"),
)
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.argv[2], sys.argv[2:])
"""
END = 300.0  # seconds after which a process counts as hanging


def start(workdir: Path, *, limit: int | None = None) -> subprocess.Popen:
    """The run as a process, with its output in one pipe; no file of it may grow beyond `limit` bytes."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(_cache()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    command = [sys.executable, "-m", "jaxkd.main", *ARGS, f"--workdir={workdir}"]
    if limit is not None:
        command = [sys.executable, "-c", LIMITED, str(limit), *command]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    """The output of a process that ends by itself."""
    try:
        return process.communicate(timeout=END)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the run hung for {END:.0f} s") from None


@functools.cache
def _cache() -> Path:
    return Path(tempfile.mkdtemp(prefix="faults-cache-"))


@functools.cache
def undisturbed() -> tuple[Path, float]:
    """(work directory of a run without faults, seconds that the run took)."""
    folder = Path(tempfile.mkdtemp(prefix="faults-reference-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    first = start(folder / "warm")  # compiles
    assert finish(first) is not None and first.returncode == 0
    begin = time.monotonic()
    process = start(folder / "run")
    output = finish(process)
    assert process.returncode == 0, output[-1000:]
    return folder / "run", time.monotonic() - begin


def differences(workdir: Path) -> str:
    """What the finished run in `workdir` holds otherwise than the undisturbed one, or ""."""
    return ", ".join(killing.differences(undisturbed()[0], workdir)[:4])


def complete(workdir: Path) -> str:
    """Continues the run to its end and compares it; what was lost, or ""."""
    process = start(workdir)
    output = finish(process)
    if process.returncode:
        return f"could not be continued (exit code {process.returncode}): {output[-500:]}"
    return differences(workdir)


def _traceback(output: str) -> str:
    at = output.index("Traceback")
    return output[max(0, at - 200) : at + 2000]


def kill(rng: random.Random, folder: Path) -> str:
    """One to three times kill -9."""
    seconds = undisturbed()[1]
    for _ in range(rng.randint(1, 3)):
        process = start(folder / "run")
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        process.kill()
        finish(process)
    return complete(folder / "run")


def stop(rng: random.Random, folder: Path) -> str:
    """One signal that asks a process to end."""
    process = start(folder / "run")
    time.sleep(rng.uniform(0.1, 1.0) * undisturbed()[1])
    number = rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    process.send_signal(number)
    output = finish(process)
    if "Traceback" in output:
        return f"{number.name}: a traceback: {_traceback(output)}"
    return complete(folder / "run")


def full_disk(rng: random.Random, folder: Path) -> str:
    """No file may grow beyond a random size, which a full disk or a quota looks like from inside."""
    limit = rng.choice((0, 100, 1_000, 5_000, 20_000, 60_000))
    seconds = undisturbed()[1]
    if rng.random() < 0.5:  # full from the start, or after some checkpoints
        process = start(folder / "run")
        time.sleep(rng.uniform(0.5, 0.9) * seconds)
        process.kill()
        finish(process)
    process = start(folder / "run", limit=limit)
    output = finish(process)
    if "Traceback" in output:
        return f"{limit} bytes: a traceback: {_traceback(output)}"
    if process.returncode not in (0, 2):
        return f"{limit} bytes: exit code {process.returncode}: {output[-300:]}"
    return complete(folder / "run")


def two_at_once(rng: random.Random, folder: Path) -> str:
    """Two processes begin at about the same time; one must be refused and the other's result be whole."""
    processes = [start(folder / "run")]
    time.sleep(rng.uniform(0.0, 0.8) * undisturbed()[1])
    processes.append(start(folder / "run"))
    outputs = [finish(process) for process in processes]
    codes = [process.returncode for process in processes]
    if any("Traceback" in output for output in outputs):
        return f"a traceback: {_traceback(max(outputs, key=lambda o: 'Traceback' in o))}"
    if sorted(codes) not in ([0, 2], [0, 0]):
        return f"exit codes {codes}: {outputs[0][-200:]} {outputs[1][-200:]}"
    if codes == [0, 0] and "were done before" not in outputs[1] + outputs[0]:
        return "both trained"
    return differences(folder / "run")
