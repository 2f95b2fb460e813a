"""Reports of work directories, from files that are written here."""

from __future__ import annotations

import html
import json
import re

import pytest

from jaxkd.experiment.lock import WorkdirLock
from jaxkd.report import __main__ as command
from jaxkd.report import run_curves
from jaxkd.report.run_files import defaults, read_workdir


def nested(fields):
    tree = {}
    for name, value in fields.items():
        *parts, last = name.split(".")
        place = tree
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def write_run(folder, *, steps=4, members=0, old=False, **changes):
    """A work directory as a classification run leaves it; `old`: without what newer versions write."""
    folder.mkdir(parents=True, exist_ok=True)
    config = (
        defaults() | {"student.name": "deit_tiny", "student.args.depth": 2, "data.source": "embedded:digits"} | changes
    )
    (folder / "config.json").write_text(json.dumps(nested(config)))
    many = (lambda x: [x + m for m in range(members)]) if members else (lambda x: x)
    rows = [
        {"kind": "train", "step": s, "loss": many(2.0 / s), "learning_rate": 0.001 / s, "images_per_second": 100.0 + s}
        for s in range(1, steps + 1)
    ]
    rows += [
        {"kind": "eval", "step": s, "loss": many(1.9 / s), "top1": many(10.0 * s), "ema_top1": many(9.0 * s)}
        for s in (2, steps)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{half a li")
    scores = {"top1": many(10.0 * steps), "ema_top1": many(9.0 * steps)}
    result = {
        "metrics": scores,
        "step": steps,
        "finished": True,
        "seconds": 83.0,
        "parameters": 1234,
        "device": "1 x cpu",
    }
    if members:
        named = [{"name": f"soft-seed_{m}", "group": "soft", "top1": 50.0 + m, "metrics": {}} for m in range(members)]
        result["members"] = named
    (folder / "result.json").write_text(json.dumps(result))
    if not old:
        start = {
            "date": "2030-01-02 03:04:05",
            "command": "jaxkd train --config=x",
            "host": "box",
            "continues_after": None,
        }
        start |= {"device": "8 x H100", "versions": {"jaxkd": "9.9.9", "jax": "1.2.3"}, "python": "3.11"}
        (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
        (folder / "log.txt").write_text(2 * "2030-01-02 03:04:05 warning: UserWarning: odd <b>rates</b>\n" + "plain\n")
    return folder


def page_of(tmp_path, *folders):
    out = tmp_path / "out" / "report.html"
    assert command.main([*map(str, folders), f"--out={out}"]) == 0
    return out.read_text()


def test_the_page_of_a_run_has_command_fields_result_curves_and_environment(tmp_path, capsys):
    page = page_of(tmp_path, write_run(tmp_path / "a run", **{"train.epochs": 7}))
    assert "Training of a run" in page and "40.00 at 4" in page and "36.00" in page
    assert "jaxkd train" in page and "1 min 23 s" in page and "102.5" in page
    differing, others = page.split("fields have their defaults")
    assert (
        re.search(r"train.epochs</th><td>7</td><td>300</td>", differing) and "optimizer.weight_decay" not in differing
    )
    assert "optimizer.weight_decay" in others and "train.epochs" not in others
    for words in ("9.9.9", "1.2.3", "8 x H100", "box", "2030-01-02 03:04:05"):
        assert words in page
    assert "UserWarning: odd &lt;b&gt;rates&lt;/b&gt; (2 times)" in page
    assert page.count("data:image/png;base64,") == 1 and "http" not in page.replace("http-equiv", "")
    assert capsys.readouterr().err == ""


def test_work_directories_stand_side_by_side_and_damage_is_said(tmp_path, capsys):
    whole = write_run(tmp_path / "one" / "run", **{"optimizer.learning_rate": 0.125})
    old = write_run(tmp_path / "two" / "run", old=True)
    stopped = write_run(tmp_path / "stages" / "student", members=3)
    (stopped / "result.json").write_text("{torn")
    odd = {"metrics": {"top1": "x"}, "members": [{"name": "<u>", "best_step": "x", "diverged_at_step": []}]}
    (old / "result.json").write_text(json.dumps(odd))
    bare = write_run(tmp_path / "stages" / "teacher")
    for file in ("metrics.jsonl", "config.json", "result.json", "log.txt", "environment.json"):
        (bare / file).unlink()
    (bare / "metrics.jsonl").mkdir()
    (bare / "config.json").write_bytes(b"\0\0")
    page = page_of(tmp_path, whole, old, tmp_path / "stages")
    assert "one/run" in page and "two/run" in page and "stages/teacher" in page and "stages/student" in page
    rows = re.search(r"Fields that differ between the runs(.*?)</table>", page, re.DOTALL)[1]
    assert re.search(r"optimizer.learning_rate</th><td>0.125</td><td>0.0005</td>", rows)
    assert "&lt;u&gt;" in page and "<u>" not in page
    assert "not recorded" in page and "there is no log.txt" in page
    said = capsys.readouterr().err
    assert "stages/teacher: stopped at step 0; continue with: the command that started it" in said
    for problem in (
        "stages/student: result.json cannot be read",
        "teacher: config.json cannot",
        "teacher: metrics.jsonl",
    ):
        assert problem in said and problem.partition(": ")[2] in page
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "out"), f"--out={tmp_path / 'x.html'}"])
    assert "holds no run" in capsys.readouterr().err


def test_a_run_without_a_result_is_running_or_stopped_with_the_command_that_continues_it(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    (folder / "result.json").unlink()
    start = {"command": "jaxkd train --config=x", "folder": "/elsewhere/it's", "total_steps": 1200}
    (folder / "environment.json").write_text(json.dumps({"starts": [start]}))
    with WorkdirLock(folder) as lock:
        lock.acquire()
        assert "<td>running</td><td>4 of 1,200</td>" in page_of(tmp_path, folder)
    assert capsys.readouterr().err == ""
    sentence = "stopped at step 4 of 1,200; continue with: cd '/elsewhere/it'\"'\"'s' && jaxkd train --config=x"
    assert sentence in html.unescape(page_of(tmp_path, folder))
    assert capsys.readouterr().err == f"jaxkd: run: {sentence}\n"
    # a run that ended at step 2, was continued and stopped
    (folder / "result.json").write_text(json.dumps({"step": 2, "finished": True}))
    assert "stopped at step 4 of 1,200" in page_of(tmp_path, folder)
    # the command of one of several processes starts no more than itself
    (folder / "environment.json").write_text(json.dumps({"starts": [start | {"processes": 2}]}))
    assert "continue with: the launcher that started its 2 processes" in page_of(tmp_path, folder)
    (folder / "environment.json").write_text(json.dumps({"starts": [start | {"processes": "damaged"}]}))
    assert "jaxkd train --config=x" in page_of(tmp_path, folder)


def test_a_study_has_its_table_and_members_their_rows(tmp_path):
    study = tmp_path / "study"
    write_run(study / "runs" / "kd" / "population-1", members=3)
    write_run(study / "teacher", old=True)
    (study / "results.csv").write_text(
        "group,name,seed,top1,best_top1\nkd,soft,0,50.0,51\nkd,soft,1,52.0,53\nkd,soft,2,,\n"
    )
    (study / "comparisons.csv").write_text(
        "name,pairs,difference,low,high,p_t_holm,p_sign_flip_holm\na - b,3,1.5,0.5,2.5,0.01,nan\n"
    )
    page = page_of(tmp_path, study)
    assert "kd/soft</th><td>3</td><td>51.00 (mean)</td><td>1.41</td><td>52.00 (mean)</td>" in page
    assert "a - b" in page and "+1.50" in page and "soft-seed_2" in page and "52.00" in page
    found = read_workdir(study)
    assert [run.name for run in found.runs] == ["teacher", "kd/population-1"]


def test_curves_of_a_population_are_a_line_each_or_a_mean_with_its_range():
    rows = [{"step": s, "loss": [1.0, 2.0, "nan"], "learning_rate": 0.1} for s in (1, 2)]
    members = [{"name": n, "group": "soft"} for n in "abc"]
    alone = [c for c in run_curves.curves_of("run", rows, [], members) if c.panel == "loss"]
    assert [c.run for c in alone] == ["a", "b", "c"] and alone[1].values.tolist() == [[2.0], [2.0]]
    (mean,) = (c for c in run_curves.curves_of("run", rows, []) if c.panel == "loss")
    assert mean.run == "3 members" and mean.values.shape == (2, 3)
    many = [{"step": s, "loss": 1.0} for s in range(10_000)]
    (thinned,) = run_curves.curves_of("run", many, [])
    assert len(thinned.steps) <= run_curves.MOST_POINTS + 1 and thinned.steps[-1] == 9_999


def test_a_folder_may_have_any_name(tmp_path):
    folder = write_run(tmp_path / "a_$x_{$")
    assert run_curves.draw_run(folder, {"val_images": 5}) == folder / "curves.png" and (folder / "curves.png").is_file()
