"""Studies: declared grids, their budget, results and comparisons; trained grids are tiny and marked slow."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxkd import parallel
from jaxkd import study as command
from jaxkd.config import fields
from jaxkd.config.validate import validate
from jaxkd.errors import CheckpointError, ConfigError, JaxkdError
from jaxkd.experiment.study import cost
from jaxkd.experiment.study.grid import build_grid, config_hash
from jaxkd.experiment.study.ledger import Ledger, Row
from jaxkd.experiment.study.runner import run_study
from jaxkd.experiment.study.summary import paired_tests, write_summary

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
MEMBERS = ({"name": "none"}, {"name": "soft", "distill.preset": "soft"})
GROUPS = (
    {"name": "deit", "part": "a", "members": MEMBERS},
    {"name": "few", "part": "e", "changes": {"data.per_class": 8}, "members": MEMBERS},
)
COMPARISONS = (
    {"name": "soft KD", "a": "deit/soft", "b": "deit/none", "question": "Does soft KD help?"},
    {"a": "few/soft", "b": "few/none"},
)
# The same as a file for the command, so that it can be killed.
FILE = """
from jaxkd.config import fields
def get_config(arg=None):
    return fields.change(fields.base(), {changes!r}).lock()
"""


def changes_of(**more):
    student = {f"student.args.{k}": v for k, v in SMALL.items()}
    teacher = {**SMALL, "embed_dim": 48, "depth_token_only": 1}
    alone = {"task": "classification", "teacher.name": "", "teacher.weights": "", "teacher.args": {}}
    stage = {"name": "teacher", **alone, "student.name": "cait_xxs24_224", "student.args": teacher}
    return {
        **student,
        "task": "distillation",
        "teacher.name": "cait_xxs24_224",
        "teacher.weights": "stage:teacher",
        "teacher.args": teacher,
        "data.source": "embedded:digits",
        "data.workers": 0,
        "data.per_class": 16,
        "train.batch_size": 16,
        "train.epochs": 1,
        "schedule.warmup_epochs": 0,
        "ema.decay": 0.0,
        "checkpoint.every_steps": 4,
        "log.tensorboard": False,
        "stages": (stage,),
        "study.seeds": (0, 1),
        "study.images": 40,
        "study.groups": GROUPS,
        "study.comparisons": COMPARISONS,
        **more,
    }


def study_config(**more):
    return fields.change(fields.base(), changes_of(**more)).lock()


def row_of(run, top1, **more):
    row = Row(run.part, run.group, run.name, run.seed, run.config_hash, top1, top1, 10, 10, 1.0, 160, 160, 9, 1, -1)
    return replace(row, **more)


def test_runs_are_declared_seed_by_seed_and_read_a_teacher_only_where_they_use_one(tmp_path):
    grid = build_grid(study_config(), tmp_path)
    assert list(grid.runs)[:4] == ["deit/none/0", "deit/soft/0", "deit/none/1", "deit/soft/1"] and len(grid.runs) == 8
    none, soft = grid.runs["deit/none/0"].config, grid.runs["deit/soft/1"].config
    assert (none.task, none.teacher.name, soft.task) == ("classification", "", "distillation")
    assert (soft.seed, soft.teacher.weights) == (1, "stage:teacher")
    assert grid.runs["few/none/0"].config.data.per_class == 8 and not none.study.groups


def test_the_hash_follows_what_the_numbers_depend_on(tmp_path):
    def hashes(**more):
        return {key: run.config_hash for key, run in build_grid(study_config(**more), tmp_path).runs.items()}

    first = hashes()
    assert len(set(first.values())) == 8
    assert hashes(**{"data.workers": 3, "log.every_steps": 7}) == first
    assert hashes(**{"optimizer.weight_decay": 0.1}) != first
    assert not set(hashes(**{"train.steps": 5}).values()) & set(first.values())
    stage = {**changes_of()["stages"][0], "train.epochs": 2}
    assert not set(hashes(stages=(stage,)).values()) & set(first.values())  # all are compared with another teacher
    unmeasured, other = hashes(**{"study.images": 0}), hashes(**{"study.images": 0}, stages=(stage,))
    assert other["deit/none/0"] == unmeasured["deit/none/0"]  # the same student alone
    assert other["deit/soft/0"] != unmeasured["deit/soft/0"]
    assert not set(hashes(**{"study.images": 50}).values()) & {*first.values(), *unmeasured.values()}
    assert config_hash(fields.base()) == config_hash(fields.change(fields.base(), {"log.every_steps": 1}))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"study.groups": ()}, "nothing to train"),
        ({"study.groups": ({"name": "a/b", "members": MEMBERS},)}, "cannot be a folder"),
        ({"study.groups": ({"name": "a", "members": ()},)}, "has no members"),
        ({"study.groups": ({"name": "a", "members": MEMBERS, "seed": 1},)}, 'has the key "seed". Did you mean "seeds"'),
        ({"study.groups": (GROUPS[0], GROUPS[0])}, 'declares 2 groups called "deit"'),
        ({"study.groups": ({"name": "a", "members": (*MEMBERS, MEMBERS[0])},)}, '2 runs called "a/none/0"'),
        ({"study.groups": ({"name": "a", "members": ({"name": "x", "train.epoch": 1},)},)}, '"train.epoch" is not a'),
        (
            {"study.groups": ({"name": "a", "members": ({"name": "x", "distill.preset": "soft+"},)},)},
            r'Run "a/x/0" of the study: "soft\+"',
        ),
        ({"study.comparisons": ({"a": "deit/sof", "b": "deit/none"},)}, 'a="deit/sof".*Did you mean "deit/soft"'),
        ({"study.seeds": (0, -1)}, "study.seeds=-1 is out of range"),
        ({"teacher.weights": "stage:teach"}, 'names no stage of the study. Did you mean "teacher"'),
    ],
)
def test_a_grid_that_cannot_run_is_refused_in_words(tmp_path, more, words):
    with pytest.raises(JaxkdError, match=words):
        build_grid(study_config(**more), tmp_path)


def test_a_single_run_does_not_take_the_config_of_a_study():
    with pytest.raises(ConfigError, match=r"declares a study .* jaxkd study and"):
        validate(study_config())
    with pytest.raises(ConfigError, match=r"study\.images=40 is set, but nothing reads it"):
        validate(fields.change(fields.base(), {"study.images": 40, "data.source": "embedded:digits"}).lock())


def test_results_of_another_grid_are_refused_before_anything_starts(tmp_path):
    grid = build_grid(study_config(), tmp_path)
    Ledger(tmp_path).add([row_of(grid.runs["deit/soft/0"], 50.0)], grid)
    Ledger(tmp_path).check(grid)
    Ledger(tmp_path).check(build_grid(study_config(**{"study.seeds": (0, 1, 2)}), tmp_path))  # more of the same
    with pytest.raises(CheckpointError, match=r'results.csv" belongs to another grid: its run "deit/soft/0"'):
        run_study(study_config(**{"train.batch_size": 8}), tmp_path)
    with pytest.raises(CheckpointError, match=r'"deit/soft/0" .* is no run of this study'):
        run_study(study_config(**{"study.groups": GROUPS[1:], "study.comparisons": ()}), tmp_path)
    Ledger(tmp_path).claim(grid)
    with pytest.raises(CheckpointError, match=r"results.csv.* on 40 images \(study.images\), and now they are 50\."):
        run_study(study_config(**{"study.images": 50}), tmp_path)
    assert not (tmp_path / "teacher").exists()
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CheckpointError, match="Line 2 .* is no result"):
        Ledger(tmp_path)


def test_runs_that_began_are_checked_too(tmp_path):
    grid = build_grid(study_config(), tmp_path)
    Ledger(tmp_path).claim(grid)
    words = r'grid\.json" belongs to another grid: its run "deit/none/0" .* differ in: train.epochs: 1 then, 2 now\.'
    with pytest.raises(CheckpointError, match=words):
        run_study(study_config(**{"train.epochs": 2}), tmp_path)
    old = json.loads((tmp_path / "grid.json").read_text())
    (tmp_path / "grid.json").write_text(json.dumps({k: v for k, v in old.items() if k != "config"}))
    with pytest.raises(CheckpointError, match=r"has the config \w+ now\. Choose a new --workdir"):
        run_study(study_config(**{"train.epochs": 2}), tmp_path)


def test_a_unit_that_would_not_end_in_the_budget_is_not_started(tmp_path, capsys):
    """Measured: 100 s beside the steps and 1e6 operations a second; every unit here would take longer."""
    times = [{"kind": "other", "wall": 200.0, "seconds": 100.0, "steps": 10, "flop": 1e8}]
    (tmp_path / "times.json").write_text(json.dumps(times))
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "result.json").write_text("{}")
    result = run_study(study_config(), tmp_path, budget_minutes=1.5, population=False)
    assert result["done"] == 0 and len(result["not_run"]) == 8 and not result["stopped"]
    assert not (tmp_path / "runs").exists()
    assert "`few/soft/1`" in (tmp_path / "study.md").read_text()


def test_predictions_by_hand():
    times = [
        {"kind": "a", "wall": 30.0, "seconds": 20.0, "steps": 100, "flop": 2e12},
        {"kind": "b", "wall": 45.0, "seconds": 40.0, "steps": 100, "flop": 8e12},
    ]
    assert cost.predict_seconds(cost.Cost(300, 0, 6e12, "a"), times) == 10 + 3 * 20
    # of both: 10e12 operations in 60 s, 7.5 s beside the steps, and 15 % on top
    assert cost.predict_seconds(cost.Cost(300, 0, 3e12, "c"), times) == pytest.approx(1.15 * (7.5 + 18))
    assert cost.predict_seconds(cost.Cost(1, 0, 4e12, "c"), [], tflops=2) == 2.0
    assert cost.predict_seconds(cost.Cost(1, 0, 4e12, "c"), []) is None


def test_a_group_is_predicted_by_those_with_as_many_students():
    """Measured on an H100: a teacher and populations of 18, 6 and 6; six more students were never near 2m59s."""
    rows = [(1, 81.7, 20.2, 2.67e15), (18, 169.5, 46.7, 4.40e15), (6, 70.6, 21.2, 1.76e15), (6, 83.5, 19.7, 1.81e15)]
    times = [dict(zip(("students", "wall", "seconds", "flop"), r, strict=True), kind=str(r), steps=1) for r in rows]
    assert 84 < cost.predict_seconds(cost.Cost(1, 0, 2.2e15, "widelast", 6), times) < 105
    # a line in the number of students where none had as many: 61.5 + 61.3 * 5 / 17 s beside the steps
    expected = 1.15 * (61.5 + 61.3 * 5 / 17 + 1.76 * 66.9 / 7.07)
    assert cost.predict_seconds(cost.Cost(1, 0, 1.76e15, "c", 6), times[:2]) == pytest.approx(expected, rel=1e-3)
    # of one group alone: half of its 122.8 s is fixed; more students do not need more
    assert cost.predict_seconds(cost.Cost(1, 0, 0, "c", 6), times[1:2]) == pytest.approx(1.15 * (61.4 + 61.4 / 3))
    assert cost.predict_seconds(cost.Cost(1, 0, 0, "c", 36), times[1:2]) == pytest.approx(1.15 * 122.8)


def test_costs_count_students_three_times_and_a_shared_teacher_once(tmp_path):
    grid = build_grid(study_config(**{"student.args.depth": 2}), tmp_path)
    runs = [grid.runs["deit/soft/0"], grid.runs["deit/soft/1"]]
    student, teacher = (cost.forward_flop(runs[0].config, side) for side in ("student", "teacher"))
    # two blocks of 5 tokens: 12 C^2 weights a token, 2 N^2 C of attention; patches, head
    assert student == 2 * (2 * (5 * 12 * 24**2 + 2 * 25 * 24) + 4 * 192 * 24 + 24 * 10)
    one = cost.unit_cost(runs[:1], together=False)
    assert (one.steps, one.images) == (10, 160) and one.flop == 160 * (3 * student + teacher)
    assert cost.unit_cost(runs, together=True).flop == 160 * (6 * student + teacher)
    assert cost.unit_cost([grid.runs["few/none/0"]], together=False).flop == 80 * 3 * student


def test_comparisons_pair_seeds_and_correct_within_a_family(tmp_path):
    families = tuple({**c, "family": "x"} for c in COMPARISONS)
    grid = build_grid(study_config(**{"study.comparisons": families, "study.seeds": (0, 1, 2)}), tmp_path)
    scores = {"deit/soft": (51, 54, 55), "deit/none": (50, 52, 54), "few/soft": (30, 31, 35), "few/none": (30, 33)}
    rows = [
        row_of(grid.runs[f"{member}/{seed}"], float(top1))
        for member, values in scores.items()
        for seed, top1 in enumerate(values)
    ]
    first, second = paired_tests(grid, rows)
    assert (first.found.n, second.found.n) == (3, 2)
    assert first.found.difference == pytest.approx(4 / 3) and second.found.difference == -1.0
    assert first.holm_t == pytest.approx(2 * first.found.p_t) and first.found.p_sign_flip == 0.25
    ledger = Ledger(tmp_path)
    ledger.add([*rows, row_of(grid.runs["few/none/2"], math.nan, diverged_at_step=3)], grid)
    write_summary(grid, ledger, ["few/none/9"], tmp_path, "1 x cpu")
    table = list(csv.DictReader((tmp_path / "comparisons.csv").open()))
    assert [row["pairs"] for row in table] == ["3", "2"] and table[0]["name"] == "soft KD"
    page = (tmp_path / "study.md").read_text()
    assert "Does soft KD help?" in page and "| deit/soft | 3 | 53.33 |" in page and "`few/none/9`" in page
    assert (tmp_path / "study.png").stat().st_size > 10_000
    assert Ledger(tmp_path).rows["few/none/2"].diverged_at_step == 3


def numbers(workdir: Path) -> list[dict]:
    """results.csv without times."""
    rows = list(csv.DictReader((workdir / "results.csv").open()))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_members_that_need_different_programs_are_refused_before_training(tmp_path):
    members = ({"name": "a"}, {"name": "b", "train.epochs": 2})
    more = {"study.groups": ({"name": "mixed", "members": members},), "study.comparisons": ()}
    with pytest.raises(ConfigError, match=r'group "mixed" cannot train as one .* train\.epochs .* --no-population'):
        run_study(study_config(**more), tmp_path)
    assert not (tmp_path / "teacher").exists()
    assert run_study(study_config(**more), tmp_path, population=False, dry_run=True)["runs"] == 4


def test_members_with_other_images_are_no_population_of_a_study(tmp_path):
    members = ({"name": "a"}, {"name": "b", "data.per_class": 8})
    more = {"study.groups": ({"name": "mixed", "members": members},), "study.comparisons": ()}
    with pytest.raises(ConfigError, match=r'group "mixed" cannot train as one .* differ in data\.per_class'):
        run_study(study_config(**more), tmp_path, dry_run=True)
    assert run_study(study_config(**more), tmp_path, population=False, dry_run=True)["runs"] == 4


def test_a_population_that_reads_no_teacher_is_one(tmp_path):
    groups = ({"name": "alone", "members": MEMBERS[:1], "changes": {"distill.pairs": "last"}},)
    more = {"study.groups": groups, "study.comparisons": (), "study.shared_batches": True, "distill.preset": "none"}
    assert run_study(study_config(**more), tmp_path, dry_run=True)["units"] == 2  # the teacher, which is declared


SHARED = {"study.shared_batches": True, "study.groups": GROUPS[:1], "study.comparisons": COMPARISONS[:1]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(arguments of the command, work directory) of a study of four single runs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "grid.py").write_text(FILE.format(changes=changes_of(**SHARED)))
    argv = [f"--config={folder / 'grid.py'}", "--no-population"]
    assert command.main([*argv, f"--workdir={folder / 'whole'}"]) == 0
    return argv, folder / "whole"


def unfinished(workdir: Path) -> list[Path]:
    """Checkpoints of runs without a result."""
    found = [p for p in workdir.glob("runs/*/*/checkpoints/*") if p.name.isdigit()]  # others are being written
    return [p for p in found if not (p.parents[1] / "result.json").exists()]


@pytest.mark.slow
def test_a_study_that_was_killed_and_continued_is_the_uninterrupted_one(tmp_path, whole):
    argv, reference = whole
    victim = subprocess.Popen(
        [sys.executable, "-m", "jaxkd.study", *argv, f"--workdir={tmp_path}"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not ((tmp_path / "results.csv").exists() and unfinished(tmp_path)):  # in the middle of a later run
        assert time.monotonic() < deadline and victim.poll() is None
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    assert 1 <= len(numbers(tmp_path)) < 4
    assert command.main([*argv, f"--workdir={tmp_path}"]) == 0
    assert numbers(tmp_path) == numbers(reference) and len(numbers(reference)) == 4
    alone = next(row for row in numbers(reference) if row["name"] == "none")
    assert 0 <= float(alone["teacher_agreement"]) <= 100 and 1 <= float(alone["effective_rank_last"]) <= 24
    assert np.isfinite(float(alone["cka_last"]))
    before = (reference / "results.csv").read_bytes()
    assert command.main([*argv, f"--workdir={reference}"]) == 0  # nothing is left to do
    assert (reference / "results.csv").read_bytes() == before


@pytest.mark.slow
def test_a_population_gives_the_rows_of_single_runs(tmp_path, whole):
    shutil.copytree(whole[1] / "teacher", tmp_path / "teacher")
    assert run_study(study_config(**SHARED), tmp_path)["finished"]
    together, alone = numbers(tmp_path), numbers(whole[1])
    assert [row.pop("population") for row in together] == ["4"] * 4 and {row.pop("population") for row in alone} == {
        "1"
    }
    for one, other in zip(together, alone, strict=True):
        assert one["config_hash"] == other["config_hash"] and one["top1"] == other["top1"]
        np.testing.assert_allclose(float(one["cka_last"]), float(other["cka_last"]), atol=1e-4)


@pytest.mark.slow
def test_a_run_that_diverges_has_a_row_without_scores_and_the_others_go_on(tmp_path):
    members = ({"name": "wild", "optimizer.learning_rate": 1e4, "precision.compute": "bfloat16"}, {"name": "none"})
    groups = ({"name": "deit", "members": members},)
    more = {"study.groups": groups, "study.comparisons": (), "study.seeds": (0,), "stages": (), "teacher.weights": ""}
    alone = {"task": "classification", "teacher.name": "", "teacher.args": {}, "optimizer.weight_decay": 1e4}
    result = run_study(study_config(**more, **alone), tmp_path, population=False)
    rows = {row["name"]: row for row in numbers(tmp_path)}
    assert result["finished"] and rows["wild"]["top1"] == "" and int(rows["wild"]["diverged_at_step"]) >= 0


@pytest.mark.slow
def test_a_population_without_a_member_left_has_rows_without_scores(tmp_path):
    wild = {"name": "wild", "distill.preset": "mse", "distill.pairs": "last", "distill.feature_weight": 1e38}
    wild = {"study.shared_batches": True, "study.groups": ({"name": "deit", "members": (wild,)},)}
    result = run_study(study_config(**wild, **{"study.comparisons": (), "study.images": 0}), tmp_path)
    rows = numbers(tmp_path)
    assert result["finished"] and [row["top1"] for row in rows] == ["", ""]
    assert all(int(row["diverged_at_step"]) >= 0 for row in rows)


def test_seeds_of_equal_score_have_no_interval(tmp_path):
    """A t interval of width 0 would say that further seeds score the same for certain."""
    grid = build_grid(study_config(), tmp_path)
    ledger = Ledger(tmp_path)
    scores = {"deit/none": (50.1, 50.1), "deit/soft": (51.3, 51.3), "few/none": (40.0, 42.0), "few/soft": (41.0, 43.0)}
    rows = [row_of(r, scores[f"{r.group}/{r.name}"][r.seed]) for r in grid.runs.values()]
    ledger.add(rows, grid)
    write_summary(grid, ledger, [], tmp_path, "1 x cpu")
    page = (tmp_path / "study.md").read_text()
    assert "| deit/none | 2 | 50.10 | n/a (no spread) | 0.00 |" in page
    assert "| few/none | 2 | 41.00 | 28.29 to 53.71 | 1.41 |" in page  # 41 +- 12.706 * 1.414 / sqrt(2)
    assert "| +1.20 | n/a (no spread) | - | - | - | 0.5 | 1 |" in page
    found = {row["name"]: row for row in csv.DictReader((tmp_path / "comparisons.csv").open())}
    assert all(found["soft KD"][name] == "" for name in ("low", "high", "cohen_dz", "t", "p_t", "p_t_holm"))
    assert found["soft KD"]["p_sign_flip"] == "0.5"


def test_the_first_host_decides_what_the_budget_allows(tmp_path, monkeypatch, capsys):
    """On another host the clock says that a unit fits, but the first one does not start it, or the other way round."""
    asked = []

    def first_host_says(flag):
        asked.append(bool(flag))
        return True

    monkeypatch.setattr(parallel, "main_host_decides", first_host_says)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "result.json").write_text("{}")
    result = run_study(study_config(), tmp_path, budget_minutes=1000, population=False)
    assert asked == [False] * 8 and result["done"] == 0 and not (tmp_path / "runs").exists()


def test_another_host_writes_no_file_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "is_main_host", lambda: False)
    monkeypatch.setattr(parallel, "main_host_decides", lambda flag: True)
    result = run_study(study_config(), tmp_path / "study", budget_minutes=1000, population=False)
    assert result["done"] == 0 and not (tmp_path / "study").exists()
