"""CSV tables: every number comes back as it was, undefined ones are empty, the published form is kept."""

from __future__ import annotations

import csv
import errno
import math
import os

import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic_results import make, make_broken

from jaxkd.report import html, saliency_figures, style, tables, training_curves, training_statistics


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_families_are_written_with_the_numbers_of_the_results(tmp_path):
    results = make(2)
    names = {p.name for p in tables.write_tables(results, tmp_path)}
    wanted = "per_layer spectrum radial spatial ranks rank_summary pca pca_global_d sep sep_bandwidth permutation"
    wanted += " permutation_curve nulls cka principal_angles suggested_pairs"
    assert {f"{n}.csv" for n in wanted.split()} <= names
    teacher, student = results["models"]

    rows = read(tmp_path / "per_layer.csv")
    assert len(rows) == 14 * 6 + 14 * 4
    (row,) = [r for r in rows if (r["model"], r["layer"], r["statistic"]) == ("cait_s24_224", "block_2", "kurtosis")]
    for key in ("mean", "sd", "median", "q25", "q75", "p99"):
        assert float(row[key]) == teacher["per_layer"]["kurtosis"][key][2]  # the same float, not nearly

    rows = [r for r in read(tmp_path / "spectrum.csv") if r["model"] == student["label"] and r["layer_index"] == "1"]
    assert [float(r["amplitude"]) for r in rows] == student["spectrum"][1]
    assert float(rows[4]["k_over_C"]) == 4 / 16

    rows = [r for r in read(tmp_path / "ranks.csv") if (r["model"], r["energy_percent"]) == (teacher["label"], "95")]
    assert [float(r["rank"]) for r in rows] == teacher["last"]["ranks"]["95"]["values"]
    required = teacher["last"]["pca"]["centred"]["required_d"]["95"]["values"]
    assert [float(r["required_d_centred"]) for r in rows] == required

    rows = [r for r in read(tmp_path / "pca.csv") if (r["model"], r["centring"]) == (teacher["label"], "uncentred")]
    assert float(rows[-1]["cumulative"]) == 1.0 and math.isclose(sum(float(r["share"]) for r in rows), 1)
    assert float(rows[3]["captured_p1"]) == teacher["last"]["pca"]["uncentred"]["captured"]["p1"][3]

    rows = read(tmp_path / "cka.csv")
    assert len(rows) == 4 * 6
    (row,) = [r for r in rows if (r["student_layer"], r["teacher_layer"]) == ("block_3", "block_5")]
    assert float(row["cka"]) == results["comparisons"][0]["cka"][3][5]

    row = read(tmp_path / "permutation.csv")[4]
    assert row["energy_percent"] == "90" and float(row["ci_high"]) == teacher["last"]["permutation"]["ci"][4][1]


def test_sep_rows_hold_the_null_line_of_the_full_curve_only(tmp_path):
    tables.write_tables(make(1), tmp_path)
    rows = read(tmp_path / "sep.csv")
    full, folded = ([r for r in rows if r["mode"] == mode] for mode in ("full", "folded"))
    assert len(full) == 24 and len(folded) == 13
    assert full[0]["null_line_percent"] == full[0]["mean_percent"]
    assert math.isclose(float(full[-1]["null_line_percent"]), 100)
    assert {r["null_line_percent"] for r in folded} == {""}
    bandwidth = read(tmp_path / "sep_bandwidth.csv")
    assert all(math.isclose(float(r["d_over_D"]), int(r["d"]) / (24 if r["mode"] == "full" else 13)) for r in bandwidth)


def test_entropy_has_the_published_form(tmp_path):
    results = make(1)
    tables.write_tables(results, tmp_path)
    lines = (tmp_path / "entropy_by_layer.csv").read_text().splitlines()
    assert lines[0] == "Layer,Shannon_Entropy" and len(lines) == 7
    layer, value = lines[1].split(",")
    assert layer == "1" and float(value) == results["models"][0]["per_layer"]["entropy"]["mean"][0]


def test_several_models_get_a_file_each_even_if_their_names_are_alike(tmp_path):
    results = make(3)
    results["models"][0]["label"], results["models"][1]["label"] = "runs/a b", "runs/a?b"
    names = {p.name for p in tables.write_tables(results, tmp_path) if p.name.startswith("entropy")}
    third = "entropy_by_layer_swin_tiny_patch4_window7_224_distilled_from_cait_s24_224.csv"
    assert names == {"entropy_by_layer_runs_a_b.csv", "entropy_by_layer_runs_a_b_2.csv", third}


def test_undefined_is_empty_and_absent_writes_no_file(tmp_path):
    results = make_broken(3)
    results["models"][0]["last"]["ranks"]["99"]["values"][2] = None
    results["models"][1]["per_layer"]["kurtosis"]["mean"][0] = math.nan
    written = {p.name for p in tables.write_tables(results, tmp_path)}
    assert "cka.csv" not in written and "principal_angles.csv" in written
    rows = read(tmp_path / "per_layer.csv")
    first = [r for r in rows if r["model"] == 'a<b>&"$x_1$' and r["statistic"] == "entropy"]
    assert [r["mean"] == "" for r in first] == [False, True, False, False, False, False]
    (nan,) = [r for r in rows if r["layer"] == "block_0" and r["statistic"] == "kurtosis" and r["mean"] == ""]
    assert nan["model"] == "deit_tiny_patch16_224"
    ranks = [r for r in read(tmp_path / "ranks.csv") if r["model"] == 'a<b>&"$x_1$' and r["energy_percent"] == "99"]
    assert [i for i, r in enumerate(ranks) if r["rank"] == ""] == [2]
    assert not {r["statistic"] for r in rows} & {"gradient"}
    assert tables.write_tables({"models": [{"label": "m"}]}, tmp_path / "none") == []


def test_files_of_a_report_are_whole_or_not_replaced(tmp_path, monkeypatch):
    """A file system that is full, or a process that is killed, when a file has been written in part."""
    results = make(2)
    saliency = dict(images=np.zeros((1, 8, 8, 3)), maps={"map": np.ones((1, 8, 8))}, labels=["a"], caption="")
    drawn = np.zeros((8, 8, 3)), {"block_0": np.ones((2, 2)), "block_1": np.ones((2, 2))}
    rows = [{"step": 1, "epoch": 1.0, "top1": 50.0, "loss": 1.0}]
    statistics = [{"step": 1, "layers": ["block_0"], "entropy": [1.0]}]

    def write_all():
        yield lambda: tables.write_tables(results, tmp_path)
        yield lambda: html.write_report(results, [], tmp_path / "report.html")
        yield lambda: style.save(Figure(layout="constrained"), tmp_path, "figure")
        yield lambda: saliency_figures.draw_saliency(path=tmp_path / "saliency.png", **saliency)
        yield lambda: saliency_figures.draw_layer_animation(*drawn, tmp_path / "saliency.gif")
        yield lambda: training_curves.draw_curves({"run": rows}, tmp_path / "curves.png", caption="")
        yield lambda: training_statistics.write_tables(statistics, tmp_path / "dynamics")

    for write in write_all():
        write()
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert {p.suffix for p in files} == {".csv", ".html", ".png", ".pdf", ".gif"}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for write in write_all():
        with pytest.raises(OSError, match="No space left"):
            write()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == files
