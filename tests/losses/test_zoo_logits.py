"""Decoupled and standardised distillation, DIST and DeiT's token: golden cases, traps and errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError, ShapeError, UnknownNameError
from tests.losses import zoo_cases

LOGITS = jax.random.normal(jax.random.key(0), (4, 5)) * 3
LABELS = jnp.array([0, 4, 2, 2])


@pytest.mark.parametrize("name", zoo_cases.names("decoupled_kl"))
def test_decoupled_kl_golden(name):
    hyper = zoo_cases.hyper(name)

    def call(x, where, **changed):
        return losses.decoupled_kl(
            x["student_logits"], x["teacher_logits"], x["labels"], where=where, **{**hyper, **changed}
        )

    def outputs(x):
        square = hyper["temperature"] ** 2
        return {
            "tckd": call(x, None, alpha=1.0, beta=0.0) / square,
            "nckd": call(x, None, alpha=0.0, beta=1.0) / square,
        }

    extreme = name.endswith("extreme")
    zoo_cases.check(name, call, outputs, loss_tolerance=2e-5 if extreme else 1e-5)


@pytest.mark.parametrize("name", zoo_cases.names("standardized_kl"))
def test_standardized_kl_golden(name):
    hyper = zoo_cases.hyper(name)
    zoo_cases.check(
        name, lambda x, where: losses.standardized_kl(x["student_logits"], x["teacher_logits"], where=where, **hyper)
    )


@pytest.mark.parametrize("name", zoo_cases.names("dist"))
def test_dist_golden(name):
    hyper = zoo_cases.hyper(name)

    def call(x, where, **changed):
        return losses.dist(x["student_logits"], x["teacher_logits"], where=where, **{**hyper, **changed})

    def outputs(x):
        return {
            "inter": call(x, None, beta=1.0, gamma=0.0, scale=False),
            "intra": call(x, None, beta=0.0, gamma=1.0, scale=False),
        }

    zoo_cases.check(name, call, outputs)


@pytest.mark.parametrize("name", zoo_cases.names("distillation_token"))
def test_distillation_token_golden(name):
    hyper = zoo_cases.hyper(name)

    def call(x, where, **changed):
        arrays = (x[key] for key in ("class_logits", "distill_logits", "teacher_logits", "labels"))
        return losses.distillation_token(*arrays, where=where, **{**hyper, **changed})

    zoo_cases.check(name, call, lambda x: {"base": call(x, None, alpha=0.0), "kd": call(x, None, alpha=1.0)})


def test_half_precision_is_computed_in_fp32():
    logits = jax.ShapeDtypeStruct((4, 5), jnp.bfloat16)
    for loss in (
        lambda x: losses.decoupled_kl(x, x, LABELS),
        lambda x: losses.standardized_kl(x, x),
        lambda x: losses.dist(x, x),
        lambda x: losses.distillation_token(x, x, x, LABELS, kind="soft"),
    ):
        assert jax.eval_shape(loss, logits).dtype == jnp.float32


def finite_with_slope(loss, *arrays):
    """Value and gradients of `loss`, after checking that both are finite."""

    def total(*a):
        value = loss(*a)
        return jnp.sum(value), value

    gradient, value = jax.jit(jax.grad(total, argnums=tuple(range(len(arrays))), has_aux=True))(*arrays)
    assert np.isfinite(value).all() and all(np.isfinite(g).all() for g in gradient)
    return value, gradient


def test_extreme_logits_are_finite():
    """Published code subtracts 1000 from the label's logit and takes the logarithm of a softmax."""

    def all_losses(student, teacher):
        token = losses.distillation_token(student, -student, teacher, jnp.tile(jnp.eye(5), (3, 1))[:12], kind="soft")
        parts = (losses.decoupled_kl(student, teacher, jnp.tile(LABELS, 3), temperature=1.0), token)
        return jnp.stack([*parts, losses.standardized_kl(student, teacher)]), losses.dist(student, teacher)

    logits = jnp.concatenate([gap * LOGITS for gap in (1e2, 1e4, 1e6)])
    finite_with_slope(lambda s, t: sum(map(jnp.sum, all_losses(s, t))), logits, -logits)


def test_decoupled_kl_of_two_classes_has_no_second_part():
    student, teacher = 50 * LOGITS[:, :2], LOGITS[:, 2:4]
    loss = lambda s: losses.decoupled_kl(s, teacher, LABELS // 4, alpha=0.0)  # noqa: E731
    value, (gradient,) = finite_with_slope(loss, student)
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


def test_the_logit_of_the_label_does_not_change_the_second_part():
    """The label is taken out; subtracting 1000 from its logit would leave it in where it is larger by more."""
    shift = 5000.0 * jax.nn.one_hot(LABELS, 5)
    loss = jax.jit(lambda s, t: losses.decoupled_kl(s, t, LABELS, alpha=0.0, temperature=1.0))
    np.testing.assert_allclose(loss(LOGITS + shift, LOGITS[::-1] + shift), loss(LOGITS, LOGITS[::-1]), rtol=1e-5)


def test_decoupled_kl_of_all_parts_is_kl():
    """KL = TCKD + (1 - p_y) NCKD of the teacher: with beta = 1 - p_y of a row, that row is the KL."""
    student, teacher = LOGITS, LOGITS[::-1]
    rest = 1.0 - float(jax.nn.softmax(teacher)[1, LABELS[1]])
    loss = jax.jit(lambda s, t: losses.decoupled_kl(s, t, LABELS, beta=rest, temperature=1.0) - losses.kl(s, t))
    np.testing.assert_allclose(loss(student, teacher)[1], 0.0, atol=1e-5)


def test_a_label_outside_is_nan():
    value = jax.jit(losses.decoupled_kl)(LOGITS, -LOGITS, jnp.array([-1, 5, 0, 4]))
    np.testing.assert_array_equal(np.isnan(value), [True, True, False, False])


def test_constant_logits_and_columns_are_finite():
    constant = jnp.zeros((4, 5))
    certain = jnp.array([[0.0, -300.0, 0.0], [0.0, -300.0, 1.0]])  # a class of probability 0 in all examples

    def all_losses(constant, logits, certain):
        return jnp.stack(
            [
                jnp.sum(losses.standardized_kl(constant, constant)),
                losses.dist(constant, constant),
                losses.dist(constant, logits),
                losses.dist(logits[:1], logits[:1]),  # one example: every column is constant
                losses.dist(logits, logits, where=jnp.zeros(4, bool)),
                losses.dist(certain, certain),
            ]
        )

    value, _ = finite_with_slope(all_losses, constant, LOGITS, certain)
    np.testing.assert_allclose(value[:4], [0.0, 2.0, 2.0, 1.0], atol=1e-5)  # a constant has no correlation


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: losses.decoupled_kl(LOGITS, LOGITS, jnp.eye(5)[:4]), ShapeError, r"float32 of shape.*mixup"),
        (lambda: losses.decoupled_kl(LOGITS[:, :1], LOGITS[:, :1], LABELS), ShapeError, "1 class.*2 or more"),
        (lambda: losses.decoupled_kl(LOGITS, LOGITS, LABELS, temperature=0), ConfigError, "temperature=0"),
        (lambda: losses.standardized_kl(LOGITS, LOGITS, ddof=2), ConfigError, "ddof=2"),
        (lambda: losses.standardized_kl(LOGITS[:, :1], LOGITS[:, :1]), ShapeError, "2 or more"),
        (lambda: losses.dist(LOGITS, LOGITS[:, 1:]), ShapeError, r"\(4, 5\).*\(4, 4\)"),
        (lambda: losses.dist(LOGITS, LOGITS, where=jnp.ones(3, bool)), ShapeError, "where is bool"),
        (lambda: losses.distillation_token(*[LOGITS] * 3, LABELS, kind="sotf"), UnknownNameError, "soft"),
        (lambda: losses.distillation_token(*[LOGITS] * 3, LABELS, alpha=2.0), ConfigError, "alpha=2.0"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
