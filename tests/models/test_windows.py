"""Window geometry by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models.windows import merge, partition, relative_position_index, shift_mask, window_and_shift


@pytest.mark.parametrize(
    ("grid", "shifted", "window", "shift"),
    [
        ((14, 14), False, (7, 7), (0, 0)),
        ((14, 14), True, (7, 7), (3, 3)),
        ((7, 7), True, (7, 7), (0, 0)),  # one window spans the grid: nothing to shift
        ((4, 4), True, (4, 4), (0, 0)),
        ((6, 10), True, (6, 7), (0, 3)),  # clamped and unshifted along one axis only
    ],
)
def test_window_and_shift_are_clamped_per_axis(grid, shifted, window, shift):
    assert window_and_shift(grid, (7, 7), shifted) == (window, shift)


def test_relative_position_index_by_hand():
    # Window of 1 x 3: differences of columns -2..2 are rows 0..4.
    np.testing.assert_array_equal(relative_position_index((1, 3)), [[2, 1, 0], [3, 2, 1], [4, 3, 2]])
    # Window of 2 x 2: the difference in y counts 3 rows each.
    index = relative_position_index((2, 2))
    assert index[0, 0] == 4 and index[3, 0] == 8 and index[0, 3] == 0 and index[2, 1] == 6


def test_partition_keeps_neighbours_together_and_merge_undoes_it():
    x = jnp.arange(4 * 6).reshape(1, 4, 6, 1)
    windows = partition(x, (2, 3))
    assert windows.shape == (1, 4, 6, 1)
    np.testing.assert_array_equal(windows[0, 1, :, 0], [3, 4, 5, 9, 10, 11])
    np.testing.assert_array_equal(merge(windows, (2, 3), (4, 6)), x)


def test_shift_mask_separates_what_only_the_shift_made_neighbours():
    assert shift_mask((1, 4), (1, 2), (0, 0)) is None
    mask = shift_mask((1, 4), (1, 2), (0, 1))
    # Columns 0 1 | 2 3; after a shift by one, column 3 came from the other side.
    np.testing.assert_array_equal(mask[0], [[0, 0], [0, 0]])
    np.testing.assert_array_equal(mask[1], [[0, -100], [-100, 0]])


def test_bias_tables_follow_the_clamped_window():
    model = models.create("swin_tiny_patch4_window7_224", img_size=(96, 160), depths=(2, 2, 2), num_heads=(1, 2, 4))
    assert [model.stage_grid(i) for i in range(3)] == [(24, 40), (12, 20), (6, 10)]
    assert [model.block_window(i) for i in range(3)] == [(7, 7), (7, 7), (6, 7)]


def test_windows_may_differ_per_stage():
    sizes = {"depths": (2, 2, 2), "num_heads": (1, 2, 4), "embed_dim": 8}
    model = models.create("swin_tiny_patch4_window7_224", window_size=(7, (4, 8), 2), **sizes)
    assert model.stage_windows == ((7, 7), (4, 8), (2, 2))
    assert models.create("swin_tiny_patch4_window7_224", window_size=[4, 8], **sizes).stage_windows == ((4, 8),) * 3
