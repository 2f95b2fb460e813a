"""Lift, WideLast and UniformWide: the paper's parameter counts, golden values, gradients, taps, conversion, errors."""

from __future__ import annotations

import json
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_weights import random_variables
from safetensors.numpy import save_file

from jaxkd import models, weights
from jaxkd.distill import resolve_pairs
from jaxkd.errors import ConfigError, WeightMismatchError
from jaxkd.models.students import LIFT_UNUSED
from jaxkd.weights.timm import manifest

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
LIFT, WIDE, UNIFORM = (f"{kind}_deit_tiny_patch16_224" for kind in ("lift", "widelast", "uniformwide"))
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
QUICK = ("lift", "widelast")
SMALL = {
    "lift": (LIFT, {"target_dim": 40}),
    "lift_cls": (LIFT, {"target_dim": 40, "readout": "cls", "layer_norm": False}),
    "lift_linear": (LIFT, {"target_dim": 48, "schedule": "linear", "lifted_blocks": 2}),
    "widelast": (WIDE, {"wide_dim": 48}),
    "widelast_linear": (WIDE, {"wide_dim": 48, "schedule": "heads_linear", "wide_blocks": 2}),
    "uniformwide": (UNIFORM, {"embed_dim": 30, "num_heads": None}),
}


def small(kind: str, **changes):
    name, args = SMALL[kind]
    return models.create(name, **{**SIZES, **args, **changes})


def slow_but(*quick: str) -> list:
    """All kinds of students, those not in `quick` marked as slow."""
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in SMALL]


def parameters(model) -> dict[str, int]:
    """Path -> number of elements; nothing is computed."""
    shapes = models.abstract_variables(model, (1, *model.img_size, 3))["params"]
    return {path: math.prod(leaf.shape) for path, leaf in flatten_dict(shapes, sep="/").items()}


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("deit_tiny_patch16_224", {}, 5_717_416),
        (LIFT, {}, 6_176_912),
        (LIFT, {"readout": "cls"}, 6_176_912),
        (LIFT, {"layer_norm": False}, 6_176_912 - 768),
        (LIFT, {"schedule": "linear", "lifted_blocks": 3}, 6_288_656),
        (WIDE, {}, 7_313_896),
        (WIDE, {"wide_dim": 384, "wide_heads": 6, "schedule": "heads_step"}, 7_313_896),
        (WIDE, {"schedule": "fixed_step"}, 7_313_896),
        (WIDE, {"schedule": "heads_linear"}, 8_628_264),
        (WIDE, {"schedule": "fixed_linear"}, 8_458_816),
        (UNIFORM, {}, 6_427_204),
        (UNIFORM, {"embed_dim": 219}, 7_372_759),
    ],
)
def test_parameter_counts_are_the_papers(name, args, expected):
    assert sum(parameters(models.create(name, **args)).values()) == expected


def test_the_parts_of_a_lift_add_up_to_the_live_parameters():
    counts = parameters(models.create(LIFT))
    assert {path: counts[path] for path in LIFT_UNUSED} == {
        "base/norm/scale": 192,
        "base/norm/bias": 192,
        "base/head/kernel": 192_000,
        "base/head/bias": 1000,
    }
    assert sum(counts.values()) - sum(counts[path] for path in LIFT_UNUSED) == 5_983_528
    added = {path: n for path, n in counts.items() if not path.startswith("base/")}
    assert added == {
        "projector/kernel": 73_728,
        "projector_norm/scale": 384,
        "projector_norm/bias": 384,
        "head/kernel": 384_000,
        "head/bias": 1000,
    }


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"schedule": "linear"}, {"projectors_9": 256, "projectors_10": 320, "projectors_11": 384}),
        ({"schedule": "exponential"}, {"projectors_9": 241, "projectors_10": 304, "projectors_11": 384}),
        ({"schedule": "step"}, {"projector": 384}),
    ],
)
def test_the_widths_of_a_lift_are_the_papers(args, expected):
    counts = parameters(models.create(LIFT, **args))
    assert {p.split("/")[0]: n // 192 for p, n in counts.items() if re.match(r"projectors?(_\d+)?/", p)} == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("heads_step", {11: (384, 6)}),
        ("fixed_step", {11: (384, 3)}),
        ("heads_linear", {9: (256, 4), 10: (320, 5), 11: (384, 6)}),
        ("fixed_linear", {9: (240, 3), 10: (312, 3), 11: (384, 3)}),
    ],
)
def test_the_widths_and_heads_of_a_widelast_are_the_papers(schedule, expected):
    model = models.create(WIDE, schedule=schedule)
    taps = tuple(f"{kind}_{i}" for i in range(12) for kind in ("block", "attn"))
    _, (_, features) = models.abstract_call(model, (1, 224, 224, 3), taps=taps)
    for i in range(12):
        channels, heads = expected.get(i, (192, 3))
        assert features[f"block_{i}"].shape == (1, 14, 14, channels)
        assert features[f"attn_{i}"].shape == (1, heads, 197, 197)


@pytest.fixture
def golden_student(golden):
    """`golden_student("lift")` -> (network, state dict, golden arrays)."""

    def load(kind: str):
        data = golden(kind)
        meta = json.loads(str(data["meta"]))
        state = {k.removeprefix("state/"): data[k] for k in data.files if k.startswith("state/")}
        args = {"img_size": meta["img"], "patch_size": meta["patch"], "num_heads": meta["heads"]}
        args |= {
            k: meta[k]
            for k in ("embed_dim", "depth", "num_classes", "target_dim", "wide_dim", "wide_heads")
            if k in meta
        }
        return models.create(f"{kind}_deit_tiny_patch16_224", **args), state, data

    return load


@pytest.mark.parametrize(("kind", "feature"), [("lift", "lifted"), ("widelast", "block_2")])
def test_logits_and_the_distilled_feature_are_the_reference(golden_student, kind, feature):
    model, state, data = golden_student(kind)
    assert resolve_pairs("last", models.tap_names(model), ("block_0", "block_1")) == ((feature, "block_1"),)
    images = jnp.asarray(data["input_nchw"]).transpose(0, 2, 3, 1)
    apply = jax.jit(partial(model.apply, taps=(feature,)))
    logits, features = apply(weights.from_timm(model, state), images)
    np.testing.assert_allclose(logits, data["logits"], **TOLERANCE)
    np.testing.assert_allclose(np.transpose(features[feature], (0, 3, 1, 2)), data["kd_feature_nchw"], **TOLERANCE)


@pytest.mark.parametrize("kind", ["lift", "widelast"])
def test_a_state_dict_of_the_reference_comes_back_bit_for_bit(golden_student, kind):
    model, state, _ = golden_student(kind)
    back = weights.to_timm(model, weights.from_timm(model, state))
    assert set(back) == set(state)
    for name, array in state.items():
        assert back[name].shape == array.shape and back[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("kind", SMALL)
def test_every_variant_has_a_key_for_every_parameter_and_comes_back(kind):
    model = small(kind)
    variables = random_variables(model)
    back = weights.from_timm(model, weights.to_timm(model, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_gradual_schedules_have_pytorch_keys():
    keys = manifest(small("lift_linear", depth=3))
    assert {
        "projectors.1.weight",
        "projectors.2.weight",
        "projector_norms.2.bias",
        "base.blocks.2.norm1.weight",
    } <= set(keys)
    keys = manifest(small("widelast_linear", depth=3))
    assert {"widens.1.weight", "widen_norms.2.bias", "wide_blocks.1.attn.qkv.weight", "blocks.0.norm1.bias"} <= set(
        keys
    )


@pytest.mark.parametrize("kind", slow_but(*QUICK))
def test_gradients_reach_every_live_parameter_and_no_other(kind, randomised, pictures):
    model = small(kind)
    variables, images = randomised(model), pictures(model)
    taps = tuple(t for t in models.tap_names(model) if t.startswith("lifted"))

    @jax.jit
    @jax.grad
    def gradient(v):
        logits, features = model.apply(v, images, train=True, taps=taps)
        return jnp.square(logits).sum() + sum(jnp.square(f - 1.0).mean() for f in features.values())

    unused = LIFT_UNUSED if kind.startswith("lift") else ()
    for path, value in flatten_dict(gradient(variables)["params"], sep="/").items():
        assert np.isfinite(value).all(), path
        assert (abs(value).max() > 1e-5) == (path not in unused), path


@pytest.mark.slow
def test_the_first_projectors_of_a_gradual_lift_learn_from_their_taps_alone(randomised, pictures):
    model = small("lift_linear")
    variables, images = randomised(model), pictures(model)
    gradient = jax.jit(jax.grad(lambda v: jnp.square(model.apply(v, images, train=True)[0]).sum()))(variables)
    dead = {p for p, g in flatten_dict(gradient["params"], sep="/").items() if not np.any(g)}
    assert dead == {*LIFT_UNUSED, "projectors_0/kernel", "projector_norms_0/scale", "projector_norms_0/bias"}


def by_hand(variables, tokens, norm: bool):
    """(..., C) tokens through a projector and a LayerNorm with epsilon 1e-5, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    x = np.asarray(tokens, np.float64) @ params["projector"]["kernel"]
    if norm:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * params["projector_norm"]["scale"] + params["projector_norm"]["bias"]
    return x, params["head"]


@pytest.mark.parametrize(("kind", "norm"), [("lift", True), ("lift_cls", False)])
def test_the_readouts_of_a_lift_by_hand(kind, norm, randomised, pictures):
    model = small(kind)
    variables, images = randomised(model), pictures(model)
    taps = ("block_1", "prefix_1", "lifted", "pre_logits")
    logits, features = jax.jit(partial(model.apply, taps=taps))(variables, images)
    patches, head = by_hand(variables, features["block_1"], norm)
    token, _ = by_hand(variables, features["prefix_1"][:, 0], norm)
    np.testing.assert_allclose(features["lifted"], patches, rtol=1e-4, atol=1e-4)
    pooled = token if model.readout == "cls" else patches.mean(axis=(1, 2))
    np.testing.assert_allclose(features["pre_logits"], pooled, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4)
    headless = small(kind, num_classes=0)
    assert not any("head" in path for path in parameters(headless))
    without = {k: v for k, v in variables["params"].items() if k != "head"}
    without["base"] = {k: v for k, v in without["base"].items() if k != "head"}
    np.testing.assert_array_equal(jax.jit(headless.apply)({"params": without}, images)[0], features["pre_logits"])


@pytest.mark.parametrize("kind", slow_but("lift"))
def test_taps_take_offsets_and_change_no_output(kind, randomised, pictures):
    model = small(kind)
    variables, images = randomised(model), pictures(model)
    names = models.tap_names(model)
    plain = jax.jit(model.apply)(variables, images)[0]
    logits, features = jax.jit(partial(model.apply, taps=names))(variables, images)
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5)
    assert set(features) == set(names)
    for name in (n for n in names if n.startswith("lifted")):
        ones = {name: jnp.ones_like(features[name])}
        moved, after = jax.jit(partial(model.apply, taps=(name,)))(variables, images, offsets=ones)
        np.testing.assert_allclose(after[name], features[name] + 1, rtol=1e-5, atol=1e-5)
        # Only the mean over the lifted patches of the last block reaches the head.
        assert (abs(moved - logits).max() > 1e-3) == (name == "lifted" and model.readout == "gap")


def test_layers_are_counted_with_the_lifted_maps_in_their_blocks_places():
    teacher = tuple(f"block_{i}" for i in range(24))
    taps = models.tap_names(models.create(LIFT))
    assert models.depth_taps(taps) == (*(f"block_{i}" for i in range(11)), "lifted")
    assert resolve_pairs("first+last", taps, teacher) == (("block_0", "block_0"), ("lifted", "block_23"))
    assert resolve_pairs(((10, 22), (11, 23)), taps, teacher) == (("block_10", "block_22"), ("lifted", "block_23"))
    assert resolve_pairs((("block_11", 23),), taps, teacher) == (("block_11", "block_23"),)
    gradual = models.tap_names(models.create(LIFT, schedule="linear"))
    assert models.depth_taps(gradual)[-4:] == ("block_8", "lifted_9", "lifted_10", "lifted")
    assert models.depth_taps(models.tap_names(models.create(WIDE)))[-1] == "block_11"


def test_uniform_wide_has_the_published_heads_or_heads_of_a_width(pictures):
    assert models.create(UNIFORM).num_heads == 3 and models.create(UNIFORM).embed_dim == 204
    assert models.create(UNIFORM, embed_dim=219).num_heads == 3
    assert models.create(UNIFORM, embed_dim=256, head_dim=64).num_heads == 4
    assert models.create(UNIFORM, embed_dim=220, num_heads=4).num_heads == 4
    assert models.create("uniformwide_deit_small_patch16_224").num_heads == 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUICK)
def test_initial_values_are_those_of_the_authors_code(kind, random_key):
    model = small(kind, embed_dim=96, depth=1, num_classes=64)
    params = flatten_dict(models.init_variables(model, random_key(0), (1, 16, 16, 3))["params"], sep="/")
    own = re.compile(r"^(projector|projectors_\d|head)/(kernel|bias)$") if "lift" in kind else re.compile("$^")
    for path, value in params.items():
        leaf = path.split("/")[-1]
        if own.match(path):  # PyTorch's default of Linear: uniform, also the bias
            bound = (params["head/kernel"].shape[0] if path.startswith("head") else 96) ** -0.5
            assert abs(value).max() <= bound and 0.4 < value.std() / bound < 0.8, path
        elif leaf == "cls_token":
            assert value.std() < 3e-6 if "widelast" not in kind else 0.01 < value.std() < 0.03
        elif leaf == "pos_embed" or (leaf == "kernel" and "patch_embed" not in path):
            assert 0.005 < value.std() < 0.035, path
        elif leaf in ("scale", "bias") and "patch_embed" not in path:
            assert (value == (leaf == "scale")).all(), path


def test_a_pretrained_deit_is_no_lift_and_the_error_says_why():
    deit = models.create("deit_tiny_patch16_224", **SIZES)
    state = weights.to_timm(deit, random_variables(deit))
    with pytest.raises(WeightMismatchError, match="has no projector after the blocks; you asked for a projector after"):
        weights.from_timm(small("lift"), state)
    with pytest.raises(WeightMismatchError, match="has no wide block; you asked for a wide block .48 wide."):
        weights.from_timm(small("widelast"), state)


def test_a_file_of_a_lift_is_no_plain_deit_and_no_lift_of_another_form(tmp_path):
    lift, path = small("lift"), tmp_path / "lift.safetensors"
    variables = random_variables(lift)
    save_file({k: np.ascontiguousarray(a) for k, a in weights.to_timm(lift, variables).items()}, path)
    jax.tree.map(np.testing.assert_array_equal, weights.load(lift, path), variables)
    for other, words in (
        # Its own norm and classifier never trained: loaded silently, it would score as a network by chance.
        (
            models.create("deit_tiny_patch16_224", **SIZES),
            "has a projector after the blocks .*you asked for no projector",
        ),
        (small("lift", layer_norm=False), "wide, with LayerNorm.; you asked for .* wide, without LayerNorm"),
        (small("lift", schedule="linear"), "has a projector .*; you asked for projectors after the blocks"),
    ):
        for options in ({}, {"new_head": True, "key": jax.random.key(0)}):
            with pytest.raises(WeightMismatchError, match=words):
                weights.load(other, path, **options)


@pytest.mark.parametrize("norm", [True, False])
def test_a_lift_without_its_classifier_is_no_plain_deit(tmp_path, norm):
    """The classifier of the DeiT inside it never trained."""
    lift, path = small("lift", layer_norm=norm), tmp_path / "headless.npz"
    state = weights.to_timm(lift, random_variables(lift))
    np.savez(path, **{k: v for k, v in state.items() if not k.startswith("head.")})
    with pytest.raises(WeightMismatchError, match=r"lift_deit_tiny_patch16_224\(target_dim=40\)"):
        weights.load(models.create("deit_tiny_patch16_224", **SIZES), path)
    drawn = weights.load(lift, path, new_head=True, key=jax.random.key(0))
    assert drawn["params"]["head"]["kernel"].shape == (40, SIZES["num_classes"])


def test_a_lift_whose_readout_is_not_known_is_said(tmp_path, caplog):
    lift, bare, own = small("lift"), tmp_path / "bare.safetensors", tmp_path / "own.safetensors"
    variables = random_variables(lift)
    save_file({k: np.ascontiguousarray(a) for k, a in weights.to_timm(lift, variables).items()}, bare)
    weights.load(lift, bare)
    weights.load(small("lift", readout="cls"), bare)
    first, second = (record.getMessage() for record in caplog.records)
    assert "does not say which readout" in first and "has readout=gap, the mean of the lifted patch tokens" in first
    assert "create it with readout=cls, the lifted class token (--model-arg=readout=cls, student.args" in first
    assert "has readout=cls" in second and "create it with readout=gap" in second
    caplog.clear()
    network = weights.build_network(LIFT, {**SIZES, "target_dim": 40})
    weights.save_safetensors(own, network.model, variables, weights.to_metadata(network))
    weights.load(lift, own)
    assert not caplog.records
    weights.load(small("lift", readout="cls"), own)
    assert "was made with readout=gap" in caplog.text


def test_heads_and_grids_of_a_lift_change_as_those_of_a_deit():
    model = small("lift")
    state = weights.to_timm(model, random_variables(model))
    other = small("lift", num_classes=7, img_size=24)
    params = weights.from_timm(other, state, new_head=True, resize=True, key=jax.random.key(0))["params"]
    assert params["head"]["kernel"].shape == (40, 7) and params["base"]["pos_embed"].shape == (1, 37, 24)
    with pytest.raises(WeightMismatchError, match="new_head=True replaces .* resize=True interpolates"):
        weights.from_timm(other, state)


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        (LIFT, {"readout": "avg"}, 'readout="avg"'),
        (LIFT, {"schedule": "steps"}, 'Did you mean "step"'),
        (LIFT, {"schedule": "step", "lifted_blocks": 3}, "lifted_blocks=3, but a step schedule widens the last block"),
        (LIFT, {"schedule": "linear", "lifted_blocks": 13}, "lifted_blocks=13 is out of range"),
        (LIFT, {"target_dim": 0}, "target_dim=0"),
        (LIFT, {"global_pool": "avg"}, '"global_pool" is not an argument of lift_deit_tiny_patch16_224'),
        (WIDE, {"schedule": "step"}, "heads_step"),
        (WIDE, {"wide_dim": 385}, "385 channels do not divide by num_heads=6 of the wide block"),
        (WIDE, {"wide_heads": 6, "schedule": "fixed_step"}, "wide_heads=6, but .* keeps num_heads=3"),
        (WIDE, {"wide_blocks": 2}, "wide_blocks=2, but a step schedule"),
        (UNIFORM, {"embed_dim": 205}, "205 channels do not divide by num_heads=3"),
        (UNIFORM, {"embed_dim": 205, "head_dim": 64}, "does not divide into heads of head_dim=64"),
        (UNIFORM, {"num_heads": 3, "head_dim": 68}, "num_heads=3 and head_dim=68 are both set"),
    ],
)
def test_arguments_that_make_no_network_are_refused(name, args, words):
    with pytest.raises(ConfigError, match=words):
        models.create(name, **args)
