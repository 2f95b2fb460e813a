"""Entropy: the golden values, np.histogram position by position, both ways of counting, and bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.analysis import entropy
from jaxkd.analysis.entropy import channel_entropy, entropy_map
from jaxkd.errors import ConfigError, ShapeError


def numpy_bits(values, lo, hi, bins):
    counts, _ = np.histogram(values, bins=bins, range=(lo, hi))
    p = counts[counts > 0] / counts.sum()
    return -np.sum(p * np.log2(p))


def numpy_map(x, lo, hi, bins):
    flat = [numpy_bits(v, lo, hi, bins) for v in x.reshape(-1, x.shape[-1])]
    return np.reshape(flat, x.shape[:-1])


def test_golden_with_one_range_for_all_layers(golden):
    g = golden("channel_spectrum_entropy")
    features = np.transpose(g["features_lbchw"], (0, 1, 3, 4, 2))
    lo, hi = features.min(), features.max()
    for layer, maps in enumerate(features):
        np.testing.assert_allclose(entropy_map(maps, lo, hi), g["entropy_lbhw"][layer], rtol=0, atol=1e-4)
        np.testing.assert_allclose(channel_entropy(maps, range=(lo, hi)), g["entropy_l"][layer], rtol=0, atol=1e-4)
    np.testing.assert_allclose(jax.jit(channel_entropy)(features), g["entropy_lbhw"].mean(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("c", "bins"), [(1, 100), (7, 3), (96, 100), (384, 100), (1100, 300)])
def test_numpy_histogram_position_by_position(c, bins):
    rng = np.random.default_rng(c)
    x = rng.normal(size=(2, 30, c)).astype(np.float32)
    x[0, 0] = 0.3  # constant
    x[0, 1] *= 1e-3  # all in one bin or two
    x[0, 2, 0] *= 30  # one massive activation stretches the range
    lo, hi = x.min(), x.max()
    np.testing.assert_allclose(entropy_map(x, lo, hi, bins), numpy_map(x, lo, hi, bins), rtol=0, atol=1e-5)


def test_values_at_and_beside_the_edges():
    rng = np.random.default_rng(0)
    ranges = [(0, 1), (0, 100), (-3, 4), *np.sort(rng.normal(size=(20, 2)), axis=1)]
    for bins in (7, 49, 100):  # one compiled program each, in which lo and hi are arguments
        for lo, hi in np.float32(ranges):
            edges = np.histogram_bin_edges(np.zeros(1, np.float32), bins=bins, range=(lo, hi))
            assert edges.dtype == np.float32
            values = np.concatenate([edges, np.nextafter(edges, np.float32(-9)), np.nextafter(edges, np.float32(999))])
            values[np.abs(values) < 1e-37] = 0  # XLA on CPU takes subnormal numbers for 0
            x = np.stack([values, np.roll(values, 1)], axis=-1)  # in a wrong bin, a value joins or leaves the other one
            inside = (x >= lo) & (x <= hi)
            x = np.where(inside.any(-1, keepdims=True), x, lo)
            np.testing.assert_allclose(entropy_map(x, lo, hi, bins), numpy_map(x, lo, hi, bins), rtol=0, atol=1e-6)


def test_both_ways_of_counting_are_numpys():
    rng = np.random.default_rng(0)
    for channels, bins in ((5, 4), (384, 100), (1100, 300)):
        numbers = rng.integers(0, bins, size=(6, channels))
        numbers[0] = 1
        expected = np.stack([np.bincount(row, minlength=bins) for row in numbers])
        for count in (entropy._count_by_scatter, entropy._count_by_comparing):
            np.testing.assert_array_equal(jax.jit(count, static_argnums=1)(numbers.astype(np.float32), bins), expected)


def test_known_values():
    assert entropy_map(np.full((2, 3, 8), 0.7, np.float32), 0.0, 1.0).tolist() == [[0.0] * 3] * 2
    every_bin = (np.arange(100, dtype=np.float32) + 0.5)[None] / 100
    np.testing.assert_allclose(entropy_map(every_bin, 0.0, 1.0), [np.log2(100)], rtol=1e-6)  # the most there is
    np.testing.assert_allclose(
        entropy_map(np.float32([[0, 0, 1, 1], [0, 1, 1, 1]]), 0.0, 1.0), [1, 0.811278], rtol=1e-5
    )
    np.testing.assert_allclose(channel_entropy(np.float32([[0, 0, 1, 1], [0, 1, 1, 1]])), (1 + 0.811278) / 2, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, -2.5, 1e9, 1e-30])
def test_constant_features_have_no_entropy(value):
    assert channel_entropy(np.full((2, 3, 8), value, np.float32)) == 0
    assert jax.jit(channel_entropy)(np.full((2, 3, 8), value, np.float32)) == 0
    end = jnp.full(1, value)
    numbers = entropy._bin_numbers(jnp.full((2, 8), value), end, end, 100)  # a range that fp32 could not widen
    assert not np.any(numbers)


def test_an_empty_range_is_widened_as_numpy_does():
    x = np.random.default_rng(0).uniform(1.5, 2.5, size=(4, 50)).astype(np.float32)
    two = np.float32(2)
    np.testing.assert_allclose(entropy_map(x, two, two), numpy_map(x, two, two, 100), rtol=0, atol=1e-6)


def test_outside_is_not_counted_and_nan_stays_nan():
    x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    x[1, :3] = [np.inf, -np.inf, 50]
    lo, hi = np.float32(-1), np.float32(1)
    np.testing.assert_allclose(entropy_map(x, lo, hi, 20), numpy_map(x, lo, hi, 20), rtol=0, atol=1e-6)
    x[3, 7] = np.nan
    x[4] = 2
    assert np.isnan(entropy_map(x, lo, hi, 20)).tolist() == [False, False, False, True, True]
    assert np.isnan(channel_entropy(x)) and np.isnan(entropy_map(x[:3], -np.inf, hi, 20)).all()


def test_one_range_per_image_is_each_image_by_itself():
    x = np.random.default_rng(0).normal(size=(3, 6, 32)).astype(np.float32) * np.float32([1, 5, 20])[:, None, None]
    lo, hi = x.min((1, 2)), x.max((1, 2))
    together = entropy_map(x, lo[:, None], hi[:, None])
    np.testing.assert_allclose(together, [entropy_map(x[i], lo[i], hi[i]) for i in range(3)], rtol=1e-6)
    np.testing.assert_allclose(together.mean(1), [channel_entropy(image) for image in x], rtol=1e-6)


def test_other_types_are_binned_in_at_least_fp32():
    x = np.random.default_rng(0).integers(0, 101, size=(4, 64))
    expected = numpy_map(x.astype(np.float32), np.float32(0), np.float32(100), 100)
    for dtype in (jnp.int32, jnp.bfloat16, jnp.float32):
        bits = entropy_map(jnp.asarray(x, dtype), 0, 100)
        assert bits.dtype == jnp.float32
        np.testing.assert_allclose(bits, expected, rtol=0, atol=1e-6)
    with jax.enable_x64(True):
        wide = np.random.default_rng(0).normal(size=(4, 64))
        bits = entropy_map(jnp.asarray(wide), -2.0, 2.0)
        assert bits.dtype == jnp.float64
        np.testing.assert_allclose(bits, numpy_map(wide, -2.0, 2.0, 100), rtol=0, atol=1e-12)


def test_it_can_be_part_of_a_larger_program():
    x = np.random.default_rng(0).normal(size=(3, 6, 32)).astype(np.float32)
    mapped = jax.jit(jax.vmap(lambda image: entropy_map(image, -3.0, 3.0)))(x)
    np.testing.assert_array_equal(mapped, entropy_map(x, -3.0, 3.0))


def test_bad_input_is_refused_in_words():
    x = np.ones((2, 3, 8), np.float32)
    with pytest.raises(ConfigError, match=r"bins=0 is out of range.*at least 1"):
        channel_entropy(x, bins=0)
    with pytest.raises(ConfigError, match=r"\(2.0, 1.0\).*lower end is above.*Give \(low, high\)"):
        channel_entropy(x, range=(2.0, 1.0))
    with pytest.raises(ShapeError, match=r"shape \(2, 0\).*at least one channel"):
        entropy_map(x[0, :2, :0], 0, 1)
    with pytest.raises(ShapeError, match=r"shape \(0, 3, 8\).*at least one position"):
        channel_entropy(x[:0])
    with pytest.raises(ShapeError, match=r"10000000 positions with 100 bins.*in several parts"):
        jax.eval_shape(lambda f: entropy_map(f, 0, 1), jax.ShapeDtypeStruct((10_000_000, 8), jnp.float32))
