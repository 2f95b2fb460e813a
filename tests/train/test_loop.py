"""The loop: when it evaluates, saves and logs, what it writes, how it stops, resumes and refuses to go on."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from toy import BATCH, STEPS_PER_EPOCH

from jaxkd import train
from jaxkd.errors import NonFiniteLossError
from jaxkd.train.checkpoint import restore_item
from jaxkd.train.finite import check_finite


def steps_of(folder):
    checkpoints = train.Checkpoints(folder)
    steps = checkpoints.steps()
    checkpoints.close()
    return steps


def asking(step, stop):
    """`at` that asks the run to stop while batch `step` is being fetched."""

    def at(number, batch):
        if number == step:
            stop.requested = "SIGTERM"

    return at


def test_cadence_of_evaluation_saving_and_lines(tmp_path):
    state, scores, clock = toy.run(
        tmp_path, 11, log_every=3, eval_every=4, checkpoint_every=5, keep_last=9, keep_best=0
    )
    assert int(state.step) == 11 and clock.images == 11 * BATCH
    assert [r["step"] for r in train.read_metrics(tmp_path, "train")] == [3, 6, 9, 11]
    evaluations = train.read_metrics(tmp_path, "eval")
    assert [r["step"] for r in evaluations] == [4, 8, 11]  # the last step always
    assert steps_of(tmp_path) == [4, 5, 8, 10, 11]  # every evaluation, every fifth step, and the end
    assert evaluations[-1]["epoch"] == 11 / STEPS_PER_EPOCH
    assert set(scores) == {"top1", "loss", "ema_top1", "ema_loss"}
    assert {k: evaluations[-1][k] for k in scores} == scores
    # the scores stand beside the checkpoint, so that the best can be found and kept
    for row in evaluations:
        metrics = json.loads((tmp_path / "checkpoints" / str(row["step"]) / "metrics" / "metrics").read_text())
        assert metrics["top1"] == row["top1"]


def test_without_evaluation(tmp_path):
    _, scores, _ = toy.run(tmp_path, 3, evaluate=False, checkpoint_every=2)
    assert scores == {} and train.read_metrics(tmp_path, "eval") == [] and steps_of(tmp_path) == [2, 3]


def test_lines_are_means_over_their_window_and_say_the_rate_of_their_step(tmp_path):
    rate = {"schedule": lambda step: 1e-3 * (1 + step)}
    toy.run(tmp_path / "every", 6, log_every=1, **rate)
    toy.run(tmp_path / "third", 6, log_every=3, **rate)
    single = train.read_metrics(tmp_path / "every", "train")
    third = train.read_metrics(tmp_path / "third", "train")
    names = {"loss", "grad_norm", "fit", "fit_weighted", "size", "size_weighted", "edge", "edge_weighted"}
    assert names < set(third[0])
    for name in names:
        for row, window in zip(third, (single[:3], single[3:]), strict=True):
            assert row[name] == pytest.approx(np.mean([r[name] for r in window]), rel=1e-6), name
    assert [r["learning_rate"] for r in single] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3])
    assert [r["images"] for r in third] == [3 * BATCH, 6 * BATCH]
    assert third[0]["epoch"] == 0.75
    assert third[1]["images_per_second"] == pytest.approx(1e3 * BATCH / third[1]["step_ms"])
    assert 0 <= third[1]["data_wait_percent"] <= 100 and third[1]["seconds"] > third[0]["seconds"]


def test_the_loss_that_is_written_is_that_of_the_state_before_the_step(tmp_path):
    toy.run(tmp_path, 1, task=toy.Toy(noise=0.0), log_every=1, evaluate=False)
    dense = toy.Toy().init(jax.random.key(0, impl="rbg"))[0]["student"]["dense"]
    batch = toy.draw(1)
    fit = np.mean((batch["x"] @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]) - batch["y"]) ** 2)
    assert train.read_metrics(tmp_path, "train")[0]["fit"] == pytest.approx(float(fit), rel=1e-5)


def events_of(path):
    """Every event of a TensorBoard file."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    raw, at = path.read_bytes(), 0
    while at < len(raw):  # a record: length (8 bytes), its checksum (4), data, checksum (4)
        (length,) = struct.unpack("<Q", raw[at : at + 8])
        yield Event.FromString(raw[at + 12 : at + 12 + length])
        at += 16 + length


def test_a_continued_run_makes_tensorboard_drop_the_steps_that_it_writes_again(tmp_path):
    first = train.MetricWriter(tmp_path)
    for step in range(1, 6):
        first.write("train", step, {"loss": 1.0})
    again = train.MetricWriter(tmp_path, first_step=4)  # while the first file has no end, as after a kill
    again.write("train", 4, {"loss": 2.0})
    train.MetricWriter(tmp_path).close()  # as after a run that ended before its first checkpoint
    paths = sorted((tmp_path / "tensorboard").iterdir(), key=lambda p: int(p.name.rpartition(".")[2]))
    assert len(paths) == 3  # none that replaced another within a second
    starts = [[e.step for e in events_of(p) if e.WhichOneof("what") == "session_log"] for p in paths]
    assert starts == [[], [4], [1]]
    assert [e.step for e in events_of(paths[0]) if e.summary.value] == [1, 2, 3, 4, 5]  # on the disk at once
    first.close()
    again.close()


def test_tensorboard_events_can_be_read_back(tmp_path):
    toy.run(tmp_path, 4, log_every=2, eval_every=4)
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    scalars = {(v.tag, event.step): v.simple_value for event in events_of(path) for v in event.summary.value}
    rows = {("train", r["step"]): r for r in train.read_metrics(tmp_path, "train")}
    rows |= {("eval", r["step"]): r for r in train.read_metrics(tmp_path, "eval")}
    expected = {
        (f"{kind}/{name}", step): value
        for (kind, step), row in rows.items()
        for name, value in row.items()
        if name not in ("kind", "step")
    }
    assert ("train/fit", 2) in scalars and ("eval/ema_top1", 4) in scalars
    assert scalars == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_n_steps_are_k_steps_and_n_minus_k_bit_for_bit(tmp_path, assert_same, accumulate):
    options = {"accumulate": accumulate, "schedule": lambda step: 1e-2 / (1 + step), "log_every": 1}
    whole, scores, _ = toy.run(tmp_path / "whole", 7, **options)
    stop = train.StopRequest()
    part, nothing, _ = toy.run(tmp_path / "parts", 7, at=asking(3, stop), stop=stop, **options)
    assert int(part.step) == 3 and nothing == {} and steps_of(tmp_path / "parts") == [3]
    rest, again, clock = toy.run(tmp_path / "parts", 7, **options)
    assert_same(rest, whole)
    assert again == scores and clock.images == 7 * BATCH
    a, b = (train.read_metrics(tmp_path / name, "train") for name in ("whole", "parts"))
    for x, y in zip(a, b, strict=True):
        assert {k: x[k] for k in ("step", "loss", "fit", "grad_norm", "learning_rate", "images")} == {
            k: y[k] for k in ("step", "loss", "fit", "grad_norm", "learning_rate", "images")
        }


def test_a_killed_run_continues_from_its_last_checkpoint_bit_for_bit(tmp_path, assert_same):
    whole, _, _ = toy.run(tmp_path / "whole", 6, checkpoint_every=2)

    def die(number, batch):
        if number == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.run(tmp_path / "parts", 6, checkpoint_every=2, at=die)
    assert steps_of(tmp_path / "parts") == [2, 4]
    rest, _, clock = toy.run(tmp_path / "parts", 6, checkpoint_every=2)
    assert_same(rest, whole)
    assert clock.images == 6 * BATCH


def test_a_run_that_is_asked_to_stop_at_once_saves_and_continues(tmp_path, assert_same):
    stop = train.StopRequest()
    stop.requested = "SIGINT"
    state, _, clock = toy.run(tmp_path, 3, stop=stop)
    assert int(state.step) == 0 and steps_of(tmp_path) == [0] and clock.images == 0
    rest, _, _ = toy.run(tmp_path, 3)
    whole, _, _ = toy.run(tmp_path / "whole", 3)
    assert_same(rest, whole)


def assert_finite_checkpoints(workdir):
    for step in steps_of(workdir):
        for item in ("params", "rest", "ema"):
            leaves = jax.tree.leaves(restore_item(workdir / "checkpoints" / str(step) / item))
            assert leaves and all(np.isfinite(leaf).all() for leaf in leaves), (step, item)


def poison(step, field, value):
    def at(number, batch):
        if number == step:
            batch[field][:] = value

    return at


@pytest.mark.parametrize(
    ("at", "name", "every", "clip_norm"),  # step 5 is one that saves (every=5) or not
    [
        (poison(5, "x", np.nan), '"fit" became nan', 2, 1.0),
        (poison(5, "x", np.nan), '"fit" became nan', 5, 0.0),
        (poison(5, "y", np.inf), '"fit" became inf', 5, 1.0),
        (poison(5, "edge", 0.0), '"grad_norm" became nan', 2, 0.0),  # the loss is finite, its gradient is not
        (poison(5, "edge", 0.0), '"grad_norm" became nan', 5, 1.0),
    ],
)
def test_what_is_not_finite_stops_the_run_before_it_is_saved(tmp_path, at, name, every, clip_norm):
    text = rf"{name} at step 5\. .*last good checkpoint, of step 4, was kept.*optimizer.learning_rate"
    with pytest.raises(NonFiniteLossError, match=text):
        toy.run(tmp_path, 12, at=at, checkpoint_every=every, log_every=100, clip_norm=clip_norm)
    assert steps_of(tmp_path)[-1] == 4
    assert_finite_checkpoints(tmp_path)


def test_the_term_that_is_named_is_a_cause_and_not_its_consequence():
    bad = {"a_weighted": math.nan, "fine": 1.0, "grad_norm": math.nan, "loss": math.nan}
    for extra, name in (({"z": math.inf, "z_weighted": math.inf}, "z"), ({}, "a_weighted")):
        with pytest.raises(NonFiniteLossError, match=rf'The term "{name}" became'):
            check_finite(bad | extra, 3, lambda: [])
    with pytest.raises(NonFiniteLossError, match=r'The term "grad_norm" became inf at step 3'):
        check_finite({"loss": 1.0, "grad_norm": math.inf}, 3, lambda: [])
    check_finite({"loss": 1.0, "grad_norm": 2.0}, 3, lambda: [])


def test_before_the_first_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r'"fit" became nan at step 2\. .*no checkpoint was written') as caught:
        toy.run(tmp_path, 12, at=poison(2, "x", np.nan), log_every=1)
    assert "student.weights" not in str(caught.value)
    assert steps_of(tmp_path) == []


@pytest.mark.parametrize("every", [2, 3])
def test_an_update_that_overflows_is_not_saved_though_loss_and_gradient_are_finite(tmp_path, every):
    """Step 3 has a finite loss and gradient and makes the parameters infinite; only step 4 would show it."""

    def schedule(step):
        return jnp.where(step == 2, jnp.inf, 1e-2)

    # saving at step 3 looks at the parameters, not saving there lets step 4 find out
    text = (
        r'"params/student/dense/.* held NaN or infinity after step 3' if every == 3 else r"became (nan|inf) at step 4"
    )
    with pytest.raises(NonFiniteLossError, match=text):
        toy.run(tmp_path, 12, schedule=schedule, checkpoint_every=every, eval_every=100, log_every=100)
    assert steps_of(tmp_path) == ([2] if every == 2 else [])
    assert_finite_checkpoints(tmp_path)
    assert train.read_metrics(tmp_path, "eval") == []


def test_a_stop_request_does_not_save_what_is_not_finite(tmp_path):
    stop = train.StopRequest()

    def at(number, batch):
        if number == 3:
            stop.requested = "SIGTERM"
            batch["x"][:] = np.nan

    with pytest.raises(NonFiniteLossError, match=r'"fit" became nan at step 3'):
        toy.run(tmp_path / "loss", 12, at=at, stop=stop, log_every=100)
    assert steps_of(tmp_path / "loss") == []
    stop = train.StopRequest()
    with pytest.raises(NonFiniteLossError, match=r"held NaN or infinity after step 3"):
        toy.run(
            tmp_path / "update",
            12,
            at=asking(3, stop),
            stop=stop,
            schedule=lambda step: jnp.where(step == 2, jnp.inf, 1e-2),
            log_every=100,
        )
    assert steps_of(tmp_path / "update") == []


def test_metric_lines_survive_a_killed_process_and_hold_no_nan(tmp_path):
    writer = train.MetricWriter(tmp_path, tensorboard=False)
    writer.write("train", 1, {"loss": 2.0, "note": "text"})
    writer.write("train", 2, {"loss": float("nan"), "big": float("inf")})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(
            '{"kind": "train", "step": 3, "loss": 1, "epoch": "half"}\n[1]\n7\n"text"\nnull\n{"kind": "train"}\n'
        )
        file.write('{"kind": "train", "step": "4", "loss": 1}\n{"kind": "train", "step": 4, "loss": {}}\n')
        file.write(f'{{"kind": "train", "step": 4, "loss": {"9" * 400}}}\n{"[" * 100_000}\n')
        file.write('{"kind": "dynamics", "step": 4, "entropy": [1]}\n')  # a bad disk: layers are missing
        file.flush()
        file.buffer.write(b'\xff\x00{"kind": "train", "step": 5}\n')
        file.write('{"kind": "train", "step": 3, "lo')  # killed here
    writer = train.MetricWriter(tmp_path, tensorboard=False)
    writer.write("train", 3, {"loss": 1.0})
    writer.write("train", 1, {"loss": 9.0})  # a resumed run writes a step again
    writer.write("eval", 3, {"loss": 5.0})
    writer.close()
    rows = train.read_metrics(tmp_path, "train")
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 9.0), (2, "nan"), (3, 1.0)]
    assert rows[1]["big"] == "inf" and train.read_metrics(tmp_path, "dynamics") == []
    assert [r["loss"] for r in train.read_metrics(tmp_path, "eval")] == [5.0]
    for line in (tmp_path / "metrics.jsonl").read_text(errors="replace").splitlines():
        assert "NaN" not in line and "Infinity" not in line
    assert train.read_metrics(tmp_path / "nowhere", "train") == []


def test_an_inactive_writer_writes_nothing(tmp_path):
    writer = train.MetricWriter(tmp_path, active=False)
    writer.write("train", 1, {"loss": 2.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_signals_become_requests_and_the_old_handlers_come_back(request):
    # A shell starts background jobs with SIGINT ignored, and then there is no handler whose return could be seen.
    old = signal.getsignal(signal.SIGINT)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, old))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with train.StopRequest() as stop:
        assert stop.requested == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with train.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):  # a second time means it
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)


SCRIPT = """
    import sys, time
    sys.path.insert(0, sys.argv[2])
    import toy
    from jaxkd import train

    def slowly(number, batch):
        print("batch", number, flush=True)
        time.sleep(0.05)

    with train.StopRequest() as stop:
        state, _, clock = toy.run(sys.argv[1], int(sys.argv[3]), at=slowly, stop=stop, evaluate=False)
    print("stopped", int(state.step), clock.images, flush=True)
"""


@pytest.mark.slow
def test_sigterm_ends_a_process_well_and_the_same_command_continues(tmp_path, assert_same):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "run"), str(Path(toy.__file__).parent)]
    process = subprocess.Popen(
        [*command, "100000"], stdout=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    try:
        for line in process.stdout:
            if line.split() == ["batch", "4"]:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 0
    word, step, images = rest.splitlines()[-1].split()
    assert word == "stopped" and int(step) >= 4 and int(images) == int(step) * BATCH
    assert steps_of(tmp_path / "run")[-1] == int(step)
    total = int(step) + 2
    state, _, _ = toy.run(tmp_path / "run", total, evaluate=False)
    whole, _, _ = toy.run(tmp_path / "whole", total, evaluate=False)
    assert_same(state, whole)
