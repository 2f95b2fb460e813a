"""Statistics during training: which steps compute them, of what, where they go, and that they change nothing."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxkd import parallel, train


def watch(params, mutable, batch, key, step, constants):
    """Two numbers a layer that tell which parameters, batch, key and step they were computed of."""
    kernel = params["student"]["dense"]["kernel"]
    noise = jax.random.normal(key, ())
    return {
        "kernel": jnp.stack([kernel.sum(), kernel.max()]),
        "what": jnp.stack([batch["x"].sum() + noise, constants["scale"] * step]),
    }


def rows(folder):
    return train.read_metrics(folder, "dynamics")


def test_the_first_step_and_every_third_of_the_parameters_before_the_step(tmp_path):
    toy.run(tmp_path, 7, statistics=watch, log_every=7, evaluate=False)
    found = rows(tmp_path)
    assert [r["step"] for r in found] == [1, 3, 6]
    assert [r["epoch"] for r in found] == [0.25, 0.75, 1.5]
    assert all(r["layers"] == ["a", "b"] for r in found)
    kernel = toy.Toy().init(jax.random.key(0, impl="rbg"))[0]["student"]["dense"]["kernel"]
    assert found[0]["kernel"] == pytest.approx([float(kernel.sum()), float(kernel.max())], rel=1e-6)
    assert found[1]["kernel"] != found[0]["kernel"]
    for row in found:
        key = jax.random.fold_in(jax.random.key(1, impl="rbg"), row["step"] - 1)  # that of the step's loss
        expected = toy.draw(row["step"])["x"].sum() + float(jax.random.normal(key, ()))
        assert row["what"] == pytest.approx([float(expected), row["step"] - 1], rel=1e-5)


def test_training_is_the_same_bit_for_bit_and_so_is_a_resumed_run(tmp_path, assert_same):
    plain, _, _ = toy.run(tmp_path / "plain", 8)
    watched, _, _ = toy.run(tmp_path / "watched", 8, statistics=watch)
    assert_same(jax.device_get(watched), jax.device_get(plain))
    toy.run(tmp_path / "halves", 4, statistics=watch)
    resumed, _, _ = toy.run(tmp_path / "halves", 8, statistics=watch)
    assert_same(jax.device_get(resumed), jax.device_get(plain))
    assert rows(tmp_path / "halves") == rows(tmp_path / "watched")
    assert [r["step"] for r in rows(tmp_path / "halves")] == [1, 3, 6]  # the first after a resume is none by itself
    for kind in ("train", "eval"):
        a, b = (train.read_metrics(tmp_path / name, kind) for name in ("plain", "watched"))
        assert [r.get("loss") for r in a] == [r.get("loss") for r in b]


def test_of_several_micro_batches_the_first(tmp_path, assert_same):
    plain, _, _ = toy.run(tmp_path / "plain", 3, accumulate=2)
    watched, _, _ = toy.run(tmp_path / "watched", 3, accumulate=2, statistics=watch)
    assert_same(jax.device_get(watched), jax.device_get(plain))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1, impl="rbg"), 2), 0)
    expected = toy.draw(3)["x"][::2].sum() + float(jax.random.normal(key, ()))
    assert rows(tmp_path / "watched")[1]["what"][0] == pytest.approx(float(expected), rel=1e-5)


def test_statistics_that_are_not_finite_are_written_and_do_not_stop_training(tmp_path):
    def broken(*_):
        return {"x": jnp.asarray([jnp.nan, 1.0]), "y": jnp.asarray([2.0, -jnp.inf])}

    state, _, _ = toy.run(tmp_path, 4, statistics=broken)
    assert int(state.step) == 4
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]  # JSON throughout
    assert [(r["x"], r["y"]) for r in lines if r["kind"] == "dynamics"] == [(["nan", 1.0], [2.0, "-inf"])] * 2
    (events,) = (tmp_path / "tensorboard").glob("events*")
    tags = events.read_bytes()
    assert b"dynamics/x/b" in tags and b"dynamics/y/a" in tags
    assert b"dynamics/x/a" not in tags and b"dynamics/y/b" not in tags


def test_values_are_written_as_short_as_they_are(tmp_path):
    toy.run(tmp_path, 1, statistics=lambda *_: {"x": jnp.asarray([0.1, 1 / 3])}, evaluate=False)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"x": [0.1, 0.33333334]' in text
    assert np.float32(rows(tmp_path)[0]["x"][1]) == np.float32(1 / 3)


@pytest.mark.parametrize("every", [1, 4])
def test_compiling_the_second_program_is_not_speed_either(tmp_path, every):
    def slow(*arguments):
        time.sleep(1.0)  # while it is traced, once
        return watch(*arguments)

    def at(number, batch):
        time.sleep(0.01)

    folder = tmp_path / "run"
    # Resumed at step 1, so that with every=4 the plain program comes first and the other one in the middle.
    toy.run(folder, 1, evaluate=False)
    _, _, clock = toy.run(folder, 6, statistics=slow, every=every, log_every=6, evaluate=False, at=at)
    line = train.read_metrics(folder, "train")[-1]
    assert line["step"] == 6 and line["step_ms"] < 300
    assert clock.seconds > 1.0  # but it is time of the run


def test_the_step_without_statistics_is_the_program_that_it_was(tmp_path):
    mesh, task, tx = parallel.make_mesh(), toy.Toy(), train.make_optimizer(1e-2)
    state = train.create_state(*task.init(jax.random.key(0)), tx, ema=False)

    def text(**options):
        step = train.compile_train_step(task, tx, mesh, state, **options)
        return step.lower(state, toy.draw(1), jax.random.key(1), task.constants).as_text()

    assert text() == text(statistics=None) != text(statistics=watch)


def test_the_rhythm():
    observation = train.Observation(None, 100, ())
    assert [done for done in range(301) if observation.due(done)] == [0, 99, 199, 299]
