"""Runs that read the teacher's logits from a cache, against those that run the teacher; damage and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import ImageOps
from random_weights import random_variables
from stopping import StopAfter, run_stopped

from jaxkd import models, parallel, train, weights
from jaxkd.config import fields
from jaxkd.config.validate import validate
from jaxkd.data.files import claim_folder
from jaxkd.data.sources.digits import DigitsSource
from jaxkd.errors import ConfigError, DataError, NonFiniteLossError, TopologyError
from jaxkd.experiment import build, teacher_cache
from jaxkd.experiment import run as run_module
from jaxkd.losses import kl

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
TEACHER = SMALL | {"depth_token_only": 1}
MIXED = {"data.erase.probability": 0.5, "data.mix.mixup": 0.5, "optimizer.accumulate": 2}


def config(folder="", **changes):
    """Two steps an epoch on the digits, with a teacher of random weights."""
    sides = {"student": SMALL, "teacher": TEACHER}
    given = {f"{side}.args.{k}": v for side, args in sides.items() for k, v in args.items()}
    given |= {
        "task": "distillation",
        "data.source": "embedded:digits",
        "data.workers": 0,
        "teacher.name": "cait_xxs24_224",
        "teacher.weights": "none",
        "teacher.cache.path": str(folder),
        "distill.preset": "soft",
        "train.batch_size": 512,
        "train.steps": 4,
        "schedule.warmup_epochs": 0,
        "ema.decay": 0.0,
        "log.tensorboard": False,
        "log.every_steps": 1,
    }
    return fields.change(fields.base(), given | changes).lock()


def built(one):
    """The experiment with a random teacher whose logits differ between images."""
    experiment = build(one, parallel.make_mesh(), load=False)
    task = getattr(experiment.task, "task", experiment.task)
    task.teacher_variables = jax.tree.map(lambda x: 5 * x, random_variables(task.teacher.model, 3))
    return experiment


def fill(experiment, *, stop=None):
    """Fills the cache of an experiment as a run does."""
    teacher_cache.fill(
        experiment.task,
        experiment.pipeline,
        steps=experiment.settings.total_steps,
        key=experiment.key,
        mesh=experiment.mesh,
        accumulate=experiment.config.optimizer.accumulate,
        console=None,
        stop=stop or train.StopRequest(),
    )


def losses(experiment):
    """The terms of each step of the whole run."""
    state, step, rows = experiment.init_state(), experiment.compile_step(), []
    for _ in range(experiment.settings.total_steps):
        batch = parallel.put_batch(next(experiment.pipeline), experiment.mesh)
        state, metrics = step(state, batch, experiment.key, experiment.constants)
        rows.append(jax.device_get(metrics))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.bin"))}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """(folder, its config without changes) of a cache of two epochs."""
    folder = tmp_path_factory.mktemp("filled") / "logits"
    fill(built(config(folder)))
    return folder


@pytest.fixture
def copied(filled, tmp_path):
    return Path(shutil.copytree(filled, tmp_path / "logits"))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [MIXED | {"data.views": 1}, {}], ids=["mixed and repeated", "plain"])
def test_training_from_the_cache_is_training_with_the_teacher(tmp_path, changes):
    live = losses(built(config(**changes)))
    experiment = built(config(tmp_path / "logits", **changes))
    assert jax.tree.leaves(experiment.constants) == []
    fill(experiment)
    assert len(files(tmp_path / "logits")) == (1 if changes else 2)
    cached = losses(experiment)
    assert live.keys() == cached.keys() and live["kl"].min() > 1e-3
    for name in ("loss", "ce", "kl"):
        np.testing.assert_allclose(cached[name], live[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_kept_classes_decide_how_far_the_logits_are_off(filled, tmp_path):
    exact = next(built(config(filled)).pipeline)["teacher_log_probs"]
    off = {}
    for top_k in (2, 5):
        experiment = built(config(tmp_path / str(top_k), **{"teacher.cache.top_k": top_k, "train.steps": 1}))
        fill(experiment)
        stored = experiment.task.inputs(next(experiment.pipeline), experiment.key, {}).teacher[0]
        off[top_k] = float(kl(stored, exact).mean())
        best = exact.argsort(axis=1)[:, -top_k:]
        np.testing.assert_allclose(np.take_along_axis(stored, best, 1), np.take_along_axis(exact, best, 1), rtol=1e-5)
    assert 1e-6 < off[5] < off[2]


def test_a_second_student_reads_what_the_first_one_wrote(filled, monkeypatch):
    monkeypatch.setattr(train, "compile_batch_map", None)  # what runs the teacher
    first, second = built(config(filled)), built(config(filled, **{"seed": 5, "data.seed": 0}))
    for experiment in (first, second):
        fill(experiment)
    batches = next(first.pipeline), next(second.pipeline)
    np.testing.assert_array_equal(*(batch["teacher_log_probs"] for batch in batches))
    shorter = built(config(filled, **{"data.views": 1, "train.steps": 40}))  # the first epoch again and again
    fill(shorter)
    kept = [next(shorter.pipeline)["teacher_log_probs"] for _ in range(3)]
    np.testing.assert_array_equal(kept[0], kept[2])
    assert (kept[0] != kept[1]).any()


def test_views_repeat_images_order_and_what_happens_on_the_device():
    experiment = built(config(**(MIXED | {"optimizer.accumulate": 1})))
    augment, steps = jax.jit(lambda key, batch: experiment.task.augment(key, batch)[0]), 2

    def images(views, step):
        pipeline = built(config(**MIXED, **{"data.views": views})).pipeline
        pipeline.set_state({**pipeline.get_state(), "position": step})
        key = train.step_key(experiment.key, np.int32(step), repeat_after=views * steps)
        return np.asarray(augment(train.data_key(key), next(pipeline)))

    assert experiment.settings.steps_per_epoch == steps
    first = images(1, 0)
    np.testing.assert_array_equal(images(1, steps), first)
    np.testing.assert_array_equal(images(2, 2 * steps), first)
    assert not np.allclose(images(2, steps), first)
    assert not np.allclose(images(0, steps), first)


def test_an_interrupted_cache_is_completed(filled, tmp_path):
    folder = tmp_path / "logits"
    fill(built(config(folder)), stop=StopAfter(3))
    assert list(files(folder)) == ["epoch_0000/part_00000.bin"]
    experiment = built(config(folder))
    experiment.pipeline.set_state({**experiment.pipeline.get_state(), "position": 1})  # of a continued run
    fill(experiment)
    assert experiment.pipeline.get_state()["position"] == 1
    assert files(folder) == files(filled) and not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("how", ["flipped", "cut", "no manifest", "bad manifest", "absent"])
def test_damage_is_noticed(copied, how):
    part, manifest = copied / "epoch_0000" / "part_00000.bin", copied / "cache.json"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    {
        "flipped": lambda: part.write_bytes(content),
        "cut": lambda: part.write_bytes(content[:-9]),
        "no manifest": manifest.unlink,
        "bad manifest": lambda: manifest.write_text("[]"),
        "absent": part.unlink,
    }[how]()
    place = "cache.json" if "manifest" in how else "part_00000.bin"
    experiment = built(config(copied))
    with pytest.raises(DataError, match=rf"{place}.*(Delete|Start)"):
        if how in ("cut", "no manifest", "bad manifest"):  # before the first step
            fill(experiment)
        next(experiment.pipeline)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.seed": 3}, r"data.seed: 0 there, 3 now"),
        ({"teacher.cache.top_k": 3}, r"teacher.cache.top_k: 0 there, 3 now"),
        ({"teacher.cache.dtype": "float16"}, r"'float32' there, 'float16' now"),
        ({"train.batch_size": 256}, r"train.batch_size: 512 there, 256 now"),
        ({"data.augment.hflip": 0.0}, r"data.augment.hflip: 0.5 there, 0.0 now"),
        ({"data.mix.mixup": 0.2}, r"data.mix.mixup: None there, 0.2 now"),
        ({"data.per_class": 120}, r"records: 1438 there, 1200 now"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_the_cache_of_another_run_is_refused(filled, changes, words):
    with pytest.raises(DataError, match=rf"was written for another run. Choose another folder.*{words}"):
        fill(built(config(filled, **changes)))


def test_another_teacher_and_other_images_are_refused(filled, monkeypatch):
    experiment = built(config(filled))
    experiment.task.teacher_variables = random_variables(experiment.task.teacher.model, 4)
    with pytest.raises(DataError, match=r"teacher_fingerprint: '\w{16}' there, '\w{16}' now"):
        fill(experiment)
    experiment = built(config(filled))
    image = DigitsSource.image
    monkeypatch.setattr(DigitsSource, "image", lambda self, index: ImageOps.mirror(image(self, index)))
    with pytest.raises(DataError, match=r"of the batch after step 0 is not the one .* Restore the images"):
        next(experiment.pipeline)


def test_a_folder_in_use_is_refused(copied):
    shutil.rmtree(copied / "epoch_0001")
    with (
        claim_folder(copied),
        pytest.raises(DataError, match=r"Another process is writing .* choose another teacher.cache.path"),
    ):
        fill(built(config(copied)))


def test_logits_that_are_not_finite_are_not_stored(tmp_path):
    experiment = built(config(tmp_path / "logits"))
    experiment.task.teacher_variables = jax.tree.map(lambda x: x * np.nan, experiment.task.teacher_variables)
    with pytest.raises(NonFiniteLossError, match=r"teacher's logits are not finite .* Check teacher.weights"):
        fill(experiment)
    assert not files(tmp_path / "logits")


def test_what_a_cache_cannot_do_is_said_before_anything_is_read(monkeypatch):
    features = {"distill.preset": "soft+spectral", "distill.pairs": ((0, 0),)}
    with pytest.raises(ConfigError, match=r"the term spectral reads its features \(block_0\).* choose .* kl, hard"):
        build(config("x", **features), parallel.make_mesh(), load=False)
    with pytest.raises(ConfigError, match=r"teacher.cache.top_k=5 is set, but nothing reads it"):
        validate(config(**{"teacher.cache.top_k": 5}))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(TopologyError, match=r"this run has 2 hosts, and a cache is written and read by one"):
        build(config("x"), parallel.make_mesh(), load=False)


def test_a_plan_knows_the_batch(tmp_path):
    one = config(tmp_path, **{"teacher.cache.top_k": 3, "student.args.num_classes": 10, "teacher.args.num_classes": 10})
    experiment = build(one, parallel.make_mesh(), load=False, open_data=False)
    shapes = {k: v.shape for k, v in experiment.abstract_batch.items() if k.startswith("teacher")}
    assert shapes == {"teacher_log_probs": (512, 4), "teacher_classes": (512, 3)}
    assert jax.tree.leaves(experiment.task.abstract_constants) == []


@pytest.mark.slow
def test_a_population_reads_the_cache(tmp_path):
    members = {"population": {"distill.preset": ("none", "soft")}, "distill.preset": "none"}
    live = losses(built(config(**members)))
    experiment = built(config(tmp_path / "logits", **members))
    fill(experiment)
    cached = losses(experiment)
    assert live["kl"].shape == (4, 2)
    np.testing.assert_allclose(cached["loss"], live["loss"], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_stopped_and_continued_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    model = models.create("cait_xxs24_224", num_classes=10, **TEACHER)
    weights.save_safetensors(tmp_path / "teacher.safetensors", model, random_variables(model, 5))
    given = {"teacher.weights": str(tmp_path / "teacher.safetensors"), "data.views": 1, **MIXED}
    whole = run_module.run(config(tmp_path / "logits", **given), tmp_path / "whole")
    assert whole["finished"] and len(files(tmp_path / "logits")) == 1
    before = files(tmp_path / "logits")
    half = run_stopped(monkeypatch, config(tmp_path / "other", **given), tmp_path / "halves", after=4)
    assert not half["finished"] and 0 < half["step"] < 4
    rest = run_module.run(config(tmp_path / "other", **given), tmp_path / "halves")
    assert rest["finished"] and rest["metrics"] == whole["metrics"] and files(tmp_path / "other") == before
    rows = [train.read_metrics(tmp_path / name, "train") for name in ("whole", "halves")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
