"""launch/local.sh: several processes of one run on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import launching
import pytest

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
trap 'echo interrupted' INT
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
            time.sleep(1)
            (tmp_path / "end").touch()
            output = running.communicate(timeout=30)[0]
        finally:
            running.kill()
    assert running.returncode == 3
    assert sorted(output.splitlines()) == ["[0] interrupted", "[1] interrupted"]


@pytest.mark.slow
def test_both_processes_save_on_a_signal_and_continue(tmp_path):
    run = tmp_path / "run"
    command = ["bash", str(launching.LAUNCH / "local.sh"), "-n", "2", "--cpu", "--", *launching.training(run, 10**6)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=launching.ROOT, env=launching.environment(), **pipes) as running:
        try:
            deadline = time.monotonic() + 240
            while not list((run / "checkpoints").glob("[0-9]*")):
                assert time.monotonic() < deadline and running.poll() is None
                time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            output = running.communicate(timeout=120)[0]
        finally:
            running.kill()
    assert running.returncode == 3, output
    assert "[0] " in output and "Traceback" not in output
    saved = max(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))

    done = launching.call(
        "local.sh", "-n", "2", "--cpu", "--", *launching.training(run, saved + 3), env=launching.environment()
    )
    assert done.returncode == 0, done.stdout
    assert f"continues after step {saved:,}" in done.stdout
    result = json.loads((run / "result.json").read_text())
    assert result["step"] == saved + 3 and result["device"] == "2 x cpu"
