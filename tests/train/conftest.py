"""Comparison of whole states."""

from __future__ import annotations

import jax
import numpy as np
import pytest


@pytest.fixture
def assert_same():
    """`assert_same(a, b)`: the trees have one structure and the same bits."""

    def check(a, b):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
            assert x.dtype == y.dtype, path
            np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))

    return check
