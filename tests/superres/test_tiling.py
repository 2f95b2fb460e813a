"""Windows whose seams are exact: equal to one pass over the whole picture, on any size."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError, ShapeError
from jaxkd.superres import tiling
from jaxkd.superres.tiling import Enlarger, spans, window_side

SMALL = {"num_feat": 8, "num_block": 1}


def network(name: str, **args):
    model = models.create(name, **{**SMALL, **args})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    # Initial weights damp what comes from afar; larger ones let a wrong overlap show. And compiling `init` is slow.
    return model, jax.tree.map(
        lambda p: (
            rng.uniform(-2, 2, p.shape).astype(np.float32) / (9 * p.shape[-2]) ** 0.5
            if len(p.shape) == 4
            else rng.uniform(-0.2, 0.2, p.shape).astype(np.float32)
        ),
        shapes,
    )


@pytest.fixture(scope="module")
def mdbn():
    return network("mdbn_x2")


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).random((61, 83, 3), np.float32)


def whole(model, variables, image: np.ndarray) -> np.ndarray:
    """One pass; (H, W, 3) -> (s H, s W, 3)."""
    return np.asarray(jax.jit(lambda x: model.apply(variables, x)[0])(image[None])[0])


@pytest.mark.parametrize("tile", [24, 33, 40, 64, 200])
def test_tiled_is_the_whole(mdbn, picture, tile):
    model, variables = mdbn
    enlarger = Enlarger(model, variables, tile=tile)
    want = whole(model, variables, picture)
    np.testing.assert_allclose(enlarger(picture), want, rtol=0, atol=1e-6 * np.abs(want).max())
    bits = (picture * 255).astype(np.uint8)
    want = np.round(np.clip(whole(model, variables, bits / np.float32(255)), 0, 1) * 255).astype(np.uint8)
    got = enlarger(bits)
    assert got.dtype == np.uint8 and want.min() < 30 and want.max() > 225
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("name", "size", "skip"),
    [
        *(("mdbn_x2", (1, 1), ""), ("mdbn_x3", (1, 57), ""), ("mdbn_x4", (24, 41), ""), ("mdbn_x8", (20, 3), "")),
        *(("edsr_x3", (19, 23), ""), ("mdbn_x4", (24, 41), "bicubic"), ("edsr_x2", (1, 40), "bicubic")),
    ],
)
def test_every_scale_and_size(name, size, skip):
    model, variables = network(name, global_skip=skip)
    image = np.random.default_rng(1).random((*size, 3), np.float32)
    want = whole(model, variables, image)
    got = Enlarger(model, variables, tile=2 * model.receptive_field + 4)(image)
    assert got.shape == (size[0] * model.scale, size[1] * model.scale, 3)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_one_pixel_less_of_overlap_would_show(mdbn, picture, monkeypatch):
    model, variables = mdbn
    want, less = whole(model, variables, picture), model.receptive_field - 1
    monkeypatch.setattr(type(model), "receptive_field", property(lambda self: less))
    assert np.abs(Enlarger(model, variables, tile=24)(picture) - want).max() > 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("overlap", [0, 1, 8, 28])
def test_spans_cover_an_axis_once_with_the_overlap(overlap):
    for length in (1, 2, 57, 58, 100, 333, 1000):
        for tile in {2 * overlap + 1, 2 * overlap + 2, 64, 100, 500}:
            side = window_side(length, tile, overlap)
            assert side <= tile and side <= length
            found = spans(length, side, overlap)
            assert found[0].first == 0 and found[-1].last == length
            assert all(a.last == b.first for a, b in pairwise(found))
            for s in found:
                assert s.stop - s.start == side and 0 <= s.start <= s.first < s.last <= s.stop <= length
                assert s.start == 0 or s.first - s.start >= overlap
                assert s.stop == length or s.stop - s.last >= overlap
            assert len(found) == len(spans(length, min(tile, length), overlap))


def test_windows_fit_the_picture():
    # 481 pixels need two windows of at most 448; two of 272 do it with 56 in common at least
    assert window_side(481, 448, 28) == 272 and window_side(448, 448, 28) == 448
    assert [s[:2] for s in spans(481, 272, 28)] == [(0, 272), (209, 481)]


def test_greyscale_is_the_luma_of_three_equal_channels(mdbn):
    model, variables = mdbn
    grey = np.random.default_rng(2).integers(0, 65536, (23, 29)).astype(np.uint16)
    rgb = whole(model, variables, np.repeat(grey[..., None] / np.float32(65535), 3, 2))
    want = np.round(np.clip(rgb @ np.array(tiling.LUMA, np.float32), 0, 1) * 65535)
    got = Enlarger(model, variables, tile=20)(grey)
    assert got.dtype == np.uint16 and got.shape == (46, 58)
    assert np.abs(got.astype(float) - want).max() <= 1  # fp32 has 256 levels between two of 16 bits
    assert len(np.unique(got)) > 1000


def test_ensemble_is_the_mean_over_flips_and_rotations(mdbn):
    model, variables = mdbn
    image = np.random.default_rng(3).random((22, 31, 3), np.float32)
    seen = []
    for turns in range(4):
        for mirror in (False, True):
            x = np.rot90(image[:, ::-1] if mirror else image, turns)
            y = np.rot90(whole(model, variables, np.ascontiguousarray(x)), -turns)
            seen.append(y[:, ::-1] if mirror else y)
    want = np.mean(seen, 0)
    got = Enlarger(model, variables, tile=20, ensemble=True)(image)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())
    assert np.abs(seen[0] - want).max() > 1e-2


def test_batches_change_nothing_and_share_programs(mdbn, picture):
    model, variables = mdbn
    one, many = Enlarger(model, variables, tile=24), Enlarger(model, variables, tile=24, batch_size=4)
    assert len(many.layout(61, 83).tiles) % 4  # a rest is left
    np.testing.assert_allclose(many(picture), one(picture), rtol=0, atol=2e-6)
    assert many._network._cache_size() == 2 and one._network._cache_size() == 1
    # A picture of nearly the same size takes the windows that are there.
    other = np.random.default_rng(4).random((70, 90, 3), np.float32)
    want = whole(model, variables, other)
    np.testing.assert_allclose(one(other), want, rtol=0, atol=1e-6 * np.abs(want).max())
    assert one._network._cache_size() == 1


def test_windows_of_small_pictures_are_not_taken_for_large_ones(mdbn, picture):
    model, variables = mdbn
    enlarger = Enlarger(model, variables, tile=40)
    for side in (1, 10, 2 * model.receptive_field):
        enlarger(picture[:side, :side])
    assert min(enlarger.layout(61, 83).side) > 2 * model.receptive_field
    want = whole(model, variables, picture)
    np.testing.assert_allclose(enlarger(picture), want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_other_backends_work_ahead_in_the_same_order(mdbn, picture):
    model, variables = mdbn
    enlarger = Enlarger(model, variables, tile=24)
    want = enlarger(picture)
    enlarger._ahead = 2
    np.testing.assert_array_equal(enlarger(picture), want)


def test_bf16_is_close(mdbn, picture):
    model, variables = mdbn
    low = Enlarger(model.clone(dtype=jnp.bfloat16), variables, tile=40)(picture)
    high = whole(model, variables, picture)
    assert low.dtype == np.float32 and 0 < np.abs(low - high).max() < 0.03 * np.abs(high).max()


def test_what_it_refuses(mdbn):
    model, variables = mdbn
    least = 2 * model.receptive_field + 1
    with pytest.raises(ConfigError, match=f"tile={least - 1} is too small.*at least {least}"):
        Enlarger(model, variables, tile=least - 1)
    with pytest.raises(ConfigError, match="batch_size=-1"):
        Enlarger(model, variables, batch_size=-1)
    for bad in (np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3), np.int32)):
        with pytest.raises(ShapeError, match="The picture to enlarge is"):
            Enlarger(model, variables)(bad)


def test_too_little_memory_is_said(mdbn, picture):
    model, variables = mdbn
    enlarger = Enlarger(model, variables, tile=24)

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    enlarger._network = full
    with pytest.raises(ConfigError, match="too small for 1 window of 24x24 pixels.*smaller tile than 24"):
        enlarger(picture)


def test_windows_are_enlarged_by_strips(mdbn, picture, monkeypatch):
    """So few pixels a strip that every window has several, and one that ends with a shorter one."""
    model, variables = mdbn
    want = whole(model, variables, picture)
    monkeypatch.setattr(tiling, "STRIPS", {"cpu": 200})
    seen = []
    by_strips = tiling.by_strips
    monkeypatch.setattr(tiling, "by_strips", lambda model: seen.append(by_strips(model)) or seen[-1])
    made = Enlarger(model, variables, tile=64)(picture)
    assert [network.strip_pixels for network in seen] == [200]
    np.testing.assert_allclose(made, want, rtol=0, atol=1e-6 * np.abs(want).max())
