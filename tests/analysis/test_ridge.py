"""Ridge regression against scikit-learn's and refitting without each row; nuisances regressed out; errors."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from jaxkd import analysis
from jaxkd.errors import ConfigError, DataError, ShapeError


def problem(rows, features, targets=None, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (rows, features)) * rng.uniform(0.1, 5, features)
    y = x @ rng.normal(size=(features, targets or 1)) + rng.normal(2, 3, (rows, targets or 1))
    return x, (y if targets else y[:, 0])


@pytest.mark.parametrize(("rows", "features"), [(40, 6), (8, 20)])
@pytest.mark.parametrize("targets", [None, 3])
def test_it_is_scikit_learns_on_standardised_features(rows, features, targets):
    x, y = problem(rows, features, targets)
    new, _ = problem(5, features, targets, seed=1)
    scaler = StandardScaler().fit(x)
    for alpha in (0.5, 30.0):
        theirs = SklearnRidge(alpha).fit(scaler.transform(x), y).predict(scaler.transform(new))
        ours = analysis.fit_ridge(x, y, alpha)
        np.testing.assert_allclose(ours.predict(new), theirs, rtol=1e-9)
        assert ours.errors == {} and ours.alpha == alpha


@pytest.mark.parametrize(("rows", "features"), [(12, 4), (7, 9)])
def test_leave_one_out_is_refitting_without_each_row(rows, features):
    x, y = problem(rows, features, 2)
    alphas = (0.1, 2.0, 50.0)
    found = analysis.fit_ridge(x, y, alphas)
    z = StandardScaler().fit_transform(x)
    expected = {}
    for alpha in alphas:
        errors = []
        for i in range(rows):
            kept = np.arange(rows) != i
            errors.append(SklearnRidge(alpha).fit(z[kept], y[kept]).predict(z[i : i + 1])[0] - y[i])
        expected[alpha] = np.mean(np.square(errors))
    assert found.errors == pytest.approx(expected, rel=1e-8)
    assert found.alpha == min(expected, key=expected.get)


def test_the_penalty_may_be_chosen_on_other_rows():
    x, y = problem(30, 25)
    dev = problem(40, 25)
    found = analysis.fit_ridge(x, y, (1e-3, 1.0, 1e3), dev=dev)
    expected = {a: np.mean(np.square(analysis.fit_ridge(x, y, a).predict(dev[0]) - dev[1])) for a in (1e-3, 1.0, 1e3)}
    assert found.errors == pytest.approx(expected, rel=1e-9) and found.alpha == min(expected, key=expected.get)
    noise = np.random.default_rng(0).normal(size=30)
    assert analysis.fit_ridge(x, noise).alpha > analysis.fit_ridge(x, x @ np.ones(25)).alpha  # the default grid


def test_constant_and_repeated_features_get_no_weight_or_share_it():
    x, y = problem(23, 3)
    wide = np.concatenate([x, np.full((23, 1), 0.1), x[:, :1]], axis=1)
    assert wide[:, 3].std() > 0  # by rounding
    least = analysis.fit_ridge(wide, y, 0.0)
    assert least.coefficients[3] == pytest.approx(0, abs=1e-9)
    assert least.coefficients[0] == pytest.approx(least.coefficients[4])
    np.testing.assert_allclose(least.predict(wide), analysis.fit_ridge(x, y, 0.0).predict(x), rtol=1e-8)
    wide[:, 3] = 0.3
    np.testing.assert_allclose(least.predict(wide), analysis.fit_ridge(x, y, 0.0).predict(x), rtol=1e-8)


def test_regressed_out_features_do_not_tell_the_nuisance_any_more():
    rng = np.random.default_rng(3)
    length, signal = rng.integers(1, 12, 300).astype(float), rng.normal(size=(300, 4))
    features = signal + np.outer(length, [1.0, -2.0, 0.0, 0.5]) + 5
    train = np.arange(300) < 200
    left = analysis.regress_out(features, length[:, None], train)
    assert np.abs(left[train].mean(axis=0)).max() < 1e-9
    assert np.abs([np.corrcoef(left[train, i], length[train])[0, 1] for i in range(4)]).max() < 1e-9
    assert np.abs([np.corrcoef(left[~train, i], length[~train])[0, 1] for i in range(4)]).max() < 0.3
    np.testing.assert_allclose(left, signal - signal[train].mean(axis=0), atol=0.5)
    # The other rows enter no statistic.
    other = features.copy()
    other[~train] += 100
    np.testing.assert_allclose(analysis.regress_out(other, length[:, None], train)[train], left[train], atol=1e-9)


def test_mistakes_are_explained():
    x, y = problem(6, 2)
    bad = x.copy()
    bad[4, 1] = np.nan
    for mistake, error, words in (
        (lambda: analysis.fit_ridge(bad, y), DataError, "Row 4 of the first array"),
        (lambda: analysis.fit_ridge(x, y[:3]), ShapeError, "as many rows"),
        (lambda: analysis.fit_ridge(x[:1], y[:1]), DataError, "1 rows, too few"),
        (lambda: analysis.fit_ridge(x, y, -1.0), ConfigError, "alpha=-1.0"),
        (lambda: analysis.fit_ridge(x, y, ()), ConfigError, "number of penalties=0"),
        (lambda: analysis.fit_ridge(x, y, 1.0).predict(x[:, :1]), ShapeError, r"\(rows, 2\)"),
        (lambda: analysis.fit_ridge(x, y, dev=(x[:, :1], y)), ShapeError, "columns of the training rows"),
        (lambda: analysis.regress_out(x, x, np.ones(3, bool)), ShapeError, "6 bools"),
    ):
        with pytest.raises(error, match=words):
            mistake()
