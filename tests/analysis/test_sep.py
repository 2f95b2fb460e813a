from __future__ import annotations

import re

import numpy as np
import pytest

from jaxkd.analysis import sep
from jaxkd.errors import ConfigError, ShapeError


def random_tokens(shape, seed=0, offset=0.0):
    return (np.random.default_rng(seed).standard_normal(shape) + offset).astype(np.float32)


def curves_by_definition(x, folded=False):
    """(..., C) -> (..., D) percent per token, by the two-sided FFT in float64."""
    c = x.shape[-1]
    energy = np.abs(np.fft.fft(x.astype(np.float64), axis=-1)) ** 2
    if folded:
        own = energy[..., : c // 2 + 1].copy()
        for k in range(1, c):
            if k > c // 2:
                own[..., c - k] += energy[..., k]
        energy = own
    return 100 * np.cumsum(energy, -1) / energy.sum(-1, keepdims=True)


@pytest.mark.parametrize("mode", ["full", "folded"])
def test_golden_curve_and_bandwidths(golden, mode):
    g = golden("lowrank_pca_sep")
    folded = mode == "folded"
    statistics = sep.sep_statistics([sep.image_sep(g["tokens_mnd"], folded)])
    np.testing.assert_allclose(statistics.mean, g[f"sep_{mode}_mean"], rtol=1e-5)
    np.testing.assert_allclose(statistics.sd, g[f"sep_{mode}_std"], rtol=1e-5, atol=1e-10)
    np.testing.assert_allclose(sep.sep_curve(g["tokens_mnd"], folded), g[f"sep_{mode}_mean"], rtol=1e-5)
    np.testing.assert_array_equal(sep.bandwidths(statistics.mean), g[f"sep_{mode}_d_50_60_70_80_90"])
    assert statistics.tokens == 120 and statistics.zero_tokens == 0


def test_golden_permutations(golden):
    g = golden("lowrank_pca_sep")
    trials = sep.sep_permutation_trials(g["tokens_mnd"], 5)
    np.testing.assert_allclose(trials.original, g["sep_image_bandwidth_ma"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(trials.permuted, g["perm5_bandwidth_rma"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(trials.curve_l1, g["perm5_curve_l1"], rtol=1e-5)
    ci = sep.bootstrap_ci(trials, 200)
    np.testing.assert_allclose(ci.T, g["perm5_bootstrap200_ci_2.5_97.5"], rtol=0, atol=1e-12)
    summary = sep.sep_permutation(g["tokens_mnd"], 5, bootstrap=200)
    np.testing.assert_array_equal(summary.ci, ci)
    np.testing.assert_allclose(
        summary.delta, g["perm5_bandwidth_rma"].mean((0, 1)) - g["sep_image_bandwidth_ma"].mean(0), atol=1e-12
    )
    np.testing.assert_allclose(summary.curve_l1_mean, g["perm5_curve_l1"].mean(), rtol=1e-5)
    np.testing.assert_allclose(summary.curve_l1_sd, g["perm5_curve_l1"].std(), rtol=1e-4)


def test_the_published_permutations_and_bootstrap_start_as_written_down():
    first = sep.draw_permutations(384, 2)
    assert first[0, :8].tolist() == [326, 145, 254, 3, 192, 266, 95, 382]
    assert first[1, :8].tolist() == [43, 189, 160, 212, 169, 154, 239, 297]
    assert sep.draw_permutations(768, 1)[0, :8].tolist() == [43, 548, 448, 394, 431, 203, 128, 742]

    changes = np.arange(1000.0)[:, None]
    trials = sep.SepTrials(0 * changes, changes[None], np.zeros(1), np.zeros(1), np.zeros((1, 1)), 1000, 0)
    draws = np.random.default_rng(2027).integers(0, 1000, (1000, 1000))
    assert draws[0, :8].tolist() == [632, 8, 148, 385, 284, 82, 477, 497]
    np.testing.assert_allclose(sep.bootstrap_ci(trials, 1000)[0], np.percentile(draws.mean(1), [2.5, 97.5]))


@pytest.mark.parametrize("c", [36, 35, 2, 1])
@pytest.mark.parametrize("folded", [False, True])
def test_curve_is_the_definition_for_even_and_odd_widths(c, folded):
    x = random_tokens((3, 5, c), offset=0.2)
    expected = curves_by_definition(x, folded).reshape(15, -1)
    statistics = sep.sep_statistics([sep.image_sep(x, folded)])
    assert len(statistics.mean) == (c // 2 + 1 if folded else c)
    np.testing.assert_allclose(statistics.mean, expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.sd, expected.std(0), rtol=1e-4, atol=1e-5)
    trials = sep.sep_permutation_trials(x, 2, folded=folded)
    np.testing.assert_allclose(trials.original_curve, expected.mean(0), rtol=1e-5)
    permuted = curves_by_definition(x[..., sep.draw_permutations(c, 2)[1]], folded)
    np.testing.assert_allclose(trials.permuted_curves[1], permuted.reshape(15, -1).mean(0), rtol=1e-5)


@pytest.mark.parametrize("channel", [0, 5, 383])
def test_a_spike_is_the_exact_diagonal(channel):
    x = np.zeros((1, 1, 384), np.float32)
    x[..., channel] = -7.0
    curve = sep.sep_curve(x)
    np.testing.assert_allclose(curve, 100 * np.arange(1, 385) / 384, atol=2e-5)
    np.testing.assert_allclose(curve[191], 50.0, atol=2e-5)
    assert sep.bandwidths(curve)[0] == 192
    assert sep.sep_permutation_trials(x, 2).original[0, 0] == 0.5


def test_the_middle_of_a_real_token_is_decided_by_dc_and_nyquist():
    x = random_tokens((1, 1, 64), offset=0.5)
    energy = np.abs(np.fft.fft(x[0, 0].astype(np.float64))) ** 2
    middle = 50 * (1 + (energy[0] - energy[32]) / energy.sum())
    np.testing.assert_allclose(sep.sep_curve(x)[31], middle, rtol=1e-5)
    assert abs(middle - 50) > 1  # not a test of 50 = 50


def test_the_mean_over_permutations_is_a_straight_line():
    x = random_tokens((1, 1, 32), offset=0.7)
    rho0 = x.sum(dtype=np.float64) ** 2 / (32 * np.square(x, dtype=np.float64).sum())
    mean = sep.sep_permutation(x, 3000).curve_mean
    line = rho0 + (1 - rho0) * np.arange(32) / 31
    assert 0.1 < rho0 < 0.9
    np.testing.assert_allclose(mean / 100, line, atol=4e-3)


def test_the_null_of_width_384_has_the_published_bandwidths():
    """rho0 = 0: tokens that sum to zero."""
    x = random_tokens((8, 64, 384))
    x -= x.mean(-1, keepdims=True)
    line = 100 * np.arange(384) / 383
    assert sep.bandwidths(line, (80, 90)).tolist() == [308, 346]
    mean = sep.sep_permutation(x, 40).curve_mean
    np.testing.assert_allclose(sep.bandwidths(mean, (80, 90)), [308, 346], atol=1)


def test_zero_tokens_are_dropped_and_counted():
    x = random_tokens((3, 5, 8))
    expected = curves_by_definition(np.concatenate([x[0, :3], x[1]])).mean(0)
    x[0, 3:] = 0.0
    x[2] = 0.0
    statistics = sep.sep_statistics([sep.image_sep(x[:1]), sep.image_sep(x[1:])])
    assert (statistics.tokens, statistics.zero_tokens) == (8, 7)
    np.testing.assert_allclose(statistics.mean, expected, rtol=1e-5)
    found = sep.sep_permutation(x, 3)
    assert (found.images, found.zero_tokens) == (2, 7)
    assert np.isfinite(found.original).all() and np.isfinite(found.ci).all()


def test_tiny_and_huge_tokens_are_neither_zero_nor_infinite():
    x = random_tokens((1, 4, 8))
    for scale in (1e-30, 1e30):
        part = sep.image_sep(x * np.float32(scale))
        assert part.used[0] == 4
        np.testing.assert_allclose(part.curve_sum[0], curves_by_definition(x)[0].sum(0), rtol=1e-5)


def test_nothing_but_zeros():
    x = np.zeros((2, 3, 8), np.float32)
    assert np.isnan(sep.sep_curve(x)).all()
    assert np.all(sep.bandwidths(sep.sep_curve(x)) == 0)
    found = sep.sep_permutation(x, 2, bootstrap=10)
    assert (found.images, found.zero_tokens) == (0, 6)
    assert np.isnan(found.delta).all() and np.isnan(found.ci).all() and np.isnan(found.curve_mean).all()


def test_constant_tokens_are_all_dc():
    np.testing.assert_allclose(sep.sep_curve(np.full((1, 2, 8), 3.0, np.float32)), 100.0, rtol=1e-6)


def test_nan_stays_in_its_image():
    x = random_tokens((3, 5, 8))
    x[1, 2, 3] = np.nan
    part = sep.image_sep(x)
    assert np.isnan(np.asarray(part.curve_sum[1])).all()
    assert np.isfinite(np.asarray(part.curve_sum)[[0, 2]]).all()
    trials = sep.sep_permutation_trials(x, 2)
    assert np.isnan(trials.original[1]).all() and np.isfinite(trials.original[[0, 2]]).all()
    assert np.isnan(sep.sep_permutation(x, 2).delta).all()


def test_blocks_a_memory_map_and_progress(tmp_path):
    x = random_tokens((7, 5, 8))
    np.save(tmp_path / "x.npy", x)
    calls = []
    whole = sep.sep_permutation_trials(x, 3, block=7)
    parts = sep.sep_permutation_trials(
        np.load(tmp_path / "x.npy", mmap_mode="r"), 3, block=3, progress=lambda *c: calls.append(c)
    )
    assert calls == [(3, 7), (6, 7), (7, 7)]
    np.testing.assert_array_equal(parts.permuted, whole.permuted)
    np.testing.assert_allclose(parts.permuted_curves, whole.permuted_curves, rtol=1e-6)


def test_one_image():
    found = sep.sep_permutation(random_tokens((1, 4, 8)), 3, bootstrap=10)
    assert found.images == 1 and np.all(found.original_curve_sd == 0)
    np.testing.assert_allclose(found.ci[:, 0], found.ci[:, 1])
    np.testing.assert_allclose(found.ci[:, 0], found.delta)


def test_bandwidths_by_hand():
    curve = [10.0, 50.0 - 1e-5, 79.9, 89.9, 89.95]
    assert sep.bandwidths(np.array(curve)).tolist() == [2, 3, 3, 4, 5]  # 90 % is never reached: D


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: sep.sep_curve(np.zeros((2, 3))), ShapeError, "(2, 3)"),
        (lambda: sep.sep_permutation(np.zeros((2, 3, 4)), 0), ConfigError, "permutations=0"),
        (lambda: sep.sep_permutation(np.zeros((2, 3, 4)), 2, bootstrap=0), ConfigError, "bootstrap=0"),
    ],
)
def test_errors(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call()
