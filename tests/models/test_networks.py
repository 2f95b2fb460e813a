"""Behaviour that all families share: training mode, gradients, rematerialisation, precision."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxkd import models

FAMILIES = ["deit", "distilled", "cait", "swin"]
KINDS_OF_BLOCKS = ["deit", "cait", "swin"]  # a distilled ViT has the blocks of the plain one
ALL_DROPS = {"drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.3}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(tiny, randomised, pictures, family):
    model = tiny(family, **({"init_values": 0.1} if family == "deit" else {}))
    variables, images = randomised(model), pictures(model)
    gradients = jax.jit(jax.grad(lambda v: jnp.square(model.apply(v, images, train=True)[0]).sum()))(variables)
    # A softmax does not see a constant added to all its inputs, so these biases have no gradient in any network.
    blind = ("attn/k/bias", "proj_l/bias")
    for path, gradient in flatten_dict(gradients["params"], sep="/").items():
        assert np.isfinite(gradient).all(), path
        if not path.endswith(blind):
            assert abs(gradient).max() > 1e-5, path


@pytest.mark.parametrize(
    ("family", "policy"), [*((family, True) for family in KINDS_OF_BLOCKS), ("cait", "attention"), ("cait", "dots")]
)
def test_rematerialisation_changes_nothing(tiny, randomised, random_key, pictures, family, policy):
    sizes = {
        "deit": {"depth": 1},
        "cait": {"depth": 1, "depth_token_only": 1},
        "swin": {"depths": (2,), "num_heads": (1,)},
    }
    args = {"attn_drop_rate": 0.2, "drop_path_rate": 0.3, **sizes[family]}  # each random mask is slow to compile
    plain, remat = tiny(family, **args), tiny(family, **args, remat=policy)
    variables, images = randomised(plain), pictures(plain)
    taps = tuple(n for n in models.tap_names(plain) if n.startswith(("block", "stage")))

    def run(model):
        def loss(v):
            output, features = model.apply(v, images, train=True, taps=taps, rngs={"dropout": random_key(7)})
            return jnp.square(output).sum(), features

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    paths = [flatten_dict(jax.eval_shape(m.init, random_key(0), images), sep="/") for m in (plain, remat)]
    assert paths[0] == paths[1]  # an initial value depends on the key and its path
    for a, b in zip(jax.tree.leaves(run(plain)), jax.tree.leaves(run(remat)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4 * max(1.0, float(abs(a).max())))


def test_rematerialisation_starts_from_the_same_values(tiny, random_key, pictures):
    plain, remat = tiny("deit", depth=1), tiny("deit", depth=1, remat=True)
    values = (jax.jit(m.init)(random_key(0), pictures(plain, 1)) for m in (plain, remat))
    jax.tree.map(np.testing.assert_array_equal, *values)


@pytest.mark.parametrize("family", KINDS_OF_BLOCKS)
def test_rematerialisation_recomputes_in_the_backward_pass(tiny, pictures, family):
    model = tiny(family, remat=True)
    images = pictures(model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    program = str(jax.make_jaxpr(jax.grad(lambda v: model.apply(v, images)[0].sum()))(shapes))
    assert "remat" in program or "checkpoint" in program


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close_and_hands_out_fp32(tiny, randomised, pictures, family):
    model = tiny(family)
    variables, images = randomised(model), pictures(model)
    half = tiny(family, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: half.init(jax.random.key(0), images))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))
    names = models.tap_names(model)
    full_output, full = jax.jit(partial(model.apply, taps=names))(variables, images)
    output, features = jax.jit(partial(half.apply, taps=names))(variables, images)
    assert output.dtype == jnp.float32
    for name in names:
        islands = "attn" in name or name == "pre_logits"
        assert features[name].dtype == (jnp.float32 if islands else jnp.bfloat16), name
        error = np.linalg.norm(np.asarray(features[name], np.float32) - full[name]) / np.linalg.norm(full[name])
        assert error < 0.05, (name, error)
        if "attn" in name:
            np.testing.assert_allclose(features[name].sum(axis=-1), 1, atol=1e-5)  # a bf16 softmax misses by 1e-3
    assert np.linalg.norm(output - full_output) / np.linalg.norm(full_output) < 0.05
    # It really computes in bf16.
    assert np.linalg.norm(output - full_output) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_training_mode_is_random_and_evaluation_is_not(tiny, randomised, random_key, pictures, family):
    model = tiny(family, **ALL_DROPS)
    variables, images = randomised(model), pictures(model)
    keys = [{"dropout": random_key(i)} for i in (0, 0, 1)]
    apply = jax.jit(model.apply, static_argnames="train")
    a, b, c = (apply(variables, images, train=True, rngs=k)[0] for k in keys)
    np.testing.assert_array_equal(a, b)
    assert abs(a - c).max() > 1e-3
    calm = jax.jit(tiny(family).apply)
    np.testing.assert_array_equal(apply(variables, images)[0], calm(variables, images)[0])


def still_and_moving(model, variables, images, key, *taps):
    """Features in evaluation and in training."""
    apply = jax.jit(model.apply, static_argnames=("train", "taps"))
    still = apply(variables, images, taps=taps)[1]
    return still, apply(variables, images, train=True, taps=taps, rngs={"dropout": key})[1]


@pytest.mark.parametrize("family", ["deit", "distilled"])
def test_stochastic_depth_grows_with_depth(tiny, randomised, random_key, pictures, family):
    """At a last rate of almost one: the first block is as in evaluation, the last does nothing."""
    model = tiny(family, depth=3, drop_path_rate=0.99999)
    variables, images = randomised(model), pictures(model, 8)
    still, moving = still_and_moving(model, variables, images, random_key(0), "block_0", "block_1", "block_2")
    np.testing.assert_array_equal(moving["block_0"], still["block_0"])
    np.testing.assert_array_equal(moving["block_2"], moving["block_1"])
    # The middle one, at one half, treats examples differently.
    changed = np.abs(moving["block_1"] - moving["block_0"]).max(axis=(1, 2, 3)) > 0
    assert 0 < changed.sum() <= 8
    assert np.abs(still["block_2"] - still["block_1"]).max() > 1e-3


def test_stochastic_depth_of_a_cait_is_the_same_everywhere_but_in_class_attention(
    tiny, randomised, random_key, pictures
):
    model = tiny("cait", depth=3, drop_path_rate=0.99999)
    variables, images = randomised(model), pictures(model, 4)
    taps = ("block_0", "block_2", "cls_block_0", "cls_block_1")
    apply = jax.jit(model.apply, static_argnames=("train", "taps"))
    _, moving = apply(variables, images, train=True, taps=taps, rngs={"dropout": random_key(0)})
    np.testing.assert_array_equal(moving["block_2"], moving["block_0"])
    assert np.abs(moving["cls_block_1"] - moving["cls_block_0"]).max() > 1e-3


def test_stochastic_depth_of_a_swin_runs_through_its_stages(tiny, randomised, random_key, pictures):
    model = tiny("swin", drop_path_rate=0.99999)
    variables, images = randomised(model), pictures(model, 4)
    taps = ("stage_0.block_0", "stage_1.block_0", "stage_1.block_1")
    still, moving = still_and_moving(model, variables, images, random_key(0), *taps)
    np.testing.assert_array_equal(moving["stage_0.block_0"], still["stage_0.block_0"])
    np.testing.assert_array_equal(moving["stage_1.block_1"], moving["stage_1.block_0"])


def test_a_swin_has_timms_stochastic_depth_unless_told(tiny):
    assert models.create("swin_tiny_patch4_window7_224").drop_path_rate == 0.1
    assert models.create("deit_tiny_patch16_224").drop_path_rate == 0.0


def test_a_distilled_vit_returns_the_mean_or_the_pair(tiny, randomised, pictures):
    model = tiny("distilled")
    variables, images = randomised(model), pictures(model)
    apply = jax.jit(model.apply, static_argnames=("train", "taps", "distilled"))
    for train in (False, True):
        mean, _ = apply(variables, images, train=train)
        pair, features = apply(variables, images, train=train, distilled=True, taps=("prefix_1",))
        assert isinstance(pair, tuple) and len(pair) == 2
        np.testing.assert_allclose(mean, (pair[0] + pair[1]) / 2, rtol=1e-5, atol=1e-5)
        assert abs(pair[0] - pair[1]).max() > 1e-3
        assert features["prefix_1"].shape == (2, 2, 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_values_are_timms(tiny, random_key, pictures, family):
    size = {"depths": (1, 1)} if family == "swin" else {"depth": 1}
    model = tiny(family, embed_dim=96, **size, **({"init_values": 1e-5} if family == "deit" else {}))
    params = flatten_dict(jax.jit(model.init)(random_key(0), pictures(model, 1))["params"], sep="/")
    for path, value in params.items():
        leaf = path.split("/")[-1]
        if path == "cls_token" and family != "cait":
            assert 0 < value.std() < 3e-6  # DeiT and ViT: normal of 1e-6
        elif leaf in ("cls_token", "dist_token", "pos_embed", "relative_position_bias_table"):
            assert 0.01 < value.std() < 0.03, path
        elif leaf.startswith("gamma"):
            assert (value == np.float32(1e-5)).all(), path
        elif path.startswith("patch_embed/proj"):
            assert abs(value).max() <= np.prod((*model.patch_size, 3)) ** -0.5, path
        elif leaf == "scale":
            assert (value == 1).all(), path
        elif leaf == "bias":
            assert not value.any(), path
        else:
            assert leaf == "kernel" and 0.005 < value.std() < 0.035, path


def test_cait_s36_starts_its_layer_scale_lower():
    assert models.create("cait_s24_224").init_values == 1e-5
    assert models.create("cait_s36_384").init_values == 1e-6
