"""Tables and pictures of statistics over training."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from PIL import Image

from jaxkd import train
from jaxkd.analysis.layer_statistics import LAYER_STATISTICS
from jaxkd.report import training_statistics


def lines(steps=(1, 50, 100), layers=("block_0", "block_1", "block_2")):
    rng = np.random.default_rng(0)
    return [
        {
            "kind": "dynamics",
            "step": step,
            "epoch": step / 50,
            "layers": list(layers),
            "entropy": rng.uniform(1, 5, len(layers)).round(3).tolist(),
            "gradient": (10.0 ** rng.uniform(-6, -3, len(layers))).tolist(),
        }
        for step in steps
    ]


def read(path):
    with path.open() as file:
        return list(csv.reader(file))


def test_a_row_a_step_and_a_column_a_layer(tmp_path):
    rows = lines()
    files = training_statistics.write_tables(rows, tmp_path / "dynamics")
    assert [f.name for f in files] == ["entropy.csv", "gradient.csv"]
    table = read(files[0])
    assert table[0] == ["step", "epoch", "block_0", "block_1", "block_2"]
    assert [r[0] for r in table[1:]] == ["1", "50", "100"] and table[2][1] == "1.0"
    for ours, row in zip(table[1:], rows, strict=True):
        assert [float(v) for v in ours[2:]] == row["entropy"]
    assert sorted(p.name for p in (tmp_path / "dynamics").iterdir()) == ["entropy.csv", "gradient.csv"]  # no leftovers


def test_written_anew_from_the_lines_whatever_a_killed_run_left(tmp_path):
    writer = train.MetricWriter(tmp_path, tensorboard=False)
    for row in [*lines((1, 50, 100)), *lines((50, 100, 150))]:  # killed after 100, continued from before 50
        values = {k: [np.float32(v) for v in row[k]] for k in ("entropy", "gradient")}
        writer.write_layers("dynamics", row["step"], row["layers"], values, epoch=row["epoch"])
    writer.close()
    (tmp_path / "dynamics").mkdir()
    (tmp_path / "dynamics" / "entropy.csv").write_text("step,epoch,blo")
    rows = train.read_metrics(tmp_path, "dynamics")
    (path, _) = training_statistics.write_tables(rows, tmp_path / "dynamics")
    assert [r[0] for r in read(path)] == ["step", "1", "50", "100", "150"]
    assert [float(r[2]) for r in read(path)[2:]] == pytest.approx([r["entropy"][0] for r in lines((50, 100, 150))])


def test_layers_that_changed_and_values_that_are_not_finite(tmp_path):
    first, last = lines((1,), ("block_0", "block_1"))[0], lines((2,), ("block_1", "block_2"))[0]
    first["entropy"], last["entropy"] = ["nan", 2.0], ["inf", 3.0]
    table = read(training_statistics.write_tables([first, last], tmp_path)[0])
    assert table[0][2:] == ["block_1", "block_2", "block_0"]
    assert [r[2:] for r in table[1:]] == [["2.0", "", "nan"], ["inf", "3.0", ""]]
    for path in training_statistics.draw_tables([first, last], tmp_path):
        assert Image.open(path).size[0] > 1000


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "case", ["one row", "constant", "nothing finite", "many rows", "one layer", "a layer without gradient"]
)
def test_pictures_of_unusual_runs(tmp_path, case):
    rows = lines()
    if case == "one row":
        rows = rows[:1]
    elif case == "many rows":
        rows = lines(range(1, 400))
    elif case == "one layer":
        rows = lines(layers=("stage_0",))
    for row in rows:
        if case == "constant":
            row["entropy"], row["gradient"] = [1.0] * 3, [0.0] * 3
        elif case == "nothing finite":
            row["entropy"] = row["gradient"] = ["nan"] * 3
        elif case == "a layer without gradient":
            row["gradient"][-1] = 0.0
    for path in training_statistics.draw_tables(rows, tmp_path, caption="three layers"):
        assert path.read_bytes()[:4] == b"\x89PNG" and Image.open(path).convert("L").getextrema()[0] < 100


def test_no_lines_make_no_files(tmp_path):
    assert (
        training_statistics.write_tables([], tmp_path / "no")
        == training_statistics.draw_tables([], tmp_path / "no")
        == []
    )
    assert not (tmp_path / "no").exists()


def test_later_lines_are_darker_and_every_statistic_has_words():
    assert training_statistics._spread(400, 5) == [0, 100, 200, 299, 399] and training_statistics._spread(3, 5) == [
        0,
        1,
        2,
    ]
    assert math.isnan(training_statistics._number("inf")) and math.isnan(training_statistics._number(""))
    assert {"entropy", "gradient", "rank_99", "stable_rank"} <= set(LAYER_STATISTICS)
