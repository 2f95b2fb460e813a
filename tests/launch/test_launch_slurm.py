"""launch/slurm.sbatch under programs that stand in for those of Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import launching
import pytest

# Two tasks on this machine with the variables that JAX looks for; the code is the highest of the tasks, as srun's is.
SRUN = """
[[ $1 == --label && $2 == --kill-on-bad-exit=0 ]] || exit 99
shift 2
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_NODES=1
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" > >(sed -u "s/^/$task: /") 2>&1 &
  pids[task]=$!
done
echo "${pids[@]}" > "$MARKS/tasks.new" && mv "$MARKS/tasks.new" "$MARKS/tasks"
worst=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  ((code <= worst)) || worst=$code
done
exit $worst
"""
SCANCEL = """
[[ "$*" == "--signal=TERM $SLURM_JOB_ID" ]] || exit 99
kill -TERM $(cat "$MARKS/tasks")
"""
SCONTROL = """
[[ -z ${REFUSE-} ]] || exit 1
echo "$*" >> "$MARKS/requeued"
"""


def slurm(folder, **variables):
    """An environment in which a job of two tasks runs, and its programs."""
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        launching.stand_in(folder, name, text)
    number = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2"}
    return launching.environment(folder, **number, MARKS=str(folder), **variables)


def job(environment, *argv):
    command = ["bash", str(launching.LAUNCH / "slurm.sbatch"), *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=launching.ROOT, env=environment, **pipes)


def ended(running, after=lambda: True, number=None):
    """(code, output) of a job that gets the signal `number` once `after()` is true."""
    with running:
        try:
            deadline = time.monotonic() + 240
            while not after():
                assert time.monotonic() < deadline and running.poll() is None
                time.sleep(0.05)
            if number is not None:
                running.send_signal(number)
            output = running.communicate(timeout=240)[0]
        finally:
            running.kill()
    return running.returncode, output


# Stands in for python: ends with $CODE when it is asked to stop, at once without STOPPED.
TASK = """
echo "task $SLURM_PROCID sees ${JAX_LOCAL_DEVICE_IDS-its own GPU}: $*"
[[ -n ${STOPPED-} ]] || exit $CODE
trap 'exit $CODE' TERM
touch "$MARKS/ready$SLURM_PROCID"
while true; do sleep 0.1; done
"""


def run_tasks(tmp_path, code, number=None, **variables):
    """(code, output, requeued) of a job of two tasks that end with `code`, after the signal `number` to the script."""
    python = launching.stand_in(tmp_path, "task", TASK)
    waiting = {} if number is None else {"STOPPED": "yes"}
    environment = slurm(tmp_path, PYTHON=str(python), CODE=str(code), GRACE_SECONDS="0", **waiting, **variables)
    marks = [tmp_path / "tasks", *([tmp_path / f"ready{i}" for i in (0, 1)] if waiting else [])]
    result = ended(job(environment, "--", "--config=a b"), lambda: all(m.exists() for m in marks), number)
    requeued = (tmp_path / "requeued").read_text() if (tmp_path / "requeued").exists() else ""
    return *result, requeued == f"requeue {environment['SLURM_JOB_ID']}\n"


@pytest.mark.parametrize(("code", "ends", "again"), [(3, 0, True), (143, 0, True), (0, 0, False), (2, 2, False)])
def test_a_job_whose_time_is_over_saves_and_requeues_itself(tmp_path, code, ends, again):
    found, output, requeued = run_tasks(tmp_path, code, signal.SIGUSR1)
    assert (found, requeued) == (ends, again), output
    assert "is nearly over; saving" in output


def test_a_job_that_cannot_be_requeued_says_so(tmp_path):
    code, output, _ = run_tasks(tmp_path, 3, signal.SIGUSR1, REFUSE="yes")
    assert code == 2 and "was not requeued. Submit it again with the same command; it continues." in output


@pytest.mark.parametrize("code", [0, 2, 3])
def test_the_end_of_the_tasks_is_that_of_the_job(tmp_path, code):
    found, output, requeued = run_tasks(tmp_path, code)
    assert (found, requeued) == (code, False)
    assert "0: task 0 sees its own GPU: -m jaxkd.main --distributed --config=a b" in output


def test_sigterm_to_the_script_does_not_reach_the_tasks_twice(tmp_path):
    python = launching.stand_in(tmp_path, "task", TASK)
    environment = slurm(tmp_path, PYTHON=str(python), CODE="3", GRACE_SECONDS="0", STOPPED="yes")
    running = job(environment, "--", "x")

    def preempted():
        if not all((tmp_path / f"ready{i}").exists() for i in (0, 1)):
            return False
        running.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert running.poll() is None  # waits for the tasks, which Slurm signals itself
        for pid in (tmp_path / "tasks").read_text().split():
            os.kill(int(pid), signal.SIGTERM)
        return True

    code, output = ended(running, preempted)
    assert code == 3 and not (tmp_path / "requeued").exists(), output


def test_one_task_of_a_node_takes_all_its_gpus(tmp_path):
    _, output, _ = run_tasks(tmp_path, 0, SLURM_GPUS_ON_NODE="4")
    assert "task 1 sees 0,1,2,3: " in output


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--config=a",), "The arguments of jaxkd.main must follow --"),
        (("--",), "No arguments of jaxkd.main were given. Write -- --config"),
        (("--", "x"), "This is no job of Slurm. Start it with sbatch"),
    ],
)
def test_wrong_use_is_refused(argv, words):
    message = launching.refusal("slurm.sbatch", *argv, env=launching.environment())
    assert message.startswith(f"launch/slurm.sbatch: {words}")


@pytest.mark.slow
def test_training_on_two_tasks_continues_after_it_was_requeued(tmp_path):
    run, marks = tmp_path / "run", tmp_path / "bin"
    environment = slurm(marks, PYTHON=sys.executable)

    def saved():
        return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdigit())

    arguments = ("--", *launching.training(run, 10**6))
    code, output = ended(job(environment, *arguments), saved, signal.SIGUSR1)
    assert code == 0 and (marks / "requeued").read_text().startswith("requeue "), output
    assert "Traceback" not in output
    step = saved()[-1]

    arguments = ("--", *launching.training(run, step + 3))  # the same command, but for its end
    code, output = ended(job(environment | {"SLURM_RESTART_COUNT": "1"}, *arguments))
    assert code == 0, output
    assert ", start 2\n" in output and f"continues after step {step:,}" in output
    result = json.loads((run / "result.json").read_text())
    assert result["step"] == step + 3 and result["device"] == "2 x cpu"
