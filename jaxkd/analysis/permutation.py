"""Permutation tests: labels exchanged within groups.

On the host, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxkd.errors import DataError, check_range

ROUNDING = 1e-12  # relative; values of the statistic that differ less are equal


class PermutationTest(NamedTuple):
    """Result of a permutation test."""

    observed: float  # the statistic of the labels as they are
    p: float  # one-sided: (1 + values of the null at or above the observed one) / (1 + permutations)
    null: np.ndarray  # (permutations,) the statistic of exchanged labels
    tied: float  # share of the null that equals the observed value


def permutation_test(
    statistic: Callable[[np.ndarray], float],
    truth: np.ndarray,
    groups: np.ndarray | None,
    permutations: int | np.ndarray,
    *,
    seed: int | None = None,
) -> PermutationTest:
    """One-sided test of whether `statistic` is larger for the labels as they are than for exchanged ones.

    Labels are exchanged within groups only, such as the readings of one subject, or of one subject with one number of
    words: over all rows, differences between the groups would count as an effect. The observed labels are one of the
    arrangements, so that p is at least 1 / (1 + B) and never 0 (Phipson and Smyth 2010): 99 permutations cannot show
    p < .01. Permutation i depends on the seed and i alone. Where many arrangements give the observed value
    (`tied`), p without an effect is not uniform but too large.

    Args:
      statistic: labels in the order of the rows -> a number; larger means more effect.
      truth: (n, ...) labels of the rows.
      groups: (n,) or (n, c), whose equal rows are one group; None: one group.
      permutations: their number B, or (B, n) integers: row i gives the labels truth[permutations[i]].
      seed: of the permutations, where their number is given.

    Returns:
      A `PermutationTest`: the observed number, those of the permutations and p.

    Raises:
      ConfigError: fewer than one permutation; a number without a seed.
      DataError: sizes that do not fit, given permutations that leave their group, or groups within which all labels
        are equal, so that nothing can be exchanged.
    """
    truth = np.asarray(truth)
    codes = _codes(groups, len(truth))
    if not _can_be_exchanged(truth, codes):
        raise DataError(
            f"The {len(truth)} labels cannot be exchanged: within each of the {codes.max(initial=0) + 1} groups they "
            "are all equal. Use larger groups, such as subjects."
        )
    rows = _drawn(codes, permutations, seed) if np.ndim(permutations) == 0 else _given(codes, permutations)
    observed = float(statistic(truth))
    null = np.array([float(statistic(truth[row])) for row in rows])
    if np.isnan(observed) or np.isnan(null).any():
        raise DataError("The statistic is NaN. Give one that is a number for every order of the labels.")
    rounding = ROUNDING * max(1.0, abs(observed))
    reached = int(np.sum(null >= observed - rounding))
    tied = float(np.mean(np.abs(null - observed) <= rounding))
    return PermutationTest(observed, (1 + reached) / (1 + len(null)), null, tied)


def _codes(groups: np.ndarray | None, count: int) -> np.ndarray:
    """(n,) number of the group of each row."""
    if groups is None:
        return np.zeros(count, np.int64)
    groups = np.asarray(groups)
    if groups.ndim not in (1, 2) or len(groups) != count:
        raise DataError(f"groups has shape {groups.shape}, and there are {count} labels. Pass one group a label.")
    return np.unique(groups, axis=0, return_inverse=True)[1].reshape(-1)


def _can_be_exchanged(truth: np.ndarray, codes: np.ndarray) -> bool:
    """Whether some group has two different labels."""
    order = np.argsort(codes, kind="stable")
    inside = codes[order][1:] == codes[order][:-1]
    differs = (truth[order][1:] != truth[order][:-1]).reshape(len(inside), -1).any(axis=1)
    return bool((inside & differs).any())


def _drawn(codes: np.ndarray, count: int | np.ndarray, seed: int | None):
    """Yields `count` permutations of the rows within their groups."""
    check_range("permutations", count, 1, whole=True)
    check_range("seed", seed, 0, whole=True, hint="it makes the permutations repeatable")
    assert seed is not None  # checked above
    slots = np.argsort(codes, kind="stable")
    for index in range(count):
        row = np.empty(len(codes), np.int64)
        # Both orders go through the groups one after the other, the second through their rows in random order.
        row[slots] = np.lexsort((np.random.default_rng((seed, index)).random(len(codes)), codes))
        yield row


def _given(codes: np.ndarray, permutations: int | np.ndarray) -> np.ndarray:
    rows = np.asarray(permutations)
    if rows.ndim != 2 or rows.shape[1] != len(codes) or not len(rows) or rows.dtype.kind not in "iu":
        raise DataError(
            f"The permutations are {rows.dtype} of shape {rows.shape}. Pass integers of shape (permutations, "
            f"{len(codes)}), or their number."
        )
    if (np.sort(rows, axis=1) != np.arange(len(codes))).any():
        raise DataError(f"A row of the permutations is no order of 0 to {len(codes) - 1}. Pass each index once a row.")
    if (codes[rows] != codes).any():
        bad = int(np.flatnonzero((codes[rows] != codes).any(axis=1))[0])
        raise DataError(f"Permutation {bad} exchanges labels between groups. Permute within groups.")
    return rows
