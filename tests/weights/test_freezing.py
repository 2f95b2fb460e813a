"""Patterns over parameter paths, and the short name of a set of weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxkd import models, weights
from jaxkd.errors import ConfigError

SHAPE = jax.ShapeDtypeStruct((2,), np.float32)
PARAMS = {
    "patch_embed": {"proj": {"kernel": SHAPE, "bias": SHAPE}},
    "pos_embed": SHAPE,
    **{f"blocks_{i}": {"attn": {"qkv": {"kernel": SHAPE}}, "norm1": {"scale": SHAPE}} for i in (0, 1, 2, 10, 11)},
    "head": {"kernel": SHAPE},
}


def frozen(*patterns: str) -> set[str]:
    mask = weights.freeze_mask(PARAMS, patterns)
    assert jax.tree.structure(mask) == jax.tree.structure(PARAMS)
    flat = flatten_dict(mask, sep="/")
    assert all(type(value) is bool for value in flat.values())
    return {path for path, value in flat.items() if value}


def test_nothing_is_frozen_without_patterns():
    assert frozen() == set()


def test_a_pattern_covers_everything_below_it():
    assert frozen("patch_embed", "pos_embed") == {"patch_embed/proj/kernel", "patch_embed/proj/bias", "pos_embed"}
    assert frozen("patch_embed/proj/bias") == {"patch_embed/proj/bias"}


def test_components_are_whole():
    assert frozen("blocks_1") == {"blocks_1/attn/qkv/kernel", "blocks_1/norm1/scale"}
    assert frozen("blocks_1/attn") == {"blocks_1/attn/qkv/kernel"}


def test_wildcards_stay_within_a_component():
    assert frozen("blocks_?/norm1") == {f"blocks_{i}/norm1/scale" for i in (0, 1, 2)}
    assert frozen("blocks_*/norm1") == {f"blocks_{i}/norm1/scale" for i in (0, 1, 2, 10, 11)}
    assert frozen("blocks_[0-1]/*/scale") == {f"blocks_{i}/norm1/scale" for i in (0, 1)}
    with pytest.raises(ConfigError):
        frozen("blocks_*/scale")  # norm1 lies between


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("block_1", '"block_1" freezes nothing: no parameter has such a path. Did you mean "blocks_1"'),
        ("blocks_1/atn", 'Did you mean "blocks_1/attn"'),
        ("blocks_12", "The paths begin with: patch_embed, pos_embed, blocks_0, "),
        ("qkv", "from its beginning"),
        ("", '"" freezes nothing'),
    ],
)
def test_a_pattern_without_parameters_is_an_error(pattern, said):
    with pytest.raises(ConfigError) as caught:
        frozen("head", pattern)
    assert said in str(caught.value)


def test_paths_are_those_of_a_real_network():
    model = models.create("deit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    mask = flatten_dict(weights.freeze_mask(shapes, ("patch_embed", "pos_embed", "cls_token", "blocks_0")), sep="/")
    trains = {path.split("/")[0] for path, value in mask.items() if not value}
    assert trains == {"blocks_1", "norm", "head"}


# --- fingerprints

TREE = {"params": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.ones(2, np.float32)}}}


def test_a_fingerprint_is_the_same_everywhere():
    assert weights.fingerprint(TREE) == "4b3a631d20fda87e"


def test_order_and_container_do_not_matter():
    a, b = TREE["params"]["a"], TREE["params"]["b"]
    turned = {"params": {"b": {"c": jnp.ones(2)}, "a": jnp.asarray(a)}}
    assert weights.fingerprint(turned) == weights.fingerprint(TREE)
    assert weights.fingerprint({"params": {"a": np.asfortranarray(a), "b": b}}) == weights.fingerprint(TREE)


@pytest.mark.parametrize(
    "other",
    [
        {"params": {"a": TREE["params"]["a"] + np.float32(1e-6), "b": TREE["params"]["b"]}},
        {"params": {"a": TREE["params"]["a"].reshape(3, 2), "b": TREE["params"]["b"]}},
        {"params": {"A": TREE["params"]["a"], "b": TREE["params"]["b"]}},
        {"params": {"a": TREE["params"]["a"]}},
        {"params": {"a": TREE["params"]["a"], "b": {"c": np.array([1065353216] * 2, np.int32)}}},  # the same bytes
    ],
)
def test_values_shapes_names_and_types_matter(other):
    assert weights.fingerprint(other) != weights.fingerprint(TREE)


def test_bfloat16_has_a_fingerprint():
    assert len(weights.fingerprint({"a": jnp.ones(3, jnp.bfloat16)})) == 16
