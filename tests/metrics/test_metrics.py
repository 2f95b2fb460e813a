"""Averages as (total, count): values by hand, ties, NaN, masks, and that any split of the images gives the same."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import metrics
from jaxkd.errors import ConfigError, ShapeError

LOGITS = jnp.array([[0.1, 0.9, 0.5, 0.3], [4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 1.0]])


def pair(average):
    return [float(average.total), float(average.count)]


def test_top_k_by_hand():
    labels = jnp.array([2, 3, 3])
    np.testing.assert_array_equal(metrics.top_k_correct(LOGITS, labels, 1), [0, 0, 1])
    np.testing.assert_array_equal(metrics.top_k_correct(LOGITS, labels, 2), [1, 0, 1])
    np.testing.assert_array_equal(metrics.top_k_correct(LOGITS, labels, 4), [1, 1, 1])
    np.testing.assert_array_equal(metrics.top_k_correct(LOGITS, labels, 2, jnp.array([False, True, True])), [0, 0, 1])


def test_top_1_is_argmax_and_top_k_a_stable_sort_also_for_ties():
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 3, (200, 7)), jnp.float32)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 7, 200))
    order = np.argsort(-np.asarray(logits), axis=1, kind="stable")
    for k in range(1, 8):
        expected = (order[:, :k] == np.asarray(labels)[:, None]).any(1)
        np.testing.assert_array_equal(metrics.top_k_correct(logits, labels, k), expected)
    np.testing.assert_array_equal(metrics.top_k_correct(logits, labels, 1), jnp.argmax(logits, 1) == labels)


def test_equal_logits_are_not_all_correct():
    assert metrics.top_k_correct(jnp.zeros((10, 10)), jnp.arange(10), 1).sum() == 1
    assert metrics.top_k_correct(jnp.zeros((10, 10)), jnp.arange(10), 5).sum() == 5


def test_nan_is_wrong():
    nan = jnp.full((1, 4), jnp.nan)
    for k in (1, 4, 5):
        np.testing.assert_array_equal(metrics.top_k_correct(nan, jnp.array([0]), k), [0])
    np.testing.assert_array_equal(metrics.top_k_correct(LOGITS[:1].at[0, 0].set(jnp.nan), jnp.array([1]), 1), [0])


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_does_not_exist_is_wrong(label):
    np.testing.assert_array_equal(metrics.top_k_correct(LOGITS[:1], jnp.array([label]), 5), [0])


def test_classification_metrics_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8], [jnp.nan] * 3]))
    result = metrics.classification_metrics(logits, jnp.array([0, 1, 2, 0]), jnp.array([True, True, True, False]))
    assert set(result) == {"top1", "top5", "loss"}
    assert all(v.total.dtype == jnp.float32 and v.total.shape == v.count.shape == () for v in result.values())
    assert pair(result["top1"]) == [2.0, 3.0]
    assert pair(result["top5"]) == [3.0, 3.0]  # 3 classes: top 5 is all of them
    expected = -(math.log(0.5) + math.log(0.2) + math.log(0.8))
    np.testing.assert_allclose(pair(result["loss"]), (expected, 3.0), rtol=1e-6)
    means = [result[name].compute() for name in ("top1", "top5", "loss")]
    np.testing.assert_allclose(means, [2 / 3, 1.0, expected / 3], rtol=1e-6)


def test_any_split_and_padding_gives_the_same():
    logits = jax.random.normal(jax.random.key(0), (17, 10))
    labels = jax.random.randint(jax.random.key(1), (17,), 0, 10)
    whole = metrics.classification_metrics(logits, labels)
    parts = []
    for start in (0, 6, 12):
        x, y = logits[start : start + 6], labels[start : start + 6]
        pad = 6 - len(y)
        where = jnp.arange(6) < len(y)
        x, y = jnp.pad(x, ((0, pad), (0, 0)), constant_values=jnp.inf), jnp.pad(y, (0, pad))
        parts.append(jax.jit(metrics.classification_metrics)(x, y, where))
    for name, average in whole.items():
        merged = functools.reduce(lambda a, b: a.merge(b), (part[name] for part in parts))
        np.testing.assert_allclose(pair(merged), pair(average), rtol=1e-6)
    assert int(merged.count) == 17


def test_an_average_leaves_out_what_does_not_count():
    assert pair(metrics.average(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True]))) == [4.0, 2.0]
    assert pair(metrics.average(jnp.array([1.0, 2.0]))) == [3.0, 2.0]
    assert math.isnan(metrics.average(jnp.ones(2), jnp.zeros(2, bool)).compute())


def test_errors():
    with pytest.raises(ShapeError, match=r"\(3, 4\).*float32 of shape \(3,\).*integer labels of shape \(batch,\)"):
        metrics.classification_metrics(LOGITS, jnp.zeros(3))
    with pytest.raises(ShapeError, match=r"int32 of shape \(2,\)"):
        metrics.top_k_correct(LOGITS, jnp.zeros(2, jnp.int32), 1)
    with pytest.raises(ConfigError, match=r"k=0 is out of range"):
        metrics.top_k_correct(LOGITS, jnp.zeros(3, jnp.int32), 0)
    with pytest.raises(ShapeError, match=r"where has shape \(2,\) and the values \(3,\)"):
        metrics.classification_metrics(LOGITS, jnp.zeros(3, jnp.int32), jnp.ones(2, bool))
