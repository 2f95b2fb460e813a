"""launch/local.sh: several processes of one run on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import launching
import numpy as np
import pytest

from jaxkd import main

SHOW = """
case $* in
-c*) echo 4321 ;;
*) echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS," \\
     "gpus=${CUDA_VISIBLE_DEVICES-none}/${JAX_LOCAL_DEVICE_IDS-none} ${JAX_PLATFORMS-}${JAX_NUM_CPU_DEVICES-}: $*" ;;
esac
"""


def shown(programs, *argv, **variables):
    """The lines of all processes, where python prints its environment."""
    launching.stand_in(programs, "python", SHOW)
    environment = launching.environment(programs, **variables)
    environment.pop("JAX_PLATFORMS", None)
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    done = launching.call("local.sh", *argv, env=environment)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def test_each_process_has_its_rank_and_cpu_devices(tmp_path):
    lines = shown(
        tmp_path / "bin", "-n", "2", "--devices=3", "--", "--config=a b", "--workdir=w", CUDA_VISIBLE_DEVICES=""
    )
    end = "-m jaxkd.main --distributed --config=a b --workdir=w"
    assert lines == [f"[{i}] {i} of 2 at 127.0.0.1:4321, gpus=/none cpu3: {end}" for i in (0, 1)]


def test_gpus_are_split(tmp_path):
    lines = shown(tmp_path / "bin", "-n", "2", "--port=99", "--", "x", CUDA_VISIBLE_DEVICES="2,3,5,7")
    assert [line.split(": ")[0] for line in lines] == [
        "[0] 0 of 2 at 127.0.0.1:99, gpus=2,3/0,1 ",
        "[1] 1 of 2 at 127.0.0.1:99, gpus=5,7/0,1 ",
    ]
    assert len(shown(tmp_path / "bin", "--", "x", CUDA_VISIBLE_DEVICES="0,1,2")) == 3  # one process for each
    launching.stand_in(tmp_path / "bin", "nvidia-smi", 'printf "0\\n1\\n2\\n3\\n"')
    assert len(shown(tmp_path / "bin", "--", "x")) == 4
    assert "cpu1" in shown(tmp_path / "bin", "--cpu", "--", "x")[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "No arguments of jaxkd.main were given. Write -- --config"),
        (("--workdir=x",), '"--workdir=x" is not an option. Put the arguments of jaxkd.main after --'),
        (("-n", "0", "--", "x"), "-n 0 is not a number of processes. Give a whole number from 1"),
        (("--devices=two", "--", "x"), "--devices=two is not a number of devices"),
        (("-n", "2", "--", "x"), "3 GPUs do not divide over 2 processes. Choose another -n"),
    ],
)
def test_wrong_arguments_are_refused(argv, words):
    environment = launching.environment(CUDA_VISIBLE_DEVICES="0,1,2")
    assert f"launch/local.sh: {words}" in launching.refusal("local.sh", *argv, env=environment)


def test_a_missing_interpreter_is_named():
    environment = launching.environment(PYTHON="no-python", CUDA_VISIBLE_DEVICES="")
    assert 'There is no "no-python". Activate' in launching.refusal("local.sh", "--", "x", env=environment)


FAILS = """
case $* in -c*) echo 4321; exit ;; esac
trap 'echo asked to stop; exit 5' TERM
touch "$MARKS/$JAX_PROCESS_ID"
while true; do
  sleep 0.1
  if [[ $JAX_PROCESS_ID == 1 && -e $MARKS/0 && -e $MARKS/2 ]]; then exit 7; fi
done
"""


def test_the_code_is_that_of_the_first_failure_and_the_others_are_ended(tmp_path):
    launching.stand_in(tmp_path, "python", FAILS)
    environment = launching.environment(tmp_path, MARKS=str(tmp_path))
    done = launching.call("local.sh", "-n", "3", "--cpu", "--", "x", env=environment)
    assert done.returncode == 7
    assert sorted(done.stdout.splitlines()) == ["[0] asked to stop", "[2] asked to stop"]


COUNTS = """
case $* in -c*) echo 4321; exit ;; esac
trap 'echo interrupted; touch "$MARKS/heard-$JAX_PROCESS_ID"' INT
touch "$MARKS/$JAX_PROCESS_ID"
for i in {1..10}; do sleep 0.1; done
while [[ ! -e $MARKS/end ]]; do sleep 0.1; done
exit 3
"""


def test_ctrl_c_reaches_each_process_once(tmp_path):
    """A terminal sends SIGINT to the group of the script; a second one would end a process that is saving."""
    launching.stand_in(tmp_path, "python", COUNTS)
    command = ["bash", str(launching.LAUNCH / "local.sh"), "-n", "2", "--cpu", "--", "x"]
    environment = launching.environment(tmp_path, MARKS=str(tmp_path))
    options = {"cwd": launching.ROOT, "env": environment, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **options) as running:
        try:
            deadline = time.monotonic() + 30
            while not all((tmp_path / str(i)).exists() for i in (0, 1)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(running.pid, signal.SIGINT)
            while not all((tmp_path / f"heard-{i}").exists() for i in (0, 1)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(0.5)  # for a second signal, if there is one
            (tmp_path / "end").touch()
            output = running.communicate(timeout=30)[0]
        finally:
            running.kill()
    assert running.returncode == 3
    assert sorted(output.splitlines()) == ["[0] interrupted", "[1] interrupted"]


def process_of_rank(script: int, rank: int) -> int:
    """Number of the process that local.sh (process `script`) started as `rank`."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            given = (folder / "environ").read_bytes().split(b"\0")
            if (
                int(parent) == script
                and f"JAX_PROCESS_ID={rank}".encode() in given
                and b"jaxkd.main" in (folder / "cmdline").read_bytes().split(b"\0")
            ):
                return int(folder.name)
    raise AssertionError(f"process {rank} is not there")


def losses(run: Path) -> dict[int, float]:
    """step -> loss of that step."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


@pytest.mark.slow
def test_a_signal_to_one_process_saves_the_run_which_continues_exactly_on_two_processes_and_on_one(tmp_path):
    def arguments(name, steps):
        more = ("optimizer.reference_batch=0", "schedule.kind=constant", "schedule.warmup_epochs=0")
        argv = [f"--config.{field}" for field in (*more, "log.every_steps=1", "log.tensorboard=False")]
        return [*launching.training(tmp_path / name, steps), *argv]

    two = ["-n", "2", "--cpu", "--"]
    command = ["bash", str(launching.LAUNCH / "local.sh"), *two, *arguments("two", 10**6)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=launching.ROOT, env=launching.environment(), **pipes) as running:
        try:
            deadline = time.monotonic() + 240
            while not list((tmp_path / "two" / "checkpoints").glob("[0-9]*")):
                assert time.monotonic() < deadline and running.poll() is None
                time.sleep(0.1)
            os.kill(process_of_rank(running.pid, 1), signal.SIGTERM)
            output = running.communicate(timeout=120)[0]
        finally:
            running.terminate()  # the script passes it on
    assert running.returncode == 3 and "Traceback" not in output, output
    saved = max(int(path.name) for path in (tmp_path / "two" / "checkpoints").glob("[0-9]*"))
    end = saved + 5
    shutil.copytree(tmp_path / "two", tmp_path / "one")

    done = launching.call("local.sh", *two, *arguments("two", end), env=launching.environment())
    assert done.returncode == 0 and f"continues after step {saved:,}" in done.stdout, done.stdout
    for name in ("one", "uninterrupted"):
        assert main.main(arguments(name, end)) == 0
    expected = losses(tmp_path / "uninterrupted")
    assert list(expected) == list(range(1, end + 1)) and np.ptp(list(expected.values())) > 0.02
    for name, device in (("two", "2 x cpu"), ("one", "1 x cpu")):
        assert losses(tmp_path / name) == pytest.approx(expected, rel=1e-5), name
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert (result["step"], result["device"]) == (end, device)
