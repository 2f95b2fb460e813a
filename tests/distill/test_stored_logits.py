"""The stored form of a teacher's logits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.distill import LogitFormat
from jaxkd.errors import ConfigError

TEACHER = np.array([[0.15, 0.5, 0.05, 0.3]])  # probabilities


def test_the_classes_that_are_not_kept_share_the_rest_of_the_probability():
    stored = LogitFormat(4, 2).pack(jnp.log(TEACHER) + 7.0)
    np.testing.assert_allclose(stored["teacher_log_probs"], np.log([[0.5, 0.3, 0.1]]), rtol=1e-5)
    assert stored["teacher_classes"].tolist() == [[1, 3]] and stored["teacher_classes"].dtype == np.uint8
    whole = LogitFormat(4, 2).unpack(stored)
    np.testing.assert_allclose(np.exp(whole), [[0.1, 0.5, 0.1, 0.3]], rtol=1e-5)
    # KL(teacher || stored) by hand
    expected = 0.15 * np.log(0.15 / 0.1) + 0.05 * np.log(0.05 / 0.1)
    np.testing.assert_allclose(losses.kl(whole, jnp.log(TEACHER)), [expected], rtol=1e-5)


@pytest.mark.parametrize("top_k", [0, 4])
def test_all_classes_in_float32_lose_nothing_but_a_constant_of_each_image(top_k):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 5, (6, 4)), jnp.float32)
    stored = LogitFormat(4, top_k).pack(logits)
    assert list(stored) == ["teacher_log_probs"]
    shift = LogitFormat(4, top_k).unpack(stored) - logits
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=2e-6)


def test_a_rest_too_small_for_one_minus_the_sum_keeps_its_digits():
    """float32 has no digits left of 1e-9 beside 1."""
    logits = jnp.log(jnp.asarray([[1.0, 1e-9, 3e-9]]))
    whole = LogitFormat(3, 1).unpack(LogitFormat(3, 1).pack(logits))
    np.testing.assert_allclose(np.exp(whole)[0, 1:], [2e-9, 2e-9], rtol=1e-4)


@pytest.mark.parametrize(("classes", "top_k", "dtype", "size"), [(1000, 0, "float32", 4000), (1000, 10, "float16", 42)])
def test_the_size_of_an_image(classes, top_k, dtype, size):
    form = LogitFormat(classes, top_k, dtype)
    stored = form.pack(jnp.zeros((3, classes)))
    assert form.bytes_per_image == size == sum(np.asarray(x).nbytes for x in stored.values()) // 3
    assert {k: (v.shape[1:], v.dtype) for k, v in stored.items()} == {
        k: (v.shape, v.dtype) for k, v in form.arrays.items()
    }


def test_more_classes_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"teacher.cache.top_k=11 is more than the 10 classes"):
        LogitFormat(10, 11)
