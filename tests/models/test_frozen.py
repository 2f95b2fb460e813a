"""Frozen weights in the type that their network reads them in: half of the memory, and the same results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models

SMALL = {
    "cait_s24_224": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "deit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
SHAPE = (2, 32, 32, 3)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_read_in_bfloat16_is_kept_so(name):
    model = models.create(name, num_classes=5, dtype="bfloat16", **SMALL[name])
    variables = models.init_variables(model, jax.random.key(0), SHAPE)
    variables = jax.tree.map(lambda leaf: leaf + 1 / 3, variables)  # no value of bfloat16
    images = jax.random.normal(jax.random.key(1), SHAPE)
    options = {"train": False, "taps": ("block_1",)}
    types = models.frozen_types(model, SHAPE, **options)["params"]
    assert types["blocks_0"]["mlp"]["fc1"]["kernel"].dtype == jnp.bfloat16
    assert types["blocks_0"]["norm1"]["scale"].dtype == types["head"]["kernel"].dtype == jnp.float32
    kept = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), variables["params"], types)
    before, after = (model.apply(v, images, **options) for v in (variables, {"params": kept}))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_network_in_fp32_keeps_its_types():
    model = models.create("deit_tiny_patch16_224", **SMALL["deit_tiny_patch16_224"])
    types = models.frozen_types(model, SHAPE, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(types)} == {jnp.dtype("float32")}
