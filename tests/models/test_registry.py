"""The registry: exact parameter counts, timm's key manifests, facts of tags, errors."""

from __future__ import annotations

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from jaxkd import models
from jaxkd.errors import ConfigError, UnknownNameError
from jaxkd.models.registry import REGISTRY
from jaxkd.models.specs import SPECS
from jaxkd.weights.timm import manifest

# sum(p.numel() for p in timm.create_model(name).parameters()), timm 1.0.31
PARAMETERS = {
    "cait_s24_224": 46_916_200,
    "cait_s24_384": 47_062_120,
    "cait_s36_384": 68_366_632,
    "cait_xs24_384": 26_670_088,
    "cait_xxs24_224": 11_956_264,
    "cait_xxs24_384": 12_029_224,
    "cait_xxs36_224": 17_299_720,
    "cait_xxs36_384": 17_372_680,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_patch16_224": 86_567_656,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_small_patch16_224": 22_050_664,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_tiny_patch16_224": 5_717_416,
    "swin_base_patch4_window7_224": 87_768_224,
    "swin_large_patch4_window7_224": 196_532_476,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_tiny_patch4_window7_224": 28_288_354,
    "vit_base_patch14_dinov2": 86_579_712,
    "vit_base_patch14_reg4_dinov2": 86_582_016,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_clip_224": 86_568_424,
    "vit_base_patch16_clip_quickgelu_224": 86_193_152,
    "vit_huge_patch14_224": 630_764_800,
    "vit_large_patch14_clip_224": 304_204_776,
    "vit_large_patch14_clip_quickgelu_224": 303_966_976,
    "vit_large_patch14_dinov2": 304_367_616,
    "vit_large_patch14_reg4_dinov2": 304_370_688,
    "vit_large_patch16_224": 304_326_632,
    "vit_small_patch14_dinov2": 22_056_192,
    "vit_small_patch14_reg4_dinov2": 22_057_344,
    "vit_small_patch16_224": 22_050_664,
    "vit_tiny_patch16_224": 5_717_416,
    # the encoding-mismatch paper's code; the small ones by hand
    "lift_deit_tiny_patch16_224": 6_176_912,
    "lift_deit_small_patch16_224": 22_050_664 + 384 * 768 + 2 * 768 + 769 * 1000,
    "widelast_deit_tiny_patch16_224": 7_313_896,
    "widelast_deit_small_patch16_224": 28_045_288,
    "uniformwide_deit_tiny_patch16_224": 6_427_204,
    "uniformwide_deit_small_patch16_224": 24_838_816,
    # the papers' tables; x8 is x4 and one more convolution to 4 x 64 channels
    "mdbn_x2": 1_517_571,
    "mdbn_x3": 1_702_211,
    "mdbn_x4": 1_665_283,
    "mdbn_x8": 1_665_283 + 64 * 256 * 9 + 256,
    "edsr_x2": 1_369_859,
    "edsr_x3": 1_554_499,
    "edsr_x4": 1_517_571,
    # from the design, by hand: norms, linear layers, 56 places and two attention blocks of 789,760
    "eeg_words_linear": 840 * 128 + 128,
    "eeg_words_tiny": 2 * 840 + 841 * 64 + 2 * 64 + 65 * 128 + 129 * 64 + 2 * 64 + 65 * 32,
    "eeg_words_base": 777_232,
    "eeg_words_context": 2_371_088,
}

REQUIRED = [
    *(f"deit_{size}{kind}_patch16_224" for size in ("tiny", "small", "base") for kind in ("", "_distilled")),
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
    *(f"cait_{name}" for name in ("xxs24_224", "xxs24_384", "xxs36_224", "xxs36_384", "xs24_384")),
    *(f"cait_{name}" for name in ("s24_224", "s24_384", "s36_384")),
    *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")),
    *(f"mdbn_x{scale}" for scale in (2, 3, 4, 8)),
    *(f"edsr_x{scale}" for scale in (2, 3, 4)),
    *(f"eeg_words_{size}" for size in ("linear", "tiny", "base", "context")),
]

MANIFESTS = [
    *("cait_s24_224", "cait_s36_384", "cait_xs24_384", "cait_xxs24_224", "cait_xxs36_224"),
    *("deit_base_patch16_224", "deit_small_distilled_patch16_224", "deit_small_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224", "vit_base_patch16_224"),
    *(f"swin_{size}_patch4_window7_224" for size in ("base", "small", "tiny")),
    "mdbn_x4",
]


def test_no_registered_name_escapes_the_tables():
    assert set(PARAMETERS) == set(REGISTRY) == set(SPECS) == set(models.list_models())
    assert set(REQUIRED) <= set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_parameter_count_is_the_references(name):
    model = models.create(name)
    size = models.spec(name).input_size
    images = jnp.zeros((1, *size) if models.spec(name).task == "eeg_words" else (1, *size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    assert set(shapes) == {"params"}
    assert sum(x.size for x in jax.tree.leaves(shapes)) == PARAMETERS[name]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", MANIFESTS)
def test_state_dict_keys_and_shapes_are_the_references(golden_path, name):
    manifests = json.loads(gzip.decompress(golden_path("manifests.json.gz").read_bytes()))
    assert set(manifests) & set(REGISTRY) <= set(MANIFESTS)  # none is left out
    expected = manifests[name.replace("mdbn", "MDBN")]
    ours = {key: list(entry.shape) for key, entry in manifest(models.create(name)).items()}
    assert ours == expected


def test_list_models_takes_patterns():
    assert models.list_models("cait_s*") == ["cait_s24_224", "cait_s24_384", "cait_s36_384"]
    assert models.list_models("vit_huge*.mae") == ["vit_huge_patch14_224.mae"]
    assert models.list_models("resnet*") == []


def test_the_tag_decides_preprocessing():
    default, mae = models.spec("vit_base_patch16_224"), models.spec("vit_base_patch16_224.mae")
    assert (default.tag, default.mean, default.num_classes) == ("augreg2_in21k_ft_in1k", (0.5, 0.5, 0.5), 1000)
    assert (mae.tag, mae.mean, mae.num_classes) == ("mae", (0.485, 0.456, 0.406), 0)
    clip = models.spec("vit_base_patch16_clip_224.openai")
    assert clip.std == (0.26862954, 0.26130258, 0.27577711)
    assert clip.num_classes == 512
    cait = models.spec("cait_s24_384")
    assert (cait.input_size, cait.crop_pct, cait.interpolation) == ((384, 384), 1.0, "bicubic")
    assert models.spec("deit_tiny_patch16_224").crop_pct == 0.9


def test_the_tag_decides_size_and_classes_of_what_is_created():
    dinov2 = models.create("vit_small_patch14_reg4_dinov2.lvd142m")
    assert (dinov2.img_size, dinov2.num_classes, dinov2.grid_size) == ((518, 518), 0, (37, 37))
    assert dinov2.num_prefix_tokens == 5
    assert models.create("vit_large_patch16_224.mae").num_classes == 0
    assert models.create("vit_large_patch16_224.mae", num_classes=10).num_classes == 10


def test_super_resolution_networks_have_a_scale_and_no_tags():
    assert models.list_models("mdbn*") == ["mdbn_x2", "mdbn_x3", "mdbn_x4", "mdbn_x8"]
    assert models.list_models("edsr*") == ["edsr_x2", "edsr_x3", "edsr_x4"]
    assert models.list_models("mdbn*.*") == []
    facts = models.spec("mdbn_x3")
    assert (facts.task, facts.tag, facts.num_classes) == ("restoration", "", 0)
    assert (facts.mean, facts.std, facts.input_size) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (85, 85))
    assert models.spec("cait_s24_224").task == "classification"
    assert [models.create(f"mdbn_x{s}").scale for s in (2, 3, 4, 8)] == [2, 3, 4, 8]
    with pytest.raises(UnknownNameError, match='"mdbn_x4" has no tags, and "df2k" was given'):
        models.create("mdbn_x4.df2k")
    with pytest.raises(UnknownNameError, match='Did you mean "edsr_x4"'):
        models.create("edsr_x5")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r'Did you mean "deit_tiny_patch16_224".*list_models\(\)'):
        models.create("deit_tinny_patch16_224")


def test_unknown_tag_lists_the_tags():
    with pytest.raises(UnknownNameError, match=r'no weights tagged "mea".*Did you mean "mae".*orig_in21k'):
        models.spec("vit_huge_patch14_224.mea")


def test_unknown_argument_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r'"drop_path" is not an argument.*Did you mean "drop_path_rate"'):
        models.create("deit_tiny_patch16_224", drop_path=0.1)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("deit_tiny_patch16_224", "distillation_token"),
        *(("mdbn_x4", field) for field in ("scale", "merged", "strip_pixels")),
    ],
)
def test_internal_fields_are_no_arguments(name, field):
    with pytest.raises(ConfigError, match=f'"{field}" is not an argument'):
        models.create(name, **{field: True})


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("deit_tiny_patch16_224", {"embed_dim": 50}, "50 channels do not divide by num_heads=3"),
        ("cait_xxs24_224", {"img_size": 8}, r"img_size=\(8, 8\) is smaller than patch_size=\(16, 16\)"),
        ("swin_tiny_patch4_window7_224", {"img_size": 226}, r"not a multiple of patch_size.*Use img_size=\(224, 224\)"),
        ("cait_xxs24_224", {"img_size": (224, 224, 3)}, r"img_size=\(224, 224, 3\) is not a size"),
        ("cait_xxs24_224", {"act_layer": "glu"}, 'act_layer="glu" is not possible.*Did you mean "gelu"'),
        ("cait_xxs24_224", {"global_pool": "max"}, 'global_pool="max" is not possible'),
        (
            "vit_tiny_patch16_224",
            {"class_token": False},
            'class_token=False and global_pool="token" exclude',
        ),
        ("deit_tiny_distilled_patch16_224", {"global_pool": "avg"}, "A distilled ViT takes only"),
        ("swin_tiny_patch4_window7_224", {"depths": (2, 2)}, "differ in length"),
        ("swin_tiny_patch4_window7_224", {"num_heads": (3, 6, 12, 25)}, r"768 channels.*num_heads=25 \(stage 3\)"),
        ("swin_tiny_patch4_window7_224", {"window_size": (7, 7, 7)}, "does not fit 4 stages"),
        ("swin_tiny_patch4_window7_224", {"global_pool": "token"}, 'Use one of: "avg"; "" keeps the tokens'),
        ("mdbn_x4", {"num_feat": 0}, "num_feat=0 is out of range"),
        ("mdbn_x4", {"res_scale": float("nan")}, "res_scale=nan is not a finite number"),
        ("mdbn_x4", {"num_classes": 10}, '"num_classes" is not an argument of mdbn_x4. It takes: num_feat, num_block'),
        ("edsr_x4", {"img_range": 0}, "img_range=0 is out of range"),
        ("edsr_x4", {"rgb_mean": (0.5, 0.5)}, r"rgb_mean=\(0\.5, 0\.5\) is not a colour"),
        ("mdbn_x4", {"rgb_mean": (0.5, "a", 0.5)}, "is not a colour"),
        ("mdbn_x4", {"img_range": -1.0}, r"img_range=-1\.0 is out of range"),
        ("mdbn_x8", {"global_skip": "bilinear"}, 'global_skip="bilinear" is not possible.*Use one of: "bicubic"'),
    ],
)
def test_impossible_arguments_are_errors(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        models.create(name, **kwargs)
