"""`jaxkd convert`: each format, what it prints, and what it refuses in words."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from random_weights import random_variables
from sklearn.datasets import load_sample_images

import jaxkd
from jaxkd import convert, models, weights
from jaxkd.cli import networks
from jaxkd.errors import WeightMismatchError

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--model-arg=num_feat=4", "--model-arg=num_block=1"]


@pytest.fixture
def mdbn(tmp_path):
    """(network, variables, file) of a small MDBN."""
    model = models.create("mdbn_x2", num_feat=4, num_block=1)
    variables = random_variables(model)
    return model, variables, weights.save_safetensors(tmp_path / "in.safetensors", model, variables)


def options(file: Path, out: Path, *more: str) -> list[str]:
    return ["--model=mdbn_x2", *SMALL, f"--weights={file}", f"--out={out}", *more]


def test_as_a_program_it_writes_onnx_and_says_so(mdbn, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    from jaxkd.weights.exports.onnx import run_onnx

    model, variables, file = mdbn
    out = tmp_path / "m.onnx"
    done = subprocess.run(
        [sys.executable, "-m", "jaxkd.convert", *options(file, out, "--to=onnx")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    words, line = done.stdout.strip().splitlines()
    assert (
        words.startswith(f"{out}: mdbn_x2 from {file}, 0.")
        and "; outputs differ from the network's by at most " in words
    )
    data = json.loads(line)
    assert data["format"] == "onnx" and data["bytes"] == out.stat().st_size and data["largest_difference"] < 1e-5
    image = np.random.default_rng(0).uniform(size=(1, 3, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(run_onnx(out, image), model.apply(variables, image)[0], rtol=1e-4, atol=1e-4)


def test_stablehlo_by_the_ending_alone(mdbn, tmp_path, capsys):
    pytest.importorskip("flatbuffers", reason="needs the extra `export`")
    out = tmp_path / "m.stablehlo"
    assert convert.main(options(mdbn[2], out)) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[1])
    assert data["format"] == "stablehlo" and data["largest_difference"] < 1e-5 and out.is_file()


def test_safetensors_of_the_moving_average_of_a_pickle_like_file(mdbn, tmp_path, capsys):
    model, variables, _ = mdbn
    raw = weights.to_basicsr(model, variables)
    content = {f"params.{k}": v for k, v in raw.items()} | {f"params_ema.{k}": v + 1 for k, v in raw.items()}
    file = tmp_path / "both.npz"
    np.savez(file, **content)
    for variant, shift, words in ((None, 1, "params_ema"), ("raw", 0, '"params"')):
        out = tmp_path / f"{variant or 'default'}.safetensors"
        assert convert.main(options(file, out, *([f"--variant={variant}"] if variant else []))) == 0
        assert words in capsys.readouterr().out
        kernel = weights.load(model, out)["params"]["conv_last"]["kernel"]
        np.testing.assert_array_equal(kernel, variables["params"]["conv_last"]["kernel"] + shift)


def test_a_classifier_goes_to_every_format_and_predicts_the_same_from_each(tmp_path, capsys, complaint_of):
    args = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = models.create("deit_tiny_patch16_224", **args)
    variables = random_variables(model, size=32)
    file = weights.save_safetensors(tmp_path / "in.safetensors", model, variables)
    command = ["--model=deit_tiny_patch16_224", f"--weights={file}", *(f"--model-arg={k}={v}" for k, v in args.items())]
    assert convert.main([*command, f"--out={tmp_path / 'out.safetensors'}"]) == 0
    call = capsys.readouterr().out.splitlines()[1].removeprefix("In timm: ")
    assert call.startswith('timm.create_model("deit_tiny_patch16_224", num_classes=3, ') and "img_size=(32, 32)" in call
    jax.tree.map(np.testing.assert_array_equal, weights.load(model, tmp_path / "out.safetensors"), variables)
    pytest.importorskip("onnxruntime")
    photo = load_sample_images().images[0]
    expected = jaxkd.predict(*jaxkd.load(tmp_path / "out.safetensors"), photo)
    for ending, options in (("onnx", []), ("onnx", ["--with-preprocessing"]), ("stablehlo", ["--with-preprocessing"])):
        out = tmp_path / f"out{len(options)}.{ending}"
        assert convert.main([*command, f"--out={out}", *options]) == 0
        done = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert done["largest_difference"] < 1e-4
        exported, nothing = jaxkd.load(out)
        assert nothing == {} and exported.name == "deit_tiny_patch16_224" and exported.class_names == ("0", "1", "2")
        given = jaxkd.predict(exported, {}, [photo, photo])[1]
        assert [name for name, _ in given] == [name for name, _ in expected]
        np.testing.assert_allclose([p for _, p in given], [p for _, p in expected], atol=1e-5)
    text = complaint_of(convert.main, [*command, f"--out={tmp_path / 'b.safetensors'}", "--with-preprocessing"])
    assert "--with-preprocessing is for programs" in text


def test_a_work_directory_knows_its_network(mdbn, tmp_path, capsys, monkeypatch):
    from jaxkd.weights import network

    model, variables, _ = mdbn
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    student = {"name": "mdbn_x2", "args": {"num_feat": 4, "num_block": 1, "res_scale": None}}
    (run / "config.json").write_text(json.dumps({"student": student}))
    asked = []

    def load(path, *, variant, step, **_):
        asked.append((str(path), variant, step))
        return variables, {"student": student}, "step 7 of the run"

    monkeypatch.setattr(network, "load_run_weights", load)
    out = tmp_path / "m.safetensors"
    assert convert.main([f"--weights={run}", f"--out={out}", "--variant=ema", "--step=7"]) == 0
    assert asked == [(str(run), "ema", "7")] and "mdbn_x2 from step 7 of the run" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, weights.load(model, out), variables)
    with pytest.raises(SystemExit):
        convert.main([f"--weights={run}", "--model=mdbn_x4", f"--out={tmp_path / 'n.safetensors'}"])
    assert "trained mdbn_x2" in capsys.readouterr().err


def test_a_program_that_computes_something_else_is_not_written(mdbn, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    from jaxkd.weights.exports import onnx

    monkeypatch.setattr(onnx, "run_onnx", lambda content, image: np.zeros((1, 38, 48, 3)))
    out = tmp_path / "m.onnx"
    with pytest.raises(SystemExit):
        convert.main(options(mdbn[2], out))
    assert "differ from the network's by" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "exists already. Choose another name"),
        (("--out=x.pth",), '--out="x.pth" does not say the format'),
        (("--to=onnx",), "does not end in .onnx"),
        (("--to=tflite",), "was not understood: argument --to: invalid choice"),
        (("--model=", "--out=new.safetensors"), "--model is missing"),
        (("--model=mdbn_x5", "--out=new.safetensors"), 'Did you mean "mdbn_x'),
        (("--model=mdbn_x4", "--out=new.safetensors"), 'It has the arrays of models.create("mdbn_x2"'),
        (("--model-arg=num_feat", "--out=new.safetensors"), '--model-arg="num_feat" has no value'),
        (("--weights=gone.safetensors", "--out=new.safetensors"), 'The weights "gone.safetensors" do not exist'),
        (("--step=3", "--out=new.safetensors"), 'step="3" was given'),
        (("--variant=best", "--out=new.safetensors"), "argument --variant: invalid choice: 'best'"),
    ],
)
def test_one_paragraph_for_a_user_error(mdbn, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "old.safetensors"
    out.write_bytes(b"precious")
    with pytest.raises(SystemExit) as stop:
        convert.main(options(mdbn[2], out, *more))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("jaxkd: ") and words in error and "Traceback" not in error
    assert out.read_bytes() == b"precious"
    assert {p.name for p in tmp_path.iterdir()} == {"in.safetensors", "old.safetensors"}


def test_overwrite_replaces(mdbn, tmp_path):
    out = tmp_path / "old.safetensors"
    out.write_bytes(b"old")
    assert convert.main(options(mdbn[2], out, "--overwrite")) == 0
    assert out.stat().st_size > 100


# --- facts in the header


def test_a_written_file_needs_neither_model_nor_arguments(mdbn, tmp_path, capsys):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert convert.main(options(mdbn[2], first)) == 0
    assert convert.main([f"--weights={first}", f"--out={second}"]) == 0
    assert "mdbn_x2 from" in capsys.readouterr().out.splitlines()[-2]
    jax.tree.map(np.testing.assert_array_equal, weights.load(mdbn[0], second), mdbn[1])
    odd = tmp_path / os.fsdecode(b"\xff.safetensors")  # a name that UTF-8 cannot hold
    shutil.copy(first, odd)
    assert convert.main([f"--weights={odd}", f"--out={second}", "--overwrite"]) == 0
    assert [n.label for n in networks.resolve([networks.NetworkArgs(weights=str(first))])] == ["mdbn_x2"]
    # An argument of the command line goes before the file's, and the misfit says so.
    with pytest.raises(SystemExit):
        convert.main([f"--weights={second}", "--model-arg=num_block=3", f"--out={tmp_path / 'c.safetensors'}"])
    assert "The file has 1 block; you asked for 3 blocks." in capsys.readouterr().err


def test_grid_classes_and_preprocessing_of_a_classifier_come_back(tmp_path):
    args = {"img_size": (16, 64), "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 2}
    built = weights.build_network("vit_small_patch16_224.dino", args)
    spec = dataclasses.replace(built.spec, crop_pct=0.75, interpolation="bilinear")
    network = dataclasses.replace(built, spec=spec, class_names=("cat", "dog"))
    shapes = jax.eval_shape(network.model.init, jax.random.key(0), np.zeros((1, 16, 64, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), shapes)
    path = weights.save_safetensors(tmp_path / "v.safetensors", network.model, variables, weights.to_metadata(network))
    for model in ("", "vit_small_patch16_224", "vit_small_patch16_224.dino"):
        again = networks.load(networks.NetworkArgs(model=model, weights=str(path)))
        assert again.spec == spec and again.model == network.model and again.class_names == ("cat", "dog")
        jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
    # Another grid with as many positions is refused, and resized on request.
    square = models.create("vit_small_patch16_224", **(args | {"img_size": 32}))
    with pytest.raises(
        WeightMismatchError, match=r"made for 2 x 8 positions, .* with 4 x 4 positions\. Add resize=True"
    ):
        weights.load(square, path)
    got = weights.load(square, path, resize=True)["params"]["pos_embed"]
    old = np.asarray(variables["params"]["pos_embed"])
    expected = weights.resize_position_embedding(old, old_grid=(2, 8), new_grid=(4, 4), prefix=1)
    np.testing.assert_array_equal(got, expected)
    given = networks.NetworkArgs(weights=str(path), args={"img_size": 32}, old_grid="4x4")  # as if the file were wrong
    np.testing.assert_array_equal(networks.load(given, resize=True).variables["params"]["pos_embed"], old)


DAMAGED = [("args", "[[1]]"), ("grid", "[2, 0]"), ("grid", "3"), ("preprocessing", '{"std": [0, 0, 0]}')]
DAMAGED += [("class_names", "[[1]]"), ("model", ""), ("model", "3"), ("args", "nonsense")]


@pytest.mark.parametrize(("key", "value"), DAMAGED)
def test_damaged_facts_are_one_sentence(mdbn, tmp_path, complaint_of, key, value):
    model, variables, _ = mdbn
    path = weights.save_safetensors(tmp_path / "d.safetensors", model, variables, {f"jaxkd.{key}": value})
    text = complaint_of(convert.main, [f"--weights={path}", f"--out={tmp_path / 'o.safetensors'}"])
    assert f"is damaged: jaxkd.{key}=" in text and "\n" not in text
