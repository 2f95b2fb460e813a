"""SpectralKD: goldens, known values, and the two forms against each other."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.errors import ShapeError, UnknownNameError
from jaxkd.losses.spectral import DEFAULT_METHOD, METHODS


def nhwc(x):
    return np.transpose(x, (0, 2, 3, 1))


def test_the_name_is_the_function_also_after_the_module_was_imported():
    module = importlib.import_module("jaxkd.losses.spectral")
    assert callable(losses.spectral) and losses.spectral is module.spectral
    assert set(METHODS) == {"closed", "fft"} and DEFAULT_METHOD in METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", range(4))
def test_golden_values_and_gradients(golden, case, method):
    g = golden("kd_losses")
    student, teacher = (jnp.asarray(nhwc(g[f"spectral{case}_{k}"])) for k in ("student", "teacher"))
    per_example = losses.spectral(student, teacher, method=method)
    assert per_example.shape == (student.shape[0],) and per_example.dtype == jnp.float32
    np.testing.assert_allclose(per_example.mean(), g[f"spectral{case}_loss"], rtol=1e-5)
    grad = jax.grad(lambda s: losses.spectral(s, teacher, method=method).mean())(student)
    np.testing.assert_allclose(grad, nhwc(g[f"spectral{case}_grad_student"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 14])
@pytest.mark.parametrize(("ours", "theirs"), [(6, 6), (6, 13), (12, 6)])
def test_both_forms_are_the_same_number_in_float64(width, ours, theirs):
    rng = np.random.default_rng(width)
    where = np.array([True, False, True])

    @jax.jit
    def values_and_gradients(student, teacher):
        def run(method):
            def total(s):
                value = losses.spectral(s, teacher, method=method, where=where)
                return value.sum(), value

            return jax.value_and_grad(total, has_aux=True)(student)

        return {method: run(method) for method in METHODS}

    with jax.enable_x64(True):
        student, teacher = (jnp.asarray(rng.normal(size=(3, 5, width, c))) for c in (ours, theirs))
        result = values_and_gradients(student, teacher)
        (_, closed), closed_grad = result["closed"]
        (_, fft), fft_grad = result["fft"]
        assert closed.dtype == jnp.float64
        np.testing.assert_allclose(closed, fft, rtol=0, atol=1e-12)
        np.testing.assert_allclose(closed_grad, fft_grad, rtol=0, atol=1e-12)
        # and that number is the definition's, written out with NumPy's full FFT
        d = np.asarray(losses.pool_channels(student, 6) - losses.pool_channels(teacher, 6))
    spectrum = np.fft.fft2(d, axes=(1, 2))[:, :, : width // 2 + 1] / np.sqrt(5 * width)
    expected = (np.abs(spectrum) ** 2).sum((1, 2, 3)) / (6 * 5 * (width // 2 + 1) * 2)
    np.testing.assert_allclose(closed, np.where(where, expected, 0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_by_hand(method):
    # one row (a, b): columns (a + b) / sqrt 2 and (a - b) / sqrt 2, imaginary parts 0, so (a^2 + b^2) / 4
    student = jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(losses.spectral(student, 0 * student, method=method), [25.0 / 4], rtol=1e-6)
    # one pixel: itself, imaginary part 0
    np.testing.assert_allclose(
        losses.spectral(student[:, :, :1], 0 * student[:, :, :1], method=method), [4.5], rtol=1e-6
    )
    # a row (1, 0, 0): three columns of power 1/3, of which rfft keeps two; 2/3 over 4 numbers
    student = jnp.array([1.0, 0.0, 0.0]).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(losses.spectral(student, 0 * student, method=method), [1.0 / 6], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_anchors_of_the_14_grid(method):
    """Constant differences weigh 0.875, white ones about 0.5, and nothing lies outside 0.4375 to 0.875 of the MSE."""
    zero = jnp.zeros((2, 14, 14, 4))
    np.testing.assert_allclose(losses.spectral(zero + 1, zero, method=method), [0.875, 0.875], rtol=1e-6)
    column = jnp.arange(14)
    nyquist = jnp.broadcast_to(jnp.where(column % 2 == 0, 1.0, -1.0)[:, None], zero.shape)
    np.testing.assert_allclose(losses.spectral(nyquist, zero, method=method), [0.875, 0.875], rtol=1e-6)
    wave = jnp.broadcast_to(jnp.cos(2 * jnp.pi * 3 * column / 14)[:, None], zero.shape)
    ratio = losses.spectral(wave, zero, method=method) / losses.feature_mse(wave, zero)
    np.testing.assert_allclose(ratio, 0.4375, rtol=1e-5)
    white = jax.random.normal(jax.random.key(0), (8, 14, 14, 192))
    ratio = losses.spectral(white, 0 * white, method=method) / losses.feature_mse(white, 0 * white)
    np.testing.assert_allclose(ratio, 0.5, atol=0.01)
    smooth = white.cumsum(1).cumsum(2)
    ratio = losses.spectral(smooth, 0 * smooth, method=method) / losses.feature_mse(smooth, 0 * smooth)
    assert np.all((ratio > 0.4375) & (ratio < 0.875))


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_computed_in_fp32(method):
    student, teacher = jax.random.normal(jax.random.key(0), (2, 2, 14, 14, 8)).astype(jnp.bfloat16)
    value = losses.spectral(student, teacher, method=method)
    assert value.dtype == jnp.float32
    exact = losses.spectral(student.astype(jnp.float32), teacher.astype(jnp.float32), method=method)
    np.testing.assert_array_equal(value, exact)


LOSSES = {
    "closed": losses.spectral,
    "fft": lambda s, t, where=None: losses.spectral(s, t, where=where, method="fft"),
    "mse": losses.feature_mse,
}


@pytest.mark.parametrize("channels", [6, 12, 13])
@pytest.mark.parametrize("name", LOSSES)
def test_excluded_examples_count_nothing_whatever_they_hold(name, channels):
    @jax.jit
    def value_and_gradients(s, t, where):
        value, pull = jax.vjp(lambda s, t: LOSSES[name](s, t, where=where), s, t)
        return value, *pull(jnp.ones_like(value))

    rng = np.random.default_rng(1)
    student, teacher = (rng.normal(size=(4, 4, 5, c)).astype(np.float32) for c in (6, channels))
    clean = value_and_gradients(student, teacher, np.ones(4, bool))
    for x in (student, teacher):
        x[1, 2, 3], x[3, 0] = np.nan, np.inf
    spoilt = value_and_gradients(student, teacher, np.array([True, False, True, False]))
    for ours, expected in zip(spoilt, clean, strict=True):
        np.testing.assert_array_equal(ours[1::2], 0.0)
        np.testing.assert_allclose(ours[::2], expected[::2], rtol=1e-5, atol=1e-7)


def test_errors():
    with pytest.raises(
        ShapeError, match=r"\(1, 7, 7, 8\).*\(1, 14, 14, 8\).*grids \(7, 7\) and \(14, 14\).*Swin stage"
    ):
        losses.spectral(jnp.zeros((1, 7, 7, 8)), jnp.zeros((1, 14, 14, 8)))
    with pytest.raises(ShapeError, match=r"4 axes, \(batch, height, width, channels\).*such as block_11"):
        losses.spectral(jnp.zeros((1, 49, 8)), jnp.zeros((1, 49, 8)))
    with pytest.raises(UnknownNameError, match=r'method="fftt".*Did you mean "fft".*"closed", "fft"'):
        losses.spectral(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)), method="fftt")
