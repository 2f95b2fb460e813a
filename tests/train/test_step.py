"""One compiled step: means over micro-batches, the moving average, randomness, donation and precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import BATCH, Toy, draw

from jaxkd import parallel, train
from jaxkd.train.moving_average import initial_share
from jaxkd.train.state import non_finite_paths


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh()


def begin(mesh, task, tx, *, accumulate=1, ema_decay=0.0, **options):
    """(step function, state) at step 0."""

    def start():
        return train.create_state(*task.init(jax.random.key(0, impl="rbg")), tx, ema=ema_decay > 0)

    how = {"accumulate": accumulate, "ema_decay": ema_decay, **options}
    fn = train.compile_train_step(task, tx, mesh, jax.eval_shape(start), **how)
    return fn, parallel.put_on_mesh(start(), mesh)


class Masked(Toy):
    """The squared error over the examples whose mask is True; 0 where none is."""

    def loss(self, params, mutable, batch, key, step, constants):
        error = jnp.mean(jnp.square(self.predict(params, batch["x"]) - batch["y"]), axis=1)
        fit = jnp.sum(jnp.where(batch["mask"], error, 0.0)) / jnp.maximum(jnp.sum(batch["mask"]), 1)
        return fit, ({"fit": fit}, mutable)


def key(seed=1):
    return jax.random.key(seed, impl="rbg")


def values(metrics):
    return {k: float(v) for k, v in metrics.items()}


def test_micro_batches_give_the_step_of_the_whole_batch(mesh):
    task = Toy(noise=0.0)
    results = {}
    for accumulate in (1, 2, 4):
        fn, state = begin(mesh, task, train.make_optimizer(1e-2), accumulate=accumulate)
        for n in (1, 2):
            state, metrics = fn(state, draw(n), key(), task.constants)
        results[accumulate] = (jax.device_get(state), values(metrics))
    whole, whole_metrics = results[1]
    for accumulate in (2, 4):
        state, metrics = results[accumulate]
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(whole.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert metrics == pytest.approx(whole_metrics, rel=1e-5)
        assert int(state.mutable["seen"]) == 2 * BATCH  # buffers pass through every micro-batch


def test_micro_batches_weigh_by_the_examples_that_count(mesh):
    task, results = Masked(noise=0.0), {}
    batch = draw(1) | {"mask": np.arange(BATCH) % 4 != 0}  # of 4 micro-batches one counts no example, of 2 one half
    for accumulate in (1, 2, 4):
        fn, state = begin(mesh, task, train.make_optimizer(1e-2), accumulate=accumulate)
        state, metrics = fn(state, batch, key(), task.constants)
        results[accumulate] = (jax.device_get(state.params), values(metrics))
    for accumulate in (2, 4):
        for a, b in zip(jax.tree.leaves(results[accumulate][0]), jax.tree.leaves(results[1][0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert results[accumulate][1] == pytest.approx(results[1][1], rel=1e-5)


def test_micro_batches_draw_noise_of_their_own_and_take_every_second_example(mesh):
    task, batch = Toy(noise=1.0), draw(1)
    fn, state = begin(mesh, task, train.make_optimizer(1e-2), accumulate=2)
    params, mutable = jax.device_get((state.params, state.mutable))
    _, metrics = fn(state, batch, key(), task.constants)
    loss = jax.jit(task.loss)
    step_key = jax.random.fold_in(key(), 0)
    parts = [
        loss(
            params,
            mutable,
            {k: v[i::2] for k, v in batch.items()},
            jax.random.fold_in(step_key, i),
            0,
            task.constants,
        )[0]
        for i in (0, 1)
    ]
    assert float(metrics["loss"]) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)


def test_metrics_are_every_term_weighted_and_not_the_loss_and_the_gradient(mesh):
    task = Toy(noise=0.0)
    fn, state = begin(mesh, task, train.make_optimizer(1e-2))
    params = jax.device_get(state.params)["student"]["dense"]
    batch = draw(1)
    _, metrics = fn(state, batch, key(), task.constants)
    metrics = values(metrics)
    names = {"fit", "size", "edge"}
    assert set(metrics) == {"loss", "grad_norm", "images", *names, *(f"{n}_weighted" for n in names)}
    error = batch["x"] @ params["kernel"] + params["bias"] - batch["y"]
    expected = {"fit": np.mean(error**2), "size": np.mean(params["kernel"] ** 2)}
    expected["edge"] = 0.01 * np.mean(np.abs(params["kernel"]))
    assert {k: metrics[k] for k in names} == pytest.approx(expected, rel=1e-5)
    assert metrics["size_weighted"] == pytest.approx(0.1 * expected["size"], rel=1e-5)
    assert metrics["loss"] == pytest.approx(sum(metrics[f"{n}_weighted"] for n in names), rel=1e-6)
    slope = 2 * batch["x"].T @ error / error.size + 0.2 * params["kernel"] / 12 + 0.01 * np.sign(params["kernel"]) / 12
    bias = 2 * error.sum(0) / error.size
    norm = np.sqrt(np.sum(slope**2) + np.sum(bias**2))
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_frozen_parameters_stay_bit_for_bit_and_do_not_count_in_the_gradient(mesh):
    frozen = {"student": {"dense": {"kernel": True, "bias": False}}, "projectors": {}}
    task = Toy(noise=0.0, frozen=frozen)
    fn, state = begin(mesh, task, train.make_optimizer(1e-2, frozen=frozen), ema_decay=0.5)
    before = jax.device_get(state.params)["student"]["dense"]
    batch = draw(1)
    error = batch["x"] @ before["kernel"] + before["bias"] - batch["y"]
    state, metrics = fn(state, batch, key(), task.constants)
    after, average = (jax.device_get(tree)["student"]["dense"] for tree in (state.params, state.ema))
    np.testing.assert_array_equal(after["kernel"], before["kernel"])
    np.testing.assert_array_equal(average["kernel"], before["kernel"])
    assert np.all(after["bias"] != before["bias"])
    norm = float(np.linalg.norm(2 * error.sum(0) / error.size))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)


def test_the_moving_average_by_hand(mesh):
    fn, state = begin(mesh, Toy(), train.make_optimizer(0.1), ema_decay=0.9)
    expected = jax.device_get(state.params)["student"]["dense"]["kernel"].astype(np.float64)
    np.testing.assert_array_equal(state.ema["student"]["dense"]["kernel"], expected)
    for n in (1, 2, 3):
        state, _ = fn(state, draw(n), key(), Toy().constants)
        expected = 0.9 * expected + 0.1 * np.asarray(state.params["student"]["dense"]["kernel"], np.float64)
    np.testing.assert_allclose(state.ema["student"]["dense"]["kernel"], expected, rtol=1e-6, atol=1e-7)
    assert np.abs(state.ema["student"]["dense"]["kernel"] - state.params["student"]["dense"]["kernel"]).max() > 1e-3


def test_the_warm_up_of_the_moving_average_by_hand(mesh):
    fn, state = begin(mesh, Toy(), train.make_optimizer(0.1), ema_decay=0.2, ema_warmup=True)
    expected = jax.device_get(state.params)["student"]["dense"]["kernel"].astype(np.float64)
    for n, decay in enumerate((1 / 10, 2 / 11, 0.2, 0.2)):  # the third would be 3 / 12
        state, _ = fn(state, draw(n), key(), Toy().constants)
        new = np.asarray(state.params["student"]["dense"]["kernel"], np.float64)
        expected = decay * expected + (1 - decay) * new
    np.testing.assert_allclose(state.ema["student"]["dense"]["kernel"], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("decay", "steps"), [(0.999, 3), (0.999, 400), (0.3, 1), (0.3, 9), (0.05, 2), (0.9, 85)])
def test_share_of_the_initial_weights_in_the_average(decay, steps):
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(steps)]
    assert initial_share(decay, steps, warmup=True) == pytest.approx(np.prod(decays), rel=1e-9)
    assert initial_share(decay, steps) == pytest.approx(np.prod([decay] * steps), rel=1e-9)
    assert initial_share(0.0, steps) == initial_share(0.0, 0) == 0


def test_noise_depends_on_key_and_step_only(mesh):
    task = Toy(noise=1.0)
    tx = train.make_optimizer(0.0, weight_decay=0.0)  # the parameters stay, so the loss shows the noise

    fn, first = begin(mesh, task, tx)

    def fit(step, seed=1):
        state = jax.tree.map(jnp.copy, first).replace(step=parallel.put_on_mesh(jnp.int32(step), mesh))
        state, metrics = fn(state, draw(1), key(seed), task.constants)
        assert int(state.step) == step + 1
        return float(metrics["fit"])

    at_five = fit(5)
    assert at_five == fit(5)
    assert len({at_five, fit(6), fit(5, seed=2)}) == 3
    # the sixth step in a row draws what a fresh start at step 5 draws
    state = first
    for _ in range(6):
        state, metrics = fn(state, draw(1), key(), task.constants)
    assert float(metrics["fit"]) == at_five


def test_the_state_is_donated_and_what_it_was_made_from_is_not(mesh):
    task = Toy()
    params, mutable = task.init(jax.random.key(0, impl="rbg"))
    tx = train.make_optimizer(1e-2)
    state = parallel.put_on_mesh(train.create_state(params, mutable, tx, ema=True), mesh)
    constants = parallel.put_on_mesh({"scale": jnp.float32(1.0)}, mesh)
    fn = train.compile_train_step(task, tx, mesh, state, ema_decay=0.9)
    new, _ = fn(state, draw(1), key(), constants)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params) + jax.tree.leaves(state.ema))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, mutable, constants, new)))
    np.testing.assert_array_equal(params["student"]["dense"]["bias"], 0.0)  # still readable


def test_bf16_arithmetic_leaves_parameters_moments_and_average_in_fp32(mesh):
    task = Toy(noise=0.0, compute=jnp.bfloat16)
    fn, state = begin(mesh, task, train.make_optimizer(1e-4), ema_decay=0.9)
    before = np.asarray(state.params["student"]["dense"]["kernel"])
    for n in (1, 2, 3):
        state, metrics = fn(state, draw(n), key(), task.constants)
    for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state, metrics)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    # a bf16 parameter near 1 could not take a step of 1e-4
    moved = np.abs(np.asarray(state.params["student"]["dense"]["kernel"]) - before)
    assert np.all((moved > 1e-5) & (moved < 1e-3))
    exact, reference = begin(mesh, Toy(noise=0.0), train.make_optimizer(1e-4))
    _, expected = exact(reference, draw(1), key(), task.constants)
    fn, state = begin(mesh, task, train.make_optimizer(1e-4))
    _, metrics = fn(state, draw(1), key(), task.constants)
    difference = abs(float(metrics["fit"]) - float(expected["fit"]))
    assert 0 < difference < 0.03 * float(expected["fit"])  # it really computes in bf16, and nearly the same


def test_paths_of_what_is_not_finite(mesh):
    _, state = begin(mesh, Toy(), train.make_optimizer(1e-2), ema_decay=0.9)
    assert non_finite_paths(state, mesh) == []
    bad = state.replace(
        ema={"student": {"dense": {"kernel": jnp.full((4, 3), jnp.inf), "bias": jnp.zeros(3)}}, "projectors": {}},
        mutable={"seen": jnp.float32(jnp.nan)},
    )
    assert non_finite_paths(bad, mesh) == ["mutable/seen", "ema/student/dense/kernel"]


def test_a_masked_batch_counts_only_its_images(mesh):
    task = Toy(noise=0.0)
    fn, state = begin(mesh, task, train.make_optimizer(1e-2))
    batch = draw(1)
    size = jax.tree.leaves(batch)[0].shape[0]
    mask = np.arange(size) % 4 != 0
    assert int(train.step.count_images(batch)) == size
    _, metrics = fn(state, {**batch, "mask": mask}, key(), task.constants)
    assert int(metrics["images"]) == mask.sum()
