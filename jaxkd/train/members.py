"""Metrics of one network, a number, or of the S members of a population, an array (S,)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

FOLDER = "members"  # in the work directory of a population, one folder for each member
Value = float | np.ndarray  # (S,) float64


def to_value(metric: Any) -> Value:
    """A scalar array as a float, and one of shape (S,) as float64."""
    array = np.asarray(metric, np.float64)
    return array if array.ndim else float(array)


def to_json(metrics: Mapping[str, Value]) -> dict[str, Any]:
    """`metrics` with lists in the place of arrays."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in metrics.items()}


def live_mean(value: Value) -> float:
    """Mean over the members that have not diverged, whose metrics are NaN; a single number as it is."""
    values = np.atleast_1d(value)
    live = values[~np.isnan(values)]
    return float(live.mean()) if live.size else float("nan")


def bad_members(value: Value) -> list[int]:
    """The members whose metric is NaN or infinite; [0] for a single number that is."""
    return np.flatnonzero(~np.isfinite(np.atleast_1d(value))).tolist()


def best_member(value: Any) -> tuple[float, int | None]:
    """(the highest value, its member), with None as the member of a single number.

    Args:
      value: a number, or the members' numbers as an array or a list, where "nan" may stand for NaN (metrics.jsonl). NaN
        ranks below everything.

    Returns:
      (-inf, None) if there is no number at all.
    """
    try:
        scores = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return float("-inf"), None
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    if ranked.ndim == 0:
        return float(ranked), None
    member = int(np.argmax(ranked))
    return float(ranked[member]), member
