"""The log, curves, environment and next commands that runs leave in their work directories."""

from __future__ import annotations

import importlib
import io
import json
import shlex

import pytest
from population_runs import SMALL
from rich.console import Console
from stopping import StopAfter

from jaxkd import train
from jaxkd.config import fields
from jaxkd.experiment import run as run_module
from jaxkd.experiment.next_steps import next_commands
from jaxkd.report import run_curves

COMMANDS = {"train": "main", "report": "report.__main__"}


def config(**changes):
    small = {f"student.args.{k}": v for k, v in SMALL.items()}
    common = {
        "data.source": "embedded:digits",
        "data.workers": 0,
        "train.batch_size": 256,
        "train.steps": 4,
        "schedule.warmup_epochs": 0,
        "ema.decay": 0.1,
        "checkpoint.every_steps": 1,
        "log.every_steps": 1,
        "log.tensorboard": False,
    }
    return fields.change(fields.base(), small | common | changes).lock()


def next_lines(text: str) -> list[list[str]]:
    """The words of the commands below "Next:"."""
    return [shlex.split(line) for line in text.rpartition("Next:\n")[2].splitlines() if line.startswith("  jaxkd ")]


def start(folder, patch=None, *, stop=0) -> tuple[bool, str]:
    """(finished, what the console shows) of one start, which is stopped after `stop` steps."""
    console = Console(file=io.StringIO(), width=140)
    with pytest.MonkeyPatch.context() as patched:
        if stop:
            patched.setattr(train, "StopRequest", lambda: StopAfter(stop))
        if patch is not None:
            patched.setattr(*patch)
        return run_module.run(config(), folder, console=console)["finished"], console.file.getvalue()


def refuse(*_, **__):
    raise RuntimeError("no fonts")


@pytest.fixture(scope="module")
def three_starts(tmp_path_factory):
    """(work directory, what each start showed): two are stopped, the first of them cannot draw."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    first, said = start(folder, ("jaxkd.report.run_curves.draw_curves", refuse), stop=1)
    assert not first and not (folder / "curves.png").exists()
    second, more = start(folder, stop=1)
    assert not second and (folder / "curves.png").is_file()
    last, end = start(folder)
    assert last
    return folder, (said, more, end)


@pytest.mark.slow
def test_a_stopped_and_continued_run_describes_itself(three_starts):
    folder, said = three_starts
    assert "were not drawn (RuntimeError: no fonts)" in said[0]
    assert all(f"Curves: {folder}/curves.png" in text for text in said[1:])
    log = (folder / "log.txt").read_text()
    assert log.count("==== started: ") == 1 and log.count("==== continued: ") == 2
    assert "stopped at step 1, saved" in log and "continues after step 2" in log and "top1" in log
    assert len(log.splitlines()) < 90
    starts = json.loads((folder / "environment.json").read_bytes())["starts"]
    assert [one["continues_after"] for one in starts] == [None, 1, 2]
    assert starts[0]["versions"]["jax"] and starts[0]["device"].endswith("cpu")
    curves = run_curves.read_curves(folder)
    loss = next(c for c in curves if (c.panel, c.role) == ("loss", "training"))
    assert loss.steps.tolist() == [1, 2, 3, 4]
    assert {(c.panel, c.role) for c in curves} >= {("top1", "held out"), ("top1", "held out, EMA")}
    assert [words[:2] for words in next_lines(said[0])] == [["jaxkd", "report"]]


@pytest.mark.slow
def test_the_next_commands_of_a_run_work_as_they_are_printed(three_starts, capsys):
    folder, said = three_starts
    commands = next_lines(said[2])
    assert [words[1] for words in commands] == ["evaluate", "analyze", "convert", "report"]
    for _, name, *options in commands:
        more = ["--layers=block_0", "--permutations=0", "--bootstrap=0", "--saliency=0"] if name == "analyze" else []
        more += ["--max-images=8", "--no-figures", "--no-ranks"] if name == "analyze" else []
        assert importlib.import_module(f"jaxkd.{COMMANDS.get(name, name)}").main([*options, *more]) == 0, name
    assert (folder / "student.safetensors").is_file() and (folder / "analysis" / "results.json").is_file()
    assert "Result" in (folder / "report.html").read_text()


def test_next_commands_name_teacher_and_best_member(tmp_path):
    students, teacher = tmp_path / "students", tmp_path / "teacher"
    for folder in (teacher / "checkpoints", students / "members" / "a", students / "members" / "b"):
        folder.mkdir(parents=True)
    (teacher / "config.json").write_text("{}")
    one = json.loads(json.dumps(config().to_dict(), default=str))
    one |= {"task": "distillation", "teacher": {"name": "t", "weights": str(teacher), "variant": "ema", "args": {}}}
    members = [{"name": "a", "top1": 70.0}, {"name": "b", "top1": 80.0}]
    (students / "members" / "b" / "config.json").write_text(json.dumps(one | {"task": "classification"}))
    for folder, result in (
        (students, {"members": members, "val_images": 50}),
        (students / "members" / "b", {"metrics": {"top1": 80.0}}),
    ):
        if folder == students:
            (folder / "config.json").write_text(json.dumps(one))
        (folder / "result.json").write_text(json.dumps(result))
    evaluate, analyze, _, report = next_commands([teacher, students], tmp_path)
    assert evaluate[2] == f"--weights={students}/members/b"
    assert analyze[2:5] == [f"--weights={teacher}", "--variant=ema", f"--weights={students}/members/b"]
    assert not any("--max-images" in word for word in analyze)
    assert report == ["jaxkd", "report", str(tmp_path), f"--out={tmp_path}/report.html"]
