"""Losses between images, by hand and against a full FFT."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ShapeError

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 3, 5, 6, 3)).astype(np.float32)


def test_l1_is_the_mean_absolute_difference_of_each_image():
    x, y = np.zeros((2, 1, 2, 1)), np.array([[[[1.0], [-3.0]]], [[[0.5], [0.0]]]])
    np.testing.assert_allclose(losses.l1(x, y), [2.0, 0.25])
    np.testing.assert_allclose(losses.l1(A, B), np.abs(A - B).mean(axis=(1, 2, 3)), rtol=1e-6)


def test_charbonnier_is_l1_with_a_round_corner():
    x, y = np.zeros((1, 1, 2, 1)), np.array([[[[3.0], [0.0]]]])
    np.testing.assert_allclose(losses.charbonnier(x, y, eps=16.0), [(5.0 + 4.0) / 2])
    assert np.isfinite(jax.grad(lambda v: losses.charbonnier(v, v * 0).sum())(jnp.zeros((1, 2, 2, 3)))).all()


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (1, 1), (3, 2)])
def test_fft_l1_is_that_of_the_full_transform(shape):
    x, y = RNG.normal(size=(2, 2, *shape, 3))
    full = np.fft.fft2(x - y, axes=(1, 2))
    expected = np.stack([full.real, full.imag]).__abs__().mean(axis=(0, 2, 3, 4))
    np.testing.assert_allclose(losses.fft_l1(x, y), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.l1, losses.charbonnier, losses.fft_l1])
def test_examples_are_left_out_and_shapes_must_agree(loss):
    where = np.array([True, False, True])
    spoilt = A.copy()
    spoilt[1] = np.nan
    kept = loss(spoilt, B, where=where)
    assert kept[1] == 0 and np.isfinite(kept).all()
    np.testing.assert_allclose(kept[0], loss(A, B)[0], rtol=1e-6)
    gradient = jax.grad(lambda v: loss(v, B, where=where).sum())(jnp.asarray(spoilt))
    assert np.isfinite(gradient).all() and not np.asarray(gradient[1]).any()
    with pytest.raises(ShapeError, match="Pass two batches"):
        loss(A, B[:, 1:])
