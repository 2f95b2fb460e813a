"""launch/tpu_pod.sh: the commands that it prints, and its loop against a gcloud that stands in for the cloud."""

from __future__ import annotations

import subprocess
import time

import launching
import pytest

PLACE = ("--zone=us-west4-a", "--project=p")
RUN = ("--", "--config=configs/a.py:x", "--workdir=/mnt/jaxkd/runs/a", "--config.student.args.img_size=(16, 8)")

# A slice of two workers whose homes are folders here. $MARKS/state is the state of the queued resource.
GCLOUD = r"""
echo "$*" >> "$MARKS/calls"
case $* in
*"queued-resources create"*) echo WAITING_FOR_RESOURCES > "$MARKS/state"; mkdir -p "$MARKS/workers"/{0,1} ;;
*"queued-resources describe"*)
  if [[ ! -e $MARKS/state ]]; then echo "ERROR: NOT_FOUND: Resource" >&2; exit 1; fi
  cat "$MARKS/state"
  case $(cat "$MARKS/state") in
  WAITING_FOR_RESOURCES) echo ACTIVE > "$MARKS/state" ;;
  SUSPENDING) echo SUSPENDED > "$MARKS/state" ;;
  esac ;;
*"queued-resources delete"*) rm -r "$MARKS/state" "$MARKS/workers" ;;
*) # ssh and scp
  [[ $(cat "$MARKS/state") == ACTIVE && $* == *--worker=all* ]] || exit 255
  if [[ -e $MARKS/silent && $* == *"echo code="* ]]; then rm "$MARKS/silent"; echo code=0 one; exit 1; fi
  for worker in 0 1; do
    home=$MARKS/workers/$worker
    if [[ $4 == scp ]]; then cp "$5" "$home/${6#*:}"; continue; fi
    for word; do
      if [[ $word == --command=* ]]; then (cd "$home"; HOME=$home WORKER=$worker bash -c "${word#*=}"); fi
    done
  done ;;
esac
"""
SLEEP = "exec /bin/sleep 0.05"
UV = r"""
if [[ $1 == venv ]]; then mkdir -p .venv/bin; cp "$MARKS/trainer" .venv/bin/python; fi
"""
# The first run is preempted: the slice is taken away, and the processes save and end with 3.
PREEMPTED_ONCE = r"""
echo "$WORKER: $*" >> "$MARKS/trained"
[[ -f jaxkd/main.py ]] || exit 9
if [[ $(wc -l < "$MARKS/trained") -le 2 ]]; then echo SUSPENDING > "$MARKS/state"; exit 3; fi
"""


def pod(tmp_path, trainer):
    """An environment with a cloud in which training is the script `trainer`."""
    launching.stand_in(tmp_path, "trainer", trainer)
    for name, text in {"gcloud": GCLOUD, "uv": UV, "sudo": "", "mountpoint": "", "sleep": SLEEP}.items():
        launching.stand_in(tmp_path / "bin", name, text)
    return launching.environment(tmp_path / "bin", MARKS=str(tmp_path), TMPDIR=str(tmp_path))


def up_arguments(*options):
    return ("up", *PLACE, "--spot", "--nfs=10.0.0.2:/share", "--poll=0", *options, *RUN)


def up(environment, *options):
    return launching.call("tpu_pod.sh", *up_arguments(*options), env=environment)


def verbs(tmp_path):
    """The third and fourth word of each call of gcloud, without those that only look."""
    calls = [" ".join(line.split()[2:4]) for line in (tmp_path / "calls").read_text().splitlines()]
    looks = ("queued-resources describe", "tpu-vm ssh")
    return [call for call in calls if call not in looks]


def test_up_creates_the_slice_again_after_a_preemption_and_deletes_it_at_the_end(tmp_path):
    done = up(pod(tmp_path, PREEMPTED_ONCE))
    assert done.returncode == 0, done.stderr
    create, copy, delete = "queued-resources create", "tpu-vm scp", "queued-resources delete"
    assert verbs(tmp_path) == [create, copy, delete, create, copy, delete]
    assert "The run was interrupted (preempted); starting it again." in done.stderr
    words = "-u -m jaxkd.main --distributed --config=configs/a.py:x --workdir=/mnt/jaxkd/runs/a"
    lines = sorted((tmp_path / "trained").read_text().splitlines())
    assert lines == [f"{worker}: {words} --config.student.args.img_size=(16, 8)" for worker in (0, 0, 1, 1)]


def test_up_ends_after_as_many_interruptions_as_it_was_told(tmp_path):
    done = up(pod(tmp_path, 'echo SUSPENDING > "$MARKS/state"; exit 3'), "--restarts=1")
    assert done.returncode == 2 and "was interrupted 2 times, and --restarts=1. Call up again" in done.stderr


def test_a_failed_run_shows_its_log_and_leaves_the_slice(tmp_path):
    done = up(pod(tmp_path, "echo jaxkd: no such config; exit 2"))
    assert done.returncode == 2 and done.stdout.count("jaxkd: no such config") == 2
    assert "The run failed (above); jaxkd stays and is charged for." in done.stderr
    assert verbs(tmp_path) == ["queued-resources create", "tpu-vm scp"]


def test_a_worker_that_does_not_answer_is_not_taken_for_one_that_has_finished(tmp_path):
    done = up(pod(tmp_path, '[[ $WORKER == 1 ]] && touch "$MARKS/silent"; exit 2'))
    assert not (tmp_path / "silent").exists() and done.returncode == 2
    assert "queued-resources delete" not in verbs(tmp_path)


def test_a_run_is_attached_to_and_stopped(tmp_path):
    environment = pod(
        tmp_path, 'echo x >> "$MARKS/trained"; trap "exit 3" TERM; for i in {1..1200}; do sleep 0.05; done'
    )
    for verb, rest in {"create": ("--poll=0",), "install": (), "run": RUN}.items():
        done = launching.call("tpu_pod.sh", verb, *PLACE, *rest, env=environment)
        assert done.returncode == 0, done.stderr
    status = launching.call("tpu_pod.sh", "status", *PLACE, env=environment).stdout.splitlines()
    assert [line.split()[0] for line in status] == ["ACTIVE", "code=running", "code=running"]
    command = ["bash", str(launching.LAUNCH / "tpu_pod.sh"), *up_arguments()]
    looks = (tmp_path / "calls").read_text().count("tpu-vm ssh")
    options = {"cwd": launching.ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as running:
        try:
            deadline = time.monotonic() + 60
            while (tmp_path / "calls").read_text().count("tpu-vm ssh") < looks + 3:
                assert time.monotonic() < deadline and running.poll() is None
                time.sleep(0.05)
            assert launching.call("tpu_pod.sh", "stop", *PLACE, env=environment).returncode == 0
            errors = running.communicate(timeout=60)[1]
        finally:
            running.kill()
    assert running.returncode == 3 and "Stopped; jaxkd stays and is charged for." in errors, errors
    assert (tmp_path / "trained").read_text() == "x\nx\n"  # not started a second time


def test_a_request_that_fails_is_not_repeated(tmp_path):
    environment = pod(tmp_path, "")
    (tmp_path / "state").write_text("FAILED\n")
    done = up(environment)
    assert done.returncode == 2 and "The request for jaxkd failed. The verb delete removes it" in done.stderr
    assert verbs(tmp_path) == []


DRY = """\
gcloud compute tpus queued-resources create jaxkd --zone=us-west4-a --project=p --node-id=jaxkd \
--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot --metadata=enable-oslogin=TRUE --quiet
# every 30 seconds until the state is ACTIVE:
gcloud compute tpus queued-resources describe jaxkd --zone=us-west4-a --project=p '--format=value(state.state)' --quiet
bash -c 'git ls-files -co --exclude-standard -z | tar --null -T - -czf /tmp/jaxkd.tar.gz'
gcloud compute tpus tpu-vm scp /tmp/jaxkd.tar.gz jaxkd:jaxkd.tar.gz --zone=us-west4-a --project=p --worker=all --quiet
gcloud compute tpus tpu-vm ssh jaxkd --zone=us-west4-a --project=p --worker=all '--command=set -e; mkdir -p ~/jaxkd; \
tar -xzf ~/jaxkd.tar.gz -C ~/jaxkd; cd ~/jaxkd; PATH=~/.local/bin:$PATH; command -v uv >/dev/null || \
curl -LsSf https://astral.sh/uv/install.sh | sh; uv venv --quiet --allow-existing --python 3.12 .venv; \
uv pip install --quiet --python .venv -e '\\''.[tpu,storage]'\\''; mountpoint -q /mnt/jaxkd || \
{ sudo apt-get install -qq -y nfs-common; sudo mkdir -p /mnt/jaxkd; sudo mount -t nfs 10.0.0.2:/share /mnt/jaxkd; \
sudo chmod a+rwx /mnt/jaxkd; }' --quiet
gcloud compute tpus tpu-vm ssh jaxkd --zone=us-west4-a --project=p --worker=all '--command=mkdir -p ~/jaxkd-run; \
rm -f ~/jaxkd-run/code ~/jaxkd-run/pid; nohup setsid bash -c cd\\ ~/jaxkd\\;\\ .venv/bin/python\\ -u\\ -m\\ \
jaxkd.main\\ --distributed\\ --config=c.py\\ --workdir=/mnt/jaxkd/a\\ \\&\\ echo\\ \\$\\!\\ \\>\\ \
~/jaxkd-run/pid\\;\\ wait\\ \\$\\!\\;\\ echo\\ \\$\\?\\ \\>\\ \
~/jaxkd-run/code > ~/jaxkd-run/log 2>&1 < /dev/null & sleep 1' --quiet
# every 30 seconds until all workers have ended; after a preemption delete, and all of this again:
gcloud compute tpus tpu-vm ssh jaxkd --zone=us-west4-a --project=p --worker=all '--command=cd ~/jaxkd-run 2>/dev/null; \
if [ -f code ]; then c=$(cat code); elif [ ! -f pid ]; then c=none; elif kill -0 $(cat pid); then c=running; \
else c=lost; fi 2>/dev/null; echo code=$c $(hostname)' --quiet
gcloud compute tpus queued-resources delete jaxkd --zone=us-west4-a --project=p --force --quiet
"""


def test_a_dry_run_prints_every_command_and_runs_none(tmp_path):
    launching.stand_in(tmp_path, "gcloud", 'touch "$MARKS/called"')
    environment = launching.environment(tmp_path, MARKS=str(tmp_path), TMPDIR="/tmp")
    options = ("--type=v6e-16", "--runtime=v2-alpha-tpuv6e", "--spot", "--nfs=10.0.0.2:/share", "--dry-run")
    arguments = ("--", "--config=c.py", "--workdir=/mnt/jaxkd/a")
    done = launching.call("tpu_pod.sh", "up", *PLACE, *options, *arguments, env=environment)
    assert (done.returncode, done.stdout) == (0, DRY), done.stderr
    lines = DRY.splitlines()
    for verb, printed in {"create": lines[:3], "install": lines[3:6], "delete": lines[-1:]}.items():
        done = launching.call("tpu_pod.sh", verb, *PLACE, *options, env=environment)
        assert done.stdout.splitlines() == printed, verb
    for verb, end in {
        "logs": "'--command=tail -n 100 ~/jaxkd-run/log' --quiet",
        "stop": "'--command=kill -TERM $(cat ~/jaxkd-run/pid)' --quiet",
    }.items():
        assert launching.call("tpu_pod.sh", verb, *PLACE, "--dry-run", env=environment).stdout.endswith(f"{end}\n")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("start",), '"start" is no verb. Write up, create, install, run, status, logs, stop or delete'),
        (("up", "--", "x"), "No --zone was given. Write for example --zone=us-west4-a"),
        (("up", "--zone=z", "--dry"), '"--dry" is not an option. Put the arguments of jaxkd.main after --'),
        (("up", "--zone=z"), "No arguments of jaxkd.main were given"),
        (("up", "--zone=z", "--", "--workdir=/mnt/jaxkd/a"), "up needs --nfs=HOST:/SHARE and a --workdir=/mnt/jaxkd/"),
        (("up", "--zone=z", "--nfs=h:/s", "--", "--workdir=runs/a"), "up needs --nfs=HOST:/SHARE and a --workdir="),
        (("create", "--zone=z", "--nfs=share"), "--nfs=share is not HOST:/SHARE"),
        (("create", "--zone=z", "--name=A_b"), "--name=A_b is no name of a TPU. Use small letters"),
        (("create", "--zone=z", "--poll=1m"), "--restarts=50 or --poll=1m is not a number"),
        (("delete", "--zone=z", "--", "x"), "delete takes no arguments of jaxkd.main. Leave out what follows --"),
    ],
)
def test_wrong_arguments_are_refused(argv, words):
    assert launching.refusal("tpu_pod.sh", *argv).startswith(f"launch/tpu_pod.sh: {words}")
