"""`distill.pairs="auto"`: measured once, written down, taken again by a continued run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from random_weights import random_variables
from rich.console import Console
from stopping import StopAfter

from jaxkd import data, main, models, train, weights
from jaxkd.config import fields
from jaxkd.config.validate import validate
from jaxkd.errors import CheckpointError, ConfigError, DataError
from jaxkd.experiment import auto_pairs
from jaxkd.experiment import run as run_module
from jaxkd.experiment.classification import build_task, resolve
from jaxkd.experiment.sweep import stage_configs

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "num_heads": 3}
STUDENT, TEACHER = SMALL | {"depth": 4}, SMALL | {"depth": 6, "depth_token_only": 1}
HIGH_AT_THE_ENDS = (5.0, 1.0, 1.0, 1.0, 5.0, 6.0)  # one channel of the residual stream behind each block
EXPECTED = ((0, 0), (2, 4), (3, 5))
FLAT = (5.0, 5.0, 5.0, 5.0, 5.0, 5.0)


def config(path, **changes):
    """Two steps of distillation on the digits with a CaiT of six blocks."""
    small = {f"student.args.{k}": v for k, v in STUDENT.items()} | {f"teacher.args.{k}": v for k, v in TEACHER.items()}
    common = {
        "task": "distillation",
        "teacher.name": "cait_xxs24_224",
        "teacher.weights": str(path),
        "distill.preset": "soft+spectral",
        "distill.pairs": "auto",
        "data.source": "embedded:digits",
        "data.workers": 0,
        "train.batch_size": 256,
        "train.epochs": 3,
        "train.steps": 4,
        "schedule.warmup_epochs": 1,
        "ema.decay": 0.0,
        "checkpoint.every_steps": 2,
        "log.every_steps": 1,
        "log.tensorboard": False,
        "student.args.drop_path_rate": 0.2,
    }
    return fields.change(fields.base(), small | common | changes).lock()


def save_teacher(path, heights):
    """A CaiT whose blocks each add a constant to the first channel, so that it stands at `heights` behind them."""
    model = models.create("cait_xxs24_224", num_classes=10, **TEACHER)
    variables = random_variables(model)
    variables["params"]["patch_embed"]["proj"]["kernel"] *= 0.02
    for i, step in enumerate(np.diff(heights, prepend=0.0)):
        block = variables["params"][f"blocks_{i}"]
        block["gamma_2"] = np.ones(24, np.float32)
        block["mlp"]["fc2"]["bias"] = np.eye(24, dtype=np.float32)[0] * step
    weights.save_safetensors(path, model, variables)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "ends.safetensors", HIGH_AT_THE_ENDS)


def never(*_, **__):
    raise AssertionError("the teacher was measured again")


def run(config, workdir):
    """(result, what was printed)."""
    text = io.StringIO()
    result = run_module.run(config, workdir, console=Console(file=text, width=400))
    return result, text.getvalue()


@pytest.mark.slow
def test_a_continued_run_takes_the_pairs_it_started_with_bit_for_bit(tmp_path, teacher, monkeypatch):
    whole, _ = run(config(teacher, **{"distill.pairs": EXPECTED}), tmp_path / "whole")
    assert not (tmp_path / "whole" / "pairs.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(train, "StopRequest", lambda: StopAfter(3))
        half, text = run(config(teacher), tmp_path / "halves")
    assert not half["finished"] and half["step"] == 3
    assert "layer pairs from 32 validation images: block_0 <- block_0, block_2 <- block_4, block_3 <- block_5" in text
    assert "high in the first block and the last 2 blocks of 6" in text

    saved = json.loads((tmp_path / "halves" / "config.json").read_text())
    assert saved["distill"]["pairs"] == [list(p) for p in EXPECTED]
    choice = json.loads((tmp_path / "halves" / "pairs.json").read_text())
    assert choice["pairs"] == saved["distill"]["pairs"] and choice["threshold"] == 0.5
    assert choice["layers"] == [f"block_{i}" for i in range(6)] and len(choice["profile"]) == 6
    np.testing.assert_allclose(np.array(choice["profile"]) * 24, HIGH_AT_THE_ENDS, rtol=0.25)
    assert choice["teacher"] == "cait_xxs24_224" and choice["weights"] == str(teacher)

    with monkeypatch.context() as patch:
        patch.setattr(auto_pairs, "intensity_profile", never)
        rest, text = run(config(teacher), tmp_path / "halves")
    assert rest["finished"] and "layer pairs as chosen when the run started" in text
    assert whole["metrics"] == rest["metrics"]
    one, two = (train.load_run_weights(tmp_path / n)[0]["params"] for n in ("whole", "halves"))
    jax.tree.map(np.testing.assert_array_equal, one, two)

    # the same pairs by number are the same run, others are not
    again, _ = run(config(teacher, **{"distill.pairs": EXPECTED}), tmp_path / "halves")
    assert again["metrics"] == whole["metrics"] and (tmp_path / "halves" / "pairs.json").exists()
    with pytest.raises(CheckpointError, match=r"distill.pairs: \[\[0, 0\], \[2, 4\], \[3, 5\]\] there, 'last' now"):
        run(config(teacher, **{"distill.pairs": "last"}), tmp_path / "halves")


def test_a_profile_without_support_stops_the_run_before_it_claims_anything(tmp_path):
    path = save_teacher(tmp_path / "flat.safetensors", FLAT)
    words = r'pairs="auto" found no pairs. The profile is flat.*barely trained.*block_0 .*block_5 .*"first\+last".*'
    with pytest.raises(ConfigError, match=words + r'"\(\(0, 0\), \(3, 5\)\)"'):
        run(config(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_else_is_wrong_is_found_before_the_teacher_is_measured(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(auto_pairs, "intensity_profile", never)
    with pytest.raises(ConfigError, match="student.args.num_classes=7, but the data have 10"):
        run(config(teacher, **{"student.args.num_classes": 7}), tmp_path / "run")
    swin = {"teacher.name": "swin_tiny_patch4_window7_224", "teacher.args.window_size": 2, "teacher.args.patch_size": 2}
    swin |= {"teacher.args.depths": (1, 1), "teacher.args.num_heads": (3, 3), "teacher.args.depth": None}
    swin |= {"teacher.args.depth_token_only": None}
    with pytest.raises(ConfigError, match='"auto" is not possible for these networks, whose ends cannot.*grids'):
        run(config(teacher, **swin), tmp_path / "run")


def built(path, **changes):
    """A resolved config, the validation images and `build` for `auto_pairs.resolve_auto_pairs`."""
    one = resolve(config(path, **changes), num_classes=10)
    return one, data.open_source("embedded:digits", "val"), lambda c: build_task(c, num_classes=10)


def test_a_choice_counts_once_there_is_a_checkpoint(tmp_path, teacher):
    one, source, build = built(teacher)
    resolved, choice = auto_pairs.resolve_auto_pairs(one, tmp_path, source, build, None)
    assert resolved.distill.pairs == EXPECTED and resolved.is_locked and one.distill.pairs == "auto"
    (tmp_path / "pairs.json").write_text(json.dumps(choice | {"pairs": [[1, 1]]}))
    # nothing was trained with what an abandoned start wrote
    assert auto_pairs.resolve_auto_pairs(one, tmp_path, source, build, None)[0].distill.pairs == EXPECTED
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    assert auto_pairs.resolve_auto_pairs(one, tmp_path, source, never, None)[0].distill.pairs == ((1, 1),)
    for broken in ("{", "[]", '{"pairs": [[1]]}', '{"pairs": 3}'):
        (tmp_path / "pairs.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"pairs.json\" cannot be read.*config.json"):
            auto_pairs.resolve_auto_pairs(one, tmp_path, source, never, None)


def test_what_an_abandoned_start_left_is_removed_and_what_a_run_needs_stays(tmp_path):
    auto_pairs.save_pairs({"pairs": [[0, 0]]}, tmp_path)
    assert json.loads((tmp_path / "pairs.json").read_text()) == {"pairs": [[0, 0]]}
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    auto_pairs.save_pairs(None, tmp_path)  # the same pairs, given by number
    assert (tmp_path / "pairs.json").exists()
    (tmp_path / "checkpoints" / "2").rmdir()
    auto_pairs.save_pairs(None, tmp_path)
    assert not (tmp_path / "pairs.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints"]


def test_a_config_with_pairs_is_left_alone(tmp_path, teacher):
    one = config(teacher, **{"distill.pairs": "last"})
    resolved, choice = auto_pairs.resolve_auto_pairs(one, tmp_path, None, never, None)
    assert resolved is one and choice is None


def test_a_teacher_without_weights_is_warned_of(tmp_path, teacher, monkeypatch):
    one, source, _ = built(teacher)
    monkeypatch.setattr(auto_pairs, "intensity_profile", lambda *_: np.array(HIGH_AT_THE_ENDS))
    text = io.StringIO()
    console = Console(file=text, width=400)
    auto_pairs.resolve_auto_pairs(one, tmp_path, source, lambda c: build_task(c, num_classes=10, load=False), console)
    assert "weights are random. The profile of an untrained network says little" in text.getvalue()


def test_swin_goes_with_swin_by_stages_and_without_a_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr(auto_pairs, "intensity_profile", never)
    argv = [f"--config={ROOT}/configs/swin_swin.py:embedded", f"--workdir={tmp_path}", "--config.distill.pairs=auto"]
    one = stage_configs(main.parse(argv).config, tmp_path)["student_distilled"]
    validate(one)
    build = lambda c: build_task(c, num_classes=10, load=False)  # noqa: E731
    resolved, choice = auto_pairs.resolve_auto_pairs(resolve(one, num_classes=10), tmp_path, None, build, None)
    assert resolved.distill.pairs == ((0, 0), (1, 1)) and choice["taps"] == [["stage_0"] * 2, ["stage_1"] * 2]
    assert choice["profile"] is None and choice["images"] == 0 and "2 stages" in choice["reason"]
    assert build(resolved).objective.student_taps == ("stage_0", "stage_1")


@pytest.mark.slow
def test_a_stage_teaches_with_its_own_profile(tmp_path, teacher):
    first = {f"student.args.{k}": v for k, v in TEACHER.items()} | {f"teacher.args.{k}": None for k in TEACHER}
    first |= {"task": "classification", "teacher.name": "", "teacher.weights": "", "distill.preset": "none"}
    first |= {"distill.pairs": None, "student.name": "cait_xxs24_224", "student.weights": str(teacher)}
    stages = ({"name": "teacher", **first}, {"name": "student"})
    one = fields.change(config("stage:teacher"), {"stages": stages, "train.steps": 1}).lock()
    result, text = run(one, tmp_path)
    assert result["finished"] and "block_2 <- block_4, block_3 <- block_5" in text
    choice = json.loads((tmp_path / "student" / "pairs.json").read_text())
    assert str(tmp_path / "teacher") in choice["weights"] and choice["pairs"] == [list(p) for p in EXPECTED]
    assert not (tmp_path / "teacher" / "pairs.json").exists()


@pytest.mark.parametrize("name", ["deit_cait.py", "swin_swin.py:embedded", "swin_swin.py", "dynamics.py:last"])
def test_auto_can_be_chosen_on_the_command_line(name, tmp_path):
    argv = [f"--config={ROOT}/configs/{name}", f"--workdir={tmp_path}", "--config.data.source=/data"]
    one = main.parse([*argv, "--config.distill.pairs=auto"]).config
    assert one.distill.pairs == "auto"
    for stage in stage_configs(one, tmp_path).values() if one.stages else [one]:
        validate(stage)
    soft = main.parse([*argv, "--config.distill.pairs=auto", "--config.distill.preset=soft"]).config
    with pytest.raises(ConfigError, match="distill.pairs='auto' is set, but nothing reads it"):
        [validate(s) for s in (stage_configs(soft, tmp_path).values() if soft.stages else [soft])]


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_profile_is_the_published_intensity_in_fp32_with_the_teachers_own_normalisation(compute):
    network = weights.build_network("vit_tiny_patch16_224", SMALL | {"depth": 2}, compute=compute)
    assert network.spec.mean == (0.5, 0.5, 0.5)
    images = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3)).astype(np.uint8)
    normalised = (images / 255.0 - 0.5) / 0.5
    exact = network.model.clone(dtype=np.float32)
    variables = random_variables(exact)
    taps = ("block_0", "block_1")
    _, features = jax.jit(lambda v, x: exact.apply(v, x, taps=taps))(variables, normalised.astype(np.float32))
    stacked = np.stack([np.asarray(features[t], np.float64) for t in taps])  # (L, B, h, w, C)
    expected = np.abs(np.fft.fft(stacked, axis=-1) / 24).mean(axis=(1, 2, 3, 4))
    profile = auto_pairs.intensity_profile(network, variables, images, taps)
    assert profile.shape == (2,) and profile.dtype == np.float64
    np.testing.assert_allclose(profile, expected, rtol=1e-5)


def test_the_step_reads_the_teacher_in_its_own_types_and_the_choice_in_fp32(tmp_path, teacher):
    chosen = []
    for compute in ("float32", "bfloat16"):
        one, source, build = built(teacher, **{"precision.compute": compute})
        chosen.append(auto_pairs.resolve_auto_pairs(one, tmp_path / compute, source, build, None))
    assert chosen[0][1]["profile"] == chosen[1][1]["profile"]
    task = build(chosen[1][0])
    kept, fp32 = task.constants["params"]["blocks_0"], task.teacher_variables["params"]["blocks_0"]
    assert kept["mlp"]["fc1"]["kernel"].dtype == "bfloat16" and kept["norm1"]["scale"].dtype == "float32"
    assert fp32["mlp"]["fc1"]["kernel"].dtype == "float32"
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), task.constants)
    assert shapes == task.abstract_constants


class Split:
    """A split of grey images, each as bright as its index modulo 256."""

    def __init__(self, size, broken=()):
        self._size, self._broken = size, broken

    def __len__(self):
        return self._size

    def image(self, index):
        if index in self._broken:
            raise DataError(f"image {index} is broken")
        return Image.new("RGB", (16, 16), (index % 256,) * 3)


@pytest.mark.parametrize(
    ("size", "broken", "expected"),
    [
        (50_000, (), [i * 50_000 // 32 for i in range(32)]),
        (64, (0, 4), [i for i in range(0, 64, 2) if i not in (0, 4)]),
        (5, (), [0, 1, 2, 3, 4]),
    ],
)
def test_images_come_from_all_over_the_split(teacher, size, broken, expected):
    network = weights.build_network("cait_xxs24_224", TEACHER)
    images, used = auto_pairs._images(config(teacher), Split(size, broken), network)
    assert used == expected and images.shape == (len(expected), 16, 16, 3)
    assert images[:, 8, 8, 0].tolist() == [i % 256 for i in expected]


def test_a_split_without_a_readable_image(teacher):
    network = weights.build_network("cait_xxs24_224", TEACHER)
    with pytest.raises(DataError, match="no readable image among the 3 of the validation split.*image 2 is broken"):
        auto_pairs._images(config(teacher), Split(3, (0, 1, 2)), network)
