"""Magnitudes and unevenness of activations against float64 NumPy and known distributions, and bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.analysis import activation_max, activation_mean, gradient_magnitude, kurtosis, massive_share
from jaxkd.errors import ShapeError

FUNCTIONS = (activation_mean, activation_max, kurtosis, massive_share)
compiled = jax.jit(lambda x: {f.__name__: f(x) for f in FUNCTIONS})


def statistics(x):
    return {k: np.asarray(v) for k, v in compiled(x).items()}


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])  # squares of the last two leave fp32, fourth powers of all but 1
def test_against_numpy_in_float64(scale):
    x = np.random.default_rng(0).standard_t(4, size=(3, 5, 4, 24)).astype(np.float32)
    x[1, 2, 3, 7] = -800
    x *= np.float32(scale)
    s, wide = statistics(x), x.astype(np.float64)
    entries = wide.reshape(3, -1)
    deviation = entries - entries.mean(1, keepdims=True)
    share = (np.square(wide).max(-1) / np.square(wide).sum(-1)).reshape(3, -1)
    np.testing.assert_allclose(s["activation_mean"], np.abs(entries).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(s["activation_max"], np.abs(x).reshape(3, -1).max(1))
    np.testing.assert_allclose(s["kurtosis"], (deviation**4).mean(1) / (deviation**2).mean(1) ** 2, rtol=1e-4)
    np.testing.assert_allclose(s["massive_share"], share.mean(1), rtol=1e-5)
    assert all(v.shape == (3,) and v.dtype == np.float32 for v in s.values())


def test_known_distributions():
    rng = np.random.default_rng(0)
    gaussian = rng.normal(2, 3, size=(1, 500, 100))
    signs = rng.permutation(np.repeat([-1.0, 1.0], 25000)).reshape(1, 500, 100)
    spikes = np.zeros((1, 500, 100))
    spikes[0, np.arange(500), rng.integers(0, 100, 500)] = -7
    s = statistics(np.concatenate([gaussian, signs, spikes]).astype(np.float32))
    np.testing.assert_allclose(s["kurtosis"], [3, 1, 98.0], rtol=0.03)
    np.testing.assert_allclose(s["massive_share"][1:], [1 / 100, 1], rtol=1e-5)
    np.testing.assert_allclose(s["activation_mean"][1:], [1, 0.07], rtol=1e-5)


def test_a_constant_and_a_zero_image_are_defined():
    x = np.random.default_rng(0).normal(size=(4, 7, 9)).astype(np.float32)
    x[0], x[1], x[2, :4] = 0, 0.3, 0
    s = statistics(x)
    assert s["kurtosis"][:2].tolist() == [0, 0] and (s["kurtosis"][2:] >= 1).all()
    np.testing.assert_allclose(s["massive_share"][:2], [0, 1 / 9], rtol=1e-6)
    # tokens of zeros do not count
    np.testing.assert_allclose(s["massive_share"][2], statistics(x[2:3, 4:])["massive_share"][0], rtol=1e-6)
    assert s["activation_max"][:2].tolist() == [0, np.float32(0.3)]
    # constants whose mean rounds to another number
    constants = np.broadcast_to(np.float32([0.1, 0.3, 1 / 3, 1e4 / 7])[:, None, None], (4, 97, 31))
    assert statistics(constants)["kurtosis"].tolist() == [0] * 4


def test_nan_stays_with_its_image():
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    alone = statistics(x[:1])
    x[1, 2, 3] = np.nan
    for name, values in statistics(x).items():
        assert np.isnan(values).tolist() == [False, True, False], name
        np.testing.assert_allclose(values[0], alone[name][0], rtol=1e-6)


def test_gradient_magnitude():
    g = np.float32([[[1, -3], [0, 4]], [[0, 0], [0, 0]]])
    assert gradient_magnitude(g).tolist() == [2, 0]
    assert gradient_magnitude(jnp.asarray(g, jnp.bfloat16)).dtype == jnp.float32
    g[1, 0, 0] = np.nan
    assert np.isnan(gradient_magnitude(g)).tolist() == [False, True]


def test_wrong_shapes_are_refused_in_words():
    with pytest.raises(ShapeError, match=r"features have shape \(8,\).*Pass \(batch, tokens, channels\)"):
        activation_mean(jnp.ones(8))
    with pytest.raises(ShapeError, match=r"gradients have shape \(2, 0, 8\)"):
        gradient_magnitude(jnp.ones((2, 0, 8)))
