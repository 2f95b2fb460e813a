"""Interpolated embeddings and tables against timm, and against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkd.errors import ConfigError, ShapeError
from jaxkd.weights import resize_position_embedding, resize_relative_bias_table


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_doubling_one_axis_gives_keys_weights():
    # Bicubic (a = -0.5) at distances 1.25, 0.75, 0.25 from an impulse far from the border.
    column = np.eye(7, dtype=np.float32)[3].reshape(1, 7, 1)
    got = resize_position_embedding(column, old_grid=(7, 1), new_grid=(14, 1), prefix=0)[0, :, 0]
    half = [-0.0703125, 0.2265625, 0.8671875]
    np.testing.assert_allclose(got[4:10], half + half[::-1], atol=1e-6)


def test_shrinking_is_antialiased():
    # Alternating signs are above the new Nyquist frequency: sampling would keep them, a widened kernel cancels them.
    row = np.tile([1.0, -1.0], 16).astype(np.float32).reshape(1, 32, 1)
    got = resize_position_embedding(row, old_grid=(1, 32), new_grid=(1, 8), prefix=0)
    assert np.abs(got[0, 1:-1]).max() < 0.01


def test_rows_and_columns_are_not_confused():
    grid = np.zeros((2, 3), np.float32)
    grid[1] = 1  # differs between rows only
    got = resize_position_embedding(grid.reshape(1, 6, 1), old_grid=(2, 3), new_grid=(4, 3), prefix=0).reshape(4, 3)
    assert np.ptp(got, axis=1).max() < 1e-6
    assert (np.diff(got[:, 0]) > 0).any()


def test_equal_sizes_change_nothing():
    embedding, table = random(1, 1 + 12, 4), random(35, 2)
    assert resize_position_embedding(embedding, old_grid=(3, 4), new_grid=(3, 4), prefix=1) is embedding
    assert resize_relative_bias_table(table, old_window=(3, 4), new_window=(3, 4)) is table


@pytest.mark.parametrize("method", ["geometric", "bicubic"])
def test_a_constant_table_stays_constant_and_the_centre_stays_the_centre(method):
    table = np.full((13 * 13, 2), 3.0, np.float32)
    table[13 * 13 // 2] = 5.0  # no displacement
    got = resize_relative_bias_table(table, old_window=(7, 7), new_window=(4, 9), method=method)
    assert got.shape == (7 * 17, 2)
    np.testing.assert_allclose(got[[0, -1]], 3.0, atol=1e-5)
    np.testing.assert_allclose(got[7 * 17 // 2], 5.0, atol=1e-5)


def test_geometric_spacing_keeps_near_neighbours():
    # A table that holds its own displacement, 1-D: neighbours at distance 1 keep their value, the far ends theirs.
    table = np.arange(-6, 7, dtype=np.float32)[:, None]
    got = resize_relative_bias_table(table, old_window=(7, 1), new_window=(12, 1))[:, 0]
    np.testing.assert_allclose(got[[10, 11, 12]], [-1, 0, 1], atol=1e-4)
    np.testing.assert_allclose(got[[0, -1]], [-6, 6], atol=1e-3)
    assert np.all(np.diff(got) > 0)


def test_wrong_sizes_and_methods_are_named():
    with pytest.raises(ShapeError, match=r"shape \(1, 13, 4\), not \(1, 2 \+ 3 \* 4, C\)"):
        resize_position_embedding(random(1, 13, 4), old_grid=(3, 4), new_grid=(6, 8), prefix=2)
    with pytest.raises(ShapeError, match=r"a window of \(7, 7\) has 13 \* 13 rows"):
        resize_relative_bias_table(random(49, 3), old_window=(7, 7), new_window=(12, 12))
    with pytest.raises(ConfigError, match='method="linear" is not possible'):
        resize_relative_bias_table(random(169, 3), old_window=(7, 7), new_window=(12, 12), method="linear")


GRIDS = [
    ((14, 14), (24, 24), 1),
    ((14, 14), (4, 4), 2),
    ((37, 37), (16, 16), 0),
    ((7, 28), (14, 10), 5),
    ((14, 14), (7, 28), 1),
    ((3, 5), (5, 3), 0),
]


@pytest.mark.parity
@pytest.mark.parametrize(("old", "new", "prefix"), GRIDS)
def test_position_embeddings_are_timms(timm, old, new, prefix):
    import torch

    array = random(1, prefix + old[0] * old[1], 16)
    expected = timm.layers.resample_abs_pos_embed(torch.from_numpy(array), new, old, num_prefix_tokens=prefix)
    got = resize_position_embedding(array, old_grid=old, new_grid=new, prefix=prefix)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


WINDOWS = [
    ((7, 7), (12, 12)),
    ((7, 7), (16, 16)),
    ((7, 7), (4, 4)),
    ((7, 7), (3, 5)),
    ((12, 12), (7, 7)),
    ((8, 8), (1, 2)),
    ((1, 1), (3, 3)),
    ((4, 6), (7, 7)),
]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("old", "new"), WINDOWS)
def test_relative_bias_tables_are_timms(timm, old, new):
    import torch
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table, resize_rel_pos_bias_table_simple

    array = random((2 * old[0] - 1) * (2 * old[1] - 1), 3)
    shape = ((2 * new[0] - 1) * (2 * new[1] - 1), 3)
    expected = resize_rel_pos_bias_table(torch.from_numpy(array), new, shape, old).numpy()
    np.testing.assert_allclose(resize_relative_bias_table(array, old_window=old, new_window=new), expected, atol=1e-5)
    if old[0] == old[1]:  # timm's simple function takes the old window to be square
        expected = resize_rel_pos_bias_table_simple(torch.from_numpy(array), new, shape).numpy()
        got = resize_relative_bias_table(array, old_window=old, new_window=new, method="bicubic")
        np.testing.assert_allclose(got, expected, atol=1e-5)
