"""Names of other trainers -> timm's: against hand-written names and against timm's own filters."""

from __future__ import annotations

import re

import numpy as np
import pytest

from jaxkd import models, weights
from jaxkd.weights.formats import to_timm_names, unsupported

RAW = {"w": np.zeros(1, np.float32)}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off(golden_state, prefix):
    _, state, _ = golden_state("cait")
    assert set(to_timm_names({prefix + k: v for k, v in state.items()})) == set(state)


def test_wrappers_inside_a_name_are_taken_off_but_never_two_names_into_one(golden_state):
    _, state, _ = golden_state("deit")
    inside = {re.sub(r"^(blocks\.\d+\.)", r"\1_orig_mod.", k): v for k, v in state.items()}
    assert set(inside) != set(state) and set(to_timm_names(inside)) == set(state)
    assert set(to_timm_names({"module.a": RAW["w"], "a": RAW["w"]})) == {"module.a", "a"}


@pytest.mark.parametrize("family", ["deit", "deit_distilled", "cait", "swin_nonsquare"])
def test_timms_own_names_stay(golden_state, family):
    _, state, _ = golden_state(family)
    renamed = to_timm_names(state)
    assert set(renamed) == set(state)
    assert all(renamed[k] is state[k] for k in state)


def microsoft(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's Swin as Microsoft names it: downsampling ends a stage, buffers are saved, the classifier is `head`."""
    out = {}
    for name, array in state.items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        if parts[:2] == ["head", "fc"]:
            parts.pop(1)
        out[".".join(parts)] = array
    out["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((4, 4), np.int64)
    out["layers.0.blocks.1.attn_mask"] = np.zeros((4, 4, 4), np.float32)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("headless", [False, True])
def test_microsofts_swin_loads_as_timms(golden_state, headless):
    model, state, data = golden_state("swin_nonsquare", **({"num_classes": 0, "global_pool": ""} if headless else {}))
    if headless:
        state = {k: v for k, v in state.items() if not k.startswith("head")}
    renamed = microsoft(state)
    assert "layers.0.downsample.reduction.weight" in renamed and "layers.0.downsample.reduction.weight" not in state
    variables = weights.from_timm(model, to_timm_names(renamed))
    images = data["input_nchw"].transpose(0, 2, 3, 1)
    expected = data["forward_features" if headless else "logits"]
    np.testing.assert_allclose(model.apply(variables, images)[0], expected, rtol=1e-4, atol=1e-4)


def test_the_mean_of_dinov2s_class_token_moves_into_the_token():
    state = {
        "cls_token": np.full((1, 1, 2), 1, np.float32),
        "register_tokens": np.full((1, 4, 2), 7, np.float32),
        "pos_embed": np.arange(10, dtype=np.float32).reshape(1, 5, 2),
        "mask_token": np.zeros((1, 2), np.float32),
    }
    got = to_timm_names(state)
    assert set(got) == {"cls_token", "reg_token", "pos_embed", "mask_token"}
    np.testing.assert_array_equal(got["cls_token"], [[[1, 2]]])
    np.testing.assert_array_equal(got["pos_embed"], np.arange(2, 10).reshape(1, 4, 2))
    assert state["cls_token"][0, 0, 1] == 1  # the argument is left alone


def open_clip(rng) -> dict[str, np.ndarray]:
    """A CLIP with a tiny image tower of two blocks, in OpenAI's and OpenCLIP's names."""
    width, hidden, grid, patch, out = 24, 96, 4, 8, 5
    shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (1 + grid * grid, width),
        "visual.proj": (width, out),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.ln_pre.weight": (width,),
        "visual.ln_pre.bias": (width,),
        "visual.ln_post.weight": (width,),
        "visual.ln_post.bias": (width,),
        "transformer.resblocks.0.ln_1.weight": (width,),
        "text_projection": (width, out),
        "logit_scale": (),
    }
    for i in range(2):
        shapes |= {
            f"visual.transformer.resblocks.{i}.{name}": shape
            for name, shape in {
                "ln_1.weight": (width,),
                "ln_1.bias": (width,),
                "ln_2.weight": (width,),
                "ln_2.bias": (width,),
                "attn.in_proj_weight": (3 * width, width),
                "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width),
                "attn.out_proj.bias": (width,),
                "mlp.c_fc.weight": (hidden, width),
                "mlp.c_fc.bias": (hidden,),
                "mlp.c_proj.weight": (width, hidden),
                "mlp.c_proj.bias": (width,),
            }.items()
        }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def test_the_image_tower_of_clip_fits_its_network():
    state = open_clip(np.random.default_rng(0))
    model = models.create("vit_base_patch16_clip_quickgelu_224", **TINY)
    params = weights.from_timm(model, to_timm_names(state))["params"]
    np.testing.assert_array_equal(params["head"]["kernel"], state["visual.proj"])
    np.testing.assert_array_equal(params["head"]["bias"], np.zeros(5))
    np.testing.assert_array_equal(
        params["blocks_1"]["attn"]["qkv"]["kernel"], state["visual.transformer.resblocks.1.attn.in_proj_weight"].T
    )
    np.testing.assert_array_equal(params["norm_pre"]["scale"], state["visual.ln_pre.weight"])
    np.testing.assert_array_equal(params["norm"]["scale"], state["visual.ln_post.weight"])


def test_names_of_other_libraries_are_recognised():
    assert "transformers" in unsupported({"embeddings.patch_embeddings.weight": RAW["w"]})  # DINOv3
    assert "Google" in unsupported({"Transformer/encoder_norm/scale": RAW["w"]})
    assert unsupported({"blocks.0.norm1.weight": RAW["w"]}) == ""


# --- against timm's own filters


def originals(rng, network) -> dict[str, np.ndarray]:
    return {k: rng.normal(size=v.shape).astype(np.float32) for k, v in network.state_dict().items()}


@pytest.mark.parity
@pytest.mark.parametrize("case", ["clip", "dinov2", "registers", "swin", "swin_headless"])
def test_translations_are_timms(timm, case):
    import torch
    from timm.models import swin_transformer, vision_transformer

    rng, family = np.random.default_rng(0), vision_transformer
    if case == "clip":
        network = timm.create_model("vit_base_patch16_clip_quickgelu_224", **TINY)
        state = open_clip(rng)
    elif case in ("dinov2", "registers"):
        names = {"dinov2": "vit_small_patch14_dinov2", "registers": "vit_small_patch14_reg4_dinov2"}
        network = timm.create_model(names[case], **{**TINY, "num_classes": 0})
        state = {**originals(rng, network), "mask_token": np.zeros((1, 24), np.float32)}
        if case == "registers":
            state["register_tokens"] = state.pop("reg_token")
            state["pos_embed"] = rng.normal(size=(1, 17, 24)).astype(np.float32)
    else:
        family = swin_transformer
        args = {"img_size": 56, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
        network = timm.create_model(
            "swin_tiny_patch4_window7_224", **args, num_classes=0 if case == "swin_headless" else 5
        )
        state = microsoft(originals(rng, network))
    expected = family.checkpoint_filter_fn({k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}, network)
    network.load_state_dict(expected, strict=True)  # what timm makes of it fits timm
    got = {
        k: v
        for k, v in to_timm_names(state).items()
        if not k.endswith(("relative_position_index", "attn_mask", "mask_token"))
    }
    assert set(got) == set(expected)
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name].numpy(), err_msg=name)
