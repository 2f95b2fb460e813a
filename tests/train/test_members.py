"""Metrics of shape (S,), one number for each member of a population: written, shown, checked and compared."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy

from jaxkd import train
from jaxkd.errors import NonFiniteLossError
from jaxkd.train.finite import check_finite


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
