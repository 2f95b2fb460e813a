"""A super-resolution run end to end on a folder of pictures: training, scores, resume, and what it says to mistakes."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from pictures import smooth_pictures

from jaxkd import data, metrics, models, weights
from jaxkd.config import fields, recipes
from jaxkd.errors import ConfigError, JaxkdError
from jaxkd.experiment import restoration
from jaxkd.experiment import run as run_module
from jaxkd.superres.scoring import PairScorer
from jaxkd.train import load_run_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six smooth pictures for training, two for validation."""
    return smooth_pictures(tmp_path_factory.mktemp("pictures"), train=6, val=2)


def config_of(folder, **changes):
    config = recipes.super_resolution(fields.base(), "mdbn_x2")
    small = {
        "data.source": str(folder),
        "data.workers": 0,
        "data.patches.size": 16,
        "student.args.num_feat": 8,
        "student.args.num_block": 1,
        "train.batch_size": 4,
        "schedule.steps": 6,
        "eval.every_steps": 3,
        "checkpoint.every_steps": 3,
        "optimizer.learning_rate": 1e-3,
        "ema.decay": 0.5,
        "log.every_steps": 1,
        "log.tensorboard": False,
    }
    return fields.change(config, small | {k.replace("__", "."): v for k, v in changes.items()}).lock()


@pytest.mark.slow
def test_training_scores_raw_and_average_and_continues_bit_for_bit(folder, tmp_path, caplog):
    whole = run_module.run(config_of(folder), tmp_path / "whole")
    assert "The moving average at step 6 still holds 2 % of the initial weights" in caplog.text  # 0.5 ** 6
    assert whole["finished"] and whole["step"] == 6
    for name in ("val/psnr_y_crop2", "val/ssim_y_crop2", "ema_val/psnr_y_crop2", "ema_val/ssim_y_crop2"):
        assert np.isfinite(whole["metrics"][name]), name
    assert whole["best_val/psnr_y_crop2"] >= whole["metrics"]["val/psnr_y_crop2"]
    assert json.loads((tmp_path / "whole" / "bicubic.json").read_text())["val/psnr_y_crop2"] > 20
    run_module.run(config_of(folder, train__steps=3), tmp_path / "parts")
    # the same run, longer: train.steps is what differs, so it is changed where the run was stopped
    saved = json.loads((tmp_path / "parts" / "config.json").read_text())
    saved["train"]["steps"] = 0
    (tmp_path / "parts" / "config.json").write_text(json.dumps(saved))
    run_module.run(config_of(folder), tmp_path / "parts")
    one, two = (load_run_weights(tmp_path / name, variant="ema")[0] for name in ("whole", "parts"))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    assert load_run_weights(tmp_path / "whole", step="best")[2].startswith("step ")
    # what the run says of itself is what the pictures say
    network = weights.load_weights(weights.network_from_run(saved), str(tmp_path / "whole"), variant="ema")
    scores = []
    for pair in data.open_pairs(str(folder), 2, split="val"):
        y, _ = network.model.apply(network.variables, pair.lr[None].astype(np.float32) / 255)
        made = np.round(np.clip(np.asarray(y[0]), 0, 1) * 255).astype(np.uint8)
        scores.append(metrics.psnr(made, pair.hr, 2, True))
    assert np.mean(scores) == pytest.approx(whole["metrics"]["ema_val/psnr_y_crop2"], abs=1e-3)


@pytest.mark.slow
def test_the_loss_falls_and_unreadable_patches_do_not_count(folder):
    task = restoration.build_task(config_of(folder))
    params, _ = task.init(jax.random.key(0))
    batch = next(iter(restoration.build_pipeline(config_of(folder), data.open_pairs(str(folder), 2))))
    batch = {k: v for k, v in batch.items() if k != "broken"}

    def loss(p, b):
        return task.loss(p, {}, b, jax.random.key(0), 0, {})[0]

    value, gradient = jax.value_and_grad(loss)(params, batch)
    lower = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
    assert loss(lower, batch) < value
    spoilt = {**batch, "hr": batch["hr"].copy(), "mask": np.array([True, True, True, False])}
    spoilt["hr"][3] = 255 - spoilt["hr"][3]
    first = {k: v[:3] for k, v in batch.items()}
    np.testing.assert_allclose(loss(params, spoilt), loss(params, first), rtol=1e-5)


def test_bicubic_and_named_sets(folder):
    config = config_of(folder, eval__sets=(f"A={folder}", f"B={folder}"), eval__crop="4", eval__luma=False)
    sets = restoration.open_sets(config, 2)
    model = models.create("mdbn_x2", num_feat=8, num_block=1)
    scorer = PairScorer(model, sets, crop=4, luma=False)
    assert scorer.names == ("A/psnr_rgb_crop4", "A/ssim_rgb_crop4", "B/psnr_rgb_crop4", "B/ssim_rgb_crop4")
    found = scorer.compare_bicubic()
    pairs = list(data.open_pairs(str(folder), 2, split="val"))
    expected = np.mean([metrics.psnr(data.imresize(p.lr, 2), p.hr, 4, False) for p in pairs])
    assert found["A/psnr_rgb_crop4"] == found["B/psnr_rgb_crop4"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"student__name": "deit_tiny_patch16_224"}
            | {"student__args__num_feat": None, "student__args__num_block": None},
            "classifies images",
        ),
        ({"student__name": "deit_tiny_patch16_224"}, "student.args.num_block=1 is not an argument of deit_tiny"),
        ({"eval__sets": ("nowhere",)}, '"nowhere" does not exist'),
        ({"eval__sets": ("A=nowhere", "b/A")}, 'eval.sets names two sets "A"'),
        ({"eval__sets": ("A=/no/such/folder",)}, "/no/such/folder"),
        ({"data__patches__size": 15}, "does not divide by the scale"),
        ({"data__patches__size": 64}, "smaller than data.patches.size"),
        ({"restoration__loss": "l2"}, 'restoration.loss="l2"'),
        ({"label_smoothing": 0.2}, "label_smoothing=0.2 is set, but nothing reads it"),
        ({"eval__crop": "3"}, 'eval.crop="3"'),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_mistakes_are_explained(folder, tmp_path, changes, words):
    with pytest.raises(JaxkdError) as error:
        run_module.run(config_of(folder, **changes), tmp_path / "run")
    assert words in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_classification_run_refuses_what_only_super_resolution_reads(tmp_path):
    config = fields.change(fields.base(), {"data.source": "embedded:digits", "eval.sets": ("A=b",)})
    with pytest.raises(JaxkdError, match=r"eval.sets=.*nothing reads it"):
        run_module.run(config.lock(), tmp_path / "run")


def test_hosts_divide_the_images_of_a_set(folder, monkeypatch):
    model = models.create("mdbn_x2", num_feat=4, num_block=1)
    sets = {"six": data.open_pairs(str(folder), 2, split="train")}
    whole = PairScorer(model, sets, crop=4, luma=True).compare_bicubic()
    parts = []
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr("jaxkd.parallel.sum_over_hosts", lambda values: parts.append(values) or values)
    for host in range(4):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        PairScorer(model, sets, crop=4, luma=True).compare_bicubic()
    assert len(parts) == 4 and not any(np.allclose(parts[0], part) for part in parts[1:])
    np.testing.assert_allclose(np.sum(parts, axis=0) / 6, list(whole.values()), rtol=1e-12)


@pytest.mark.parametrize(("fsdp", "model", "name"), [(2, 1, "mesh.fsdp=2"), (1, 2, "mesh.model=2")])
def test_a_mesh_that_splits_parameters_is_refused(folder, fsdp, model, name):
    mesh = jax.sharding.AbstractMesh((1, fsdp, model), ("data", "fsdp", "model"))
    with pytest.raises(ConfigError, match=name):
        restoration.build_components(config_of(folder), mesh, workdir=None, console=None, load=False, open_data=False)
