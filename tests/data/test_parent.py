"""Worker processes end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from killing import alive

CHILD = """
import sys, time
from jaxkd.data.pipeline.parent import end_with_parent
sys.platform = sys.argv[2]  # anything but linux: only the thread that watches
print("started", flush=True)
end_with_parent(int(sys.argv[1]), every_seconds=0.2)
print("lives", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
command = [sys.executable, "-c", sys.argv[1], str(os.getpid()), sys.argv[2]]
child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline() + child.stdout.readline(), flush=True)
child.wait()
"""


def wait_until_gone(pids, seconds=15) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_worker_ends_with_a_parent_that_is_killed(platform):
    command = [sys.executable, "-c", PARENT, CHILD, platform]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline().split()[0])
        assert parent.stdout.readline().strip() == "lives" and alive(pid)
        parent.kill()
        parent.wait()
        try:
            assert wait_until_gone([pid])
        finally:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_a_worker_whose_parent_was_gone_before_it_started_ends_at_once():
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "1" * 7, sys.platform], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "started\n")


LOADER = """
import multiprocessing
from jaxkd.data.pipeline.broken import BrokenImages
from jaxkd.data.pipeline.resumable import ResumableBatches

class Batches:
    def __getitem__(self, position):
        import numpy as np
        return {"image": np.zeros((2, 8)), "broken": np.array("{}")}

if __name__ == "__main__":
    batches = ResumableBatches(Batches(), steps_per_epoch=4, identity={}, broken=BrokenImages(4, 0.5), workers=2)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    while True:
        next(batches)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_workers_of_a_pipeline_end_with_a_killed_run(tmp_path):
    (tmp_path / "load.py").write_text(textwrap.dedent(LOADER))
    with subprocess.Popen([sys.executable, tmp_path / "load.py"], stdout=subprocess.PIPE, text=True) as run:
        pids = [int(word) for word in run.stdout.readline().split()]
        assert len(pids) >= 2 and all(map(alive, pids))
        run.kill()
        run.wait()
        assert wait_until_gone(pids)
