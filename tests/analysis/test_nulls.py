from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from jaxkd.analysis import lowrank, nulls, sep
from jaxkd.errors import ShapeError, UnknownNameError


@pytest.fixture(scope="module")
def tokens():
    r = np.random.default_rng(0)
    x = r.standard_normal((4, 40, 64)) * np.arange(1, 65) ** -1.0 + 0.2
    return (x * np.array([1.0, 10.0, 0.1, 3.0])[:, None, None]).astype(np.float32)


@pytest.mark.parametrize("kind", nulls.KINDS)
def test_shape_seed_and_blocks(tokens, kind):
    whole = nulls.null_tokens(kind, tokens, 7)
    assert whole.shape == tokens.shape and whole.dtype == np.float32 and np.isfinite(np.asarray(whole)).all()
    parts = [nulls.null_tokens(kind, tokens[i : i + 2], jax.random.key(7), first=i) for i in (0, 2)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-5)
    assert np.any(np.asarray(nulls.null_tokens(kind, tokens, 8)) != whole)


def test_traceable(tokens):
    jitted = jax.jit(nulls.null_tokens, static_argnums=0)("subspace", tokens, jax.random.key(7))
    np.testing.assert_allclose(jitted, nulls.null_tokens("subspace", tokens, 7), rtol=1e-4, atol=1e-5)


def rms(x):
    return np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis=(1, 2)))


def test_gaussian_keeps_the_scale_and_fills_every_direction(tokens):
    drawn = nulls.null_tokens("gaussian", tokens)
    np.testing.assert_allclose(rms(drawn), rms(tokens), rtol=0.06)
    assert np.all(lowrank.energy_ranks(drawn)[:, 0] > 35)
    kurtosis = np.mean(np.asarray(drawn) ** 4, axis=(1, 2)) / rms(drawn) ** 4
    np.testing.assert_allclose(kurtosis, 3.0, atol=0.4)
    assert abs(np.corrcoef(np.asarray(drawn[0]).ravel(), np.asarray(drawn[1]).ravel())[0, 1]) < 0.1


def test_subspace_has_the_rank_of_each_image(tokens):
    ranks = lowrank.energy_ranks(tokens)[:, 0]
    assert len(set(ranks.tolist())) > 1 or ranks[0] < 40
    drawn = nulls.null_tokens("subspace", tokens)
    np.testing.assert_array_equal(np.linalg.matrix_rank(np.asarray(drawn), tol=1e-4), ranks)
    np.testing.assert_allclose(rms(drawn), rms(tokens), rtol=0.2)

    given = nulls.null_tokens("subspace", tokens, ranks=np.array([1, 3, 0, 40]))
    energies = np.asarray(lowrank.image_energies(given, method="svd"))
    assert (energies > 1e-8 * energies[:, :1]).sum(1).tolist() == [1, 3, 0, 40]
    # One subspace an image: together they need more directions.
    assert np.linalg.matrix_rank(np.asarray(given)[:2].reshape(-1, 64), tol=1e-4) == 4


def test_subspace_for_more_tokens_than_channels():
    x = np.random.default_rng(0).standard_normal((2, 30, 8)).astype(np.float32)
    drawn = nulls.null_tokens("subspace", x, ranks=np.array([2, 8]))
    assert np.linalg.matrix_rank(np.asarray(drawn), tol=1e-4).tolist() == [2, 8]


def test_one_hot_keeps_norms_and_has_the_diagonal(tokens):
    drawn = np.asarray(nulls.null_tokens("one_hot", tokens))
    assert np.all((drawn != 0).sum(-1) == 1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1), np.linalg.norm(tokens, axis=-1), rtol=1e-5)
    assert len(set(np.argmax(np.abs(drawn), -1).ravel().tolist())) > 32
    np.testing.assert_allclose(sep.sep_curve(drawn), 100 * np.arange(1, 65) / 64, atol=2e-4)


def test_permutation_is_one_order_of_the_real_channels(tokens):
    drawn = np.asarray(nulls.null_tokens("permutation", tokens))
    np.testing.assert_array_equal(np.sort(drawn, -1), np.sort(tokens, -1))
    order = [int(np.flatnonzero((tokens[0] == drawn[0][:, [c]]).all(0))[0]) for c in range(64)]
    np.testing.assert_array_equal(drawn, tokens[..., order])
    assert order != list(range(64))
    np.testing.assert_array_equal(lowrank.energy_ranks(drawn), lowrank.energy_ranks(tokens))


@pytest.mark.parametrize("kind", nulls.KINDS)
def test_zeros_stay_zeros_and_nan_stays_nan(tokens, kind):
    x = tokens.copy()
    x[0] = 0.0
    x[1, 2, 3] = np.nan
    drawn = np.asarray(nulls.null_tokens(kind, x))
    assert np.all(drawn[0] == 0) and np.isnan(drawn[1]).any() and np.isfinite(drawn[2:]).all()


def test_errors(tokens):
    with pytest.raises(UnknownNameError, match=re.escape('Did you mean "gaussian"?')):
        nulls.null_tokens("gausian", tokens)
    with pytest.raises(ShapeError, match=re.escape("ranks has shape (3,)")):
        nulls.null_tokens("subspace", tokens, ranks=np.ones(3, int))
    with pytest.raises(ShapeError, match=re.escape("(2, 3)")):
        nulls.null_tokens("gaussian", np.zeros((2, 3)))
