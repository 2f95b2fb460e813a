"""The scoring program for super-resolution networks: sets, borders, colours, costs, and what it says to mistakes."""

from __future__ import annotations

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_weights import random_variables
from rich.console import Console

from jaxkd import data, evaluate, metrics, models, weights
from jaxkd.cli.score_table import print_table
from jaxkd.config import fields, recipes
from jaxkd.experiment import run as run_module
from jaxkd.superres import benchmark, scoring

TINY = {"num_feat": 8, "num_block": 1}
ARGS = [f"--model-arg={k}={v}" for k, v in TINY.items()]


def write_pictures(folder, count, seed, size=(47, 38)):
    """Smooth pictures of `size` (width, height)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two sets, A and B/HR, and weights of a tiny MDBN x2."""
    root = tmp_path_factory.mktemp("sr")
    write_pictures(root / "A", 2, 0)
    write_pictures(root / "B" / "HR", 3, 1, (40, 44))
    model = models.create("mdbn_x2", **TINY)
    variables = random_variables(model)
    weights.save_safetensors(root / "w.safetensors", model, variables)
    return root, model, variables


def scored(capsys, *argv: str) -> tuple[str, dict]:
    assert evaluate.main(list(argv)) == 0
    shown = capsys.readouterr().out.strip().splitlines()
    return "\n".join(shown[:-1]), json.loads(shown[-1])


def complaint(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(list(argv))
    assert caught.value.code == 2
    return capsys.readouterr().err


def by_hand(folder, enlarge, crop, luma):
    """Mean PSNR and SSIM over the pictures of a folder, cut to even sides and shrunk by two."""
    rows = []
    for path in sorted(folder.glob("*.png")):
        hr = np.asarray(Image.open(path).convert("RGB"))
        hr = hr[: hr.shape[0] // 2 * 2, : hr.shape[1] // 2 * 2]
        made = enlarge(data.imresize(hr, 1 / 2))
        rows.append((metrics.psnr(made, hr, crop, luma), metrics.ssim(made, hr, crop, luma)))
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(
    ("options", "crop", "luma", "convention"),
    [((), 2, True, "y_crop2"), (("--crop=4",), 4, True, "y_crop4"), (("--rgb",), 2, False, "rgb_crop2")],
)
def test_scores_are_those_of_arrays_by_hand(places, capsys, options, crop, luma, convention):
    root, model, variables = places
    argv = ["--model=mdbn_x2", f"--weights={root}/w.safetensors", *ARGS, *options]
    table, answer = scored(capsys, *argv, f"--data=one={root}/A", f"--data=two={root}/B")

    def network(lr):
        y = np.asarray(model.apply(variables, lr[None].astype(np.float32) / 255)[0][0])
        return np.rint(255 * np.clip(y, 0, 1)).astype(np.uint8)

    for name, folder in (("one", root / "A"), ("two", root / "B" / "HR")):
        for found, enlarge in ((answer["metrics"], network), (answer["bicubic"], lambda lr: data.imresize(lr, 2))):
            psnr, ssim = by_hand(folder, enlarge, crop, luma)
            assert found[f"{name}/psnr_{convention}"] == pytest.approx(psnr, abs=1e-3)
            assert found[f"{name}/ssim_{convention}"] == pytest.approx(ssim, abs=1e-5)
            assert f"{found[f'{name}/psnr_{convention}']:.2f}" in table
    assert answer["images"] == {"one": 2, "two": 3} and answer["luma"] is luma and answer["crop"] == crop
    assert f"psnr_{convention} (dB)" in table and "bicubic" in table and "GFLOP" not in table
    assert "cost" not in answer


def test_one_set_is_called_after_its_folder(places, capsys):
    root, *_ = places
    argv = ["--model=mdbn_x2", f"--weights={root}/w.safetensors", *ARGS]
    assert list(scored(capsys, *argv, f"--data={root}/B/HR")[1]["images"]) == ["B"]
    for entry, name, folder in (
        ("embedded:photos", "photos", "embedded:photos"),
        ("/data/Set5?lr=LR", "Set5", "/data/Set5?lr=LR"),
        ("A=/data/Set5?lr=LR", "A", "/data/Set5?lr=LR"),
        ("/data/a=b", "a=b", "/data/a=b"),
        ("Set5?lr=LR", "Set5", "Set5?lr=LR"),
    ):
        assert scoring.named_sets(entry, "--data") == {name: folder}
    assert scoring.named_sets((), "eval.sets") == {}


def test_a_run_is_scored_as_it_scored_itself(places, tmp_path, capsys):
    root, *_ = places
    changes = {
        "data.source": str(root / "A"),
        "data.workers": 0,
        "data.patches.size": 16,
        "eval.sets": (f"A={root}/A", f"B={root}/B"),
        **{f"student.args.{k}": v for k, v in TINY.items()},
        "train.batch_size": 2,
        "schedule.steps": 2,
        "optimizer.learning_rate": 1e-2,
        "ema.decay": 0.5,
        "log.tensorboard": False,
    }
    config = fields.change(recipes.super_resolution(fields.base(), "mdbn_x2"), changes).lock()
    result = run_module.run(config, tmp_path / "run")["metrics"]
    data_flags = (f"--data=A={root}/A", f"--data=B={root}/B")
    for flag, prefix in (("--variant=raw", ""), ("--variant=ema", "ema_")):
        _, answer = scored(capsys, f"--weights={tmp_path}/run", flag, *data_flags)
        assert answer["model"] == "mdbn_x2" and answer["metrics"]
        for name, value in answer["metrics"].items():
            assert value == pytest.approx(result[prefix + name], abs=1e-6), name
    assert result["A/psnr_y_crop2"] != result["ema_A/psnr_y_crop2"]


def test_cost_is_counted_from_the_convolutions(places, capsys, monkeypatch):
    root, model, variables = places
    # of mdbn_x2: 3 -> 8, two base blocks of three 8 -> 8, 8 -> 8, 8 -> 32 at half size; 8 -> 3 at full size
    small = 9 * (3 * 8 + 6 * 8 * 8 + 8 * 8 + 8 * 32) * 360 * 640
    large = 9 * 8 * 3 * 720 * 1280
    argv = ["--model=mdbn_x2", f"--weights={root}/w.safetensors", f"--data={root}/A", "--cost", *ARGS]
    table, answer = scored(capsys, *argv)
    cost = answer["cost"]
    assert cost["gflop"] == pytest.approx(2 * (small + large) / 1e9, rel=1e-12)
    parameters = 9 * (3 * 8 + 6 * 8 * 8 + 8 * 8 + 8 * 32 + 8 * 3) + 8 + 6 * 8 + 8 + 32 + 3
    assert cost["parameters"] == parameters and cost["result"] == [720, 1280]
    assert cost["latency_ms"] > 0 and cost["memory_mb"] > 4 * 3 * 720 * 1280 / 1e6  # the result alone
    for text in ("GFLOP", f"{parameters:,}", f"{cost['gflop']:.2f}", "median of 5 calls on cpu"):
        assert text in table
    monkeypatch.setattr(benchmark, "RESULT", (7, 10))
    assert benchmark.measure_cost(model, variables)["result"] == [8, 10]


def test_equal_pictures_are_written_as_text(places, tmp_path, capsys):
    """Black pictures and a network without weights: the result is equal, and JSON has no infinity."""
    _, model, variables = places
    tmp_path.joinpath("black").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "black" / "0.png")
    weights.save_safetensors(tmp_path / "w.safetensors", model, jax.tree.map(jnp.zeros_like, variables))
    argv = ["--model=mdbn_x2", f"--weights={tmp_path}/w.safetensors", *ARGS, f"--data={tmp_path}/black"]
    table, answer = scored(capsys, *argv)
    assert answer["metrics"]["black/psnr_y_crop2"] == answer["bicubic"]["black/psnr_y_crop2"] == "inf"
    assert answer["metrics"]["black/ssim_y_crop2"] == 1.0 and "inf" in table


def test_scores_stay_readable_in_80_columns():
    kinds = [f"{metric}_{space}_crop4" for space in ("y", "rgb") for metric in ("psnr", "ssim")]
    scores = {f"Set5/{kind}": 31.25 for kind in kinds}
    cost = {"parameters": 1_665_283, "gflop": 104.2, "latency_ms": 20.5, "memory_mb": 99.0, "result": (720, 1280)}
    cost |= {"flop_is": "counted", "calls": 5, "device": "cpu"}
    result = {"model": "mdbn_x4", "loaded": "w", "images": {"Set5": 5}, "metrics": scores, "bicubic": scores}
    wide, narrow = io.StringIO(), io.StringIO()
    for out, width in ((wide, 200), (narrow, 80)):
        print_table(result | {"cost": cost, "compute": "float32"}, Console(file=out, width=width))
    assert "left out" not in wide.getvalue() and "1,665,283" in wide.getvalue()
    table = narrow.getvalue().partition("Columns left out to fit the terminal: images, MB, GFLOP")
    assert table[1] and max(map(len, table[0].splitlines())) <= 80 and "…" not in table[0]
    assert all(word in table[0] for word in ("mdbn_x4", "bicubic", "psnr_y_crop4 (dB)", "31.25"))


def test_names_are_no_markup():
    scores = {"[b]x/psnr_y_crop2": "inf", "[b]x/ssim_y_crop2": 1.0}
    out = io.StringIO()
    result = {"model": "m", "loaded": "w[1]", "images": {"[b]x": 1}, "metrics": scores, "bicubic": scores}
    print_table(result, Console(file=out, width=100))
    assert "[b]x" in out.getvalue() and "w[1]" in out.getvalue() and "inf" in out.getvalue()


def test_wrong_sets_and_borders(places, tmp_path, capsys):
    root, *_ = places
    argv = ["--model=mdbn_x2", f"--weights={root}/w.safetensors", *ARGS]
    assert '"/nowhere" does not exist' in complaint(capsys, *argv, "--data=X=/nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in complaint(capsys, *argv, f"--data={tmp_path}/empty")
    for other in (f"A={root}/B", f"{root}/A"):
        text = complaint(capsys, *argv, f"--data=A={root}/A", f"--data={other}")
        assert '--data names two sets "A"' in text and "NAME=FOLDER" in text
    for crop in ("3", "", "-1"):
        text = complaint(capsys, *argv, f"--data={root}/A", f"--crop={crop}")
        assert f"argument --crop: invalid choice: '{crop}' (choose from" in text
    assert "The command line was not understood" in complaint(capsys, *argv)
    broken = write_pictures(tmp_path / "broken", 3, 4)
    for i in (0, 2):
        (broken / f"{i}.png").write_bytes((broken / f"{i}.png").read_bytes()[:90])
    text = complaint(capsys, *argv, f"--data=mine={broken}").splitlines()[-1]
    assert '2 of 3 images of the set "mine" cannot be read' in text and "0.png" in text and "2.png" in text
    write_pictures(tmp_path / "small", 1, 5, (24, 14))
    text = complaint(capsys, *argv, f"--data={tmp_path}/small")
    assert "0.png" in text and "cannot be scored" in text and "needs 11x11" in text


def test_options_of_the_other_kind_are_refused(places, capsys):
    root, *_ = places
    argv = ["--model=mdbn_x2", f"--weights={root}/w.safetensors", f"--data={root}/A", *ARGS]
    for option in ("--crop-pct=0.9", "--interpolation=bicubic", "--resize", "--batch-size=8", "--crop-pct=0"):
        text = complaint(capsys, *argv, option)
        assert option.rstrip(".09") in text and "mdbn_x2 enlarges images" in text
    classifier = ["--model=deit_tiny_patch16_224", "--weights=w.safetensors", "--data=embedded:digits"]
    for option in ("--crop=4", "--rgb", "--cost"):
        text = complaint(capsys, *classifier, option)
        assert option in text and "deit_tiny_patch16_224 classifies images" in text
    assert "--data was given 2 times" in complaint(capsys, *classifier, "--data=elsewhere")
