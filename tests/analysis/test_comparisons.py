"""Statistics of repeated runs against SciPy and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxkd.analysis.comparisons import (
    holm,
    incomplete_beta,
    mean_interval,
    paired_comparison,
    sign_flip,
    t_quantile,
    t_two_sided,
)
from jaxkd.errors import DataError

A, B = [76.9, 77.4, 76.5, 78.0, 77.1], [75.1, 76.9, 76.6, 76.2, 75.0]


def test_student_distribution_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    special = pytest.importorskip("scipy.special")
    for freedom in (1, 2, 3, 7.5, 40, 1000):
        for t in (0.0, 1e-3, 0.7, 2.0, 12.706, 300.0):
            np.testing.assert_allclose(t_two_sided(t, freedom), 2 * stats.t.sf(t, freedom), rtol=1e-10)
        for confidence in (0.5, 0.95, 0.999):
            np.testing.assert_allclose(
                t_quantile(confidence, freedom), stats.t.ppf((1 + confidence) / 2, freedom), 1e-9
            )
    for a, b, x in ((0.5, 0.5, 0.3), (20, 0.5, 0.99), (3, 7, 1e-6), (2, 2, 1.0), (2, 2, 0.0)):
        np.testing.assert_allclose(incomplete_beta(a, b, x), special.betainc(a, b, x), rtol=1e-11)


def test_the_interval_of_three_seeds_by_hand():
    found = mean_interval([1.0, 2.0, 3.0])
    # sd 1, standard error 1 / sqrt(3), t(0.975, 2) = 4.30265
    np.testing.assert_allclose(found[:4], [2.0, 2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3), 1.0], rtol=1e-5)
    assert found.n == 3
    one = mean_interval([5.0, math.nan])
    assert one.mean == 5.0 and one.n == 1 and math.isnan(one.low)
    assert math.isnan(mean_interval([]).mean)


def test_a_paired_comparison_is_scipys_and_the_flips_are_counted():
    stats = pytest.importorskip("scipy.stats")
    found = paired_comparison(A, B)
    expected = stats.ttest_rel(A, B)
    np.testing.assert_allclose([found.t, found.p_t], [expected.statistic, expected.pvalue], rtol=1e-10)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [interval.low, interval.high], rtol=1e-9)
    d = np.subtract(A, B)
    np.testing.assert_allclose([found.difference, found.dz], [d.mean(), d.mean() / d.std(ddof=1)], rtol=1e-12)
    flips = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    np.testing.assert_allclose(found.p_sign_flip, flips.pvalue, rtol=1e-12)


def test_sign_flips_by_hand():
    assert sign_flip([1.0, 1.0, 1.0]) == 0.25  # only all plus and all minus are as far from 0
    assert sign_flip([0.1 + 0.2, 0.3, -0.6]) == 1.0  # the mean is 0 but for rounding
    # |sums| of 3, 1, -1: 5 3 3 1 and their mirror images; the observed one is 3
    assert sign_flip([3.0, 1.0, -1.0]) == 0.75


def test_equal_numbers_have_no_interval():
    for equal in ([61.2, 61.2, 61.2], [0.1 + 0.2, 0.3], [0.0, 0.0]):  # the second differ by rounding only
        found = mean_interval(equal)
        assert math.isnan(found.low) and math.isnan(found.high) and found.sd == 0.0 and found.n == len(equal)
    assert mean_interval([1e-9, 2e-9]).low < 0  # small numbers may have a spread
    gain = paired_comparison([61.2, 62.3], [60.1, 61.2])
    assert math.isnan(gain.low) and math.isnan(gain.high) and gain.n == 2


def test_pairs_that_cannot_be_tested():
    assert paired_comparison([1.0], [0.5]).n == 1 and math.isnan(paired_comparison([1.0], [0.5]).p_t)
    assert paired_comparison([1.0, math.nan, 2.0], [0.0, 1.0, 1.5]).n == 2
    equal = paired_comparison([1.0, 2.0], [1.0, 2.0])
    assert (equal.p_t, equal.p_sign_flip, equal.dz) == (1.0, 1.0, 0.0)
    # Without a spread there is no t-test, and no p of 0: 61.2 - 60.1 and 62.3 - 61.2 differ by rounding only.
    flat = paired_comparison([61.2, 62.3, math.nan], [60.1, 61.2, 1.0])
    assert math.isnan(flat.p_t) and math.isnan(flat.dz) and flat.p_sign_flip == 0.5
    assert flat.difference == pytest.approx(1.1)
    with pytest.raises(DataError, match="one score a seed"):
        paired_comparison([1.0], [1.0, 2.0])
    many = paired_comparison(range(21), [0.5] * 21)
    assert many.n == 21 and many.p_t < 1e-3 and math.isnan(many.p_sign_flip)


def test_holm_by_hand():
    # Holm 1979: the smallest of m times m, the next times m - 1, never falling; at most 1
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, math.nan, 0.9]), [1.0, math.nan, 1.0])
    assert holm([]).shape == (0,)
