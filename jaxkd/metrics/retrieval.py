"""Retrieval scores with ties and several right answers: top-k, reciprocal and median rank, and their chance levels.

On the host, in float64. Legend: Q queries, N candidates. A query is solved by its best right candidate. Equal scores
are common where a network has collapsed: constant scores are a top-1 of 100 % where only better candidates count.
Hence `ties`: "expected" (the mean over random orders of equal scores, the one to report), "optimistic" (only better
wrong candidates come first) and "pessimistic" (equal wrong ones too).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jaxkd.errors import DataError, check_choice, check_range

TIES = ("expected", "optimistic", "pessimistic")


class _Places(NamedTuple):
    """Of each query: wrong candidates above the best right one, wrong ones equal to it, and right ones equal to it."""

    above: np.ndarray
    tied: np.ndarray
    same: np.ndarray


def top_k_hits(
    scores: np.ndarray, right: np.ndarray, k: int, ties: str = "expected", *, where: np.ndarray | None = None
) -> np.ndarray:
    """Whether a right candidate is among the k best of each query; with expected ties the probability of it.

    Args:
      scores: (Q, N), larger is better.
      right: (Q, N) bool, the right candidates; at least one for each query.
      k: from 1; a pool of at most k candidates is always solved.
      ties: see the module.
      where: (Q, N) bool, False at candidates that do not belong to the query's pool; None: all do.

    Returns:
      (Q,) float64 in [0, 1], for intervals over queries; its mean is `top_k`.

    Raises:
      ConfigError: another k or rule of ties.
      DataError: arrays that do not fit, NaN, a query without a right candidate.
    """
    check_range("k", k, 1, whole=True)
    above, tied, same = _places(scores, right, ties, where)
    if ties != "expected":
        return (above + (tied if ties == "pessimistic" else 0) < k).astype(np.float64)
    return _hits(k - above, tied, same)


def candidate_hits(scores: np.ndarray, k: int, *, where: np.ndarray | None = None) -> np.ndarray:
    """Probability that each candidate is among the k best of its query, equal scores in random order.

    `top_k_hits` with expected ties of one right candidate at a time, for all candidates: what a permutation test of the
    right ones reads.

    Args:
      scores: (Q, N), larger is better.
      k: from 1.
      where: (Q, N) bool, see `top_k_hits`.

    Returns:
      (Q, N) float64 in [0, 1]; 0 at candidates outside of the pool.

    Raises:
      ConfigError: a k below 1.
    """
    check_range("k", k, 1, whole=True)
    scores = np.asarray(scores, np.float64)
    where, found = np.ones(scores.shape, bool) if where is None else where, np.zeros(scores.shape)
    for row, own, out in zip(scores, where, found, strict=True):
        held = row[own]
        ordered = np.sort(held)
        above = len(held) - np.searchsorted(ordered, held, side="right")
        equal = len(held) - above - np.searchsorted(ordered, held, side="left")
        out[own] = _hits(k - above, equal - 1, np.ones(len(held), int))
    return found


def top_k(
    scores: np.ndarray, right: np.ndarray, k: int, ties: str = "expected", *, where: np.ndarray | None = None
) -> float:
    """Share of queries with a right candidate among the k best: the mean of `top_k_hits`, whose arguments it takes.

    Args:
      scores: (Q, N), larger is better; see `top_k_hits`, as for `ties` and `where`.
      right: (Q, N) bool.
      k: from 1.
      ties: "expected", "optimistic" or "pessimistic".
      where: (Q, N) bool or None.

    Returns:
      In [0, 1]; compare it with `mean_chance`.

    Raises:
      ConfigError, DataError: see `top_k_hits`.
    """
    return float(np.mean(top_k_hits(scores, right, k, ties, where=where)))


def reciprocal_ranks(
    scores: np.ndarray, right: np.ndarray, ties: str = "expected", *, where: np.ndarray | None = None
) -> np.ndarray:
    """1 / rank of the best right candidate of each query.

    Args:
      scores: see `top_k_hits`, as for `right` and `where`.
      right: (Q, N) bool.
      ties: "expected" is the mean of 1 / rank over random orders, which is more than 1 / the mean rank.
      where: (Q, N) bool or None.

    Returns:
      (Q,) float64 in (0, 1].

    Raises:
      ConfigError, DataError: see `top_k_hits`.
    """
    above, tied, same = _places(scores, right, ties, where)
    if ties != "expected":
        return 1.0 / (above + 1.0 + (tied if ties == "pessimistic" else 0))
    return np.array([_mean_reciprocal(a, t, m) for a, t, m in zip(above, tied, same, strict=True)])


def mean_reciprocal_rank(
    scores: np.ndarray, right: np.ndarray, ties: str = "expected", *, where: np.ndarray | None = None
) -> float:
    """The mean of `reciprocal_ranks`, whose arguments it takes.

    Args:
      scores: (Q, N), larger is better; see `top_k_hits`, as for `ties` and `where`.
      right: (Q, N) bool.
      ties: "expected", "optimistic" or "pessimistic".
      where: (Q, N) bool or None.

    Returns:
      In (0, 1].

    Raises:
      ConfigError, DataError: see `top_k_hits`.
    """
    return float(np.mean(reciprocal_ranks(scores, right, ties, where=where)))


def median_rank(
    scores: np.ndarray, right: np.ndarray, ties: str = "expected", *, where: np.ndarray | None = None
) -> float:
    """Median over the queries of the rank, from 1, of the best right candidate.

    Args:
      scores: see `top_k_hits`, as for `right` and `where`.
      right: (Q, N) bool.
      ties: with "expected" the rank of a query is its mean over random orders.
      where: (Q, N) bool or None.

    Returns:
      A rank; 1 is the best.

    Raises:
      ConfigError, DataError: see `top_k_hits`.
    """
    above, tied, same = _places(scores, right, ties, where)
    equal: Any = {"expected": tied / (same + 1.0), "optimistic": 0.0, "pessimistic": tied}[ties]
    return float(np.median(above + 1.0 + equal))


def chance(n: int, m: int, k: int) -> float:
    """Probability that at least one of m right candidates is among k drawn from n: 1 - C(n - m, k) / C(n, k).

    Args:
      n: candidates.
      m: right ones, from 1 to n.
      k: from 1; more than n count as n.

    Returns:
      In (0, 1].

    Raises:
      ConfigError: numbers outside of these ranges.
    """
    check_range("n", n, 1, whole=True)
    check_range("m", m, 1, n, whole=True)
    check_range("k", k, 1, whole=True)
    k = min(k, n)
    return 1.0 - math.comb(n - m, k) / math.comb(n, k)


def mean_chance(right: np.ndarray, k: int, *, where: np.ndarray | None = None) -> float:
    """Chance level of `top_k` over pools of unequal size: the mean over the queries of `chance`.

    Args:
      right: (Q, N) bool.
      k: from 1.
      where: (Q, N) bool, see `top_k_hits`.

    Returns:
      In (0, 1].

    Raises:
      ConfigError, DataError: see `top_k_hits`.
    """
    right, where = _pools(right, where)
    counts = zip(where.sum(axis=1).tolist(), right.sum(axis=1).tolist(), strict=True)
    return float(np.mean([chance(n, m, k) for n, m in counts]))


def _hits(free: np.ndarray, tied: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Probability that one of `same` right candidates is among the first `free` of all `tied` + `same` equal ones."""
    total = tied + same
    free, missed = np.clip(free, 0, total), np.ones(len(total))
    for j in range(int(same.max(initial=0))):  # the j-th right one is not among them, as those before it are not
        missed *= np.where(j < same, np.maximum(total - free - j, 0) / np.maximum(total - j, 1), 1.0)
    return 1.0 - missed


def _mean_reciprocal(above: int, tied: int, same: int) -> float:
    """Mean of 1 / rank of the first of `same` right candidates among `tied` + `same` equal ones, `above` before them.

    It is at place j of them in C(tied + same - j, same - 1) of the C(tied + same, same) choices of right places.
    """
    total, whole, expected = int(tied + same), math.comb(int(tied + same), int(same)), 0.0
    for j in range(1, int(tied) + 2):
        expected += math.comb(total - j, int(same) - 1) / whole / float(above + j)
    return expected


def _pools(right: np.ndarray, where: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(Q, N) right candidates of the pools, and the pools, after checks."""
    right = np.asarray(right)
    pools = np.ones(right.shape, bool) if where is None else np.asarray(where)
    for name, array in (("right", right), ("where", pools)):
        if array.dtype != np.bool_ or array.ndim != 2 or array.shape != right.shape or 0 in array.shape:
            raise DataError(
                f"{name} is {array.dtype} of shape {array.shape}. Pass a bool for each query and candidate, of shape "
                f"{right.shape if right.ndim == 2 else '(queries, candidates)'}."
            )
    right = right & pools
    without = np.flatnonzero(~right.any(axis=1))
    if len(without):
        raise DataError(
            f"{len(without)} of {len(right)} queries have no right candidate in their pool, the first is row "
            f"{without[0]}. Add it to the pool, or leave the query out."
        )
    return right, pools


def _places(scores: np.ndarray, right: np.ndarray, ties: str, where: np.ndarray | None) -> _Places:
    check_choice("ties", ties, TIES)
    right, where = _pools(right, where)
    scores = np.asarray(scores, np.float64)
    if scores.shape != right.shape:
        raise DataError(f"The scores have shape {scores.shape} and right {right.shape}. Pass one score a candidate.")
    if np.isnan(scores[where]).any():
        row = int(np.flatnonzero((np.isnan(scores) & where).any(axis=1))[0])
        raise DataError(f"The scores of query {row} hold NaN. Leave these candidates out with where=.")
    best = np.max(np.where(right, scores, -np.inf), axis=1, keepdims=True)
    wrong, equal = where & ~right, scores == best
    return _Places(((scores > best) & wrong).sum(1), (equal & wrong).sum(1), (equal & right).sum(1))
