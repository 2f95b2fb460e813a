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


@pytest.fixture(scope="module")
def stopped_and_continued(tmp_path_factory):
    """(work directory, [printed by each start], whether curves.png was there after the stop)."""
    folder, said = tmp_path_factory.mktemp("runs") / "a run", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "StopRequest", lambda: StopAfter(2))
        console = Console(file=io.StringIO(), width=140)
        assert not run_module.run(config(), folder, console=console)["finished"]
        said.append(console.file.getvalue())
    drawn = (folder / "curves.png").is_file()
    console = Console(file=io.StringIO(), width=140)
    assert run_module.run(config(), folder, console=console)["finished"]
    return folder, [*said, console.file.getvalue()], drawn


@pytest.mark.slow
def test_a_stopped_and_continued_run_describes_itself(stopped_and_continued):
    folder, said, drawn = stopped_and_continued
    log = (folder / "log.txt").read_text()
    assert log.count("==== started: ") == log.count("==== continued: ") == 1
    assert "stopped at step 2, saved" in log and "continues after step 2" in log and "top1" in log
    assert len(log.splitlines()) < 60
    starts = json.loads((folder / "environment.json").read_bytes())["starts"]
    assert [start["continues_after"] for start in starts] == [None, 2]
    assert starts[0]["versions"]["jax"] and starts[0]["device"].endswith("cpu")
    assert drawn and f"Curves: {folder}/curves.png" in said[1]
    curves = run_curves.read_curves(folder)
    loss = next(c for c in curves if (c.panel, c.role) == ("loss", "training"))
    assert loss.steps.tolist() == [1, 2, 3, 4]
    assert {(c.panel, c.role) for c in curves} >= {("top1", "held out"), ("top1", "held out, EMA")}
    assert [words[:2] for words in next_lines(said[0])] == [["jaxkd", "report"]]


@pytest.mark.slow
def test_the_next_commands_of_a_run_work_as_they_are_printed(stopped_and_continued, capsys):
    folder, said, _ = stopped_and_continued
    commands = next_lines(said[1])
    assert [words[1] for words in commands] == ["evaluate", "analyze", "convert", "report"]
    for _, name, *options in commands:
        more = ["--layers=block_0", "--permutations=0", "--bootstrap=0", "--saliency=0"] if name == "analyze" else []
        more += ["--max-images=8", "--no-figures", "--no-ranks"] if name == "analyze" else []
        assert importlib.import_module(f"jaxkd.{COMMANDS.get(name, name)}").main([*options, *more]) == 0, name
    assert (folder / "student.safetensors").is_file() and (folder / "analysis" / "results.json").is_file()
    assert "Result" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_curves_that_cannot_be_drawn_are_said_and_the_run_is_whole(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("jaxkd.report.run_curves.draw_curves", refuse)
    console = Console(file=io.StringIO(), width=140)
    members = {"seed": (0, 1)}
    result = run_module.run(config(population=members, **{"train.steps": 1}), tmp_path, console=console)
    assert result["finished"] and (tmp_path / "result.json").is_file()
    assert "were not drawn (RuntimeError: no fonts)" in console.file.getvalue()
    assert (tmp_path / "members.png").is_file()
    evaluate = next_lines(console.file.getvalue())[0]
    assert evaluate[2].startswith(f"--weights={tmp_path}/members/seed_")
