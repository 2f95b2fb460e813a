"""Decay groups and schedules against timm's, AdamW against PyTorch's, clipping and freezing by hand."""

import csv
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models, train
from jaxkd.errors import ConfigError
from jaxkd.parallel import path_of
from jaxkd.weights.rules import to_torch_key

# recipe of the golden file -> its own settings; peak 5e-4, warm-up from 1e-6, end 1e-5 are common to all
RECIPES = {
    "deit_tiny_400": {"epochs": 400, "warmup_epochs": 5},
    "deit_small_500": {"epochs": 500, "warmup_epochs": 5},
    "swin_tiny_500": {"epochs": 500, "warmup_epochs": 20},
    "short_30": {"epochs": 30, "warmup_epochs": 5},
}
RATES = {"learning_rate": 5e-4, "warmup_lr": 1e-6, "min_lr": 1e-5}


@pytest.fixture
def published(golden_path):
    """recipe -> {epoch: rate}"""
    table = {}
    with open(golden_path("lr_schedule.csv")) as file:
        for row in csv.DictReader(file):
            table.setdefault(row["recipe"], {})[int(row["epoch"])] = float(row["lr_used_during_epoch"])
    assert set(table) == set(RECIPES)
    return table


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "cait_s24_224", "swin_tiny_patch4_window7_224"],
)
def test_decay_groups_are_timms(golden_path, name):
    expected = json.loads(golden_path("weight_decay_groups.json").read_text())[name]
    model = models.create(name)
    images = jnp.zeros((1, *model.img_size, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"]
    mask = train.decay_mask({"student": params, "projectors": {"linear": {"kernel": jnp.ones((2, 2))}}})
    assert mask["projectors"] == {"linear": {"kernel": True}}
    ours = {
        to_torch_key(path_of(path))[0]: 0.05 if decays else 0.0
        for path, decays in jax.tree_util.tree_leaves_with_path(mask["student"])
    }
    assert ours == expected


def test_tokens_decay_where_the_authors_wrappers_have_no_list_of_exceptions():
    model = models.create("lift_deit_tiny_patch16_224")
    params = models.abstract_variables(model, (1, 224, 224, 3))["params"]
    masks = [
        {
            path_of(path): decays
            for path, decays in jax.tree_util.tree_leaves_with_path(train.decay_mask(params, **args))
        }
        for args in ({}, {"tokens": True})
    ]
    assert {path for path in masks[0] if masks[0][path] != masks[1][path]} == {"base/cls_token", "base/pos_embed"}
    assert masks[1]["base/pos_embed"] and masks[0]["projector/kernel"] and not masks[1]["projector_norm/scale"]
    tokens = {"cls_token": jnp.ones((1, 1, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, tokens)
    for decay_tokens, expected in ((False, 0.0), (True, -0.05)):
        tx = train.make_optimizer(0.1, weight_decay=0.5, decay_tokens=decay_tokens)
        updates, _ = tx.update(zero, tx.init(tokens), tokens)
        np.testing.assert_allclose(updates["cls_token"], expected, atol=1e-7)
        np.testing.assert_array_equal(updates["bias"], 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_timm_epoch_rates_are_the_published_ones(published, recipe):
    rates = train.timm_epoch_rates(**RECIPES[recipe], **RATES)
    assert rates.dtype == np.float64 and rates.shape == (RECIPES[recipe]["epochs"],)
    for epoch, rate in published[recipe].items():
        assert rates[epoch] == pytest.approx(rate, rel=1e-9, abs=0), epoch


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_step_of_an_epoch_really_uses_the_published_rate(published, recipe):
    per_epoch = 3
    epochs = RECIPES[recipe]["epochs"]
    schedule = train.make_schedule(
        "timm_epoch",
        total_steps=epochs * per_epoch,
        steps_per_epoch=per_epoch,
        warmup_epochs=RECIPES[recipe]["warmup_epochs"],
        **RATES,
    )
    # Without moments and decay an AdamW update is the rate itself: what moves the parameter, not what is logged.
    tx = train.make_optimizer(schedule, weight_decay=0.0, b1=0.0, b2=0.0, eps=0.0)

    def step(state, _):
        updates, state = tx.update(jnp.float32(2.0), state, jnp.float32(1.0))
        return state, -updates

    used = jax.lax.scan(step, tx.init(jnp.float32(1.0)), length=epochs * per_epoch)[1].reshape(epochs, per_epoch)
    for epoch, rate in published[recipe].items():
        np.testing.assert_allclose(used[epoch], rate, rtol=2e-7, err_msg=str(epoch))
    logged = [float(schedule(np.int32(s))) for s in (0, 3 * per_epoch - 1, epochs * per_epoch - 1)]
    np.testing.assert_allclose(logged, [used[0, 0], used[2, -1], used[-1, -1]], rtol=2e-7)


def test_cosine_and_warmup_by_hand():
    schedule = train.make_schedule(
        "cosine", learning_rate=1.0, total_steps=50, steps_per_epoch=5, warmup_epochs=2, warmup_lr=0.5, min_lr=0.1
    )
    np.testing.assert_allclose([schedule(s) for s in (0, 4, 9)], [0.5, 0.7, 0.95], rtol=1e-6)
    np.testing.assert_allclose(schedule(10), 1.0, rtol=1e-6)
    np.testing.assert_allclose(schedule(30), 0.55, rtol=1e-6)  # half way
    np.testing.assert_allclose(schedule(20), 0.1 + 0.45 * (1 + math.cos(math.pi / 4)), rtol=1e-6)
    np.testing.assert_allclose([schedule(50), schedule(60)], 0.1, rtol=1e-5)
    without = train.make_schedule("cosine", learning_rate=1.0, total_steps=10, steps_per_epoch=5)
    np.testing.assert_allclose([without(0), without(5), without(10)], [1.0, 0.5, 0.0], atol=1e-6)


def test_constant():
    schedule = train.make_schedule(
        "constant", learning_rate=3e-3, total_steps=20, steps_per_epoch=4, warmup_epochs=0.5, warmup_lr=1e-3
    )
    np.testing.assert_allclose([schedule(s) for s in (0, 1, 2, 19)], [1e-3, 2e-3, 3e-3, 3e-3], rtol=1e-6)
    without = train.make_schedule("constant", learning_rate=3e-3, total_steps=20, steps_per_epoch=4)
    np.testing.assert_allclose([without(0), without(19)], 3e-3, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "warmup", "text"),
    [
        ("cosin", 0, r'schedule.kind="cosin" is not possible. Did you mean "cosine".*timm_epoch'),
        ("cosine", 5, r"schedule.warmup_epochs=5 is 20 steps, but the run has only 20.*Lower schedule.warmup_epochs"),
        ("constant", 6, r"schedule.warmup_epochs=6 is 24 steps"),
        ("timm_epoch", 5, r"schedule.warmup_epochs=5 is 20 steps"),
        ("timm_epoch", 2.5, r'schedule.warmup_epochs=2.5 is no whole number.*schedule.kind="cosine"'),
    ],
)
def test_schedule_errors(kind, warmup, text):
    with pytest.raises(ConfigError, match=text):
        train.make_schedule(kind, learning_rate=1e-3, total_steps=20, steps_per_epoch=4, warmup_epochs=warmup)


PARAMS = {"dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}}


def updates_of(tx, grads, params=PARAMS):
    return tx.update(grads, tx.init(params), params)[0]


def test_decay_by_hand():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates = updates_of(train.make_optimizer(0.1, weight_decay=0.5), zero)
    np.testing.assert_allclose(updates["dense"]["kernel"], [[-0.05, 0.1]], rtol=1e-6)  # -rate * decay * p
    np.testing.assert_array_equal(updates["dense"]["bias"], [0.0])


def test_clipping_by_hand():
    # The norm of (3, 4, 12) is 13. With a huge eps, AdamW's update is -rate * gradient / eps and shows the clipped one.
    grads = {"dense": {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([12.0])}}
    for clip, factor in ((6.5, 0.5), (26.0, 1.0), (0.0, 1.0)):
        tx = train.make_optimizer(1e6, weight_decay=0.0, b1=0.0, b2=0.0, eps=1e6, clip_norm=clip)
        updates = updates_of(tx, grads)
        np.testing.assert_allclose(updates["dense"]["kernel"], [[-3 * factor, -4 * factor]], rtol=1e-4)
        np.testing.assert_allclose(updates["dense"]["bias"], [-12 * factor], rtol=1e-4)


def test_frozen_parameters_neither_move_nor_have_moments_nor_count_for_clipping():
    params = {"student": {"a": PARAMS["dense"], "b": {"kernel": jnp.ones((2, 3))}}, "projectors": {}}
    frozen = {"student": {"a": {"kernel": True, "bias": True}, "b": {"kernel": False}}, "projectors": {}}
    tx = train.make_optimizer(1e6, weight_decay=0.0, b1=0.0, b2=0.0, eps=1e6, clip_norm=1.0, frozen=frozen)
    state = tx.init(params)
    assert sorted(x.shape for x in jax.tree.leaves(state)) == [(), (2, 3), (2, 3)]  # a count and two moments
    grads = jax.tree.map(lambda x: jnp.full_like(x, 1e3), params)
    grads["student"]["b"]["kernel"] = jnp.full((2, 3), 0.25)  # norm 0.61: not clipped on its own
    updates, _ = tx.update(grads, state, params)
    for leaf in jax.tree.leaves(updates["student"]["a"]):
        np.testing.assert_array_equal(leaf, 0.0)
    np.testing.assert_allclose(updates["student"]["b"]["kernel"], -0.25, rtol=1e-4)
    # decay, too, leaves them alone
    updates = updates_of(train.make_optimizer(0.1, weight_decay=0.5, frozen=frozen), grads, params)
    np.testing.assert_array_equal(updates["student"]["a"]["kernel"], 0.0)


def test_projectors_have_their_own_rate_and_decay():
    params = {"student": PARAMS, "projectors": {"mse": PARAMS, "fixed": PARAMS}}
    frozen = {"student": {"dense": {"kernel": False, "bias": True}}}
    frozen["projectors"] = {"mse": {"dense": {"kernel": False, "bias": False}}, "fixed": frozen["student"]}
    rates = lambda step: jnp.array([0.1, 0.2])[step]  # noqa: E731 -- a schedule
    tx = train.make_optimizer(
        rates, weight_decay=0.5, clip_norm=1e9, projector_rate=3.0, projector_decay=0.1, frozen=frozen
    )
    state, zero = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for rate in (0.1, 0.2):  # -rate * decay * p
        updates, state = tx.update(zero, state, params)
        kernel = PARAMS["dense"]["kernel"]
        np.testing.assert_allclose(updates["student"]["dense"]["kernel"], -rate * 0.5 * kernel, rtol=1e-6)
        np.testing.assert_allclose(updates["projectors"]["mse"]["dense"]["kernel"], -3 * rate * 0.1 * kernel, rtol=1e-6)
        np.testing.assert_array_equal(updates["student"]["dense"]["bias"], 0.0)
    moments = [x.shape for x in jax.tree.leaves(state) if x.ndim]
    assert sorted(moments) == [(1,), (1,), *[(1, 2)] * 6]  # of the biases, one trains
    plain = train.make_optimizer(0.1, weight_decay=0.5, projector_decay=0.5).init(params)
    same = train.make_optimizer(0.1, weight_decay=0.5).init(params)
    assert jax.tree.structure(plain) == jax.tree.structure(same)  # a run without settings of its own is as before


def test_frozen_gradients_do_not_count_for_clipping_beside_projectors():
    params = {"student": PARAMS, "projectors": {"mse": PARAMS}}
    frozen = {"student": {"dense": {"kernel": False, "bias": False}}}
    frozen["projectors"] = {"mse": {"dense": {"kernel": True, "bias": True}}}
    tx = train.make_optimizer(
        1e6, weight_decay=0.0, b1=0.0, b2=0.0, eps=1e6, clip_norm=6.5, projector_rate=2.0, frozen=frozen
    )
    grads = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([12.0])}  # norm 13
    grads = {"student": {"dense": grads}, "projectors": {"mse": {"dense": jax.tree.map(lambda x: 1e3 * x, grads)}}}
    updates = updates_of(tx, grads, params)
    np.testing.assert_allclose(updates["student"]["dense"]["kernel"], [[-1.5, -2.0]], rtol=1e-4)
    np.testing.assert_array_equal(updates["projectors"]["mse"]["dense"]["kernel"], 0.0)


@pytest.mark.parity
@pytest.mark.parametrize("clip", [0.0, 0.7])
def test_adamw_is_torchs_over_many_steps(clip):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(5, 4)).astype(np.float32), "bias": rng.normal(size=4).astype(np.float32)}
    rates = (1e-3, 1e-3, 5e-3, 1e-2, 3e-3, 1e-4, 2e-2, 1e-3)
    settings = {"eps": 1e-6, "weight_decay": 0.3}
    theirs = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    groups = [{"params": [theirs["kernel"]]}, {"params": [theirs["bias"]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.95), **settings)
    ours = jax.tree.map(jnp.asarray, start)
    tx = train.make_optimizer(lambda step: jnp.array(rates)[step], b1=0.8, b2=0.95, clip_norm=clip, **settings)
    state = tx.init(ours)
    for rate in rates:
        grads = {k: (rng.normal(size=v.shape) * rng.uniform(0, 1)).astype(np.float32) for k, v in start.items()}
        for k, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[k])
        if clip:
            torch.nn.utils.clip_grad_norm_(list(theirs.values()), clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        updates, state = tx.update(grads, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        for k in start:
            np.testing.assert_allclose(ours[k], theirs[k].detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=k)
