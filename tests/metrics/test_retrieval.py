"""Retrieval: golden top-k with ties, brute force over random orders, chance, pools of unequal size, errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxkd import metrics
from jaxkd.errors import ConfigError, DataError


def test_golden_top_k_and_reciprocal_ranks(golden):
    g = golden("eeg_text")
    scores, right = g["retrieval_scores"], g["retrieval_right"]
    for ties in ("optimistic", "pessimistic", "expected"):
        found = [metrics.top_k(scores, right, int(k), ties) for k in g["retrieval_topk_k"]]
        np.testing.assert_allclose(found, g[f"retrieval_topk_{ties}"], rtol=1e-12)
    for ties in ("optimistic", "pessimistic"):
        np.testing.assert_allclose(metrics.mean_reciprocal_rank(scores, right, ties), g[f"retrieval_mrr_{ties}"], 1e-12)
        above = g["retrieval_above"] + (g["retrieval_tied"] if ties == "pessimistic" else 0)
        assert metrics.median_rank(scores, right, ties) == np.median(above + 1)
    hits = metrics.top_k_hits(scores, right, 1)
    assert hits[5] == pytest.approx(1 / 12) and metrics.top_k_hits(scores, right, 1, "optimistic")[5] == 1  # constant


def test_golden_chance(golden):
    for n, m, k, p in golden("eeg_text")["chance_table_N_m_k_p"]:
        assert metrics.chance(int(n), int(m), int(k)) == pytest.approx(p, rel=1e-12)
    assert metrics.chance(5, 2, 9) == 1.0 and metrics.chance(1, 1, 1) == 1.0


@pytest.mark.parametrize("row", [[0, 0, 0, 0, 1], [2, 2, 1, 2, 0], [1, 1, 1, 1, 1], [3, 1, 1, 0, 0], [0, 1, 1, 1, 2]])
@pytest.mark.parametrize("right", [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 0, 1, 0]])
def test_expected_ties_are_the_mean_over_all_orders(row, right):
    scores, right = np.array([row]), np.array([right], bool)
    ranks = []
    for order in itertools.permutations(range(5)):  # equal scores keep this order
        placed = sorted(order, key=lambda i: -scores[0, i])
        ranks.append(1 + next(place for place, i in enumerate(placed) if right[0, i]))
    ranks = np.array(ranks)
    for k in (1, 2, 3, 4, 5):
        assert metrics.top_k(scores, right, k) == pytest.approx((ranks <= k).mean(), abs=1e-12)
    assert metrics.mean_reciprocal_rank(scores, right) == pytest.approx((1 / ranks).mean(), abs=1e-12)
    assert metrics.median_rank(scores, right) == pytest.approx(ranks.mean(), abs=1e-12)
    assert metrics.mean_reciprocal_rank(scores, right, "optimistic") == pytest.approx(1 / ranks.min())
    worst = int((scores[0][~right[0]] >= scores[right].max()).sum()) + 1
    assert metrics.median_rank(scores, right, "pessimistic") == worst == ranks.max()


def test_hits_of_every_candidate_are_those_of_one_right_answer():
    scores = np.array([[3.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    where = np.array([[True, True, True, True], [True, True, True, False]])
    found = metrics.candidate_hits(scores, 2, where=where)
    np.testing.assert_allclose(found, [[1, 0.5, 0.5, 0], [2 / 3] * 3 + [0]])
    one = np.eye(4, dtype=bool)
    for i in range(3):
        alone = metrics.top_k_hits(scores, one[[i, i]], 2, where=where)
        np.testing.assert_allclose(found[:, i], alone, rtol=1e-15)


def test_constant_scores_are_exactly_at_chance():
    right = np.zeros((3, 10), bool)
    right[0, :1], right[1, :3], right[2, :5] = True, True, True
    for k in (1, 3, 5):
        found = metrics.top_k_hits(np.zeros((3, 10)), right, k)
        np.testing.assert_allclose(found, [metrics.chance(10, m, k) for m in (1, 3, 5)], rtol=1e-12)


def test_pools_of_unequal_size_are_those_of_the_candidates_left():
    rng = np.random.default_rng(0)
    scores, right = np.round(rng.normal(size=(6, 9)), 1), np.zeros((6, 9), bool)
    right[np.arange(6), rng.integers(0, 9, 6)] = True
    where = (rng.random((6, 9)) < 0.6) | right
    spoilt = np.where(where, scores, np.where(rng.random((6, 9)) < 0.5, 9.0, np.nan))
    for k in (1, 2, 4):
        alone = [metrics.top_k(s[None, w], r[None, w], k) for s, r, w in zip(scores, right, where, strict=True)]
        np.testing.assert_allclose(metrics.top_k_hits(spoilt, right, k, where=where), alone)
        expected = np.mean([metrics.chance(int(w.sum()), 1, k) for w in where])
        assert metrics.mean_chance(right, k, where=where) == pytest.approx(expected)
    alone = [metrics.mean_reciprocal_rank(s[None, w], r[None, w]) for s, r, w in zip(scores, right, where, strict=True)]
    np.testing.assert_allclose(metrics.reciprocal_ranks(spoilt, right, where=where), alone)
    assert not where.all()


def test_mistakes_are_explained():
    scores, right = np.zeros((2, 3)), np.array([[1, 0, 0], [0, 1, 0]], bool)
    for mistake, error, words in (
        (lambda: metrics.top_k(scores, right, 0), ConfigError, "k=0"),
        (lambda: metrics.top_k(scores, right, 1, "mean"), ConfigError, "ties"),
        (lambda: metrics.top_k(scores[:1], right, 1), DataError, "one score a candidate"),
        (lambda: metrics.top_k(scores, right.astype(int), 1), DataError, "Pass a bool for each"),
        (lambda: metrics.top_k(scores, right & False, 1), DataError, "2 of 2 queries have no right candidate"),
        (lambda: metrics.top_k(scores, right, 1, where=~right), DataError, "no right candidate in their pool"),
        (lambda: metrics.top_k(scores * np.nan, right, 1), DataError, "query 0 hold NaN"),
        (lambda: metrics.chance(3, 4, 1), ConfigError, "m=4"),
    ):
        with pytest.raises(error, match=words):
            mistake()
