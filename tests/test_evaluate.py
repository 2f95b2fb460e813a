"""`jaxkd evaluate` of classifiers: files, work directories, errors; network options of all commands."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_weights import random_variables

import jaxkd
from jaxkd import analyze, convert, data, evaluate, models, train, upscale, weights
from jaxkd.config import fields
from jaxkd.experiment import run as run_module

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps on the digits, with a moving average that differs from the raw weights."""
    changes = {f"student.args.{k}": v for k, v in SMALL.items()} | {
        "data.source": "embedded:digits",
        "data.workers": 0,
        "train.batch_size": 256,
        "train.epochs": 2,
        "schedule.warmup_epochs": 1,
        "optimizer.learning_rate": 1e-2,
        "ema.decay": 0.5,
        "log.tensorboard": False,
    }
    workdir = tmp_path_factory.mktemp("run") / "digits"
    return workdir, run_module.run(fields.change(fields.base(), changes).lock(), workdir)


def scored(capsys, *argv: str) -> dict:
    assert evaluate.main(list(argv)) == 0
    line, answer = capsys.readouterr().out.strip().splitlines()
    answer = json.loads(answer)
    assert f"top-1 {answer['top1']:.3f} %" in line and f"{answer['images']:,} images" in line
    return answer


def complaint(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(list(argv))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_run_is_loaded_in_python_with_the_labels_of_its_data(run):
    workdir, _ = run
    raw, variables = jaxkd.load(workdir)
    ema, averaged = jaxkd.load(workdir, variant="ema", step="last")
    assert raw.class_names == ema.class_names == tuple("0123456789") and "moving average" in ema.origin
    assert not np.array_equal(jax.tree.leaves(variables)[0], jax.tree.leaves(averaged)[0])
    source = data.open_source("embedded:digits", "val")
    photos = [source.image(i) for i in range(50)]
    likeliest = [prediction[0][0] for prediction in jaxkd.predict(raw, variables, photos, top=1)]
    pixels = np.stack([raw.preprocessing.crop(p) for p in photos])
    logits = raw.apply(variables, data.normalise(pixels, raw.preprocessing.mean, raw.preprocessing.std))[0]
    assert likeliest == [str(i) for i in np.argmax(logits, axis=-1)]


def test_raw_and_ema_of_a_run_are_what_training_scored(run, capsys):
    workdir, result = run
    raw = scored(capsys, f"--weights={workdir}", "--data=embedded:digits")
    ema = scored(capsys, f"--weights={workdir}", "--data=embedded:digits", "--variant=ema", "--batch-size=50")
    for name in ("top1", "top5", "loss"):
        assert raw[name] == pytest.approx(result["metrics"][name], rel=1e-5)
        assert ema[name] == pytest.approx(result["metrics"][f"ema_{name}"], rel=1e-5)
    assert raw["loss"] != ema["loss"] and raw["images"] == ema["images"] == 359


def test_weights_are_not_scored_on_other_classes_unless_asked_for(run, tmp_path, capsys):
    workdir, _ = run
    assert train.recorded_classes(workdir) == tuple("0123456789") and train.recorded_classes(tmp_path) == ()
    for name in (*"012345678", "ten"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "val" / name / "a.png")
    text = complaint(capsys, f"--weights={workdir}", f"--data={tmp_path}")
    assert "it lacks 9 and it has ten besides" in text
    assert scored(capsys, f"--weights={workdir}", f"--data={tmp_path}", "--other-classes")["images"] == 10


@pytest.mark.parametrize("command", [evaluate, analyze, upscale, convert], ids=lambda c: c.__name__)
def test_every_command_has_the_same_network_options(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help-all" if command is analyze else "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0 and "--variant raw|ema raw or averaged weights (raw; of BasicSR ema)" in text
    for option in ("--model NAME", "--model-arg NAME=VALUE", "--weights SOURCE", "--step STEP"):
        assert f" {option} " in text
    assert '"last" (default), "best"' in text


@pytest.mark.parametrize("command", [evaluate, analyze, upscale, convert], ids=lambda c: c.__name__)
@pytest.mark.parametrize("variant", ["ema", "raw"])
def test_variant_in_short_names_the_option(command, variant, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--weights=runs/a", f"--{variant}"])
    assert stopped.value.code == 2 and f"Write --variant={variant}." in capsys.readouterr().err


def test_weights_are_raw_by_default_in_every_command_and_named_in_the_output(run, tmp_path, capsys):
    workdir, _ = run
    few = ["--images=embedded:digits", "--max-images=3", "--permutations=0", "--bootstrap=1", "--no-figures"]
    images = [*few, "--saliency=0", "--gradients=none"]
    for variant, words in (([], "raw weights"), (["--variant=ema"], "moving average")):
        out = tmp_path / f"{words}.safetensors"
        assert convert.main([f"--weights={workdir}", *variant, f"--out={out}"]) == 0
        assert f"of {workdir} ({words})" in capsys.readouterr().out
        report = tmp_path / words
        assert analyze.main([f"--checkpoints={workdir}", *variant, *images, f"--out={report}"]) == 0
        assert f"of {workdir} ({words})" in capsys.readouterr().out
        models_found = json.loads((report / "results.json").read_text())["models"]
        steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
        assert [m["label"] for m in models_found] == [f"step {s}" for s in steps]
        assert all(words in m["weights"] for m in models_found) and list((report / "dynamics").glob("*.csv"))
    raw, ema = (weights.load(_tiny(), tmp_path / f"{w}.safetensors") for w in ("raw weights", "moving average"))
    saved = weights.load(_tiny(), workdir, variant="ema")
    jax.tree.map(np.testing.assert_array_equal, ema, saved)
    assert not np.array_equal(raw["params"]["head"]["kernel"], ema["params"]["head"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, raw, weights.load(_tiny(), workdir))


def _tiny():
    return models.create("deit_tiny_patch16_224", num_classes=10, **SMALL)


def test_a_file_is_scored_by_hand(tmp_path, capsys):
    model = models.create("deit_tiny_patch16_224", num_classes=10, **SMALL)
    variables = random_variables(model)
    weights.save_safetensors(tmp_path / "w.safetensors", model, variables)
    args = [f"--model-arg={k}={v}" for k, v in {**SMALL, "num_classes": 10}.items()]
    answer = scored(
        capsys,
        "--model=deit_tiny_patch16_224",
        f"--weights={tmp_path}/w.safetensors",
        "--data=embedded:digits",
        "--crop-pct=1.0",
        *args,
    )
    source = data.open_source("embedded:digits", "val")
    preprocess = data.EvalPreprocess((16, 16), 1.0, "bicubic")
    images = np.stack([preprocess(source.image(i)) for i in range(len(source))]) / 255.0
    images = (images - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    logits = np.asarray(model.apply(variables, jnp.asarray(images, jnp.float32))[0])
    labels = np.array([source.label(i) for i in range(len(source))])
    assert answer["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).mean(), abs=1e-4)
    few = ["--images=embedded:digits", "--max-images=40", "--batch-size=32", "--permutations=0", "--bootstrap=0"]
    few += ["--saliency=0", "--no-figures", "--no-ranks", "--crop-pct=1.0", f"--out={tmp_path / 'analysis'}"]
    network = ["--model=deit_tiny_patch16_224", f"--weights={tmp_path}/w.safetensors", *args]
    assert analyze.main([*network, *few]) == 0
    top1 = 100 * (logits.argmax(1) == labels)[:40].mean()
    assert f" · top-1 {top1:.1f} %" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "analysis" / "results.json").read_text())["models"]
    assert found["top1"] == pytest.approx(top1)
    assert (tmp_path / "analysis" / "accuracy.csv").read_text().splitlines()[1].endswith(f",40,{found['top1']!r}")
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert answer["loss"] == pytest.approx(-log_p[np.arange(len(labels)), labels].mean(), rel=1e-4)


def test_wrong_commands(run, tmp_path, capsys):
    workdir, _ = run
    digits = "--data=embedded:digits"
    assert "trained deit_tiny_patch16_224" in complaint(capsys, f"--weights={workdir}", digits, "--model=cait_s24_224")
    assert '"/nowhere" does not exist' in complaint(capsys, f"--weights={workdir}", "--data=/nowhere")
    assert "has no checkpoint of step 99" in complaint(capsys, f"--weights={workdir}", digits, "--step=99")
    assert "is not a work directory" in complaint(
        capsys,
        f"--weights={tmp_path}/x",
        digits,
        "--model=deit_tiny_patch16_224",
        "--model-arg=num_classes=10",
        "--step=1",
    )
    assert 'x.safetensors" do not exist' in complaint(capsys, f"--weights={tmp_path}/x.safetensors", digits)
    file = [f"--weights={tmp_path}/x.safetensors", digits, "--model=deit_tiny_patch16_224"]
    assert "has 1000 outputs, but embedded:digits has 10 classes" in complaint(capsys, *file)
    text = complaint(capsys, *file, "--model-arg=num_classes=10")
    assert f'"{tmp_path}/x.safetensors"' in text and "do not exist" in text
    assert f"{workdir.name}" in complaint(capsys, f"--weights={workdir.parent}", digits)
    assert "--weights is missing" in complaint(capsys, digits)
    assert "The command line was not understood" in complaint(capsys, f"--weights={workdir}")
    assert "NAME=VALUE" in complaint(capsys, f"--weights={workdir}", digits, "--model-arg=depth")
