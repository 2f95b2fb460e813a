"""Containers, prefixes and variants of training checkpoints: which state dict is taken, and what is said of it."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from random_weights import random_variables

from jaxkd import models, weights
from jaxkd.errors import ConfigError, WeightMismatchError, WeightSourceError
from jaxkd.weights import candidates, readers

RAW, EMA = {"w": np.zeros(1, np.float32)}, {"w": np.ones(1, np.float32)}
TINY = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def choose(content, variant, origin="x.pth") -> float:
    """The number in the chosen state dict of a network whose only array is "w"."""
    return float(candidates.choose(content, {"w": (1,)}, variant, origin).state["w"][0])


# --- raw weights or a moving average


@pytest.mark.parametrize(
    ("raw", "ema"),
    [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("student", "teacher"), ("net", "ema"), ("w_", "swa")],
)
def test_the_variant_decides_and_raw_is_taken_aloud(raw, ema, caplog):
    checkpoint = {raw: RAW, ema: EMA, "optimizer": {"state": {}}, "epoch": 3}
    with caplog.at_level(logging.WARNING):
        assert choose(checkpoint, None) == 0
    assert f'raw weights ("{raw}") and their moving average ("{ema}"); the raw ones were taken' in caplog.text
    caplog.clear()
    assert choose(checkpoint, "raw") == 0
    assert choose(checkpoint, "ema") == 1
    assert not caplog.records


def test_timms_names_go_before_deits_and_the_other_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        assert choose({"model": EMA, "state_dict": RAW}, "raw") == 0
    assert '"state_dict" was taken and not "model"' in caplog.text


@pytest.mark.parametrize("checkpoint", [RAW, {"model": RAW}, {"model": RAW, "model_ema": None}])
def test_no_moving_average_is_an_error_and_not_a_fallback(checkpoint):
    with pytest.raises(WeightSourceError, match=r'variant="ema", but "x\.pth" holds no moving average'):
        choose(checkpoint, "ema")
    assert choose(checkpoint, "raw") == 0


def test_a_lone_moving_average_is_no_raw_weights(caplog):
    with pytest.raises(WeightSourceError, match=r"no raw weights beside the moving average: there is only model_ema"):
        choose({"model_ema": EMA}, "raw")
    for checkpoint in ({"model_ema": EMA}, {"n_averaged": np.int64([3]), "module.w": EMA["w"]}):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert choose(checkpoint, None) == 1
        assert "holds only a moving average" in caplog.text


def test_a_moving_average_without_names_is_said(caplog):
    """torch-ema's state dict: a list in the order of the parameters of the network."""
    average = {"decay": 0.999, "num_updates": 7, "shadow_params": [np.ones(1)] * 4, "collected_params": None}
    words = r'"shadow_params" are a moving average in a list of 4 arrays without names.*shadow\.copy_to'
    with pytest.raises(WeightSourceError, match=rf"holds no weights: .*{words}"):
        choose(average, None)
    with pytest.raises(WeightSourceError, match=rf"holds no moving average of the weights: .*{words}"):
        choose({"state_dict": RAW, "callbacks": {"EMA": average}}, "ema")
    with caplog.at_level(logging.WARNING):
        assert choose({"state_dict": RAW, "ema": average}, None) == 0
    assert re.search(rf"the raw weights was taken.*{words}|raw.*{words}", caplog.text)


def test_a_checkpoint_without_weights_says_what_it_holds():
    with pytest.raises(WeightSourceError, match=r'"x\.pth" holds no weights: its top level is epoch, args\. They'):
        choose({"epoch": 3, "args": {"lr": 1}}, None)


def test_an_unknown_variant_is_named():
    with pytest.raises(ConfigError, match=r'variant="emma" does not exist\. Did you mean "ema"\?'):
        choose(RAW, "emma")


def test_the_set_that_fits_is_taken_and_not_its_neighbour():
    other = {"w": np.full(2, 7, np.float32)}  # of another size
    assert choose({"student": other, "teacher": EMA}, None) == 1
    assert choose({"model": other, "backup": RAW}, None) == 0


@pytest.mark.parametrize(("variant", "number"), [(None, 0), ("raw", 0), ("ema", 1)])
def test_the_counter_of_an_average_says_nothing_of_the_weights_beside_it(variant, number):
    state = {"model.w": RAW["w"], "ema_model.n_averaged": np.array(5), "ema_model.module.w": EMA["w"]}
    assert choose({"state_dict": state}, variant) == number


@pytest.mark.parametrize("fits", ["student", "model_ema", "backup"])
def test_of_two_the_one_with_the_right_classifier_and_grid_is_taken(fits):
    expected = {"w": (1,), "head.weight": (10, 4), "pos_embed": (1, 5, 4)}
    for wrong in ({"head.weight": (1000, 4)}, {"pos_embed": (1, 10, 4)}):
        content = {
            name: RAW | {n: np.zeros(shape, np.float32) for n, shape in ({"w": (1,)} | shapes).items()}
            for name, shapes in (("model", expected | wrong), (fits, expected))
        }
        assert candidates.choose(content, expected, None, "x.pth").label == fits


def test_a_teacher_is_a_moving_average_only_of_a_student_of_its_shapes():
    other = {"w": np.full(2, 7, np.float32)}
    for checkpoint in ({"teacher": RAW}, {"student": other, "teacher": RAW}):
        assert choose(checkpoint, "raw") == 0
        with pytest.raises(WeightSourceError, match="holds no moving average"):
            choose({"teacher": RAW}, "ema")


@pytest.mark.parametrize("name", ["upscaler", "rescaler", "upgraded_model", "degrade", "optimus"])
def test_a_network_whose_name_is_like_a_trainers_state_is_found(name):
    assert choose({name: RAW}, None) == 0
    assert choose({f"{name}.w": RAW["w"]}, None) == 0


@pytest.mark.parametrize(
    "name",
    ["optimizer", "optimizer_states", "optimizerG", "lr_schedulers", "GradScaler", "amp_scaler", "exp_avg_sq", "grads"],
)
def test_a_trainers_state_is_no_network(name):
    with pytest.raises(WeightSourceError, match="holds no weights"):
        choose({name: RAW}, None)


# --- containers and prefixes of a real network


@pytest.fixture(scope="module")
def vit():
    """(network, its state dict)."""
    model = models.create("vit_tiny_patch16_224", **TINY)
    return model, weights.to_timm(model, random_variables(model, size=32))


def load(vit, monkeypatch, content, **options):
    """`weights.load` of a file with this content, as numbers by timm's names."""
    monkeypatch.setattr(readers, "read", lambda path: content)
    return weights.to_timm(vit[0], weights.load(vit[0], __file__, **options))


def assert_same(got, expected) -> None:
    assert set(got) == set(expected)
    assert all(np.array_equal(got[k], expected[k]) for k in got)


CONTAINERS = ["state_dict", "model", "model_state_dict", "module", "net", "network", "ema", "model_ema", "weights"]
CONTAINERS += ["params", "teacher", "student"]


@pytest.mark.parametrize("container", [*CONTAINERS, "anything", "model.state_dict"])
def test_every_container_is_found_beside_a_trainers_state(vit, monkeypatch, container):
    content = vit[1]
    for name in reversed(container.split(".")):
        content = {name: content}
    momentum = {"state": {0: {"exp_avg": np.zeros(3, np.float32)}}, "exp_avg": vit[1]}
    assert_same(load(vit, monkeypatch, {"optimizer": momentum, **content, "epoch": 3}), vit[1])


PREFIXES = ["module.", "model.", "net.", "backbone.", "encoder.", "student.", "_orig_mod.", "my_own_net."]


@pytest.mark.parametrize("prefix", [*PREFIXES, "model._orig_mod.module.", "_orig_mod.module.net.", "net.backbone."])
def test_every_prefix_is_taken_off(vit, monkeypatch, prefix):
    assert_same(load(vit, monkeypatch, {"state_dict": {prefix + k: v for k, v in vit[1].items()}}), vit[1])


def test_a_wrapper_inside_a_name_and_counters_of_other_tools_do_not_matter(vit, monkeypatch):
    state = {re.sub(r"^(blocks\.\d+\.)", r"model.\1_orig_mod.", k): v for k, v in vit[1].items()}
    state |= {"total_ops": np.zeros(1), "blocks.0.total_params": np.zeros(1), "n": np.int64(1)}
    state = {(k if k.startswith("model.") else f"model.{k}"): v for k, v in state.items()}
    state["model.norm.num_batches_tracked"] = np.int64(0)
    del state["model.n"]
    assert_same(load(vit, monkeypatch, state), vit[1])


def test_a_head_beside_the_backbone_belongs_to_it(vit, monkeypatch):
    state = {(k if k.startswith("head.") else f"backbone.{k}"): v for k, v in vit[1].items()}
    assert_same(load(vit, monkeypatch, {"model": state}), vit[1])


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (
            {"module.backbone.": "", "module.head.mlp.0.weight": 1, "module.head.last_layer.weight_g": 1},
            "head.mlp (1)",
        ),
        ({"": "", "projector.0.weight": 1, "queue": 1}, "projector (1), queue (1)"),
        ({"": "", "mask_token": 1, "decoder_pos_embed": 1, "decoder_blocks.0.norm1.weight": 1}, "mask_token (1)"),
        ({"model.": "", "criterion.weight": 1}, "criterion (1)"),
        ({"": "", "head.0.weight": 1, "head.3.weight": 1}, "head.0 (1), head.3 (1)"),
    ],
)
def test_heads_of_pre_training_are_left_out_and_named(vit, monkeypatch, caplog, extra, named):
    model = models.create("vit_tiny_patch16_224", **(TINY | {"num_classes": 0}))
    backbone = {k: v for k, v in vit[1].items() if not k.startswith("head.")}
    prefix, *names = extra
    state = {prefix + k: v for k, v in backbone.items()} | {n: np.zeros(3, np.float32) for n in names}
    with caplog.at_level(logging.WARNING):
        assert_same(load((model, None), monkeypatch, state), backbone)
    assert "were left out: " in caplog.text
    assert named in caplog.text


def test_what_may_be_part_of_the_network_is_never_left_out(vit, monkeypatch):
    for name in ("dist_token", "blocks.2.norm1.weight", "attn_pool.q.weight", "fc_norm.weight"):
        with pytest.raises(WeightMismatchError, match=re.escape(f"+ {name}")):
            load(vit, monkeypatch, {**vit[1], name: np.zeros((1, 1, 24), np.float32)})


def test_a_dense_float_array_is_asked_for_in_words(vit, monkeypatch):
    for bad, why in (
        (np.zeros(24, np.int8), "has the type int8, and weights are floating-point numbers"),
        (readers.Unreadable("is on the meta device", (24,)), "is on the meta device"),
        (readers.Unreadable("is float8", (24,)), "is float8"),
    ):
        with pytest.raises(WeightSourceError, match=rf'the tensor "norm\.weight" {why}'):
            load(vit, monkeypatch, {**vit[1], "norm.weight": bad})
        assert_same(load(vit, monkeypatch, {"model": vit[1], "stats": {"m": bad}}), vit[1])  # where nobody needs it
        with pytest.raises(WeightMismatchError, match="does not fit this"):  # the cause, and not the array beside it
            load(vit, monkeypatch, {**vit[1], "blocks.2.norm1.weight": bad})


def test_a_file_of_another_network_is_described_by_its_weights_and_not_by_its_metrics(vit, monkeypatch):
    content = {"metrics": {"acc": np.ones((), np.float32)}, "state_dict": {f"x.{i}": EMA["w"] for i in range(3)}}
    with pytest.raises(WeightMismatchError, match=r"its first is x\.0"):
        load(vit, monkeypatch, content)


# --- damage


def _odd_values(rng):
    yield from (np.zeros(0, np.float32), np.float32(np.nan), np.array("text"), np.zeros((1,) * 6), None, "x", 3, {}, [])
    yield readers.Unreadable("is sparse", (2,))
    yield rng.normal(size=tuple(rng.integers(0, 4, rng.integers(0, 5)))).astype(rng.choice(["f4", "i8", "?"]))


FUZZED = ["", "embeddings.patch_embeddings.projection.weight", "visual.class_embedding", "register_tokens", "pos_embed"]
FUZZED += ["layers.0.downsample.reduction.weight", "body.0.body.0.weight", "..", "module.", "head.weight", "cls_token"]
FUZZED += ["embeddings.cls_token", "encoder.layer.0.attention.attention.query.weight", "visual.proj", "a.b.c", "\n\0"]


def test_damaged_state_dicts_load_right_or_say_why(vit, monkeypatch):
    rng = np.random.default_rng(2026)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(300):
        state = dict(vit[1])
        for _ in range(rng.integers(0, 4)):
            name = str(rng.choice([*state, *FUZZED]))
            action = rng.integers(4)
            if action == 0:
                state.pop(name, None)
            elif action == 1 and name in state:
                state[str(rng.choice([*FUZZED, "module." + name, "net." + name]))] = state.pop(name)
            else:
                odd = list(_odd_values(rng))
                state[name] = odd[rng.integers(len(odd))]
        content = state if rng.random() < 0.5 else {str(rng.choice(CONTAINERS)): state, "epoch": 1}
        try:
            got = load(vit, monkeypatch, content, resize=bool(rng.random() < 0.5))
            assert_same(got, vit[1])
            outcomes["loaded"] += 1
        except (WeightSourceError, WeightMismatchError) as error:
            outcomes["refused"] += 1
            assert len(str(error).splitlines()[0]) > 40
    assert min(outcomes.values()) > 30, outcomes
