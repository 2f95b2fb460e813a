"""Permutation tests and bootstrap intervals: golden values, exchange within groups only, calibration, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxkd import analysis
from jaxkd.errors import ConfigError, DataError


def top3(scores):
    rows = np.arange(len(scores))
    return lambda truth: ((scores > scores[rows, truth][:, None]).sum(axis=1) < 3).mean()


def test_golden_permutation_test(golden):
    g = golden("eeg_text")
    statistic = top3(g["perm_scores"])
    found = analysis.permutation_test(statistic, g["perm_truth"], g["perm_subject"], g["perm_indices"])
    assert (found.observed, found.p) == (g["perm_observed_top3"], g["perm_p"])
    np.testing.assert_allclose(found.null, g["perm_null"], rtol=1e-12)
    # Drawn permutations instead of the given ones: an estimate of the same p.
    drawn = analysis.permutation_test(statistic, g["perm_truth"], g["perm_subject"], 499, seed=1)
    assert drawn.p == pytest.approx(float(g["perm_p"]), abs=0.03) and drawn.null.shape == (499,)


def test_labels_stay_in_their_group_and_every_order_comes():
    groups, truth, seen = np.array([2, 0, 2, 0, 2, 1]), np.arange(6), []
    analysis.permutation_test(lambda t: seen.append(t) or 0.0, truth, groups, 300, seed=5)
    rows = np.array(seen[1:])  # the first are the labels as they are
    assert (seen[0] == truth).all() and (groups[rows] == groups).all() and (np.sort(rows) == truth).all()
    assert len({tuple(row) for row in rows}) == 12  # 3! x 2! x 1!
    again = []
    analysis.permutation_test(lambda t: again.append(t) or 0.0, truth, groups, 20, seed=5)
    assert (np.array(again[1:]) == rows[:20]).all()  # permutation i follows from the seed and i
    pairs, inside = np.array([[0, 0], [0, 1], [0, 0], [0, 1], [1, 1], [1, 1]]), []
    analysis.permutation_test(lambda t: inside.append(t) or 0.0, truth, pairs, 50, seed=0)
    assert {tuple(sorted(t[[0, 2]])) for t in inside} == {(0, 2)}


def test_p_is_uniform_where_nothing_is_there_and_small_where_something_is():
    rng, found = np.random.default_rng(7), []
    for _ in range(60):
        x, y = rng.normal(size=(2, 16))
        found.append(analysis.permutation_test(lambda t, x=x: float(x @ t), y, None, 39, seed=len(found)).p)
    assert 0.35 < np.mean(found) < 0.65 and min(found) >= 1 / 40
    x = rng.normal(size=16)
    assert analysis.permutation_test(lambda t: float(x @ t), x, None, 99, seed=0).p == 1 / 100
    # Rounding does not tell equal values apart: a statistic that never changes has p = 1.
    assert analysis.permutation_test(lambda t: np.sum(0.1 * t), np.arange(9) % 3, None, 50, seed=0).p == 1.0


def test_golden_bootstrap(golden):
    g = golden("eeg_text")
    hit = g["boot_hit"]
    plain = analysis.bootstrap_interval(hit, None, g["boot_plain_indices"])
    np.testing.assert_allclose(plain[:3], [hit.mean(), *g["boot_plain_ci95"]], rtol=0, atol=1e-12)
    clusters = analysis.bootstrap_interval(hit, g["perm_subject"], g["boot_cluster_indices"])
    np.testing.assert_allclose(clusters[:3], [hit.mean(), *g["boot_cluster_ci95"]], rtol=0, atol=1e-12)
    assert (clusters.values, clusters.clusters) == (36, 3)


def test_whole_clusters_are_drawn_and_names_may_be_text():
    values, names = np.array([0.0, 1, 1, 1, 0, 0]), np.array(["b", "a", "a", "a", "b", "c"])
    # Clusters a, b, c have sums 3, 0, 0 and sizes 3, 2, 1.
    found = analysis.bootstrap_interval(values, names, np.array([[0, 0, 1], [2, 2, 1], [0, 1, 2]]), level=0.5)
    means = np.sort([6 / 8, 0.0, 3 / 6])
    assert (found.low, found.high) == (np.quantile(means, 0.25), np.quantile(means, 0.75))
    # Repeated readings make no interval narrower when their cluster is drawn as one.
    rng = np.random.default_rng(0)
    once = rng.normal(size=30)
    alone = analysis.bootstrap_interval(once, None, 800, seed=3)
    repeated = analysis.bootstrap_interval(np.repeat(once, 12), np.repeat(np.arange(30), 12), 800, seed=3)
    np.testing.assert_allclose(repeated[:3], alone[:3], rtol=1e-12)
    naive = analysis.bootstrap_interval(np.repeat(once, 12), None, 800, seed=3)
    assert naive.high - naive.low < 0.4 * (alone.high - alone.low)
    assert alone.low < once.mean() < alone.high
    half = 1.96 * once.std() / math.sqrt(30)
    assert alone.high - alone.low == pytest.approx(2 * half, rel=0.15)


def test_one_cluster_has_no_interval():
    found = analysis.bootstrap_interval(np.ones(4), np.zeros(4), 10, seed=0)
    assert found.mean == 1 and math.isnan(found.low) and math.isnan(found.high)


def test_mistakes_are_explained():
    truth, statistic = np.arange(4), lambda t: float(t[0])
    test, interval = analysis.permutation_test, analysis.bootstrap_interval
    for mistake, error, words in (
        (lambda: test(statistic, truth, np.arange(4), 9, seed=0), DataError, "cannot be exchanged"),
        (lambda: test(statistic, np.ones(4), None, 9, seed=0), DataError, "cannot be exchanged"),
        (lambda: test(statistic, truth, np.zeros(3), 9, seed=0), DataError, "one group a label"),
        (lambda: test(statistic, truth, None, 9), ConfigError, "seed=None"),
        (lambda: test(statistic, truth, None, 0, seed=0), ConfigError, "permutations=0"),
        (lambda: test(statistic, truth, [0, 0, 1, 1], np.array([[2, 1, 0, 3]])), DataError, "between groups"),
        (lambda: test(statistic, truth, None, np.array([[0, 0, 1, 2]])), DataError, "each index once"),
        (lambda: test(statistic, truth, None, np.zeros((2, 3), int)), DataError, "integers of shape"),
        (lambda: test(lambda t: math.nan, truth, None, 9, seed=0), DataError, "statistic is NaN"),
        (lambda: interval([1.0, math.nan], None, 9, seed=0), DataError, "hold NaN"),
        (lambda: interval([1.0, 2.0], None, 9), ConfigError, "seed=None"),
        (lambda: interval([1.0, 2.0], [0], 9, seed=0), DataError, "one cluster a value"),
        (lambda: interval([1.0, 2.0], None, np.array([[0, 2]])), DataError, "from 0 to 1"),
        (lambda: interval([1.0, 2.0], None, 9, seed=0, level=1.0), ConfigError, "level=1.0"),
    ):
        with pytest.raises(error, match=words):
            mistake()
