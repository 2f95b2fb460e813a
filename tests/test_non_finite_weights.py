"""Weights with NaN: every command and every role in training refuses them and names the tensor."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from random_weights import random_variables

from jaxkd import analyze, convert, evaluate, experiment, models, parallel, upscale, weights
from jaxkd.cli import console
from jaxkd.config import fields, recipes
from jaxkd.errors import WeightSourceError

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3}
SR = {"num_feat": 4, "num_block": 1}
CLASSIFIER = [
    "--model=deit_tiny_patch16_224",
    "--model-arg=num_classes=10",
    *(f"--model-arg={k}={v}" for k, v in VIT.items()),
]
UPSCALER = ["--model=edsr_x2", *(f"--model-arg={k}={v}" for k, v in SR.items())]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with vit.safetensors and edsr.safetensors, each with one NaN, and hr/a.png."""
    folder = tmp_path_factory.mktemp("nan")
    for name, args, file in (
        ("deit_tiny_patch16_224", VIT | {"num_classes": 10}, "vit"),
        ("edsr_x2", SR, "edsr"),
    ):
        model = models.create(name, **args)
        params = random_variables(model)["params"]
        module = "norm" if file == "vit" else "conv_last"
        params[module]["bias"][0] = np.nan
        weights.save_safetensors(folder / f"{file}.safetensors", model, {"params": params})
    (folder / "hr").mkdir()
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(folder / "hr" / "a.png")
    return folder


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (upscale, [*UPSCALER, "--weights=edsr.safetensors", "--in=hr/a.png", "--out=out.png"]),
        (evaluate, [*UPSCALER, "--weights=edsr.safetensors", "--data=hr"]),
        (evaluate, [*CLASSIFIER, "--weights=vit.safetensors", "--data=embedded:digits"]),
        (analyze, [*CLASSIFIER, "--weights=vit.safetensors", "--images=embedded:digits", "--out=report"]),
        (convert, [*UPSCALER, "--weights=edsr.safetensors", "--out=out.safetensors"]),
        (convert, [*UPSCALER, "--weights=edsr.safetensors", "--out=out.stablehlo"]),
    ],
)
def test_commands_refuse_and_name_the_tensor(files, capsys, monkeypatch, command, argv):
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    name = "norm.bias" if any("vit." in a for a in argv) else "conv_last.bias"
    assert f'holds NaN or infinity in "{name}"' in text
    assert not list(files.glob("out.*"))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_training_refuses_and_names_the_tensor(files, role):
    changes = {"data.source": "embedded:digits", "data.workers": 0, "train.batch_size": 16}
    changes |= {f"student.args.{k}": v for k, v in VIT.items()}
    if role == "teacher":
        changes |= {"task": "distillation", "teacher.name": "deit_tiny_patch16_224", "distill.preset": "soft"}
        changes |= {f"teacher.args.{k}": v for k, v in VIT.items() if k != "img_size"}
    config = fields.change(fields.base(), changes | {f"{role}.weights": str(files / "vit.safetensors")}).lock()
    with pytest.raises(WeightSourceError, match='holds NaN or infinity in "norm.bias"'):
        experiment.build(config, parallel.make_mesh())


def test_training_of_an_upscaler_refuses_and_names_the_tensor(files):
    for split in ("train", "val"):
        (files / "d" / split).mkdir(parents=True)
        (files / "d" / split / "a.png").write_bytes((files / "hr" / "a.png").read_bytes())
    changes = {"data.source": str(files / "d"), "data.workers": 0, "data.patches.size": 16, "train.batch_size": 1}
    changes |= {f"student.args.{k}": v for k, v in SR.items()} | {"student.weights": str(files / "edsr.safetensors")}
    config = fields.change(recipes.super_resolution(fields.base(), "edsr_x2"), changes).lock()
    with pytest.raises(WeightSourceError, match=r'holds NaN or infinity in "conv_last\.bias"'):
        experiment.build(config, parallel.make_mesh())


def test_a_work_directory_with_nan_is_refused(files, monkeypatch):
    from jaxkd.weights import network

    model = models.create("edsr_x2", **SR)
    variables = random_variables(model)
    variables["params"]["body_0"]["conv1"]["kernel"][0, 0, 0, 0] = np.inf
    config = {"student": {"name": "edsr_x2", "args": SR}}
    monkeypatch.setattr(network, "find_run", lambda path: path)
    monkeypatch.setattr(network, "load_run_weights", lambda path, **options: (variables, config, "step 7 of the run"))
    with pytest.raises(WeightSourceError, match='of step 7 of the run holds NaN or infinity in "body_0/conv1/kernel"'):
        weights.load(model, "run")


def test_a_run_of_another_grid_with_as_many_positions_is_resized_or_refused(monkeypatch):
    from jaxkd.errors import WeightMismatchError
    from jaxkd.weights import network

    args = VIT | {"num_classes": 3}
    square, flat = (models.create("deit_tiny_patch16_224", **(args | {"img_size": s})) for s in (16, (8, 32)))
    variables = random_variables(square)
    config = {"student": {"name": "deit_tiny_patch16_224", "args": args}}
    monkeypatch.setattr(network, "find_run", lambda path: path)
    monkeypatch.setattr(network, "load_run_weights", lambda path, **options: (variables, config, "step 7 of the run"))
    old = variables["params"]["pos_embed"]
    np.testing.assert_array_equal(weights.load(square, "run")["params"]["pos_embed"], old)
    with pytest.raises(WeightMismatchError, match=r"made for 4 x 4 positions, .* with 2 x 8 positions"):
        weights.load(flat, "run")
    got = weights.load(flat, "run", resize=True)["params"]["pos_embed"]
    expected = weights.resize_position_embedding(old, old_grid=(4, 4), new_grid=(2, 8), prefix=1)
    np.testing.assert_array_equal(got, expected)


def test_lines_of_json_hold_no_nan(capsys):
    result = {"psnr": float("inf"), "sets": {"a": [1.0, float("nan")]}, "name": "x", "images": 3, "none": None}
    console.print_json(result)
    out, err = capsys.readouterr()
    assert json.loads(out, parse_constant=pytest.fail) == {**result, "psnr": None, "sets": {"a": [1.0, None]}}
    assert "psnr=inf, sets.a[1]=nan" in err
