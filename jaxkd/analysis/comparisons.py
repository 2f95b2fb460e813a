"""Repeated runs compared: t intervals over seeds, paired tests, effect sizes and Holm's correction.

On the host, in float64, without SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxkd.errors import DataError, check_range

ROUNDING = 1e-12  # relative; numbers that differ less are equal
NO_SPREAD = "n/a (no spread)"  # in tables, in the place of the interval of equal numbers
MOST_PAIRS = 20  # sign flips are enumerated: 2^20 means


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function by Lentz's method; converges for x < (a + 1) / (a + b + 2)."""
    tiny, c = 1e-300, 1.0
    d = 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1.0 / (1.0 + step * d or tiny)
            c = 1.0 + step / c or tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), to about 1e-14 relative.

    Args:
      a: above 0.
      b: above 0.
      x: from 0 to 1.
    """
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def t_two_sided(t: float, freedom: float) -> float:
    """Probability that |T| of a Student distribution with `freedom` degrees exceeds |t|."""
    return 0.0 if math.isinf(t) else incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(confidence: float, freedom: float) -> float:
    """The t within which |T| lies with probability `confidence`, such as 12.706 for 0.95 and one degree of freedom."""
    check_range("confidence", confidence, above=0, below=1)
    low, high = 0.0, 1.0
    while t_two_sided(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, freedom) > 1 - confidence else (low, middle)
    return (low + high) / 2


class Interval(NamedTuple):
    """Mean and t interval of n numbers; sd (n - 1 in the denominator), low and high are NaN for fewer than 2.

    Of numbers without spread sd is 0, and low and high are NaN.
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int


def mean_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, *, size: float | None = None
) -> Interval:
    """Mean of independent repetitions with its Student t interval.

    Equal numbers have no interval: a width of 0 would say that further seeds give the same number for certain, but
    scores are counts of images, which are often equal by chance where they vary little.

    Args:
      values: one number a seed; NaN (a run that diverged) is left out.
      confidence: of the interval.
      size: of the numbers that `values` are differences of, by which rounding is told from spread; None: of `values`.

    Returns:
      An `Interval`: mean, low, high, sd and number of values, in the unit of the values.
    """
    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    n = len(x)
    if n < 2:
        return Interval(float(x[0]) if n else math.nan, math.nan, math.nan, math.nan, n)
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    if np.ptp(x) <= ROUNDING * (np.abs(x).max() if size is None else size):
        return Interval(mean, math.nan, math.nan, 0.0, n)
    half = t_quantile(confidence, n - 1) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


class PairedComparison(NamedTuple):
    """Comparison of two methods by seed; every field but n and difference is NaN for fewer than 2 pairs.

    Of differences without spread low and high are NaN.
    """

    n: int  # pairs
    difference: float  # mean of a - b, in the units of the scores
    low: float  # interval of the difference
    high: float
    dz: float  # Cohen's d of paired differences: mean over standard deviation (n - 1)
    t: float  # paired t statistic with n - 1 degrees of freedom
    p_t: float  # two-sided
    p_sign_flip: float  # two-sided, exact: the smallest possible value is 2 / 2^n; NaN for more than 20 pairs


def paired_comparison(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedComparison:
    """Two methods with the same seeds: paired t-test and exact sign-flip test of the mean difference.

    The sign-flip test enumerates all 2^n assignments of signs to the differences and counts the share of means whose
    absolute value is at least the observed one (Fisher's randomisation test). It needs no normal distribution, but with
    3 pairs it cannot fall below 0.25, with 5 below 0.0625. Differences that are all equal have no spread and no
    interval; unless they are 0, dz, t and p_t are NaN too.

    Args:
      a: scores, one a seed.
      b: scores of the same seeds; a pair with NaN is left out.
      confidence: of the interval of the difference (Student t).

    Returns:
      A `PairedComparison`: difference a - b with its interval, Cohen's dz, t, and the p-values of both tests.

    Raises:
      DataError: other numbers of scores.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise DataError(f"The scores have shapes {first.shape} and {second.shape}. Pass one score a seed of each.")
    d = first - second
    d = d[np.isfinite(d)]
    size = sum(float(np.max(np.abs(x[np.isfinite(x)]), initial=0.0)) for x in (first, second))
    mean, low, high, sd, n = mean_interval(d, confidence, size=size)
    if n < 2:
        return PairedComparison(n, mean, *[math.nan] * 6)
    if math.isnan(low):  # no spread
        dz, t, p_t = (0.0, 0.0, 1.0) if d[0] == 0 else (math.nan,) * 3
    else:
        dz = mean / sd
        t = dz * math.sqrt(n)
        p_t = t_two_sided(t, n - 1)
    flips = sign_flip(d) if n <= MOST_PAIRS else math.nan
    return PairedComparison(n, mean, low, high, dz, t, p_t, flips)


def sign_flip(differences: Sequence[float] | np.ndarray) -> float:
    """Exact two-sided p of a mean difference of 0 under independent, symmetric differences; see `paired_comparison`."""
    d = np.asarray(differences, np.float64)
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    # Sums of the same numbers in another order differ by rounding.
    observed = abs(d.sum()) - 1e-12 * np.abs(d).sum()
    return float(np.mean(np.abs(sums) >= observed))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values of one family of tests (Holm 1979).

    Args:
      p_values: (m,); NaN stands for a test that was not made, which is not counted and stays NaN.

    Returns:
      (m,): at or below alpha exactly where Holm's procedure rejects at the family-wise level alpha.
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    made = np.flatnonzero(np.isfinite(p))
    order = made[np.argsort(p[made], kind="stable")]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
