"""The lock of a work directory: who gets it, what the other one reads, and when it is free again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from jaxkd.errors import CheckpointError
from jaxkd.experiment.lock import WorkdirLock

HOLD = """
import sys, time
from pathlib import Path
from jaxkd.experiment.lock import WorkdirLock
lock = WorkdirLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_work_directory_and_gets_it_after_a_kill(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        owner = json.loads((tmp_path / "run" / "run.lock").read_text())
        text = rf"in use by another run \(process {holder.pid} on host {owner['host']}, since {owner['since']}\)\. Wait"
        with WorkdirLock(tmp_path / "run") as lock:
            with pytest.raises(CheckpointError, match=text):
                lock.acquire()
            other_host = WorkdirLock(tmp_path / "run", wanted=False)  # of the same distributed run
            other_host.acquire()
            holder.kill()
            holder.wait()
            lock.acquire()  # released by the kernel
            lock.acquire()  # held already
            assert json.loads((tmp_path / "run" / "run.lock").read_text())["pid"] == os.getpid()
            with pytest.raises(CheckpointError, match=f"process {os.getpid()} "):
                WorkdirLock(tmp_path / "run").acquire()
        with WorkdirLock(tmp_path / "run") as lock:
            lock.acquire()
    finally:
        holder.kill()


def test_a_lock_without_a_readable_owner_and_a_folder_that_is_not_made(tmp_path):
    with WorkdirLock(tmp_path) as lock:
        lock.acquire()
        (tmp_path / "run.lock").write_text("")
        with pytest.raises(CheckpointError, match=r"is in use by another run\. Wait"):
            WorkdirLock(tmp_path).acquire()
    WorkdirLock(tmp_path / "new").acquire(make=False)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(CheckpointError, match=r"cannot be used \(.*\)\. Name a folder"):
            WorkdirLock(folder).acquire()
