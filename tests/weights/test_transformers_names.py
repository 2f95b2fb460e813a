"""Hugging Face transformers' names of releases 4 and 5, and EDSR-PyTorch's: the numbers land where timm has them."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
from random_weights import random_variables
from safetensors.numpy import save_file

from jaxkd import models, weights
from jaxkd.errors import WeightMismatchError, WeightSourceError
from jaxkd.weights.formats import to_timm_names
from jaxkd.weights.rules import COLOUR_SHIFT
from jaxkd.weights.timm import manifest

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
SWIN = {"img_size": 56, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 5}
# name of jaxkd -> (arguments, name of the family in transformers)
NETWORKS = {
    "vit_tiny_patch16_224": (TINY, "vit"),
    "deit_tiny_distilled_patch16_224": (TINY, "deit"),
    "swin_tiny_patch4_window7_224": (SWIN, "swin"),
    "vit_small_patch14_dinov2": (TINY | {"num_classes": 0}, "dinov2"),
    "vit_small_patch14_reg4_dinov2": (TINY | {"num_classes": 0}, "dinov2_with_registers"),
}

# timm -> the names of a file (both releases write these), and of the state dict of release 5 in memory.
FILE = {
    r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"^patch_embed\.norm": "embeddings.norm",
    r"^pos_embed$": "embeddings.position_embeddings",
    r"^cls_token$": "embeddings.cls_token",
    r"^dist_token$": "embeddings.distillation_token",
    r"^reg_token$": "embeddings.register_tokens",
    r"^norm\.": "layernorm.",
    r"\.ls(\d)\.gamma$": r".layer_scale\1.lambda1",
}
IN_FILE = {
    r"\.attn\.(query|key|value)": r".attention.attention.\1",
    r"\.attn\.proj": ".attention.output.dense",
    r"\.attn\.relative_position_bias_table": ".attention.self.relative_position_bias_table",
    r"\.mlp\.fc1": ".intermediate.dense",
    r"\.mlp\.fc2": ".output.dense",
    r"\.norm1": ".layernorm_before",
    r"\.norm2": ".layernorm_after",
}
IN_MEMORY = {
    r"\.attn\.query": ".attention.q_proj",
    r"\.attn\.key": ".attention.k_proj",
    r"\.attn\.value": ".attention.v_proj",
    r"\.attn\.proj": ".attention.o_proj",
    r"\.attn\.relative_position_bias_table": ".attention.relative_position_bias.relative_position_bias_table",
    r"\.norm1": ".layernorm_before",
    r"\.norm2": ".layernorm_after",
}


def to_transformers(state: dict[str, np.ndarray], family: str, release: str) -> dict[str, np.ndarray]:
    """timm's state dict as transformers names it."""
    state, out = dict(state), {}
    if family == "dinov2_with_registers":  # the position of the class token, which timm has added to it
        state["pos_embed"] = np.concatenate([np.full((1, 1, 24), 0.25, np.float32), state["pos_embed"]], axis=1)
        state["cls_token"] = state["cls_token"] - np.float32(0.25)
        out["embeddings.mask_token"] = np.zeros((1, 24), np.float32)
    for name, array in state.items():
        parts = {name: array}
        if ".attn.qkv." in name:
            thirds = zip(("query", "key", "value"), np.split(array, 3), strict=True)
            parts = {name.replace("qkv", part): third for part, third in thirds}
        for key, value in parts.items():
            rules = FILE | (IN_MEMORY if release == "memory" else IN_FILE)
            if family.startswith("dinov2"):  # whose file and memory agree; norms and MLP have timm's names
                rules = FILE | {k: v for k, v in IN_FILE.items() if "attn" in k}
            for pattern, new in rules.items():
                key = re.sub(pattern, new, key)
            if family == "swin":
                key = re.sub(r"\.attention\.attention\.", ".attention.self.", key)
                key = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
                key = re.sub(r"^layers\.", "encoder.layers.", key).replace("head.fc.", "classifier.")
            in_memory = release == "memory" and not family.startswith("dinov2")
            key = re.sub(r"^blocks\.", "layers." if in_memory else "encoder.layer.", key)
            heads = {"head.": "cls_classifier.", "head_dist.": "distillation_classifier."}
            for head, classifier in (heads if family == "deit" else {"head.": "classifier."}).items():
                key = classifier + key.removeprefix(head) if key.startswith(head) else key
            out[key if "classifier" in key else f"{family}.{key}"] = value
    return {re.sub(r"^embeddings\.", f"{family}.embeddings.", k): v for k, v in out.items()}


def timm_state(name: str, seed: int = 0) -> tuple:
    model = models.create(name, **NETWORKS[name][0])
    variables = random_variables(model, seed, size=NETWORKS[name][0]["img_size"])
    state = weights.to_timm(model, variables)
    rng = np.random.default_rng(seed)
    return model, {k: (v + rng.normal(0, 0.1, v.shape)).astype(np.float32) for k, v in state.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod."])
@pytest.mark.parametrize("release", ["file", "memory"])
@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_land_where_timm_has_them(name, release, prefix, tmp_path):
    model, expected = timm_state(name)
    renamed = to_transformers(expected, NETWORKS[name][1], release)
    assert not set(renamed) & set(expected)
    np.savez(tmp_path / "m.npz", **{prefix + k: v for k, v in renamed.items()})
    got = weights.to_timm(model, weights.load(model, tmp_path / "m.npz"))
    assert set(got) == set(expected)
    for key, array in expected.items():
        np.testing.assert_allclose(got[key], array, atol=1e-7 if key == "cls_token" else 0, err_msg=key)


def test_a_bare_model_has_no_family_and_its_pooler_is_left_out(tmp_path, caplog):
    model = models.create("vit_tiny_patch16_224", **(TINY | {"num_classes": 0}))
    expected = weights.to_timm(model, random_variables(model, size=32))
    renamed = {k.removeprefix("vit."): v for k, v in to_transformers(expected, "vit", "file").items()}
    renamed |= {f"pooler.dense.{part}": np.zeros(3, np.float32) for part in ("weight", "bias")}
    np.savez(tmp_path / "m.npz", **renamed)
    with caplog.at_level(logging.WARNING):
        got = weights.to_timm(model, weights.load(model, tmp_path / "m.npz"))
    assert all(np.array_equal(got[k], expected[k]) for k in expected) and "left out: pooler (2)" in caplog.text


def test_a_distilled_deit_with_one_head_gives_the_logits_of_that_head(tmp_path):
    """DeiTForImageClassification: the class token alone is classified, by `classifier`."""
    model, state = timm_state("deit_tiny_distilled_patch16_224")
    renamed = to_transformers(state, "deit", "file")
    one_head = {k.replace("cls_classifier", "classifier"): v for k, v in renamed.items() if "distillation_c" not in k}
    np.savez(tmp_path / "m.npz", **one_head)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    (class_head, _), _ = model.apply(weights.from_timm(model, state), images, train=False, distilled=True)
    logits, _ = model.apply(weights.load(model, tmp_path / "m.npz"), images, train=False)
    np.testing.assert_allclose(logits, class_head, atol=1e-6)


def test_the_classifier_of_dinov2_is_refused_and_its_backbone_is_read(tmp_path):
    model, state = timm_state("vit_small_patch14_dinov2")
    renamed = to_transformers(state, "dinov2", "file")
    renamed |= {"classifier.weight": np.zeros((5, 48), np.float32), "classifier.bias": np.zeros(5, np.float32)}
    np.savez(tmp_path / "m.npz", **renamed)
    with pytest.raises(WeightMismatchError, match=r"reads the class token and the mean.* jaxkd has no such head"):
        weights.load(models.create("vit_small_patch14_dinov2", **(TINY | {"num_classes": 5})), tmp_path / "m.npz")
    got = weights.to_timm(model, weights.load(model, tmp_path / "m.npz", new_head=True))
    assert all(np.array_equal(got[k], state[k]) for k in state)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["vit", "deit", "swin", "dinov2", "dinov2_with_registers"])
def test_logits_are_those_of_transformers(timm, family, tmp_path):
    """The library itself, release 5, writes the folder; a file in release 5's own names agrees, too."""
    import torch

    library = pytest.importorskip("transformers")
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    sizes |= {"intermediate_size": 48, "num_labels": 5, "mlp_ratio": 4}
    if family == "swin":
        sizes = {"image_size": 56, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "num_labels": 5}
    classes = {
        "vit": ("ViTConfig", "ViTForImageClassification"),
        "deit": ("DeiTConfig", "DeiTForImageClassificationWithTeacher"),
        "swin": ("SwinConfig", "SwinForImageClassification"),
        "dinov2": ("Dinov2Config", "Dinov2Model"),
        "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    }
    make_config, make_network = (getattr(library, name) for name in classes[family])
    torch.manual_seed(0)
    network = make_network(make_config(**sizes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network.save_pretrained(tmp_path)
    np.savez(tmp_path / "memory.npz", **{k: v.numpy() for k, v in network.state_dict().items()})
    facts = weights.read_facts(tmp_path)
    model = models.create(facts.model, **facts.args)
    size = model.img_size[0]
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        output = network(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    expected = output.logits if hasattr(output, "logits") else output.last_hidden_state[:, 0]
    for source in (tmp_path, tmp_path / "memory.npz"):
        got = model.apply(weights.load(model, source), images)[0]
        np.testing.assert_allclose(np.asarray(got), expected.numpy(), rtol=1e-4, atol=1e-4)


CONFIG = {"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
CONFIG |= {
    "image_size": [32, 64],
    "patch_size": 8,
    "intermediate_size": 96,
    "id2label": {str(i): "x" for i in range(5)},
}
CONFIG |= {"architectures": ["ViTForImageClassification"]}
NAMED = {"vit.embeddings.patch_embeddings.projection.weight": np.zeros(1, np.float32)}


def test_the_config_beside_a_file_gives_the_network_its_grid_and_its_preprocessing(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "resample": 2}))
    np.savez(tmp_path / "m.npz", **NAMED)
    facts = weights.read_facts(tmp_path)
    model = models.create(facts.model, **facts.args)
    assert facts.grid == (4, 8) == model.grid_size and model.num_classes == 5 and model.norm_eps == 1e-12
    assert facts.apply(models.spec(facts.model)).mean == (0.1, 0.2, 0.3)
    assert facts.apply(models.spec(facts.model)).interpolation == "bilinear"
    other = models.create("vit_tiny_patch16_224", **(TINY | {"img_size": (64, 32), "num_heads": 4}))
    np.savez(tmp_path / "m.npz", **to_transformers(other_state(other), "vit", "file"))
    with pytest.raises(
        WeightMismatchError, match=r"made for 4 x 8 positions, .* with 8 x 4 positions\. Add resize=True"
    ):
        weights.load(other, tmp_path / "m.npz")
    with caplog.at_level(logging.WARNING):
        weights.load(other, tmp_path / "m.npz", resize=True)
    assert "was made with num_heads=3 (config.json), and this network has num_heads=4" in caplog.text


def other_state(model):
    """Random numbers in the shapes of `model`, whose images are not square."""
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=e.shape).astype(np.float32) for k, e in manifest(model).items()}


@pytest.mark.parametrize(
    "odd", [{"hidden_size": "wide"}, {"patch_size": 0}, {"hidden_act": "relu9"}, {"image_size": []}]
)
def test_an_odd_config_is_one_sentence(tmp_path, odd):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | odd))
    np.savez(tmp_path / "m.npz", **NAMED)
    with pytest.raises(WeightSourceError, match="describes a vit that jaxkd cannot build"):
        weights.read_facts(tmp_path)


@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.pth"])
def test_a_config_is_of_a_file_with_the_names_of_transformers_only(tmp_path, caplog, name):
    def write(state):
        if name == "m.pth":
            torch = pytest.importorskip("torch")
            torch.save({k: torch.tensor(v) for k, v in state.items()}, tmp_path / name)
        else:
            (np.savez if name == "m.npz" else lambda path, **kw: save_file(kw, path))(tmp_path / name, **state)

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write({"patch_embed.proj.weight": np.zeros(1, np.float32)})
    assert weights.read_facts(tmp_path / name) is None
    (tmp_path / "config.json").write_text(json.dumps(CONFIG)[:40])
    assert weights.read_facts(tmp_path / name) is None
    write(NAMED)
    with pytest.raises(WeightSourceError, match=r'config\.json" belongs to the weights beside it and cannot be read'):
        weights.read_facts(tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert not caplog.records
    for _ in range(2):
        assert weights.read_facts(tmp_path / name).model == "vit_base_patch16_224"
    assert caplog.text.count('config.json" says that') == 1


@pytest.mark.parametrize(
    ("config", "images", "text"),
    [
        ({"model_type": ["vit"]}, {}, None),
        ({}, {"resample": [3]}, None),
        ({"architectures": 5}, {}, "describes a vit that jaxkd cannot build"),
        ({"image_size": float("inf")}, {}, "describes a vit that jaxkd cannot build"),
        ({}, {"image_std": [0.5, 0, 0.5]}, r"image_std=\[0.5, 0, 0.5\], by which images cannot be divided"),
    ],
)
def test_values_of_a_wrong_kind_are_passed_over_or_one_sentence(tmp_path, config, images, text):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    np.savez(tmp_path / "m.npz", **NAMED)
    if text is None:
        facts = weights.read_facts(tmp_path)
        assert facts is None or facts.preprocessing == {}
        return
    with pytest.raises(WeightSourceError, match=text):
        weights.read_facts(tmp_path)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_of_edsr_pytorch(scale, tmp_path):
    model = models.create(f"edsr_x{scale}", num_feat=4, num_block=2)
    expected = weights.to_basicsr(model, random_variables(model))
    names = {"conv_first": "head.0", "conv_after_body": "body.2", "conv_last": "tail.1"}
    names |= {f"upsample.{i}": f"tail.0.{i}" for i in (0, 2)}
    names |= {f"body.{i}.conv{j}": f"body.{i}.body.{2 * (j - 1)}" for i in range(2) for j in (1, 2)}
    renamed = {f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v for k, v in expected.items()}
    renamed |= {f"{n}_mean.weight": np.eye(3, dtype=np.float32)[..., None, None] for n in ("sub", "add")}
    mean = np.float32([0.4488, 0.4371, 0.4040])
    renamed |= {"sub_mean.bias": -255 * mean, "add_mean.bias": 255 * mean}
    assert set(to_timm_names(renamed)) == {*expected, *COLOUR_SHIFT}
    np.savez(tmp_path / "edsr.npz", **{f"model.{k}": v for k, v in renamed.items()})
    got = weights.to_basicsr(model, weights.load(model, tmp_path / "edsr.npz"))
    assert all(np.array_equal(got[k], expected[k]) for k in expected)
    for shift, words in (
        (-mean, r'img_range=1\.0 --model-arg="rgb_mean=\(0\.4488,0\.4371,0\.404\)"'),
        (0 * mean, r'img_range=1\.0 --model-arg="rgb_mean=\(0\.0,0\.0,0\.0\)"'),
        (-255 * (mean + np.float32(0.1)), r'img_range=255\.0 --model-arg="rgb_mean=\(0\.5488,0\.5371,0\.504\)"'),
    ):
        np.savez(tmp_path / "edsr.npz", **renamed | {"sub_mean.bias": shift})
        with pytest.raises(WeightMismatchError, match=r"subtracts another mean colour .*" + words):
            weights.load(model, tmp_path / "edsr.npz")
    for changes, words in (
        ({"add_mean.bias": 200 * mean}, "adds another mean colour than it subtracts"),
        (
            {"sub_mean.weight": 2 * renamed["sub_mean.weight"]},
            r"another standard deviation than 1: .*\[2\.0, 2\.0, 2\.0\]",
        ),
        ({"add_mean.weight": 2 * renamed["add_mean.weight"]}, "another standard deviation than 1: add_mean.weight"),
    ):
        np.savez(tmp_path / "edsr.npz", **renamed | changes)
        with pytest.raises(WeightMismatchError, match=words):
            weights.load(model, tmp_path / "edsr.npz")
