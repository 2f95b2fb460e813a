"""Metrics of shape (S,), one number for each member of a population: written, shown, checked and compared."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxkd import parallel, train
from jaxkd.errors import NonFiniteLossError
from jaxkd.train.finite import check_finite
from jaxkd.train.timer import Window


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """(work directory, last scores, what was said) of a run that kept the best of four evaluations."""
    said = []
    progress = SimpleNamespace(update=lambda step, status: said.append(status), say=said.append)
    folder = tmp_path_factory.mktemp("population")
    options = {"eval_every": 2, "log_every": 1, "keep_last": 1, "ema_decay": 0.0, "best_metric": "top1"}
    _, scores, _ = toy.run(folder, 8, task=toy.Population(), progress=progress, schedule=rate, **options)
    return folder, scores, said


def rate(step):
    return 0.1 * (step < 4) - 0.3 * (step >= 4)  # learns, then goes away from it


def test_lines_hold_one_number_for_each_member(population):
    folder, scores, _ = population
    rows = train.read_metrics(folder, "train")
    assert all(len(row["loss"]) == len(row["fit"]) == 3 and isinstance(row["grad_norm"], float) for row in rows)
    assert len(set(rows[0]["loss"])) == 3
    (single,) = train.read_metrics(alone(folder.parent / "alone"), "train")
    assert rows[0]["loss"][1] == pytest.approx(single["loss"], rel=1e-5)
    last = train.read_metrics(folder, "eval")[-1]
    assert scores["top1"].shape == (3,) and last["top1"] == scores["top1"].tolist()


def alone(folder):
    """One step of member 1 by itself."""
    task = toy.Toy()
    member = jax.tree.map(lambda x: x[1], toy.Population().init(jax.random.key(0, impl="rbg")))
    task.init = lambda key: member
    toy.run(folder, 1, task=task, log_every=1, evaluate=False, schedule=rate)
    return folder


def test_tensorboard_has_a_curve_for_each_member(population):
    (events,) = (population[0] / "tensorboard").glob("events*")
    tags = events.read_bytes()
    assert all(f"train/fit/{i}".encode() in tags and f"eval/top1/{i}".encode() in tags for i in range(3))
    assert b"train/fit/3" not in tags


def test_a_person_sees_the_mean(population):
    folder, scores, said = population
    loss = np.mean(train.read_metrics(folder, "train")[1]["loss"])  # the second step: the first one compiles
    assert any(text.startswith(f"loss {loss:.3f} ") for text in said)
    assert f"top1 {np.mean(scores['top1']):.2f}" in said[-1] and "(means of 3 members)" in said[-1]


def test_the_best_checkpoint_is_that_of_the_best_member(population):
    folder, _, _ = population
    rows = train.read_metrics(folder, "eval")
    best = max(rows, key=lambda row: (max(row["top1"]), row["step"]))
    assert best["step"] != rows[-1]["step"] and best != max(rows, key=lambda row: np.mean(row["loss"]))
    checkpoints = train.Checkpoints(folder)
    assert checkpoints.steps() == sorted({best["step"], 8})
    checkpoints.close()


def test_the_member_that_is_not_finite_is_named():
    with pytest.raises(NonFiniteLossError, match=r'The term "fit" of member 1 \(of 3, from 0\) became nan at step 4'):
        check_finite({"loss": np.array([1, math.nan, 2]), "fit": np.array([1, math.nan, 2])}, 4, lambda: [])
    with pytest.raises(NonFiniteLossError, match=r'"loss" of members 0, 2 \(of 3, from 0\) became inf at step 4'):
        check_finite({"loss": np.array([math.inf, 1, math.nan])}, 4, lambda: [])
    check_finite({"loss": np.ones(3)}, 4, lambda: [])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2.5, (2.5, None)),
        (np.array([1.0, 3.0, 2.0]), (3.0, 1)),
        (["nan", 1.0, -2.0], (1.0, 1)),
        ([math.nan, math.nan], (-math.inf, 0)),
        (math.nan, (-math.inf, None)),
        (None, (-math.inf, None)),
    ],
)
def test_best_member(value, expected):
    assert train.best_member(value) == expected


class Subsets(toy.Population):
    """A population whose members have examples of their own; without any the loss is 0, of the last member NaN."""

    member_count = 3

    def init(self, key):
        params, mutable = super().init(key)
        return params, {**mutable, "population": {"diverged_at": jnp.full(3, -1, jnp.int32)}}

    def loss(self, params, mutable, batch, key, step, constants):
        def one(params, learns, spoiled):
            error = jnp.square(self.predict(params, batch["x"]) - batch["y"]).mean(1)
            mean = jnp.where(learns, error, 0.0).sum() / jnp.maximum(learns.sum(), 1)
            return mean * jnp.where(spoiled & ~learns.any(), jnp.nan, 1.0)

        losses = jax.vmap(one)(params, batch["members"].T, jnp.arange(3) == 2)
        return losses.sum(), ({"loss": losses}, {**mutable, "seen": mutable["seen"] + 1})


def trained(*images_of_members):
    """States and metrics of steps over one batch whose images belong to the given members, with decay and momentum."""
    task, mesh = Subsets(), parallel.make_mesh()
    tx = train.member_optimizer(lambda _: train.make_optimizer(lambda step: 0.1, weight_decay=0.5), 3)
    state = train.create_state(*task.init(jax.random.key(0)), tx, ema=True)
    step = train.compile_train_step(task, tx, mesh, jax.eval_shape(lambda: state), ema_decay=0.9)
    states, rows = [], []
    for have in images_of_members:
        batch = toy.draw(1) | {"members": np.tile(have, (toy.BATCH, 1)), "mask": np.ones(toy.BATCH, bool)}
        state, metrics = step(state, parallel.put_batch(batch, mesh), jax.random.key(1), task.constants)
        states.append(jax.device_get(state))
        rows.append(jax.device_get(metrics))
    return states, rows


def moving(state, member):
    """All that an update of a member changes, without its position in the learning-rate schedule."""
    ((adam, _, _),) = state.opt_state
    return jax.tree.map(lambda x: x[member], (state.params, state.ema, state.mutable["seen"], adam))


def test_a_member_without_an_image_in_the_batch_makes_no_update():
    have, lack = [True, True, True], [True, False, False]
    (first, idle, after), rows = trained(have, lack, have)
    (_, second), _ = trained(have, have)
    for member in (1, 2):
        jax.tree.map(np.testing.assert_array_equal, moving(idle, member), moving(first, member))
        jax.tree.map(np.testing.assert_array_equal, moving(after, member), moving(second, member))
    kernels = [state.params["student"]["dense"]["kernel"] for state in (first, idle, after)]
    assert (kernels[0][0] != kernels[1][0]).all() and (kernels[1][1] != kernels[2][1]).all()
    ((adam, _, schedule),) = after.opt_state
    assert (adam.count.tolist(), schedule.count.tolist()) == ([3, 2, 2], [3, 3, 3])
    assert rows[1]["learns"].tolist() == lack and rows[2]["diverged_at"].tolist() == [-1, -1, -1]


def test_a_line_of_metrics_leaves_out_the_steps_of_a_member_without_images():
    window = Window()
    window.add({"loss": np.array([2.0, 4.0, 9.0]), "rate": 1.0}, np.array([True, True, False]))
    window.add({"loss": np.array([4.0, 9.0, 9.0]), "rate": 3.0}, np.array([True, False, False]))
    means = window.means()
    np.testing.assert_array_equal(means["loss"], [3.0, 4.0, np.nan])
    assert means["rate"] == 2.0
