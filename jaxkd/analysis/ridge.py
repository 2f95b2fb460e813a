"""Ridge regression with a penalty chosen by leave-one-out, and nuisances regressed out of features.

On the host, in float64. Legend: n rows, F features, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxkd.errors import DataError, ShapeError, check_range

ALPHAS = tuple(10.0**power for power in range(-1, 6))  # penalties to choose from


class Ridge(NamedTuple):
    """A fitted ridge regression; `predict` applies it.

    Attributes:
      mean: (F,) of the training rows.
      scale: (F,) their standard deviation, 1 where a feature is constant.
      coefficients: (F, T) or (F,), of standardised features.
      intercept: (T,) or (), the mean of the targets.
      alpha: the penalty.
      errors: alpha -> mean squared error by which it was chosen; empty where one alpha was given.
    """

    mean: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    intercept: np.ndarray
    alpha: float
    errors: dict[float, float]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(n, F) features -> (n, T) or (n,) targets; nothing is taken from the statistics of `x`."""
        x = np.asarray(x, np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ShapeError(f"The features have shape {x.shape}. Pass (rows, {len(self.mean)}), as in the fit.")
        return (x - self.mean) / self.scale @ self.coefficients + self.intercept


def fit_ridge(
    x: np.ndarray,
    y: np.ndarray,
    alpha: float | Sequence[float] = ALPHAS,
    *,
    dev: tuple[np.ndarray, np.ndarray] | None = None,
) -> Ridge:
    """Minimises |y - b - z w|^2 + alpha |w|^2, where z are the features standardised by the training rows.

    Of several penalties the one with the smallest mean squared error over all targets is taken, on `dev` where it is
    given, else by leave-one-out: with the scale kept, the error of row i without row i is e_i / (1 - h_ii) in closed
    form (Allen 1974), h being the hat matrix with the intercept. Equal errors: the larger penalty.

    Args:
      x: (n, F) training rows only, finite.
      y: (n,) or (n, T), finite.
      alpha: penalty from 0, or several to choose from. With 0 directions without variance get no weight.
      dev: other rows (x, y) to choose on.

    Returns:
      A `Ridge`, with the penalty that was taken; `predict` applies it.

    Raises:
      ConfigError: a negative penalty, or none.
      DataError: NaN or infinity, fewer than 2 rows.
      ShapeError: arrays that do not fit.
    """
    alphas = sorted(map(float, np.atleast_1d(np.asarray(alpha, np.float64))), reverse=True)
    check_range("number of penalties", len(alphas), 1)
    for one in alphas:
        check_range("alpha", one, 0)
    x, y = _checked(x, y)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    # A constant column has a standard deviation of rounding.
    scale = np.where(scale > 1e-12 * np.maximum(1.0, np.abs(mean)), scale, 1.0)
    flat = y.reshape(len(y), -1)
    intercept = flat.mean(axis=0)
    energies, directions, projected = _decompose((x - mean) / scale)
    targets = projected.T @ (flat - intercept)

    def solution(one: float) -> tuple[np.ndarray, np.ndarray]:
        """(r,) factors of the directions, and (F, T) coefficients."""
        kept = energies > energies.max(initial=0.0) * np.finfo(np.float64).eps * max(x.shape)
        factors = np.where(kept, 1.0 / np.where(kept, energies + one, 1.0), 0.0)
        return factors, directions @ (factors[:, None] * targets)

    def left_out_error(one: float) -> float:
        factors, coefficients = solution(one)
        residual = flat - intercept - projected @ (directions.T @ coefficients)
        free = 1.0 - 1.0 / len(x) - np.square(projected) @ factors
        # A row that the fit passes through has no leave-one-out error; more penalty is better than that.
        return float(np.mean(np.square(residual / np.where(free > 1e-10, free, np.nan)[:, None])))

    def dev_error(one: float) -> float:
        assert other is not None  # there is dev
        predicted = ((other[0] - mean) / scale) @ solution(one)[1] + intercept
        return float(np.mean(np.square(other[1].reshape(len(other[1]), -1) - predicted)))

    other = None if dev is None else _checked(*dev, least=1)
    if other is not None and (other[0].shape[1], other[1].shape[1:]) != (x.shape[1], y.shape[1:]):
        raise ShapeError(
            f"dev has shapes {other[0].shape} and {other[1].shape}. Pass the columns of the training rows."
        )
    errors = {} if len(alphas) == 1 else {one: (left_out_error if dev is None else dev_error)(one) for one in alphas}
    best = min(errors, key=lambda one: np.nan_to_num(errors[one], nan=np.inf)) if errors else alphas[0]
    coefficients = solution(best)[1].reshape(x.shape[1], *y.shape[1:])
    return Ridge(mean, scale, coefficients, intercept.reshape(y.shape[1:]), best, errors)


def regress_out(
    features: np.ndarray, nuisances: np.ndarray, fit_rows: np.ndarray, *, alpha: float | Sequence[float] = 0.0
) -> np.ndarray:
    """Features without what a linear regression on the nuisances predicts, fitted on `fit_rows` and applied to all.

    Args:
      features: (n, F).
      nuisances: (n, K), e.g. letters of the word, its frequency, place, and eye-movement measures.
      fit_rows: (n,) bool, the training rows.
      alpha: see `fit_ridge`; 0: least squares.

    Returns:
      (n, F) float64 residuals, with mean 0 over the training rows.

    Raises:
      ConfigError, DataError, ShapeError: see `fit_ridge`.
    """
    features, nuisances = _checked(features, nuisances)
    nuisances = nuisances.reshape(len(nuisances), -1)
    rows = np.asarray(fit_rows)
    if rows.shape != (len(features),) or rows.dtype != np.bool_:
        raise ShapeError(f"fit_rows is {rows.dtype} of shape {rows.shape}. Pass {len(features)} bools, one a row.")
    return features - fit_ridge(nuisances[rows], features[rows], alpha).predict(nuisances)


def _checked(x: np.ndarray, y: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim not in (1, 2) or len(x) != len(y):
        raise ShapeError(f"The arrays have shapes {x.shape} and {y.shape}. Pass (rows, columns) with as many rows.")
    if len(x) < least:
        raise DataError(f"There are {len(x)} rows, too few to fit. Give at least {least}.")
    for name, array in (("first", x), ("second", y)):
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
            raise DataError(f"Row {row} of the {name} array holds NaN or infinity. Leave such rows out of both.")
    return x, y


def _decompose(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, F) centred features -> (r,) energies, (F, r) directions, and the (n, r) features along them."""
    if z.shape[0] >= z.shape[1]:  # from the (F, F) products, in a fraction of the time of an SVD of many rows
        energies, directions = np.linalg.eigh(z.T @ z)
        return np.maximum(energies, 0.0), directions, z @ directions
    left, sizes, right = np.linalg.svd(z, full_matrices=False)
    return np.square(sizes), right.T, left * sizes
