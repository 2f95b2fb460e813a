"""Variables of a network drawn by NumPy, because compiling its initialiser takes longer than most tests."""

from __future__ import annotations

import jax
import numpy as np

from jaxkd import models


def random_variables(model, seed: int = 0, size: int = 16):
    """Variables of `model` for images (1, size, size, 3), about as large as the initial ones, biases not zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "scale":
            value = np.ones(leaf.shape)
        elif name.startswith("gamma"):
            value = np.full(leaf.shape, 1e-5)
        else:
            fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" and leaf.ndim == 4 else 2500
            value = rng.normal(0, fan_in**-0.5, leaf.shape)
        return value.astype(leaf.dtype)

    shapes = models.abstract_variables(model, (1, size, size, 3))
    return jax.tree_util.tree_map_with_path(draw, shapes)
