from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxkd.analysis import lowrank, similarity
from jaxkd.errors import ConfigError, DataError, ShapeError


def features(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def hsic1_song(k, m):
    """The three-term formula of Song et al. 2012 (eq. 5), in float64."""
    n = len(k)
    k, m = (np.where(np.eye(n), 0.0, g.astype(np.float64)) for g in (k, m))
    one = np.ones(n)
    value = (
        np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    )
    return value / (n * (n - 3))


def hsic1_over_tuples(k, m):
    """The U-statistic itself: the mean over ordered tuples of distinct images."""
    n = len(k)
    pairs = [k[i, j] * m[i, j] for i, j in itertools.permutations(range(n), 2)]
    quads = [k[i, j] * m[q, r] for i, j, q, r in itertools.permutations(range(n), 4)]
    triples = [k[i, j] * m[i, q] for i, j, q in itertools.permutations(range(n), 3)]
    return np.mean(pairs) + np.mean(quads) - 2 * np.mean(triples)


def gram64(x):
    x = x.reshape(len(x), -1).astype(np.float64)
    return x @ x.T


@pytest.mark.parametrize("centre", [False, True])
def test_hsic_is_the_unbiased_estimator(centre):
    x, y = features((6, 5)) + 0.5, features((6, 3, 2), 1)
    expected = hsic1_song(gram64(x), gram64(y))
    np.testing.assert_allclose(hsic1_over_tuples(gram64(x), gram64(y)), expected, rtol=1e-10)
    k, m = (similarity.gram_linear(v, centre=centre) for v in (x, y))
    np.testing.assert_allclose(similarity.hsic1(k, m), expected, rtol=1e-4)
    np.testing.assert_allclose(similarity.hsic1(np.asarray(k), np.asarray(m)), expected, rtol=1e-4)


def test_hsic_of_all_layers_at_once():
    k = np.stack([gram64(features((7, 4), s)) for s in range(3)])
    m = np.stack([gram64(features((7, 5), s)) for s in range(3, 5)])
    expected = [[hsic1_song(a, b) for b in m] for a in k]
    host = similarity.hsic1(k, m)
    assert host.dtype == np.float64
    np.testing.assert_allclose(host, expected, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(similarity.hsic1)(k, m), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(similarity.hsic1(k, m[0]), np.array(expected)[:, 0], rtol=1e-10)


def test_the_diagonal_does_not_enter():
    k, m = gram64(features((6, 4))), gram64(features((6, 4), 1))
    changed = k + np.diag([1e6, np.inf, 3, 4, 5, 6])
    np.testing.assert_allclose(similarity.hsic1(changed, m), similarity.hsic1(k, m), rtol=1e-12)


def test_a_mean_image_far_larger_than_the_differences_is_harmless():
    x, y = features((8, 50)), features((8, 40), 1)
    expected = hsic1_song(gram64(x), gram64(y))
    found = similarity.hsic1(similarity.gram_linear(x + 300), similarity.gram_linear(y - 300))
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_images_that_are_left_out():
    x = features((8, 5))
    where = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    dirty = x.copy()
    dirty[~where] = np.nan
    gram = np.asarray(similarity.gram_linear(dirty, where=where))
    np.testing.assert_allclose(gram[where][:, where], similarity.gram_linear(x[where]), rtol=1e-5, atol=1e-5)
    assert np.all(gram[~where] == 0) and np.all(gram[:, ~where] == 0)


def test_cka_of_equal_rotated_and_unrelated_features():
    x = features((64, 4, 6))
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((24, 24)))[0]
    rotated = (x.reshape(64, 24) @ rotation * 17.0).astype(np.float32)
    np.testing.assert_allclose(similarity.linear_cka(x, x), 1.0, rtol=1e-5)
    np.testing.assert_allclose(similarity.linear_cka(x, rotated), 1.0, rtol=1e-4)
    assert abs(similarity.linear_cka(x, features((64, 9, 2), 5))) < 0.1  # other token counts and widths


def test_minibatch_cka_divides_means():
    cross = np.array([[[1.0, 2.0]], [[3.0, 0.0]]])
    found = similarity.minibatch_cka(cross, np.array([[4.0], [4.0]]), np.array([[1.0, 0.0], [7.0, 0.0]]))
    np.testing.assert_allclose(found[0, 0], 2 / 4)
    assert np.isnan(found[0, 1])  # a layer that does not vary
    # Unbiased estimates may be negative, and two of them would make a positive product.
    assert np.isnan(similarity.minibatch_cka(np.ones((1, 1, 1)), -np.ones((1, 1)), -np.ones((1, 1)))).all()


def test_minibatches_agree_with_the_whole_set():
    x = features((240, 6))
    y = x @ features((6, 5), 1) + 0.5 * features((240, 5), 2)
    chunks = [(similarity.gram_linear(x[i : i + 24])[None], similarity.gram_linear(y[i : i + 24])[None])
              for i in range(0, 240, 24)]  # fmt: skip
    values = [
        np.stack([np.asarray(similarity.hsic1(*pair)) for pair in pairs])
        for pairs in (chunks, [(k, k) for k, _ in chunks], [(m, m) for _, m in chunks])
    ]
    found = similarity.minibatch_cka(values[0], values[1][:, 0], values[2][:, 0])
    np.testing.assert_allclose(found[0, 0], similarity.linear_cka(x, y), atol=0.03)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_four_images_have_no_estimate(n):
    x = features((n, 5))
    gram = similarity.gram_linear(x)
    assert np.isnan(similarity.hsic1(gram, gram)) and np.isnan(similarity.linear_cka(x, x))
    assert similarity.hsic1(np.ones((2, n, n)), np.ones((3, n, n))).shape == (2, 3)


def test_constant_and_nan_features_have_no_cka():
    x = features((6, 5))
    assert np.isnan(similarity.linear_cka(x, np.ones((6, 5), np.float32)))
    x[2, 2] = np.nan
    assert np.isnan(similarity.linear_cka(x, features((6, 5))))


# ------------------------------------------------------------------------------------------- principal angles


def sums(x):
    x = x.astype(np.float64).reshape(-1, x.shape[-1])
    return x.T @ x, x.sum(0), len(x)


def cross_moment(x, y):
    return np.einsum("nc,nd->cd", x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))  # fp32, as its inputs


def angles(x, y, energy=1.0):
    return similarity.principal_angles(sums(x), sums(y), cross_moment(x, y), energy)


def test_principal_angles_are_those_of_the_centred_columns():
    x = features((50, 4)) + 3.0
    y = np.concatenate([x @ features((4, 2), 1), features((50, 3), 2)], axis=1).astype(np.float32) - 1.0
    found = angles(x, y)
    a, b = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in (x, y))
    np.testing.assert_allclose(found.cosines, np.cos(np.sort(scipy.linalg.subspace_angles(a, b))), atol=1e-5)
    assert found.dims == (4, 5) and len(found.cosines) == 4
    np.testing.assert_allclose(found.cosines[:2], 1.0, atol=1e-5)  # two columns are shared
    assert found.cosines[2] < 0.9


def test_only_the_leading_directions_are_compared():
    x = features((80, 5)) * np.array([10, 8, 0.01, 0.01, 0.01], np.float32)
    y = features((80, 6), 1) * np.array([9, 5, 7, 0.01, 0.01, 0.01], np.float32)
    found = angles(x, y, 0.99)
    a, b = (v - v.mean(0) for v in (x.astype(np.float64), y.astype(np.float64)))
    bases = [np.linalg.svd(v, full_matrices=False)[0][:, :k] for v, k in ((a, 2), (b, 3))]
    assert found.dims == (2, 3)
    np.testing.assert_allclose(found.cosines, np.cos(np.sort(scipy.linalg.subspace_angles(*bases))), atol=1e-5)


def test_the_same_network_has_cosines_of_one_also_from_fp32_sums_and_a_shift():
    x = features((4, 20, 5)) + 2.0
    shift = np.full(5, 2.0, np.float32)
    moment = lowrank.second_moment(x, shift)
    found = similarity.principal_angles(moment, moment, cross_moment(x - shift, x - shift), 1.0)
    np.testing.assert_allclose(found.cosines, np.ones(5), atol=1e-5)


def test_angles_of_a_constant_network_and_of_nan():
    x = features((30, 4))
    constant = np.full((2, 15, 3), 0.3, np.float32)
    moment = lowrank.second_moment(constant)
    assert np.abs(similarity._centred(moment[0], moment[1], moment[1], 30)).max() > 0  # fp32 noise is not a direction
    cross = cross_moment(x, constant)
    still = similarity.principal_angles(sums(x), moment, cross, 1.0)
    assert still.dims == (4, 0) and still.cosines.shape == (0,)
    broken = angles(x, np.full((30, 3), np.nan, np.float32))
    assert broken.dims == (0, 0) and np.isnan(broken.cosines).all()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: similarity.hsic1(jnp.ones((5, 5)), jnp.ones((6, 6))), ShapeError, "(6, 6)"),
        (lambda: similarity.minibatch_cka(np.ones((2, 3)), np.ones(2), np.ones(3)), ShapeError, "(2, 3)"),
        (lambda: similarity.minibatch_cka(np.ones((0, 1, 1)), np.ones((0, 1)), np.ones((0, 1))), DataError, "no chunk"),
        (lambda: angles(np.ones((5, 2)), np.ones((5, 2)), 1.5), ConfigError, "energy=1.5"),
        (
            lambda: similarity.principal_angles(sums(np.ones((5, 2))), sums(np.ones((6, 2))), np.eye(2)),
            DataError,
            "5 and 6 tokens",
        ),
        (
            lambda: similarity.principal_angles(sums(np.ones((5, 2))), sums(np.ones((5, 3))), np.eye(2)),
            ShapeError,
            "2 and 3 channels",
        ),
    ],
)
def test_errors(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call()
