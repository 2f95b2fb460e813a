"""Super-resolution runs side by side: the table, the picture, the control of configs/mdbn_x4.py."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from pictures import smooth_pictures
from rich.console import Console
from stopping import run_stopped

from jaxkd import models, train
from jaxkd.config import fields, recipes
from jaxkd.config.validate import validate
from jaxkd.errors import ConfigError
from jaxkd.experiment import comparison, sweep
from jaxkd.experiment import run as run_module
from jaxkd.report import training_curves

ROOT = Path(__file__).resolve().parents[2]
BICUBIC = {"A/psnr_y_crop4": 28.0, "A/ssim_y_crop4": 0.8, "B/psnr_y_crop4": 26.0, "B/ssim_y_crop4": 0.7}


def rows_of(gain: float, ema: bool = True) -> list[dict]:
    """Three evaluations; at the first one the average is still far below."""
    rows = []
    for i, step in enumerate((100, 200, 300)):
        row: dict = {"kind": "eval", "step": step, "epoch": i}
        for name, value in BICUBIC.items():
            better = value + (gain + 0.1 * i if "psnr" in name else 0.01)
            row[name] = better
            if ema:
                row[f"ema_{name}"] = better - 15 if i == 0 and "psnr" in name else better + 0.02
        rows.append(row)
    return rows


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """`drawn(...)` -> the figure that `draw_scores` made of the same arguments."""
    from matplotlib.figure import Figure

    kept, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), savefig(self, *a, **k)))

    def draw(runs, **more):
        training_curves.draw_scores(runs, tmp_path / "curves.png", **more)
        assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
        return kept[-1]

    return draw


def test_a_panel_for_each_set_with_bicubic_average_and_raw(drawn):
    figure = drawn({"mdbn": rows_of(1.0), "edsr": rows_of(0.5, ema=False)}, bicubic=BICUBIC, caption="on two sets")
    assert [axis.get_title() for axis in figure.axes] == ["A", "B"]
    assert {axis.get_ylabel() for axis in figure.axes} == {"psnr_y_crop4 (dB)"}
    for axis, base in zip(figure.axes, (28.0, 26.0), strict=True):
        average, raw, *rest = axis.get_lines()
        np.testing.assert_array_equal(average.get_xdata(), [200, 300])  # the first one is left out
        np.testing.assert_allclose(average.get_ydata(), [base + 1.12, base + 1.22])
        np.testing.assert_allclose(raw.get_ydata(), [base + 1.0, base + 1.1, base + 1.2])
        assert average.get_linestyle() == "-" and raw.get_linestyle() == "--"
        assert average.get_color() == raw.get_color()
        (alone,) = [line for line in rest if len(line.get_xdata()) == 3]
        assert alone.get_linestyle() == "-" and alone.get_color() != raw.get_color()
        assert alone.get_marker() != raw.get_marker()
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert labels == [
            f"mdbn  {base + 1.22:.2f} / {base + 1.20:.2f}",
            f"edsr  {base + 0.70:.2f}",
            f"bicubic  {base:.2f}",
        ]
        (line,) = [line for line in rest if line.get_linestyle() == ":"]
        assert set(line.get_ydata()) == {base}
        assert axis.get_ylim()[0] < base < base + 1.22 < axis.get_ylim()[1]
    words = " ".join(figure.get_supxlabel().split())
    assert words.startswith("on two sets Solid, and the first number: moving average")
    assert words.endswith("Left out, below an axis: 2 scores.")


def test_what_is_not_finite_is_a_gap_and_nothing_at_all_is_no_error(drawn):
    rows = rows_of(1.0, ema=False)
    rows[1]["A/psnr_y_crop4"] = "nan"  # as metrics.jsonl writes it
    rows[2]["B/psnr_y_crop4"] = float("inf")
    figure = drawn({"run": rows}, bicubic=BICUBIC | {"B/psnr_y_crop4": float("inf")})
    np.testing.assert_array_equal(figure.axes[0].get_lines()[1].get_xdata(), [100, 300])
    np.testing.assert_array_equal(figure.axes[1].get_lines()[1].get_xdata(), [100, 200])
    assert not [line for line in figure.axes[1].get_lines() if line.get_linestyle() == ":"]
    assert not figure.get_supxlabel()
    rows = rows_of(1.0)
    rows[-1]["ema_A/psnr_y_crop4"] = 9.0  # where a curve ends is always shown
    assert drawn({"run": rows}, bicubic=BICUBIC).axes[0].get_ylim()[0] < 9
    assert len(drawn({"run": []}, bicubic={}).axes) == 1
    assert sum(axis.get_visible() for axis in drawn({"run": [four_sets()]}, bicubic={}).axes) == 4


def four_sets() -> dict:
    return {"step": 1, "loss": 2.0, **{f"{name}/psnr_y_crop4": 30.0 for name in "ABCD"}}


def test_a_set_may_be_called_like_an_average():
    names = ("ema_x/psnr_y_crop4", "ema_ema_x/psnr_y_crop4", "x/psnr_y_crop4")
    row = dict.fromkeys(names, 1.0) | {"ema_x/psnr_y_crop4": 2.0, "step": 1}
    assert training_curves.score_names(row, {"ema_x/psnr_y_crop4": 1.0, "x/psnr_y_crop4": 1.0}) == (names[0], names[2])
    assert training_curves.score_names(row, {}) == ("x/psnr_y_crop4",)


def test_captions_count_images_and_runs():
    result = {"train_images": 1200, "val_images": 19}
    assert training_curves.scores_caption("/data/x", 3, result) == (
        "/data/x: 1,200 training images; 19 scored over all sets. One run, seed 3."
    )
    assert training_curves.scores_caption("/data/x", 3, result, runs=2).endswith("One run each, seed 3.")


def test_the_table_has_every_set_raw_average_and_bicubic():
    def result(name, parameters, row):
        metrics = {k: v for k, v in row.items() if "/" in k}
        return {"student": name, "parameters": parameters, "metrics": metrics, "seconds": 7.4, "val_images": 19}

    results = {
        "mdbn": result("mdbn_x4", 1665283, rows_of(1.0)[-1]),
        "edsr": result("edsr_x4", 1517571, rows_of(0.5, ema=False)[-1]),
    }
    table = comparison.score_table(results, BICUBIC)
    assert [column.name for column in table.columns[-3:]] == ["A", "B", "seconds"]
    assert table.rows == [
        ("bicubic", "", "", "", "28.00\n0.8000", "26.00\n0.7000", ""),
        ("mdbn", "mdbn_x4", "1,665,283", "raw", "29.20\n0.8100", "27.20\n0.7100", "7"),
        ("", "", "", "EMA", "29.22\n0.8300", "27.22\n0.7300", ""),
        ("edsr", "edsr_x4", "1,517,571", "raw", "28.70\n0.8100", "26.70\n0.7100", "7"),
    ]
    assert "19" in str(table.title) and "y_crop4" in str(table.title)
    narrow = io.StringIO()
    Console(file=narrow, width=80).print(table)
    assert "…" not in narrow.getvalue() and "28.00" in narrow.getvalue() and "Columns left out" not in narrow.getvalue()


def test_many_sets_and_long_names_stay_readable_in_80_columns():
    names = ("mdbn_with_all_branches_and_distillation", "mdbn_with_all_branches_without_it")
    sets = ("Set5", "Set14", "BSD100", "Urban100", "Manga109", "DIV2K_validation")
    scores = {f"{s}/{metric}_y_crop4": value for s in sets for metric, value in (("psnr", 31.25), ("ssim", 0.9))}
    about = {"student": "mdbn_x4", "parameters": 1_665_283, "metrics": scores, "seconds": 7.4, "val_images": 19}
    out = io.StringIO()
    Console(file=out, width=80).print(comparison.score_table(dict.fromkeys(names, about), scores))
    lines, text = out.getvalue().splitlines(), out.getvalue()
    assert max(map(len, lines)) <= 80 and "…" not in text and "Set5" in text
    assert (
        all(name in text for name in (*names, "bicubic")) and "Columns left out to fit the terminal: seconds, " in text
    )
    assert "31.25" in text and "0.9000" in text


def control(*words: str):
    spec = importlib.util.spec_from_file_location("mdbn_x4", ROOT / "configs" / "mdbn_x4.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(",".join(words))


def parameters(config) -> int:
    args = {k: v for k, v in config.student.args.items() if v is not None}
    model = models.create(config.student.name, **args)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32))
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("words", "names", "counts"),
    [
        ((), ("mdbn_x4", "edsr_x4"), (1_665_283, 1_517_571)),
        (("embedded",), ("mdbn_x4", "edsr_x4"), (251_459, 251_459)),
        (("embedded", "scale=3"), ("mdbn_x3", "edsr_x3"), (260_707, 260_707)),
        (("scale=2",), ("mdbn_x2", "edsr_x2"), (1_517_571, 1_369_859)),
    ],
)
def test_control_trains_all_alike(tmp_path, words, names, counts):
    config = control("control", *words)
    if "embedded" not in words:
        config = fields.change(config, {"data.source": "/data"}).lock()
    stages = sweep.stage_configs(config, tmp_path)
    assert list(stages) == ["mdbn", "mdbn_range", "mdbn_skip", "edsr"]
    assert tuple(one.student.name for one in stages.values()) == (*(names[0],) * 3, names[1])
    assert tuple(parameters(one) for one in stages.values()) == (*(counts[0],) * 3, counts[1])
    first = fields.flatten(stages["mdbn"])
    for each in map(fields.flatten, stages.values()):
        assert {k for k in each if each[k] != first.get(k)} <= {
            *("student.name", "student.args.num_block"),
            *("student.args.img_range", "student.args.rgb_mean", "student.args.global_skip"),
        }
    for each in stages.values():
        validate(each)
    plain, ranged, skipping, edsr = (
        models.create(one.student.name, **{k: v for k, v in one.student.args.items() if v is not None})
        for one in stages.values()
    )
    assert (ranged.img_range, ranged.rgb_mean) == (edsr.img_range, edsr.rgb_mean) != (plain.img_range, plain.rgb_mean)
    assert skipping == plain.clone(global_skip="bicubic") and ranged.global_skip == edsr.global_skip == ""


def test_stages_of_the_control_are_selected_in_order(tmp_path):
    config = fields.change(control("control=edsr+mdbn_range"), {"data.source": "/data"}).lock()
    assert list(sweep.stage_configs(config, tmp_path)) == ["edsr", "mdbn_range"]
    for wrong in ("mdbn_rang", "mdbn+mdbn", "mdbn+"):
        with pytest.raises(ConfigError, match=r"Join some of these with \+: mdbn, mdbn_range, mdbn_skip, edsr"):
            control(f"control={wrong}")


@pytest.mark.parametrize("words", [("scale=8",), ("network=edsr",)])
def test_control_without_a_counterpart_is_refused(words):
    with pytest.raises(ConfigError, match="':control'|:control"):
        control("control", *words)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The control at a size of seconds: pictures, and both networks tiny."""
    root = smooth_pictures(tmp_path_factory.mktemp("pictures"), train=4, val=2)
    changes = {
        "data.source": str(root),
        "data.workers": 0,
        "data.patches.size": 16,
        "student.args.num_feat": 8,
        "student.args.num_block": 1,
        "train.batch_size": 2,
        "schedule.steps": 4,
        "eval.every_steps": 2,
        "checkpoint.every_steps": 2,
        "ema.decay": 0.5,
        "log.tensorboard": False,
    }
    return fields.change(recipes.super_resolution(fields.base(), "mdbn_x2", control="mdbn+edsr"), changes).lock()


def test_both_runs_are_compared_at_the_end(small, tmp_path):
    out = io.StringIO()
    summary = run_module.run(small, tmp_path, console=Console(file=out, width=100))
    assert summary["finished"] and list(summary["stages"]) == ["mdbn", "edsr"]
    said = out.getvalue()
    for place in (tmp_path, tmp_path / "mdbn", tmp_path / "edsr"):
        assert f"Curves: {place}/curves.png" in said
        assert (place / "curves.png").read_bytes()[:4] == b"\x89PNG"
    bicubic = json.loads((tmp_path / "mdbn" / "bicubic.json").read_text())
    table = said[said.index("PSNR in dB") :]
    assert f"{bicubic['val/psnr_y_crop2']:.2f}" in table
    for result in summary["stages"].values():
        metrics = result["metrics"]
        for name in ("val/psnr_y_crop2", "ema_val/psnr_y_crop2"):
            assert f"{metrics[name]:.2f}" in table
        assert f"{metrics['ema_val/ssim_y_crop2']:.4f}" in table and f"{result['parameters']:,}" in table


def test_a_run_that_stops_before_its_end_is_drawn_too(small, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "jaxkd.report.run_curves.draw_curves",
        lambda curves, path, **more: drawn.update(more, **{f"{c.panel}, {c.run}, {c.role}": c for c in curves}),
    )
    config = fields.change(small, {"stages": ()}).lock()
    assert not run_stopped(monkeypatch, config, tmp_path / "run", after=3)["finished"]
    (row,) = train.read_metrics(tmp_path / "run", "eval")
    bicubic = json.loads((tmp_path / "run" / "bicubic.json").read_text())
    scored, line = (drawn[f"val/psnr_y_crop2, {words}"] for words in ("run, held out", "bicubic, chance"))
    assert scored.steps.tolist() == [2] and scored.values.tolist() == [[row["val/psnr_y_crop2"]]]
    assert line.values.tolist() == [[bicubic["val/psnr_y_crop2"]]]
    assert drawn["caption"] == "run. 4 to train on, 2 held out."


def test_stages_of_classification_and_restoration_are_not_compared(small, tmp_path):
    other = {"name": "labels", "task": "classification", "student.name": "deit_tiny_patch16_224"}
    mixed = fields.change(small, {"stages": ({"name": "mdbn"}, other)}).lock()
    with pytest.raises(ConfigError, match="mdbn: restoration, labels: classification"):
        sweep.stage_configs(mixed, tmp_path)
