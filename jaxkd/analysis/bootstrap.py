"""Percentile bootstrap of a mean, over clusters of values that are not independent.

On the host, in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxkd.errors import DataError, check_range

_AT_ONCE = 4_000_000  # indices that are drawn at a time


class BootstrapInterval(NamedTuple):
    """Mean of values with its interval; low and high are NaN for fewer than 2 clusters."""

    mean: float
    low: float
    high: float
    values: int
    clusters: int


def bootstrap_interval(
    values: np.ndarray,
    clusters: np.ndarray | None,
    draws: int | np.ndarray,
    *,
    seed: int | None = None,
    level: float = 0.95,
) -> BootstrapInterval:
    """Percentile interval of the mean of `values` by drawing whole clusters with replacement.

    Twelve readers of one sentence are not twelve independent values: draw subjects, and in a second call sentences. A
    draw is the mean of all values of the drawn clusters, of which large ones weigh more. With few clusters, such as 12
    subjects, the interval is somewhat too narrow.

    Args:
      values: (n,), e.g. `metrics.top_k_hits`.
      clusters: (n,) name of the cluster of each value; None: each value by itself.
      draws: their number, or (draws, C) integers, row by row the clusters drawn, numbered in the order of
        `np.unique(clusters)`.
      seed: of the draws, where their number is given.
      level: probability that the interval shall cover, in (0, 1).

    Returns:
      The mean of `values`, and the (1 -+ level) / 2 quantiles of the draws' means, linearly interpolated.

    Raises:
      ConfigError: a level outside of (0, 1), fewer than one draw, a number of draws without a seed.
      DataError: no values, NaN, or sizes that do not fit.
    """
    check_range("level", level, above=0, below=1)
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or np.isnan(x).any():
        raise DataError(
            f"The values have shape {x.shape}{' and hold NaN' if np.isnan(x).any() else ''}. Pass one number for each "
            "row, and leave out rows without one."
        )
    codes = np.arange(len(x)) if clusters is None else _codes(np.asarray(clusters), len(x))
    sums, sizes = np.bincount(codes, weights=x), np.bincount(codes)
    if np.ndim(draws) == 0:
        means = _drawn_means(sums, sizes, draws, seed)
    else:
        rows = np.asarray(draws)
        if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(sums):
            raise DataError(
                f"The draws are {rows.dtype} of shape {rows.shape}. Pass rows of integers from 0 to {len(sums) - 1}, "
                "one for each cluster, or the number of draws."
            )
        means = sums[rows].sum(axis=1) / sizes[rows].sum(axis=1)
    low, high = math.nan, math.nan
    if len(sums) > 1:
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return BootstrapInterval(float(x.mean()), low, high, len(x), len(sums))


def _codes(clusters: np.ndarray, count: int) -> np.ndarray:
    if clusters.shape != (count,):
        raise DataError(f"clusters has shape {clusters.shape}, and there are {count} values. Pass one cluster a value.")
    return np.unique(clusters, return_inverse=True)[1]


def _drawn_means(sums: np.ndarray, sizes: np.ndarray, draws: int | np.ndarray, seed: int | None) -> np.ndarray:
    """(draws,) means of as many random clusters as there are."""
    check_range("draws", draws, 1, whole=True)
    check_range("seed", seed, 0, whole=True, hint="it makes the draws repeatable")
    rng, means, step = np.random.default_rng(seed), [], max(1, _AT_ONCE // len(sums))
    for start in range(0, int(draws), step):
        rows = rng.integers(0, len(sums), (min(step, int(draws) - start), len(sums)))
        means.append(sums[rows].sum(axis=1) / sizes[rows].sum(axis=1))
    return np.concatenate(means)
