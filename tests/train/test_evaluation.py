"""Exact evaluation: every image once, whatever the batches, and several sets of weights in one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Toy, draw, validation

from jaxkd import metrics, parallel, train
from jaxkd.errors import DataError


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh()


def members():
    task = Toy()
    raw, mutable = task.init(jax.random.key(0, impl="rbg"))
    average = jax.tree.map(lambda x: 0.5 * x + 0.25, raw)
    return task, {"": (raw, mutable), "ema_": (average, {})}


def by_hand(params, count):
    whole = draw(10**6, count)
    dense = jax.device_get(params["student"]["dense"])
    error = np.mean((whole["x"] @ dense["kernel"] + dense["bias"] - whole["y"]) ** 2, axis=1)
    return {"top1": 100 * np.mean(error < 1.0), "loss": np.mean(error)}


@pytest.mark.parametrize("count", [1, 16, 37])
@pytest.mark.parametrize("batch", [1, 5, 16, 64])
def test_every_image_counts_once_whatever_the_batches(mesh, count, batch):
    task, params = members()
    eval_step = train.compile_eval_step(task, mesh)
    seen = []
    means, images, rate = train.evaluate(
        eval_step, iter(validation(count, batch)), params, task.constants, mesh, progress=seen.append
    )
    assert images == count and rate > 0
    assert seen == list(range(1, -(-count // batch) + 1))
    for name, (tree, _) in params.items():
        assert means[name] == pytest.approx(by_hand(tree, count), rel=1e-5)
    assert means[""] != means["ema_"]


def test_both_sets_of_weights_see_each_batch_once(mesh):
    task, params = members()
    calls = []

    def counting(p, mutable, batch, constants):
        calls.append((bool(jnp.all(p["student"]["dense"]["bias"] == 0)), batch["x"].shape))
        return task.evaluate(p, mutable, batch, constants)

    def once():
        drawn = validation(10, 8)
        yield from drawn  # a generator: a second pass would find nothing

    means, images, _ = train.evaluate(counting, once(), params, task.constants, mesh)
    assert calls == [(True, (8, 4)), (False, (8, 4))] * 2
    assert images == 10 and means["ema_"] == pytest.approx(by_hand(params["ema_"][0], 10), rel=1e-5)


def test_sums_do_not_lose_images_beyond_fp32(mesh):
    """2^24 + 1 is no fp32 number: adding the batches up on the device would stop counting there."""

    def large(p, mutable, batch, constants):
        count = jnp.where(batch["x"][0] == 1, 1.0, 2.0**24)
        return {"top1": metrics.Average(total=count / 2, count=count)}

    batches = [{"x": np.zeros(1)}] * 2 + [{"x": np.ones(1)}]
    means, images, _ = train.evaluate(large, batches, {"": ({}, {})}, {}, mesh)
    assert means[""] == {"top1": 0.5} and images == 2**25 + 1


def test_each_member_of_a_population_has_its_own_mean(mesh):
    def two(p, mutable, batch, constants):
        totals = jnp.stack([batch["x"].sum(), -batch["x"].sum()])
        return {"top1": metrics.Average(total=totals, count=jnp.full(2, batch["x"].size))}

    batches = [{"x": np.arange(4.0)}, {"x": np.arange(8.0)}]
    means, images, _ = train.evaluate(two, batches, {"": ({}, {})}, {}, mesh)
    np.testing.assert_array_equal(means[""]["top1"], [34 / 12, -34 / 12])
    assert images == 12


def test_no_images_are_an_error_and_not_a_score_of_zero(mesh):
    task, params = members()
    eval_step = train.compile_eval_step(task, mesh)
    with pytest.raises(DataError, match=r"counted no images \(0 batches\)"):
        train.evaluate(eval_step, [], params, task.constants, mesh)
    (batch,) = validation(8, 8)
    with pytest.raises(DataError, match=r"counted no images \(1 batches\).*mask"):
        train.evaluate(eval_step, [batch | {"mask": np.zeros(8, bool)}], params, task.constants, mesh)
