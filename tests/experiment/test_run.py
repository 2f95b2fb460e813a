"""Whole runs on tiny networks: resume, stages, what lies in the work directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from killing import differences, finish, run_killed
from random_weights import random_variables
from stopping import run_stopped

from jaxkd import distill, models, train, weights
from jaxkd.config import fields
from jaxkd.errors import CheckpointError, ConfigError, DataError
from jaxkd.experiment import run as run_module
from jaxkd.experiment.classification import build_task, resolve
from jaxkd.experiment.workdir import check_classes, check_subset

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
TEACHER = SMALL | {"depth_token_only": 1}


def config(**changes):
    """Three epochs of a few steps on the digits."""
    small = {f"student.args.{k}": v for k, v in SMALL.items()}
    common = {
        "data.source": "embedded:digits",
        "data.workers": 0,
        "train.batch_size": 512,
        "train.epochs": 3,
        "schedule.warmup_epochs": 1,
        "ema.decay": 0.9,
        "checkpoint.every_steps": 2,
        "log.every_steps": 1,
        "log.tensorboard": False,
    }
    return fields.change(fields.base(), small | common | changes).lock()


def with_teacher(path, **changes):
    teacher = {f"teacher.args.{k}": v for k, v in TEACHER.items()}
    distilling = {
        "task": "distillation",
        "teacher.name": "cait_xxs24_224",
        "teacher.weights": str(path),
        "distill.preset": "soft+spectral",
        "distill.pairs": ((0, 0), (1, 1)),
        "student.args.drop_path_rate": 0.2,
    }
    return config(**teacher, **distilling, **changes)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    model = models.create("cait_xxs24_224", num_classes=10, **TEACHER)
    variables = random_variables(model, 5)
    path = tmp_path_factory.mktemp("teacher") / "cait.safetensors"
    weights.save_safetensors(path, model, variables)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher_file):
    """(result, work directory) of a distillation that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return run_module.run(with_teacher(teacher_file, **{"log.tensorboard": True}), folder), folder


def final_params(workdir, variant="raw"):
    return train.load_run_weights(workdir, variant=variant)[0]["params"]


def assert_trees_equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_stopped_and_continued_run_is_the_uninterrupted_one(tmp_path, teacher_file, monkeypatch, whole):
    whole, folder = whole
    assert whole["finished"] and whole["step"] == 6
    half = run_stopped(monkeypatch, with_teacher(teacher_file), tmp_path / "halves", after=3)
    assert not half["finished"] and half["step"] == 3
    rest = run_module.run(with_teacher(teacher_file), tmp_path / "halves")
    assert rest["finished"] and rest["images_trained"] == whole["images_trained"] == 6 * 512
    for variant in ("raw", "ema"):
        assert_trees_equal(final_params(folder, variant), final_params(tmp_path / "halves", variant))
    lines = [train.read_metrics(path, "train") for path in (folder, tmp_path / "halves")]
    names = [k for k in lines[0][0] if k.startswith(("loss", "ce", "kl", "spectral", "learning_rate", "grad"))]
    assert len(names) == 9
    assert [[x[k] for k in names] for x in lines[0]] == [[x[k] for k in names] for x in lines[1]]
    assert whole["metrics"] == rest["metrics"]


@pytest.mark.slow
def test_a_run_in_loops_is_continued_block_by_block(tmp_path, teacher_file, monkeypatch, whole):
    """The loops of both networks change no loss, and no checkpoint."""
    _, folder = whole
    looped = with_teacher(teacher_file, **{"precision.scan_blocks": True, "precision.remat": "attention"})
    half = run_stopped(monkeypatch, looped, tmp_path / "halves", after=2)
    assert not half["finished"] and half["step"] == 2
    rest = run_module.run(with_teacher(teacher_file), tmp_path / "halves")
    assert rest["finished"] and rest["step"] == 6
    losses = [[x["loss"] for x in train.read_metrics(path, "train")] for path in (folder, tmp_path / "halves")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    ends = [jax.tree.leaves(final_params(path)) for path in (folder, tmp_path / "halves")]
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_run_that_was_killed_and_continued_is_the_uninterrupted_one(tmp_path):
    kills = int(os.environ.get("JAXKD_KILLS", "2"))
    argv = [
        f"--config={ROOT}/configs/supervised.py:embedded",
        f"--config.train.epochs={2 + kills}",
        "--config.train.batch_size=512",
        "--config.schedule.warmup_epochs=1",
        "--config.checkpoint.every_steps=2",
        "--config.ema.decay=0.9",
        "--config.log.every_steps=1",
        *(f"--config.student.args.{k}={v}" for k, v in SMALL.items()),
    ]
    finish(argv, tmp_path / "whole")
    steps = run_killed(argv, tmp_path / "killed", kills=kills)
    assert steps[0] > 0
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


@pytest.mark.slow
def test_a_work_directory_describes_its_run(whole):
    result, folder = whole
    saved = json.loads((folder / "config.json").read_text())
    assert saved["student"]["args"]["num_classes"] == 10 and saved["train"]["epochs"] == 3
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["val_images"] == 359 and set(result["metrics"]) >= {"top1", "top5", "loss", "ema_top1"}
    assert 0 <= result["metrics"]["top1"] <= 100
    parameters = (folder / "parameters.txt").read_text()
    assert "student/blocks_0/attn/qkv/kernel" in parameters and f"Total: {result['parameters']:,} " in parameters
    lines = train.read_metrics(folder, "train")
    line = lines[0]
    terms = {"ce": 0.1, "kl": 0.9, "spectral": 0.2}
    for name, weight in terms.items():
        assert line[f"{name}_weighted"] == pytest.approx(weight * line[name], rel=1e-5)
    assert line["loss"] == pytest.approx(sum(line[f"{n}_weighted"] for n in terms), rel=1e-5)
    assert {"images_per_second", "step_ms", "data_wait_percent"} <= set(lines[-1])
    assert [*(folder / "tensorboard").glob("events*")] and not (folder / "dynamics").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_stops_a_run_or_is_set_aside(tmp_path, capsys):
    from rich.console import Console

    change = {"train.steps": 4, "checkpoint.every_steps": 1, "checkpoint.keep_last": 3}
    whole = run_module.run(config(**change), tmp_path / "run")
    expected = final_params(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "4"
    (file,) = (newest / "params" / "d").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'checkpoints/4" cannot.*from step 3.*on_damage=previous'):
        run_module.run(config(**change), tmp_path / "run")
    again = {**change, "checkpoint.on_damage": "previous"}
    result = run_module.run(config(**again), tmp_path / "run", console=Console(width=200))
    said = " ".join(capsys.readouterr().out.split())
    assert "as it was written). Moved to" in said and "continues from step 3" in said and "Restore" not in said
    assert [*(tmp_path / "run" / "damaged").glob("4-*")]
    assert result["images_trained"] == whole["images_trained"] == 4 * 512
    assert_trees_equal(final_params(tmp_path / "run"), expected)  # step 4 was made and saved again

    path = tmp_path / "run" / "config.json"
    told = path.read_text()
    for content in ("", "\0" * 40, None):  # after a power cut; or deleted
        path.unlink() if content is None else path.write_text(content)
        run_module.run(config(**change), tmp_path / "run")
        assert json.loads(path.read_text())["student"] == json.loads(told)["student"]
    path.write_text("")
    assert train.load_run_weights(tmp_path / "run")[1]["student"]["args"]["depth"] == 2
    path.write_text(
        told.replace('"weight_decay": 0.05', '"weight_decay": 0.5').replace('"every_steps": 1', '"every_steps": 9')
    )
    text = (
        r"something else than the newest checkpoint.*differ in: optimizer.weight_decay: 0.5 in config.json, 0.05 in the"
    )
    for changes in (change, {**change, "optimizer.weight_decay": 0.5}):
        with pytest.raises(CheckpointError, match=text):
            run_module.run(config(**changes), tmp_path / "run")
    with pytest.raises(CheckpointError, match=text):
        train.load_run_weights(tmp_path / "run")
    path.write_text("")
    with pytest.raises(CheckpointError, match="belongs to another run.*weight_decay: 0.05 there, 0.5 now"):
        run_module.run(config(**{**change, "optimizer.weight_decay": 0.5}), tmp_path / "run")


def test_other_classes_are_noticed_on_resume(tmp_path):
    names = ("a1", "a2", "a10")
    check_classes({"classes": list(names), "config": {}}, names, config(), tmp_path)
    new, old = {"data": {"class_order": "natural"}}, {"data": {}}  # old: from before the field existed
    check_classes({"config": new}, names, config(), tmp_path)
    check_classes({"config": old}, ("a1", "a2"), config(), tmp_path)  # one order, whatever it is called
    check_classes({"config": old}, ("b", "a"), config(), tmp_path)  # of no folders
    check_classes({}, (), config(), tmp_path)
    text = config(**{"data.class_order": "text"})
    check_classes({"config": old}, ("a1", "a10", "a2"), text, tmp_path)
    for meta in ({"config": old}, {"config": new, "classes": ["a1", "a10", "a2"]}):
        with pytest.raises(DataError, match=r'another order.*label 1 is "a2" there and "a10" in'):
            check_classes(meta, names, config(), tmp_path)
    assert train.differing_fields(old, text, "there", "now").count("class_order") == 0
    assert "class_order" in train.differing_fields(new, text, "there", "now")


def test_a_run_on_few_images_records_them_and_refuses_others_on_resume(tmp_path):
    small = config(**{"data.per_class": 20, "train.batch_size": 64, "train.epochs": 2, "schedule.warmup_epochs": 0})
    result = run_module.run(small, tmp_path / "run")
    assert (result["train_images"], result["step"]) == (200, 6)
    listed = json.loads((tmp_path / "run" / "subset.json").read_text())
    meta = json.loads((tmp_path / "run" / "checkpoints" / "6" / "meta" / "metadata").read_text())
    assert len(listed["records"]) == 200 and meta["subset"]["sha256"] == listed["sha256"]
    with pytest.raises(CheckpointError, match="data.subset_seed: 0 there, 1 now"):
        run_module.run(fields.change(small, {"data.subset_seed": 1}).lock(), tmp_path / "run")
    facts = {"images": 200, "of": 1438, "sha256": listed["sha256"]}
    check_subset(facts, dict(facts), small, tmp_path)
    with pytest.raises(
        CheckpointError, match="another choice of images of embedded:digits .200 of 1438 there, all now"
    ):
        check_subset(facts, None, small, tmp_path)


def test_the_best_score_of_a_population_is_that_of_its_best_member(tmp_path):
    writer = train.MetricWriter(tmp_path, tensorboard=False)
    assert run_module.best_score(tmp_path, "top1") == {}
    writer.write("eval", 1, {"top1": np.array([50.0, float("nan"), 70.0])})
    writer.write("eval", 2, {"top1": np.array([60.0, 61.0, 62.0])})
    assert run_module.best_score(tmp_path, "top1") == {"best_top1": 70.0, "best_step": 1, "best_member": 2}
    writer.write("eval", 3, {"top1": 71.0})
    writer.write("eval", 4, {"top1": float("nan")})
    writer.close()
    assert run_module.best_score(tmp_path, "top1") == {"best_top1": 71.0, "best_step": 3}


def test_another_teacher_is_noticed_on_resume(tmp_path, teacher_file, monkeypatch):
    run_stopped(monkeypatch, with_teacher(teacher_file), tmp_path / "run", after=2)
    model = models.create("cait_xxs24_224", num_classes=10, **TEACHER)
    other, moved = tmp_path / "other.safetensors", tmp_path / "moved.safetensors"
    weights.save_safetensors(other, model, random_variables(model, 6))
    with pytest.raises(CheckpointError, match="was distilled from another teacher"):
        run_module.run(with_teacher(other), tmp_path / "run")
    moved.write_bytes(teacher_file.read_bytes())
    run_stopped(monkeypatch, with_teacher(moved), tmp_path / "run", after=1)  # whose checkpoint has that path
    assert run_module.run(with_teacher(teacher_file), tmp_path / "run")["finished"]


def test_a_student_starts_from_a_file_and_frozen_parts_stay(tmp_path):
    model = models.create("deit_tiny_patch16_224", num_classes=10, **SMALL)
    variables = random_variables(model, 9)
    path = tmp_path / "start.safetensors"
    weights.save_safetensors(path, model, variables)
    changes = {"student.weights": str(path), "student.freeze": ("patch_embed", "blocks_0"), "train.steps": 2}
    run_module.run(config(**changes), tmp_path / "run")
    before, after = variables["params"], final_params(tmp_path / "run")
    assert_trees_equal(before["patch_embed"], after["patch_embed"])
    assert_trees_equal(before["blocks_0"], after["blocks_0"])
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before["blocks_1"], after["blocks_1"]))
    assert all(moved)


@pytest.mark.slow
def test_stages_take_their_weights_from_one_another(tmp_path):
    stages = (
        {"name": "teacher", "student.args.depth": 3},
        {
            "name": "student",
            "task": "distillation",
            "teacher.name": "deit_tiny_patch16_224",
            "teacher.weights": "stage:teacher",
            "distill.preset": "soft+mse",
            "distill.pairs": "first+last",
            **{f"teacher.args.{k}": v for k, v in (SMALL | {"depth": 3}).items()},
        },
    )
    result = run_module.run(config(stages=stages, **{"train.steps": 2}), tmp_path)
    assert result["finished"] and list(result["stages"]) == ["teacher", "student"]
    assert json.loads((tmp_path / "summary.json").read_text())["stages"].keys() == {"teacher", "student"}
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    again = run_module.run(config(stages=stages, **{"train.steps": 2}), tmp_path)
    assert again["stages"]["student"]["metrics"] == result["stages"]["student"]["metrics"]


def test_a_stage_that_nobody_ran_before_is_an_error(tmp_path):
    stages = ({"name": "student", "student.weights": "stage:teacher"},)
    with pytest.raises(ConfigError, match="is not a stage before it"):
        run_module.run(config(stages=stages), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_cait", "swin_swin", "supervised"])
@pytest.mark.parametrize("variant", ["", "embedded"])
def test_every_config_builds_a_task(name, variant):
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole = module.get_config(variant or None)
    assert whole.is_locked
    if not variant:
        task = build_task(resolve(whole, num_classes=1000), num_classes=1000, load=False)
        weight = {"deit_cait": 0.2, "swin_swin": 0.05}.get(name)
        if weight:
            assert [float(w(0)) for w in task.objective._weights] == pytest.approx([0.1, 0.9, weight])
            assert isinstance(task.objective, distill.Objective)
            assert len(task.objective.student_taps) == {"deit_cait": 8, "swin_swin": 4}[name]
    assert len((ROOT / "configs" / f"{name}.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("task", ["classification", "distillation"])
def test_erasing_and_mixing_reach_the_images_of_every_task(teacher_file, task):
    changes = {"data.erase.probability": 1.0, "data.erase.mode": "const", "data.mix.mixup": 0.8, "label_smoothing": 0.0}
    one = with_teacher(teacher_file, **changes) if task == "distillation" else config(**changes)
    built = build_task(resolve(one, num_classes=10), num_classes=10)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(1, 255, (8, 16, 16, 3)).astype(np.uint8),
        "label": np.arange(8, dtype=np.int32),
        "mask": np.arange(8) != 2,
    }
    images, changed = jax.jit(built.augment)(jax.random.key(1), batch)
    assert changed["label"].shape == (8, 10)
    np.testing.assert_allclose(changed["label"].sum(axis=1), 1, rtol=1e-5)
    partner = changed["label"][5]  # of the image that could not be read: mixed with itself instead
    assert partner[5] == pytest.approx(1.0) and partner[2] == 0
    plain = built.preprocess(batch)
    assert (np.asarray(images) != np.asarray(plain)).any(axis=(1, 2, 3)).sum() >= 7


def test_long_values_of_differing_fields_are_cut_around_their_difference():
    terms = tuple({"loss": "mse", "name": f"mse_{i}", "weight": 0.2, "pairs": "last"} for i in range(20))
    changed = (*terms[:10], {**terms[10], "weight": 0.3}, *terms[11:])
    one, other = (fields.change(fields.base(), {"distill.terms": value}) for value in (terms, changed))
    (before, now), said = ("0.2", "0.3"), train.differing_fields(one, other, "there", "now")
    first, second = said.removeprefix("distill.terms: ").split(" there, ")
    assert len(first) <= 100 and len(second) <= 104 and first.startswith("...") and second.endswith("... now")
    assert f"'mse_10', 'weight': {before}" in first and f"'mse_10', 'weight': {now}" in second
