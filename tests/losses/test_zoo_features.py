"""Losses on features of one example, with and without projectors: golden cases, traps, masks and errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError, ShapeError, UnknownNameError
from tests.losses import zoo_cases

STUDENT, TEACHER = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 6))
GENERATOR = {
    "align_kernel": jnp.ones((6, 6)),
    "align_bias": jnp.ones(6),
    **{f"conv_{i}_kernel": jnp.full((3, 3, 6, 6), 0.1) for i in range(2)},
    **{f"conv_{i}_bias": jnp.zeros(6) for i in range(2)},
    "mask_token": jnp.ones(6),
}


def projected(x, where):
    return losses.project(x["student"], x["kernel"], x["bias"], where=where) if "kernel" in x else x["student"]


def params(x):
    return {key: value for key, value in x.items() if key not in ("student", "teacher", "mask")}


def simkd_logits(x):
    return {
        "logits": losses.simkd_logits(losses.simkd_project(x["student"], x)[0], x["head_kernel"], x["head_bias"]),
    }


# function -> (inputs, where, hyperparameters) -> loss
CALLS = {
    "feature_cosine": lambda x, where, **kw: losses.feature_cosine(
        projected(x, where), x["teacher"], where=where, **kw
    ),
    "normalized_mse": lambda x, where, **kw: losses.normalized_mse(
        projected(x, where), x["teacher"], where=where, **kw
    ),
    "hint": lambda x, **kw: losses.hint(x["student"], x["teacher"], x["kernel"], x["bias"], **kw),
    "attention_transfer": lambda x, **kw: losses.attention_transfer(x["student"], x["teacher"], **kw),
    "nst": lambda x, **kw: losses.nst(x["student"], x["teacher"], **kw),
    "vid": lambda x, **kw: losses.vid(
        x["student"], x["teacher"], [x[f"kernel_{i}"] for i in range(3)], x["log_scale"], **kw
    ),
    "mgd": lambda x, ratio, **kw: losses.mgd(x["student"], x["teacher"], x["mask"], params(x), **kw),
    "vitkd_mimic": lambda x, **kw: losses.vitkd_mimic(x["student"], x["teacher"], x["kernel"], x["bias"], **kw),
    "vitkd_generation": lambda x, grid, **kw: losses.vitkd_generation(
        x["student"], x["teacher"], x["mask"], params(x), grid=tuple(grid), **kw
    ),
    "simkd": lambda x, projector, bn_eps=1e-5, **kw: losses.simkd(x["student"], x["teacher"], x, eps=bn_eps, **kw),
}
OUTPUTS = {"vid": lambda x: {"variance": losses.vid_variance(x["log_scale"])}, "simkd": simkd_logits}


@pytest.mark.parametrize("name", zoo_cases.names(*CALLS))
def test_golden(name):
    function, hyper = name.split("/")[0], zoo_cases.hyper(name)
    zoo_cases.check(name, lambda x, where: CALLS[function](x, where=where, **hyper), OUTPUTS.get(function))


@pytest.mark.parametrize("function", CALLS)
def test_half_precision_is_computed_in_fp32(function):
    """Shapes and types only, so nothing is compiled; the goldens check the values."""
    name = zoo_cases.names(function)[0]
    given = {key: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for key, x in zoo_cases.arrays(name).items()}
    loss = jax.eval_shape(lambda x: CALLS[function](x, where=None, **zoo_cases.hyper(name)), given)
    assert loss.shape == (6,) and loss.dtype == jnp.float32


def slope(loss, *arrays):
    """Gradients of the sum of `loss`."""
    return jax.jit(jax.grad(lambda *a: jnp.sum(loss(*a)), argnums=tuple(range(len(arrays)))))(*arrays)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (losses.feature_cosine, 1.0),
        (lambda s, t: losses.normalized_mse(s, t, normalize="l2"), 1.0),
        (lambda s, t: losses.normalized_mse(s, t, normalize="layer"), None),
        (losses.attention_transfer, 1 / 16),
        (lambda s, t: losses.attention_transfer(s, t, p=1.5, reduction="norm"), 1.0),
        (losses.nst, None),
    ],
)
def test_zero_features_have_a_value_and_no_steep_slope(loss, value):
    """x / max(|x|, eps) has slope 1 / eps at 0, up to 1e12."""
    zero, teacher = jnp.zeros_like(STUDENT), jnp.abs(TEACHER)
    if value is not None:
        np.testing.assert_allclose(loss(zero, teacher), value, rtol=1e-6)
    for gradient in (*slope(loss, zero, teacher), *slope(loss, teacher, zero), *slope(loss, zero, zero)):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1e3
    np.testing.assert_allclose(loss(zero, zero), 1.0 if loss is losses.feature_cosine else 0.0, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean_square", "norm"])
def test_attention_transfer_of_equal_maps_has_no_slope(reduction):
    for gradient in slope(lambda *maps: losses.attention_transfer(*maps, p=3, reduction=reduction), TEACHER, TEACHER):
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    # |x|^p: the sign of an activation does not count, also for odd p
    np.testing.assert_allclose(losses.attention_transfer(-TEACHER, TEACHER, p=3, reduction=reduction), 0.0, atol=1e-7)


def test_smooth_l1_by_hand():
    """LN of (-1, 1) is itself; differences 1 and 5 at beta 2: 1/4 and 5 - 1."""
    teacher = jnp.array([[[-1.0, 1.0]]])
    value = losses.normalized_mse(teacher + jnp.array([1.0, 5.0]), teacher, eps=1e-12, smooth_l1_beta=2.0)
    np.testing.assert_allclose(value, [(0.25 + 4.0) / 2], rtol=1e-6)


def test_nst_is_the_same_in_both_forms():
    """Few positions: Gram matrices of positions. Many: of channels."""
    student, teacher = STUDENT[..., :2], TEACHER
    nst = jax.jit(losses.nst)
    few = nst(student[:, :2, :2], teacher[:, :2, :2])
    # Zero rows change no channel, but make 40 positions of the 4.
    pad = ((0, 0), (0, 8), (0, 2), (0, 0))
    many = nst(*(jnp.pad(x[:, :2, :2], pad) for x in (student, teacher)))
    np.testing.assert_allclose(many, few, rtol=1e-5)


def test_vid_variance_at_both_ends():
    variance = losses.vid_variance(jnp.array([-200.0, 0.0, 100.0]))
    np.testing.assert_allclose(variance, [1e-5, np.log(2.0) + 1e-5, 100.0], rtol=1e-6)
    (gradient,) = slope(lambda v: losses.vid(STUDENT, TEACHER, [jnp.eye(6)], v), jnp.array([-200.0, 100.0] * 3))
    assert np.isfinite(gradient).all()


def test_equal_widths_need_no_projector():
    tokens = (STUDENT.reshape(3, 2, 8, 6), TEACHER.reshape(3, 2, 8, 6))
    expected = 3e-5 * np.square(np.asarray(STUDENT - TEACHER)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(losses.vitkd_mimic(*tokens, None, None), expected, rtol=1e-5)
    bare = {key: x for key, x in GENERATOR.items() if not key.startswith("align")}
    identity = {**bare, "align_kernel": jnp.eye(6), "align_bias": jnp.zeros(6)}
    mask = losses.mgd_mask(jax.random.key(1), TEACHER.shape)
    for loss in (losses.mgd, losses.vitkd_generation):
        given = mask if loss is losses.mgd else losses.vitkd_mask(jax.random.key(1), 3, 16)
        np.testing.assert_allclose(
            loss(STUDENT, TEACHER, given, bare), loss(STUDENT, TEACHER, given, identity), rtol=1e-6
        )


def test_generation_of_maps_is_that_of_tokens():
    mask = losses.vitkd_mask(jax.random.key(0), 3, 16)
    flat = losses.vitkd_generation(STUDENT.reshape(3, 16, 6), TEACHER.reshape(3, 16, 6), mask, GENERATOR)
    for given in (mask, mask.reshape(3, 4, 4) > 0):
        np.testing.assert_allclose(losses.vitkd_generation(STUDENT, TEACHER, given, GENERATOR), flat, rtol=1e-6)


def test_masks_have_the_published_shapes_and_shares():
    key = jax.random.key(0)
    channels = losses.mgd_mask(key, (64, 3, 5, 100))
    positions = losses.mgd_mask(key, (64, 8, 9, 100), drop="positions")
    assert channels.shape == (64, 1, 1, 100) and positions.shape == (64, 8, 9, 1)
    np.testing.assert_allclose([channels.mean(), positions.mean()], [0.85, 0.35], atol=0.02)
    assert len(np.unique(channels.sum(axis=(1, 2, 3)))) > 1  # each channel on its own
    removed = losses.vitkd_mask(key, 200, 9, ratio=0.5)
    np.testing.assert_array_equal(removed.sum(axis=1), 9 - int(9 * 0.5))
    np.testing.assert_allclose(removed.mean(axis=0), 5 / 9, atol=0.1)  # every token alike


def simkd_bottleneck(key, narrow=6, middle=3, wide=6):
    sizes = (narrow, middle, middle, wide)
    kernels = {
        f"conv_{j}_kernel": jax.random.normal(jax.random.fold_in(key, j), (k, k, sizes[j], sizes[j + 1]))
        for j, k in enumerate((1, 3, 1))
    }
    ones = {f"bn_{j}_scale": jnp.ones(sizes[j + 1]) for j in range(3)}
    return {**kernels, **ones, **{f"bn_{j}_bias": jnp.zeros(sizes[j + 1]) for j in range(3)}}


def test_simkd_statistics_and_the_last_relu():
    @jax.jit
    def run(projector):
        batch, used = losses.simkd_project(STUDENT, projector)
        part, _ = losses.simkd_project(STUDENT[:1], projector, statistics=used)
        signed, _ = losses.simkd_project(STUDENT, projector, last_relu=False)
        loss = losses.simkd(STUDENT, TEACHER, projector, last_relu=False)
        nobody = jax.grad(lambda x: losses.simkd(STUDENT, TEACHER, x, where=jnp.zeros(3, bool)).sum())(projector)
        return batch, used, part, signed, loss, nobody

    batch, used, part, signed, loss, nobody = map(jax.device_get, run(simkd_bottleneck(jax.random.key(2))))
    assert set(used) == {f"bn_{j}_{name}" for j in range(3) for name in ("mean", "var")}
    # The statistics of the batch, given as those of test time, give the same for a part of the batch.
    np.testing.assert_allclose(part, batch[:1], rtol=1e-4, atol=1e-5)
    assert batch.min() == 0 and signed.min() < 0
    np.testing.assert_allclose(batch, np.maximum(signed, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loss, np.square(signed - np.asarray(TEACHER)).mean(axis=(1, 2, 3)), rtol=1e-5)
    assert all((gradient == 0).all() for gradient in nobody.values())


MASK = jnp.ones((3, 1, 1, 6))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: losses.feature_cosine(STUDENT[..., :4], TEACHER), ShapeError, "4 channels.*6.*Project"),
        (lambda: losses.feature_cosine(STUDENT[:, 1:], TEACHER), ShapeError, "grids"),
        (lambda: losses.normalized_mse(STUDENT, TEACHER, normalize="layr"), UnknownNameError, "layer"),
        (lambda: losses.normalized_mse(STUDENT, TEACHER, normalize="l2", smooth_l1_beta=1.0), ConfigError, "Leave"),
        (lambda: losses.normalized_mse(STUDENT, TEACHER, smooth_l1_beta=0.0), ConfigError, "smooth_l1_beta=0.0"),
        (lambda: losses.attention_transfer(STUDENT, TEACHER, p=0.5), ConfigError, "p=0.5"),
        (lambda: losses.attention_transfer(STUDENT[:, 0, 0], TEACHER[:, 0, 0]), ShapeError, "pooled features"),
        (lambda: losses.attention_transfer(STUDENT, TEACHER, reduction="max"), UnknownNameError, "mean_square"),
        (lambda: losses.nst(STUDENT, TEACHER, eps=0.0), ConfigError, "eps=0.0"),
        (lambda: losses.hint(STUDENT, TEACHER, jnp.ones((6, 5)), jnp.ones(5)), ShapeError, r"\(6, 5\).*\(6, 6\)"),
        (lambda: losses.vid(STUDENT, TEACHER, [jnp.eye(6)], jnp.ones(5)), ShapeError, r"log_scale.*\(5,\)"),
        (lambda: losses.vid(STUDENT, TEACHER, [jnp.ones((6, 5)), jnp.eye(6)], jnp.ones(6)), ShapeError, r"kernels\[1"),
        (lambda: losses.vid(STUDENT, TEACHER, [], jnp.ones(6)), ShapeError, "no kernels"),
        (lambda: losses.mgd(STUDENT, TEACHER, MASK[..., :5], GENERATOR), ShapeError, "drop channels"),
        (lambda: losses.mgd(STUDENT, TEACHER, MASK, {}), ShapeError, "no parameter conv_0_kernel"),
        (lambda: losses.mgd_mask(jax.random.key(0), TEACHER.shape, drop="rows"), ConfigError, "positions"),
        (lambda: losses.vitkd_mimic(STUDENT, TEACHER[..., :4], None, None), ShapeError, "no parameter kernel"),
        (
            lambda: losses.vitkd_generation(
                STUDENT.reshape(3, 16, 6), TEACHER.reshape(3, 16, 6), jnp.ones((3, 16)), GENERATOR, grid=(3, 5)
            ),
            ShapeError,
            r"16 tokens.*\(3, 5\)",
        ),
        (lambda: losses.vitkd_generation(STUDENT, TEACHER, jnp.ones((3, 9)), GENERATOR), ShapeError, r"\(3, 16\)"),
        (lambda: losses.vitkd_mask(jax.random.key(0), 2, 4, ratio=1.0), ConfigError, "ratio=1.0"),
        (lambda: losses.simkd(STUDENT, TEACHER, {"kernel": jnp.eye(6)}), ShapeError, "no parameter bias"),
        (lambda: losses.simkd(STUDENT, TEACHER, simkd_bottleneck(jax.random.key(0), wide=5)), ShapeError, "conv_2"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
