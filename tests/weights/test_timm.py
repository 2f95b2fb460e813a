"""State dicts in and out: exact inverses, full-size names and shapes, and what the errors say."""

from __future__ import annotations

import logging
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_weights import random_variables
from safetensors.numpy import save_file

from jaxkd import models, weights
from jaxkd.errors import ConfigError, WeightMismatchError, WeightSourceError
from jaxkd.weights.rules import BUFFERS
from jaxkd.weights.timm import manifest

FAMILIES = ("deit", "deit_distilled", "cait", "swin_nonsquare")


def assert_same_bits(got: dict, expected: dict) -> None:
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_comes_back_bit_for_bit(golden_state, family):
    model, state, _ = golden_state(family)
    kept = {k: v for k, v in state.items() if not BUFFERS.search(k)}
    assert_same_bits(weights.to_timm(model, weights.from_timm(model, state)), kept)


def test_layouts_are_transposed_as_pytorch_and_flax_define_them(golden_state):
    model, state, _ = golden_state("deit")
    params = weights.from_timm(model, state)["params"]
    qkv, conv = state["blocks.1.attn.qkv.weight"], state["patch_embed.proj.weight"]
    kernel = params["patch_embed"]["proj"]["kernel"]
    assert params["blocks_1"]["attn"]["qkv"]["kernel"][2, 5] == qkv[5, 2]
    assert kernel[3, 1, 2, 4] == conv[4, 2, 3, 1]
    assert kernel.dtype == np.float32


def test_parameters_share_no_memory_with_the_state_dict(golden_state):
    model, state, _ = golden_state("deit")
    embedding = state["pos_embed"]
    # JAX on a CPU adopts an array without copying it only where it begins at a multiple of 64 bytes.
    memory = np.zeros(embedding.size + 16, np.float32)
    start = -(memory.ctypes.data // 4) % 16
    aligned = memory[start : start + embedding.size].reshape(embedding.shape)
    aligned[:] = embedding
    params = weights.from_timm(model, {**state, "pos_embed": aligned})["params"]
    aligned[:] = 99
    np.testing.assert_array_equal(params["pos_embed"], embedding)


def test_another_architecture_is_answered_with_a_two_sided_diff(golden_state):
    _, cait, _ = golden_state("cait")
    model, _, _ = golden_state("deit")
    with pytest.raises(WeightMismatchError) as caught:
        weights.from_timm(model, cait, origin='The file "cait.pth"')
    text = str(caught.value)
    assert text.startswith('The file "cait.pth" does not fit this VisionTransformer. ')
    assert "Choose the network that the file was made for" in text
    assert "new_head" not in text and "resize=" not in text
    assert re.search(r"\n  \+ blocks\.0\.gamma_1 \(\d+,\)", text)
    assert "unused by the network:" in text


def test_every_kind_of_difference_is_in_the_diff(golden_state):
    model, state, _ = golden_state("deit")
    state = dict(state)
    state["extra.weight"] = state.pop("norm.bias")
    state["norm.weight"] = np.zeros(7, np.float32)
    with pytest.raises(WeightMismatchError) as caught:
        weights.from_timm(model, state)
    width = model.embed_dim
    for line in (
        f"1 missing from the file:\n  - norm.bias ({width},)",
        f"1 unused by the network:\n  + extra.weight ({width},)",
        f"1 of another shape:\n  ! norm.weight: network ({width},), file (7,)",
    ):
        assert line in str(caught.value)


def test_variables_of_another_network_are_refused_on_the_way_out(golden_state):
    deit, state, _ = golden_state("deit")
    cait, _, _ = golden_state("cait")
    with pytest.raises(WeightMismatchError, match="The variables do not belong to this Cait"):
        weights.to_timm(cait, weights.from_timm(deit, state))


# --- the classifier


def test_new_head_is_drawn_and_the_rest_is_kept(golden_state):
    model, state, _ = golden_state("deit", num_classes=3)
    with pytest.raises(WeightMismatchError, match="new_head=True replaces a classifier of another size"):
        weights.from_timm(model, state)
    first, again, other = (
        weights.to_timm(model, weights.from_timm(model, state, new_head=True, key=jax.random.key(seed)))
        for seed in (0, 0, 1)
    )
    assert first["head.weight"].shape == (3, model.embed_dim)
    assert 0 < np.abs(first["head.weight"]).max() < 0.1  # truncated normal, 0.02
    np.testing.assert_array_equal(first["head.bias"], np.zeros(3))
    np.testing.assert_array_equal(first["head.weight"], again["head.weight"])
    assert np.abs(first["head.weight"] - other["head.weight"]).max() > 0
    assert_same_bits(
        {k: v for k, v in first.items() if not k.startswith("head.")},
        {k: v for k, v in state.items() if not k.startswith("head.")},
    )


def test_new_head_keeps_a_head_that_fits(golden_state):
    model, state, _ = golden_state("deit")
    assert_same_bits(weights.to_timm(model, weights.from_timm(model, state, new_head=True)), state)


def test_new_head_needs_a_key(golden_state):
    model, state, _ = golden_state("deit", num_classes=3)
    with pytest.raises(WeightMismatchError, match=r"key=None was given.*Pass key=jax\.random\.key"):
        weights.from_timm(model, state, new_head=True)


def test_a_swin_and_a_distilled_vit_get_all_their_new_heads(golden_state):
    for family, heads in (("swin_nonsquare", ["head/fc"]), ("deit_distilled", ["head", "head_dist"])):
        model, state, _ = golden_state(family, num_classes=3)
        flat = flatten_dict(weights.from_timm(model, state, new_head=True, key=jax.random.key(0))["params"], sep="/")
        assert all(flat[f"{head}/bias"].shape == (3,) for head in heads)


def test_a_classifier_is_left_out_only_on_request(golden_state):
    model, state, _ = golden_state("deit", num_classes=0)
    with pytest.raises(WeightMismatchError, match="new_head=True leaves the file's classifier out"):
        weights.from_timm(model, state)
    assert "head" not in weights.from_timm(model, state, new_head=True)["params"]


# --- another image size


def test_resize_is_only_on_request_and_touches_only_the_position_embedding(golden_state):
    small, state, _ = golden_state("deit")
    height, width = small.img_size
    model, _, _ = golden_state("deit", img_size=(2 * height, 2 * width))
    with pytest.raises(WeightMismatchError, match="resize=True interpolates"):
        weights.from_timm(model, state)
    got = weights.to_timm(model, weights.from_timm(model, state, resize=True))
    prefix = small.num_prefix_tokens
    np.testing.assert_array_equal(got["pos_embed"][:, :prefix], state["pos_embed"][:, :prefix])
    # An antialiased bicubic that enlarges keeps the mean up to the border, where weights are renormalised.
    old, new = (a[0, prefix:].mean(axis=0) for a in (state["pos_embed"], got["pos_embed"]))
    assert np.abs(old - new).max() < 0.2 * np.abs(state["pos_embed"]).max()
    del got["pos_embed"]
    assert_same_bits(got, {k: v for k, v in state.items() if k != "pos_embed"})


def test_a_grid_that_cannot_be_square_is_named_and_not_guessed(golden_state):
    model, state, _ = golden_state("deit")
    state = {**state, "pos_embed": np.zeros((1, 1 + 3 * 7, model.embed_dim), np.float32)}
    with pytest.raises(WeightMismatchError, match=r"takes old grids and windows to be square.*say old_grid="):
        weights.from_timm(model, state, resize=True)


@pytest.mark.parametrize("options", [{}, {"old_grid": (14, 14)}, {"old_grid": (14, 14), "old_window": 7}])
def test_a_swin_of_another_window_is_resized_whatever_is_known_of_it(options):
    sizes = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "num_classes": 2}
    old, new = (
        models.create("swin_tiny_patch4_window7_224", img_size=size, window_size=window, **sizes)
        for size, window in ((56, 7), (64, 8))
    )
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    state = weights.to_timm(old, random_variables(old, size=56))
    got = weights.to_timm(new, weights.from_timm(new, state, resize=True, **options))[name]
    expected = weights.resize_relative_bias_table(state[name], old_window=(7, 7), new_window=(8, 8))
    np.testing.assert_array_equal(got, expected)


def test_an_oblong_window_of_a_file_is_read_from_its_facts(tmp_path):
    sizes = {"embed_dim": 8, "depths": (1,), "num_heads": (1,), "num_classes": 2, "img_size": 32}
    old, new = (
        weights.build_network("swin_tiny_patch4_window7_224", sizes | {"window_size": window})
        for window in ((2, 8), (8, 8))
    )
    state = weights.to_timm(old.model, random_variables(old.model, size=32))
    save_file(state, tmp_path / "m.safetensors", metadata=weights.to_metadata(old))
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    got = weights.to_timm(new.model, weights.load(new.model, tmp_path / "m.safetensors", resize=True))[name]
    expected = weights.resize_relative_bias_table(state[name], old_window=(2, 8), new_window=(8, 8))
    np.testing.assert_array_equal(got, expected)


@pytest.fixture
def as_many():
    """A network of 2 x 8 patches, and the state dict of one of 4 x 4 with the same shapes."""
    model = models.create("vit_tiny_patch16_224", **(TINY | {"img_size": (16, 64)}))
    square = models.create("vit_tiny_patch16_224", **TINY)
    state = weights.to_timm(square, random_variables(square, size=32))
    return model, square, state


def test_as_many_positions_of_a_grid_that_nobody_names_are_never_kept_in_silence(as_many, caplog):
    model, square, state = as_many
    with pytest.raises(WeightMismatchError, match=r"of 2 x 8 or of 4 x 4 positions, .* Say which: old_grid=\(4, 4\)"):
        weights.from_timm(model, state, resize=True)
    for network, options in ((model, {}), (square, {"resize": True})):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            weights.from_timm(network, state, **options)
        assert "pos_embed (1, 17, 24) was kept as" in caplog.text and "old_grid=(rows, columns)" in caplog.text


def test_a_named_grid_is_resized_or_refused(as_many):
    model, _, state = as_many
    with pytest.raises(
        WeightMismatchError, match=r"made for 4 x 4 positions, .* with 2 x 8 positions\. Add resize=True"
    ):
        weights.from_timm(model, state, old_grid=(4, 4))
    kept = weights.from_timm(model, state, old_grid=(2, 8))["params"]["pos_embed"]
    np.testing.assert_array_equal(kept, state["pos_embed"])
    expected = weights.resize_position_embedding(state["pos_embed"], old_grid=(4, 4), new_grid=(2, 8), prefix=1)
    got = weights.from_timm(model, state, old_grid=(4, 4), resize=True)["params"]["pos_embed"]
    np.testing.assert_array_equal(got, expected)
    assert np.abs(expected - state["pos_embed"]).max() > 0.01
    with pytest.raises(WeightMismatchError, match=r"which is not that of 3 x 4 positions.*--old-grid=2x8"):
        weights.from_timm(model, state, old_grid=(3, 4), resize=True)
    for odd in ((4,), "4x4", (0, 4), 4):
        with pytest.raises(ConfigError, match="is not a grid"):
            weights.from_timm(model, state, old_grid=odd, resize=True)


def test_nan_and_infinity_name_their_tensor(golden_state):
    model, state, _ = golden_state("deit")
    for value, name in ((np.nan, "blocks.1.mlp.fc1.weight"), (-np.inf, "pos_embed")):
        bad = {**state, name: np.full_like(state[name], value)}
        with pytest.raises(WeightSourceError, match=rf'holds NaN or infinity in "{name}", so every output'):
            weights.from_timm(model, bad)
    with pytest.raises(WeightSourceError, match='"norm.bias"'):  # infinite only as fp32
        weights.from_timm(model, {**state, "norm.bias": np.full(state["norm.bias"].shape, 1e300)})


def test_a_misfit_says_its_cause_before_a_short_diff():
    small, large = (models.create("deit_tiny_patch16_224", **(TINY | sizes)) for sizes in ({}, {"depth": 5}))
    state = weights.to_timm(small, random_variables(small, size=32))
    with pytest.raises(WeightMismatchError) as caught:
        weights.from_timm(large, state)
    first, *diff = str(caught.value).splitlines()
    assert "The file has 2 blocks; you asked for 5 blocks." in first
    assert len(diff) == 8 and diff[-1] == "  ... and 30 more"
    wide = models.create("deit_tiny_patch16_224", **(TINY | {"depth": 12, "embed_dim": 48}))
    with pytest.raises(WeightMismatchError, match="The file is 24 wide with 2 blocks.*; you asked for 48 wide with 12"):
        weights.from_timm(wide, state)
    distilled = models.create("deit_tiny_distilled_patch16_224", **TINY)
    state = weights.to_timm(distilled, random_variables(distilled, size=32))
    with pytest.raises(
        WeightMismatchError, match=r"The file has a distillation token .*; you asked for no distillation"
    ):
        weights.from_timm(small, state, new_head=True, resize=True, key=jax.random.key(0))


# --- against timm itself

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
CASES = {
    "deit": ("deit_tiny_patch16_224", TINY),
    "distilled": ("deit_tiny_distilled_patch16_224", TINY),
    "gap": ("vit_tiny_patch16_224", {**TINY, "global_pool": "avg"}),
    "registers": ("vit_small_patch14_reg4_dinov2", TINY),
    "dinov2": ("vit_small_patch14_dinov2", TINY),
    "clip": ("vit_base_patch16_clip_quickgelu_224", TINY),
    "headless": ("vit_small_patch16_224", {**TINY, "num_classes": 0}),
    "cait": ("cait_xxs24_224", TINY),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 5},
    ),
}


def timm_state(network, seed: int = 0) -> dict[str, np.ndarray]:
    """Every array of a timm network, redrawn."""
    rng = np.random.default_rng(seed)
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    return {
        k: rng.normal(0, 0.3, v.shape).astype(v.dtype) if v.dtype == np.float32 and not BUFFERS.search(k) else v
        for k, v in state.items()
    }


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_a_state_dict_of_timm_comes_back_bit_for_bit(timm, case):
    name, args = CASES[case]
    state = timm_state(timm.create_model(name, pretrained=False, **args))
    model = models.create(name, **args)
    kept = {k: v for k, v in state.items() if not BUFFERS.search(k)}
    assert_same_bits(weights.to_timm(model, weights.from_timm(model, state)), kept)


@pytest.mark.parity
@pytest.mark.slow
def test_every_registered_network_has_timms_names_and_shapes(timm):
    import torch

    students = {n for kind in ("lift", "widelast", "uniformwide") for n in models.list_models(f"{kind}_*")}
    for name in set(models.list_models()) - students:  # which timm does not have
        if models.spec(name).task != "classification":
            continue
        ours = models.create(name)
        with torch.device("meta"):
            theirs = timm.create_model(name, pretrained=False, num_classes=ours.num_classes).state_dict()
        expected = {k: tuple(v.shape) for k, v in theirs.items() if not BUFFERS.search(k)}
        assert {k: e.shape for k, e in manifest(ours).items()} == expected, name


@pytest.mark.parity
@pytest.mark.parametrize("case", ["dinov2", "registers", "distilled", "cait", "swin"])
@pytest.mark.parametrize("size", [(64, 64), (48, 72)])
def test_resized_weights_are_what_timm_resizes_them_to(timm, case, size):
    from timm.models import cait, swin_transformer, vision_transformer

    name, args = CASES[case]
    state = timm_state(timm.create_model(name, pretrained=False, **args))
    larger = timm.create_model(name, pretrained=False, **{**args, "img_size": size})
    import torch

    tensors = {k: torch.from_numpy(v) for k, v in state.items()}
    if case == "cait":
        # timm has no resize for CaiT's embedding, which has no prefix tokens
        expected = {k: v.numpy() for k, v in cait.checkpoint_filter_fn(tensors).items()}
        expected["pos_embed"] = timm.layers.resample_abs_pos_embed(
            tensors["pos_embed"], larger.patch_embed.grid_size, num_prefix_tokens=0
        ).numpy()
    else:
        family = swin_transformer if case == "swin" else vision_transformer
        expected = {k: v.numpy() for k, v in family.checkpoint_filter_fn(tensors, larger).items()}
    model = models.create(name, **{**args, "img_size": size})
    got = weights.to_timm(model, weights.from_timm(model, state, resize=True))
    for key in got:
        np.testing.assert_allclose(got[key], expected[key], atol=1e-5, err_msg=key)
    changed = {k for k in got if got[k].shape != state[k].shape}
    assert changed or (case, size) == ("swin", (64, 64))  # whose windows still fit
