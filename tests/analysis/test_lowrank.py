from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.analysis import lowrank
from jaxkd.errors import DataError, ShapeError, UnknownNameError


def tokens_of(shape, seed=0, decay=0.7, mean=0.0):
    """Tokens with a power-law spectrum around a mean token `mean` times as long as the spread."""
    r = np.random.default_rng(seed)
    c = shape[-1]
    x = (r.standard_normal(shape) * np.arange(1, c + 1) ** -decay) @ np.linalg.qr(r.standard_normal((c, c)))[0]
    x /= np.sqrt(np.square(x).sum(-1).mean())
    direction = r.standard_normal(c)
    return (x + mean * direction / np.linalg.norm(direction)).astype(np.float32)


def true_ranks(x, thresholds=(0.99, 0.95, 0.90, 0.80)):
    """By the definition, in float64, image by image."""
    rows = []
    for image in x.astype(np.float64):
        energy = np.linalg.svd(image, compute_uv=False) ** 2
        share = np.cumsum(energy) / energy.sum()
        rows.append([int(np.argmax(share >= p)) + 1 for p in thresholds])
    return np.array(rows)


def test_golden_ranks_are_exact(golden):
    g = golden("lowrank_pca_sep")
    for method in lowrank.METHODS:
        ranks = lowrank.energy_ranks(g["tokens_mnd"], method=method)
        np.testing.assert_array_equal(ranks, g["svd_dims_99_95_90_80"])
    np.testing.assert_allclose(np.percentile(ranks, 99, axis=0), g["svd_p99"])


def test_golden_pca(golden):
    g = golden("lowrank_pca_sep")
    pca = lowrank.dataset_pca(g["tokens_mnd"])
    np.testing.assert_allclose(pca.eigenvalues, g["pca_eigvals"], rtol=1e-5, atol=1e-5 * g["pca_eigvals"][0])
    curves = lowrank.captured_energy(g["tokens_mnd"], pca.eigenvectors)
    np.testing.assert_allclose(curves, g["pca_curves_md"], atol=1e-5)
    np.testing.assert_array_equal(lowrank.required_d(curves), g["pca_required_d_80_90_95_99"])
    np.testing.assert_array_equal(
        lowrank.ranks_from_energies(pca.eigenvalues, lowrank.PCA_THRESHOLDS), g["pca_global_d_80_90_95_99"]
    )
    assert pca.mean is None and pca.tokens == 120


@pytest.mark.parametrize("method", lowrank.METHODS)
@pytest.mark.parametrize("shape", [(3, 20, 36), (3, 36, 20), (1, 7, 7)], ids=str)
def test_energies_are_squared_singular_values_whatever_the_aspect(shape, method):
    x = tokens_of(shape, mean=1.0)
    energies = lowrank.image_energies(x, method=method)
    expected = np.linalg.svd(x.astype(np.float64), compute_uv=False) ** 2
    assert energies.shape == (shape[0], min(shape[1:])) and energies.dtype == jnp.float32
    np.testing.assert_allclose(energies, expected, atol=1e-5 * expected.max())
    assert np.all(np.diff(energies) <= 0) and np.all(energies >= 0)
    np.testing.assert_array_equal(lowrank.energy_ranks(x, method=method), true_ranks(x))


@pytest.mark.parametrize("mean", [0.0, 3.0, 9.9, 100.0])
def test_one_dominating_direction_spoils_no_rank(mean):
    """At 9.9 times the spread the mean alone is just below 99 %; at 100 times it is all that the thresholds see."""
    x = tokens_of((4, 98, 192), decay=0.2, mean=mean)
    for method in lowrank.METHODS:
        np.testing.assert_array_equal(lowrank.energy_ranks(x, method=method), true_ranks(x), err_msg=method)


def test_ranks_in_the_far_tail_take_the_svd():
    """One direction 100 times the spread: the Gram's fp32 noise reaches what is left."""
    x = tokens_of((2, 196, 384), decay=0.3, mean=100.0)
    far = (0.99995, 0.99999)
    expected = true_ranks(x, far)
    np.testing.assert_array_equal(lowrank.energy_ranks(x, far), expected)
    assert np.any(lowrank.energy_ranks(x, far, method="gram") != expected)


def test_scale_does_not_matter():
    x = tokens_of((2, 20, 36), mean=1.0)
    for scale in (1e-15, 1e15):
        np.testing.assert_array_equal(lowrank.energy_ranks(x * np.float32(scale)), true_ranks(x))


@pytest.mark.parametrize("method", lowrank.METHODS)
def test_degenerate_images(method):
    x = tokens_of((5, 6, 8))
    x[0] = 0.0
    x[1] = 2.5
    x[2, 3, 4] = np.nan
    x[3, 0, 0] = np.inf
    energies = lowrank.image_energies(x, method=method)
    assert np.all(np.asarray(energies[0]) == 0)
    assert np.isnan(np.asarray(energies[2:4])).all()
    assert np.isfinite(np.asarray(energies[4])).all()
    np.testing.assert_array_equal(lowrank.energy_ranks(x, method=method)[:4, 0], [0, 1, 0, 0])
    for measure in (lowrank.participation_ratio, lowrank.stable_rank):
        values = measure(energies)
        np.testing.assert_allclose(values[:2], [0.0, 1.0], atol=1e-4)
        assert np.isnan(values[2]) and np.isfinite(values[4])


def test_an_image_does_not_depend_on_its_batch():
    x = tokens_of((40, 6, 8))  # more than one block
    whole = lowrank.energy_ranks(x)
    np.testing.assert_array_equal(whole, np.concatenate([lowrank.energy_ranks(x[i : i + 1]) for i in range(40)]))


def test_energies_under_jit_and_other_dtypes():
    x = tokens_of((2, 6, 8))
    jitted = jax.jit(lowrank.image_energies)(x)
    np.testing.assert_allclose(jitted, lowrank.image_energies(x), rtol=1e-5, atol=1e-7)
    half = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_allclose(
        lowrank.image_energies(half), lowrank.image_energies(half.astype(jnp.float32)), rtol=1e-6, atol=1e-7
    )


def test_ratios_by_hand():
    energies = np.array([[4.0, 4.0, 0.0], [9.0, 1.0, 0.0], [1e300, 0.0, 0.0]])
    np.testing.assert_allclose(lowrank.participation_ratio(energies), [2.0, 100 / 82, 1.0])
    np.testing.assert_allclose(lowrank.stable_rank(energies), [2.0, 10 / 9, 1.0])
    on_device = jnp.asarray(energies[:2], jnp.float32)
    np.testing.assert_allclose(jax.jit(lowrank.participation_ratio)(on_device), [2.0, 100 / 82], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lowrank.stable_rank)(on_device), [2.0, 10 / 9], rtol=1e-6)


def test_ranks_from_energies_by_hand():
    energies = np.array([[80.0, 10.0, 6.0, 4.0], [0, 0, 0, 0], [1, np.nan, 0, 0]])
    np.testing.assert_array_equal(lowrank.ranks_from_energies(energies)[0], [4, 3, 2, 1])
    np.testing.assert_array_equal(lowrank.ranks_from_energies(energies)[1:], 0)


@pytest.mark.parametrize("centre", [False, True])
def test_pca_against_numpy_with_a_mean_100_times_the_spread(centre):
    x = tokens_of((70, 6, 8), mean=100.0)  # three blocks
    pca = lowrank.dataset_pca(x, centre=centre)
    flat = x.reshape(-1, 8).astype(np.float64)
    if centre:
        np.testing.assert_allclose(pca.mean, flat.mean(0), rtol=1e-5)
        flat = flat - flat.mean(0)
    expected = np.linalg.eigvalsh(flat.T @ flat / len(flat))[::-1]
    np.testing.assert_allclose(pca.eigenvalues, expected, rtol=1e-4)
    np.testing.assert_allclose(pca.eigenvectors.T @ pca.eigenvectors, np.eye(8), atol=1e-12)
    assert np.all(pca.eigenvectors[np.argmax(np.abs(pca.eigenvectors), axis=0), np.arange(8)] > 0)

    curve = lowrank.captured_energy(x, pca.eigenvectors, pca.mean)
    images = x.astype(np.float64) - (pca.mean if centre else 0.0)
    energy = np.square(images @ pca.eigenvectors).sum(1)
    np.testing.assert_allclose(curve, np.cumsum(energy, 1) / energy.sum(1, keepdims=True), atol=1e-4)


def test_moments_of_batches_add_up():
    x = tokens_of((5, 6, 8), mean=2.0)
    shift = np.full(8, 0.3, np.float32)
    parts = [lowrank.second_moment(x[:2], shift), lowrank.second_moment(x[2:], shift)]
    sums = [sum(np.asarray(p[i], np.float64) for p in parts) for i in range(3)]
    moment, total = lowrank.unshift(*sums, shift)
    flat = x.reshape(-1, 8).astype(np.float64)
    np.testing.assert_allclose(moment, flat.T @ flat, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, flat.sum(0), rtol=1e-5, atol=1e-5)
    assert sums[2] == 30
    plain = lowrank.second_moment(x)
    np.testing.assert_allclose(plain[0], flat.T @ flat, rtol=1e-5, atol=1e-5)


def test_part_of_a_basis_ends_below_one():
    x = tokens_of((4, 6, 8), decay=0.0)
    pca = lowrank.dataset_pca(x)
    full = lowrank.captured_energy(x, pca.eigenvectors)
    part = lowrank.captured_energy(x, pca.eigenvectors[:, :3])
    np.testing.assert_allclose(part, full[:, :3], atol=1e-6)
    np.testing.assert_allclose(full[:, -1], 1.0, atol=1e-6)
    assert np.all(np.asarray(part[:, -1]) < 0.9)
    np.testing.assert_array_equal(lowrank.required_d(part, (0.99,)), np.full((4, 1), 3))


def test_required_d_of_nothing():
    x = np.zeros((2, 6, 8), np.float32)
    x[1, 0, 0] = np.nan
    curves = lowrank.captured_energy(x, np.eye(8))
    assert np.all(np.asarray(curves[0]) == 0) and np.isnan(np.asarray(curves[1])).all()
    np.testing.assert_array_equal(lowrank.required_d(curves), 0)


def test_pca_of_nan_is_nan():
    x = tokens_of((2, 6, 8))
    x[1, 0, 0] = np.nan
    pca = lowrank.dataset_pca(x)
    assert np.isnan(pca.eigenvalues).all() and np.isnan(pca.eigenvectors).all()


def test_memory_map(tmp_path):
    x = tokens_of((40, 6, 8))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(lowrank.energy_ranks(mapped), lowrank.energy_ranks(x))
    np.testing.assert_array_equal(lowrank.dataset_pca(mapped).eigenvalues, lowrank.dataset_pca(x).eigenvalues)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: lowrank.energy_ranks(np.zeros((2, 3))), ShapeError, "(2, 3)"),
        (lambda: lowrank.energy_ranks(np.zeros((2, 0, 3))), DataError, "(2, 0, 3)"),
        (lambda: lowrank.image_energies(np.zeros((1, 2, 3)), method="grm"), UnknownNameError, 'Did you mean "gram"'),
        (lambda: lowrank.captured_energy(np.zeros((1, 2, 3)), np.eye(4)), ShapeError, "(4, 4)"),
        (lambda: lowrank.pca_from_moments(np.eye(3), np.zeros(2), 1), ShapeError, "(3, 3)"),
        (lambda: lowrank.pca_from_moments(np.eye(3), np.zeros(3), 0), DataError, "at least one image"),
    ],
)
def test_errors(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call()


def test_the_effective_rank_of_known_spectra():
    assert lowrank.effective_rank(np.ones(7)) == pytest.approx(7.0)
    # shares 1/2, 1/4, 1/4: entropy 1.5 ln 2, so 2^1.5 directions
    np.testing.assert_allclose(lowrank.effective_rank([[4.0, 2.0, 2.0, 0.0], [0.0, 9.0, 0.0, 0.0]]), [2**1.5, 1.0])
    assert lowrank.effective_rank(np.zeros(3)) == 0.0 and np.isnan(lowrank.effective_rank([1.0, np.nan]))
