"""Spectra: the golden values, what follows from the definition, and bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.analysis.spectrum import (
    channel_spectrum,
    image_channel_spectrum,
    radial_frequencies,
    radial_profile,
    spatial_spectrum,
)
from jaxkd.errors import ShapeError


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_golden_spectrum_and_intensity(golden):
    g = golden("channel_spectrum_entropy")
    features = np.transpose(g["features_lbchw"], (0, 1, 3, 4, 2))
    for layer, maps in enumerate(features):
        spectrum = jax.jit(channel_spectrum)(maps)
        assert spectrum.dtype == jnp.float32
        np.testing.assert_allclose(spectrum, g["spectrum_lc"][layer], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(jnp.mean(spectrum), g["intensity_l"][layer], rtol=1e-5)
        per_image = image_channel_spectrum(maps)
        assert per_image.shape == (maps.shape[0], maps.shape[-1])
        np.testing.assert_allclose(per_image.mean(0), g["spectrum_lc"][layer], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("c", [1, 2, 5, 8])
def test_the_mirrored_half_is_the_full_transform(c):
    x = random(2, 3, c)
    np.testing.assert_allclose(image_channel_spectrum(x), (np.abs(np.fft.fft(x)) / c).mean(1), rtol=1e-5, atol=1e-7)


def test_a_spike_is_flat_and_a_constant_is_all_at_zero():
    spike = np.zeros((3, 4, 12), np.float32)
    spike[..., 5] = -6.0
    np.testing.assert_allclose(channel_spectrum(spike), np.full(12, 0.5), rtol=1e-6)
    constant = np.full((3, 4, 12), -6.0, np.float32)
    np.testing.assert_allclose(channel_spectrum(constant), [6.0] + [0.0] * 11, atol=1e-6)
    assert not np.any(channel_spectrum(np.zeros((3, 4, 12), np.float32)))


def test_images_do_not_mix():
    x = random(3, 4, 6)
    alone = np.concatenate([image_channel_spectrum(x[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(image_channel_spectrum(x), alone, rtol=1e-6)
    x[1, 2, 3] = np.nan
    assert np.isnan(image_channel_spectrum(x)).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(channel_spectrum(x)).all()


def test_half_precision_is_transformed_in_fp32():
    x = jnp.asarray(random(2, 3, 8), jnp.bfloat16)
    assert channel_spectrum(x).dtype == spatial_spectrum(x[:, None]).dtype == jnp.float32
    np.testing.assert_array_equal(channel_spectrum(x), channel_spectrum(x.astype(jnp.float32)))


@pytest.mark.parametrize(("h", "w"), [(4, 4), (5, 7), (6, 3), (3, 8), (1, 4), (4, 1), (1, 1)])
def test_the_spatial_spectrum_is_the_shifted_orthonormal_fft2(h, w):
    x = random(2, h, w, 3)
    full = np.abs(np.fft.fft2(x.astype(np.float64), axes=(1, 2), norm="ortho")).mean(-1)
    spectrum = jax.jit(spatial_spectrum)(x)
    np.testing.assert_allclose(spectrum, np.fft.fftshift(full, axes=(1, 2)), rtol=1e-5, atol=1e-6)


def test_a_constant_map_is_all_in_the_middle_and_a_wave_at_its_frequency():
    h, w = 5, 8
    spectrum = np.asarray(spatial_spectrum(np.full((1, h, w, 2), 3.0, np.float32)))[0]
    assert spectrum[h // 2, w // 2] == pytest.approx(3 * np.sqrt(h * w))
    assert spectrum.sum() == pytest.approx(spectrum[h // 2, w // 2], rel=1e-5)
    wave = np.cos(2 * np.pi * (2 * np.arange(h)[:, None] / h + 3 * np.arange(w)[None] / w)).astype(np.float32)
    spectrum = np.asarray(spatial_spectrum(wave[None, :, :, None]))[0]
    assert set(zip(*np.nonzero(spectrum > 1e-4), strict=True)) == {
        (h // 2 + 2, w // 2 + 3),
        (h // 2 - 2, w // 2 - 3),
    }


def test_rings_of_a_square_map_are_integer_radii():
    spectrum = random(2, 6, 6)
    rings = np.zeros((2, 4))
    for r in range(4):
        inside = [(y, x) for y in range(6) for x in range(6) if round(np.hypot(y - 3, x - 3)) == r]
        rings[:, r] = np.mean([spectrum[:, y, x] for y, x in inside], axis=0)
    np.testing.assert_allclose(radial_profile(spectrum), rings, rtol=1e-5)
    np.testing.assert_allclose(radial_frequencies(6, 6), [0, 1 / 6, 2 / 6, 0.5])


def test_rings_of_another_map_are_circles_in_cycles_per_pixel():
    # 4 x 8: a quarter of a cycle per pixel is one step along the height and two along the width
    at = np.zeros((4, 8), np.float32)
    at[2 + 1, 4] = at[2 - 1, 4] = at[2, 4 + 2] = at[2, 4 - 2] = 1
    profile = np.asarray(radial_profile(at))
    assert profile[0] == 0 and profile[1] > 0 and profile[2] == 0
    np.testing.assert_allclose(radial_profile(at.T), profile, rtol=1e-6)
    np.testing.assert_allclose(radial_frequencies(4, 8), [0, 0.25, 0.5])
    assert radial_frequencies(4, 8).tolist() == radial_frequencies(8, 4).tolist()


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (7, 1), (2, 2), (2, 9), (3, 14), (56, 56)])
def test_every_ring_has_members(h, w):
    np.testing.assert_allclose(
        radial_profile(np.ones((h, w), np.float32)), np.ones(len(radial_frequencies(h, w))), rtol=1e-5
    )
    assert radial_frequencies(h, w)[-1] <= 0.5


def test_wrong_shapes_are_refused_in_words():
    with pytest.raises(ShapeError, match=r"shape \(8,\).*Pass \(batch, tokens"):
        channel_spectrum(np.ones(8, np.float32))
    with pytest.raises(ShapeError, match=r"shape \(0, 4, 8\)"):
        image_channel_spectrum(np.ones((0, 4, 8), np.float32))
    with pytest.raises(ShapeError, match=r"shape \(2, 4, 8\).*Pass \(batch, height"):
        spatial_spectrum(np.ones((2, 4, 8), np.float32))
    with pytest.raises(ShapeError, match=r"shape \(8,\).*height, width"):
        radial_profile(np.ones(8, np.float32))
    with pytest.raises(ShapeError, match="0 x 4"):
        radial_frequencies(0, 4)
