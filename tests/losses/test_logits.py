"""Cross-entropy and logit distillation against hand-computed values, the goldens' logits and PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ConfigError, ShapeError

# softmax([0, ln 3]) = (1/4, 3/4)
TWO = jnp.array([[0.0, math.log(3.0)]])


def test_cross_entropy_by_hand():
    np.testing.assert_allclose(losses.cross_entropy(TWO, jnp.array([1])), [-math.log(0.75)], rtol=1e-6)
    np.testing.assert_allclose(losses.cross_entropy(TWO, jnp.array([0])), [math.log(4.0)], rtol=1e-6)


def test_smoothing_by_hand():
    expected = 0.9 * -math.log(0.75) + 0.1 * -(math.log(0.25) + math.log(0.75)) / 2
    np.testing.assert_allclose(losses.cross_entropy(TWO, jnp.array([1]), smoothing=0.1), [expected], rtol=1e-6)


def test_probabilities_by_hand_and_as_one_hot():
    expected = -(0.3 * math.log(0.25) + 0.7 * math.log(0.75))
    np.testing.assert_allclose(losses.cross_entropy(TWO, jnp.array([[0.3, 0.7]])), [expected], rtol=1e-6)
    logits, labels = jax.random.normal(jax.random.key(0), (5, 7)), jnp.array([0, 6, 3, 3, 1])
    for smoothing in (0.0, 0.1):
        np.testing.assert_allclose(
            losses.cross_entropy(logits, jax.nn.one_hot(labels, 7), smoothing=smoothing),
            losses.cross_entropy(logits, labels, smoothing=smoothing),
            rtol=1e-6,
        )


@pytest.mark.parametrize("label", [-1, 2, 300])
def test_a_label_that_does_not_exist_is_nan_and_not_another_class(label):
    value = losses.cross_entropy(jnp.tile(TWO, (2, 1)), jnp.array([label, 1]), smoothing=0.1)
    assert math.isnan(value[0]) and math.isfinite(value[1])


def test_small_label_types():
    logits = jnp.zeros((1, 300))
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([7], jnp.uint8)), [math.log(300)], rtol=1e-6)


def test_kl_by_hand():
    # teacher (1/2, 1/2), student (1/4, 3/4): the teacher is the reference distribution
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    np.testing.assert_allclose(losses.kl(TWO, jnp.zeros((1, 2))), [expected], rtol=1e-6)
    # at T = 2 the student's logits halve: softmax([0, ln 3 / 2]) = (1, sqrt 3) / (1 + sqrt 3)
    p = np.array([1.0, math.sqrt(3.0)]) / (1.0 + math.sqrt(3.0))
    expected = 4 * np.sum(0.5 * np.log(0.5 / p))
    np.testing.assert_allclose(losses.kl(TWO, jnp.zeros((1, 2)), temperature=2.0), [expected], rtol=1e-5)
    np.testing.assert_allclose(losses.kl(TWO, TWO + 5.0, temperature=3.0), [0.0], atol=1e-6)


def test_hard_by_hand():
    np.testing.assert_allclose(losses.hard(TWO, jnp.array([[2.0, -1.0]])), [math.log(4.0)], rtol=1e-6)
    np.testing.assert_allclose(losses.hard(TWO, jnp.array([[0.0, 0.0]])), [math.log(4.0)], rtol=1e-6)  # first of equals
    smoothed = 0.8 * math.log(4.0) + 0.2 * -(math.log(0.25) + math.log(0.75)) / 2
    np.testing.assert_allclose(losses.hard(TWO, jnp.array([[2.0, -1.0]]), smoothing=0.2), [smoothed], rtol=1e-6)


def test_extreme_logits_stay_finite():
    student, teacher = jnp.array([[1e4, -1e4, 0.0]]), jnp.array([[-1e4, 1e4, 0.0]])
    for value in (losses.kl(student, teacher), losses.hard(student, teacher)):
        np.testing.assert_allclose(value, [2e4], rtol=1e-6)


def test_half_precision_is_computed_in_fp32():
    logits = jnp.array([[0.0, 12.0, 3.0]], jnp.bfloat16)
    for value in (
        losses.cross_entropy(logits, jnp.array([1])),
        losses.kl(logits, -logits),
        losses.hard(logits, -logits),
    ):
        assert value.dtype == jnp.float32
    # in bf16 1 + e^-9 + e^-12 is 1 and the loss 0
    np.testing.assert_allclose(
        losses.cross_entropy(logits, jnp.array([1])), [math.log1p(math.exp(-9) + math.exp(-12))], rtol=1e-3
    )


ON_LOGITS = {
    "cross_entropy": lambda s, t, where=None: losses.cross_entropy(s, jnp.argmax(t, 1), smoothing=0.1, where=where),
    "soft_labels": lambda s, t, where=None: losses.cross_entropy(s, t, smoothing=0.1, where=where),
    "kl": lambda s, t, where=None: losses.kl(s, t, temperature=2.0, where=where),
    "hard": losses.hard,
}


@pytest.mark.parametrize("name", ON_LOGITS)
def test_excluded_examples_count_nothing_whatever_they_hold(name):
    @jax.jit
    def value_and_gradients(s, t, where):
        value, pull = jax.vjp(lambda s, t: ON_LOGITS[name](s, t, where=where), s, t)
        return value, *pull(jnp.ones_like(value))

    student, teacher = np.random.default_rng(1).normal(size=(2, 6, 7)).astype(np.float32)
    clean = value_and_gradients(student, teacher, np.ones(6, bool))
    for x in (student, teacher):
        x[1], x[3], x[5, 2] = np.nan, np.inf, -np.inf
    spoilt = value_and_gradients(student, teacher, np.array([True, False] * 3))
    for ours, expected in zip(spoilt, clean, strict=True):
        np.testing.assert_array_equal(ours[1::2], 0.0)
        np.testing.assert_allclose(ours[::2], expected[::2], rtol=1e-5, atol=1e-7)


def test_excluded_label_may_be_out_of_range():
    value = losses.cross_entropy(jnp.tile(TWO, (2, 1)), jnp.array([1, -1]), where=jnp.array([True, False]))
    np.testing.assert_allclose(value, [-math.log(0.75), 0.0], rtol=1e-6)
    grad = jax.grad(lambda x: losses.cross_entropy(x, jnp.array([1, -1]), where=jnp.array([True, False])).sum())(
        jnp.tile(TWO, (2, 1))
    )
    np.testing.assert_array_equal(grad[1], 0.0)


def test_errors():
    logits = jnp.zeros((4, 10))
    with pytest.raises(ShapeError, match=r"int32 of shape \(3,\).*\(batch,\) integers, or probabilities"):
        losses.cross_entropy(logits, jnp.zeros(3, jnp.int32))
    with pytest.raises(ShapeError, match=r"float32 of shape \(4,\)"):
        losses.cross_entropy(logits, jnp.zeros(4))
    with pytest.raises(ShapeError, match=r"int32 of shape \(4, 10\)"):
        losses.cross_entropy(logits, jnp.zeros((4, 10), jnp.int32))
    with pytest.raises(ConfigError, match=r"smoothing=1.0 is out of range"):
        losses.cross_entropy(logits, jnp.zeros(4, jnp.int32), smoothing=1.0)
    with pytest.raises(ConfigError, match=r"temperature=0 is out of range"):
        losses.kl(logits, logits, temperature=0)
    for loss in (losses.kl, losses.hard):
        with pytest.raises(ShapeError, match=r"\(4, 10\) and the teacher's \(4, 12\).*same num_classes"):
            loss(logits, jnp.zeros((4, 12)))
    with pytest.raises(ShapeError, match=r"where is float32 of shape \(4,\).*bool array of shape \(4,\)"):
        losses.kl(logits, logits, where=jnp.ones(4))
    with pytest.raises(ShapeError, match=r"where is bool of shape \(4, 1\)"):
        losses.kl(logits, logits, where=jnp.ones((4, 1), bool))


@pytest.mark.parity
def test_values_and_gradients_against_torch_and_timm(timm):
    import torch
    import torch.nn.functional as F
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    rng = np.random.default_rng(0)
    s, t = (rng.normal(size=(6, 11)).astype(np.float32) * 3 for _ in range(2))
    labels = rng.integers(0, 11, 6)
    soft = rng.dirichlet(np.ones(11), 6).astype(np.float32)
    temperature = 2.5

    def torch_kl(x, y):
        x, y = (F.log_softmax(v / temperature, -1) for v in (x, y))
        return F.kl_div(x, y, reduction="batchmean", log_target=True) * temperature**2

    cases = (
        (
            lambda x: losses.cross_entropy(x, labels, smoothing=0.1),
            lambda x: LabelSmoothingCrossEntropy(0.1)(x, torch.tensor(labels)),
        ),
        (lambda x: losses.cross_entropy(x, labels), lambda x: F.cross_entropy(x, torch.tensor(labels))),
        (lambda x: losses.cross_entropy(x, soft), lambda x: SoftTargetCrossEntropy()(x, torch.tensor(soft))),
        (
            lambda x: losses.cross_entropy(x, soft, smoothing=0.2),
            lambda x: F.cross_entropy(x, torch.tensor(soft), label_smoothing=0.2),
        ),
        (lambda x: losses.kl(x, t, temperature=temperature), lambda x: torch_kl(x, torch.tensor(t))),
        (lambda x: losses.hard(x, t), lambda x: F.cross_entropy(x, torch.tensor(t).argmax(1))),
    )
    for ours, theirs in cases:
        value, grad = jax.value_and_grad(lambda x, f=ours: f(x).mean())(jnp.asarray(s))
        x = torch.tensor(s, requires_grad=True)
        expected = theirs(x)
        expected.backward()
        np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grad, x.grad.numpy(), rtol=1e-5, atol=1e-6)
