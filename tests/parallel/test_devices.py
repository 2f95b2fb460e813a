"""The same numbers from one device, eight simulated ones, a mesh with a model axis, and two processes."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import distil
import numpy as np
import pytest

from jaxkd import parallel
from jaxkd.parallel import peer_watch

HERE = Path(__file__).resolve().parent


def environment(devices: int, **more: str) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), **more}


def distributed(index: int, port: int) -> dict[str, str]:
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def distilled(out, devices, *meshes):
    subprocess.run(
        [sys.executable, str(HERE / "distil.py"), str(out), *meshes], env=environment(devices), check=True, timeout=300
    )
    return split(np.load(out))


def split(arrays):
    result = {}
    for name in arrays.files:
        mesh, key = name.split("/")
        result.setdefault(mesh, {})[key] = arrays[name]
    return result


@pytest.fixture(scope="module")
def one():
    """accumulate -> what one device makes of the steps, in this process."""
    known = {}

    def reference(accumulate=1):
        if accumulate not in known:
            mesh = parallel.make_mesh(1, 1, [distil.jax.devices()[0]])
            known[accumulate] = distil.steps(mesh, accumulate=accumulate)
        return known[accumulate]

    return reference


def assert_agree(ours, reference):
    assert set(ours) == set(reference)
    assert (
        reference["loss"].shape == (distil.STEPS,) and np.ptp(reference["loss"]) > 0.05
    )  # it learns: the numbers are no constants
    for name, expected in reference.items():
        if name != "shards":
            # Adam divides by the root of tiny second moments, so parameters agree less well than what they do
            tolerance = 2e-4 if name in ("params", "ema", "statistics") else 1e-5
            np.testing.assert_allclose(ours[name], expected, rtol=tolerance, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """mesh -> what eight devices of one process make of the steps; FSDP, a model axis and micro-batches among them."""
    return distilled(tmp_path_factory.mktemp("eight") / "out.npz", 8, "8x1", "2f2x2x2")


@pytest.mark.slow
def test_one_device_is_eight_devices(eight, one):
    assert_agree(eight["8x1"], one())
    np.testing.assert_array_equal(eight["8x1"]["shards"], [[24, 72]] * 2)  # parameters and moments whole everywhere
    assert_agree(eight["2f2x2x2"], one(2))
    np.testing.assert_array_equal(eight["2f2x2x2"]["shards"], [[12, 36]] * 2)  # really split


def assert_global(found, **options):
    """The losses between the examples of a batch on a mesh are those on one device, computed in this process."""
    expected = distil.batch_losses(parallel.make_mesh(1, 1, [distil.jax.devices()[0]]), **options)
    for mesh, arrays in found.items():
        for name, values in expected.items():
            assert (np.abs(values) > 1e-3).all()
            np.testing.assert_allclose(arrays[name], values, rtol=1e-5, err_msg=f"{mesh} {name}")


def test_losses_between_the_examples_are_global(tmp_path):
    assert_global(distilled(tmp_path / "out.npz", 8, "few:8x1"), few=True)


@pytest.mark.slow
def test_all_losses_between_the_examples_are_global(eight):
    found = {mesh: eight[f"{mesh} batch"] for mesh in ("8x1", "2f2x2x2")}
    assert all(len(arrays["losses"]) == 18 for arrays in found.values())
    assert_global(found)


@pytest.mark.slow
def test_two_processes_of_four_devices_are_one_process_of_one(tmp_path, one):
    """Data-parallel; FSDP over the devices of both processes; data over both, FSDP and wide matrices within each."""
    port, out = free_port(), tmp_path / "out.npz"
    shards = {"8x1": [24, 72], "1f8x1": [24, 9], "2f2x2": [12, 36]}
    command = [sys.executable, str(HERE / "distil.py"), str(out), *shards]
    both = [subprocess.Popen(command, env=environment(4, **distributed(i, port))) for i in (0, 1)]
    try:
        assert [p.wait(timeout=300) for p in both] == [0, 0]
    finally:
        for p in both:
            p.kill()
    results = split(np.load(out))
    assert set(results) == set(shards)
    for mesh, result in results.items():
        assert_agree(result, one())
        np.testing.assert_array_equal(result["shards"], [shards[mesh]] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0], ids=["another process", "the coordinator"])
def test_a_process_whose_peer_is_killed_ends_with_one_sentence(tmp_path, victim):
    root = HERE.parent.parent
    network = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 12, "num_heads": 2}
    argv = [f"--config={root}/configs/supervised.py:deit_tiny_patch16_224", "--config.data.source=embedded:digits"]
    argv += [f"--config.student.args.{name}={value}" for name, value in network.items()]
    argv += ["--config.data.workers=0", "--config.train.batch_size=32", "--config.train.steps=1000000"]
    argv += ["--config.checkpoint.every_steps=20", f"--workdir={tmp_path / 'run'}"]
    command, port = [sys.executable, "-m", "jaxkd.main", *argv], free_port()
    both = [
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(1, **more), cwd=root
        )
        for more in (distributed(0, port), distributed(1, port))
    ]
    try:
        deadline = time.monotonic() + 240
        while not list((tmp_path / "run" / "checkpoints").glob("[0-9]*")):
            assert time.monotonic() < deadline and [p.poll() for p in both] == [None, None]
            time.sleep(0.2)
        both[victim].kill()
        errors = both[1 - victim].communicate(timeout=60)[1]
        assert both[1 - victim].returncode == 2, errors
    finally:
        for p in both:
            p.kill()
    said = [line for line in errors.splitlines() if line.startswith("jaxkd: ")]
    assert len(said) == 1 and "Another process of this run ended or cannot be reached" in said[0], errors
    assert "Traceback" not in errors and "check failure" not in errors.lower() and "terminate called" not in errors


IDLE = """
    import time
    from jaxkd import parallel
    from jaxkd.cli import console

    parallel.hosts.HEARTBEAT_SECONDS = 10

    @console.command()
    def main():
        parallel.initialize_distributed()
        print("joined", flush=True)
        for _ in range(3000):  # a signal just before one long sleep would be seen only after it
            time.sleep(0.2)

    main()
"""


ENDS = (  # (index of the process that gets a signal, the signal, its exit code, what it says)
    (1, signal.SIGKILL, -9, ""),
    (0, signal.SIGKILL, -9, ""),
    (1, signal.SIGTERM, 143, "jaxkd: stopped.\n"),
    (0, signal.SIGINT, 130, "jaxkd: stopped.\n"),
)


@pytest.mark.slow
def test_a_process_outside_training_ends_too():
    """No collective operation fails here: only JAX's coordination service knows. All wait for it at the same time."""
    command = [sys.executable, "-c", textwrap.dedent(IDLE)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}  # as in the commands
    runs = []
    for _ in ENDS:
        port = free_port()
        runs.append(
            [subprocess.Popen(command, env=environment(1, **distributed(i, port), **quiet), **pipes) for i in (0, 1)]
        )
    try:
        for both, (victim, number, *_) in zip(runs, ENDS, strict=True):
            assert [p.stdout.readline() for p in both] == ["joined\n"] * 2
            both[victim].send_signal(number)
        for both, (victim, number, code, said) in zip(runs, ENDS, strict=True):
            assert (both[victim].communicate(timeout=60)[1], both[victim].returncode) == (said, code), (victim, number)
            errors = both[1 - victim].communicate(timeout=60)[1]
            assert both[1 - victim].returncode == 2, (victim, number, errors)
            assert [line for line in errors.splitlines() if line] == [peer_watch.MESSAGE], (victim, number)
    finally:
        for p in (p for both in runs for p in both):
            p.kill()
