"""The log file of a work directory, without a run."""

from __future__ import annotations

import io
import logging
import re
import warnings

import pytest
from rich.console import Console
from rich.table import Table

from jaxkd.errors import ConfigError
from jaxkd.experiment.run_log import RunLog
from jaxkd.train.progress import Progress, TrainProgress


def lines(folder) -> list[str]:
    """The log's lines without their time stamps."""
    text = (folder / "log.txt").read_text()
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]


@pytest.mark.filterwarnings("always")
def test_the_log_has_what_stays_on_the_terminal_and_an_end(tmp_path):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60)
    table = Table("run", "top-1")
    table.add_row("student", "71.3")
    with pytest.raises(ConfigError), RunLog(tmp_path, terminal) as log:
        log.console.print("before the folder is claimed", soft_wrap=True)
        assert not (tmp_path / "log.txt").exists()
        log.open("==== started: jaxkd train")
        with TrainProgress(log.console, "run", 300, 0) as progress:
            for step in range(300):
                progress.update(step, "loss 1")
            progress.say("epoch 1 · top1 [50] " + "long " * 20)
            warnings.warn("rates differ", UserWarning, stacklevel=1)
        logging.getLogger("jaxkd.somewhere").warning("a file is %s", "odd")
        log.handle(logging.LogRecord("elsewhere", logging.ERROR, "", 0, "%d files", ("no",), None))  # ends no run
        log.console.print(table)
        raise ConfigError("It was wrong.")
    found = lines(tmp_path)
    assert found[0] == "==== started: jaxkd train" and found[1] == "before the folder is claimed"
    assert "epoch 1 · top1 [50] " + ("long " * 20).strip() in found
    assert "error: %d files ('no',)" in found
    assert "warning: UserWarning: rates differ" in found and "warning: a file is odd" in found
    assert any("student" in line and "71.3" in line for line in found) and found[-1] == "error: It was wrong."
    assert not any("\x1b" in line or "loss 1" in line for line in found) and len(found) < 20
    assert len([line for line in found if "rates differ" in line]) == 1


def test_a_warning_in_a_stage_stands_once_in_its_log_and_once_in_that_of_the_run(tmp_path, monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with RunLog(tmp_path, terminal) as whole, RunLog(tmp_path / "stage", whole.console) as stage:
        (tmp_path / "stage").mkdir()
        whole.open("==== started")
        stage.open("==== started")
        with TrainProgress(stage.console, "stage", 3, 0):
            logging.getLogger("jaxkd.somewhere").warning("a file is odd")
    for folder in (tmp_path, tmp_path / "stage"):
        assert [line for line in lines(folder) if "odd" in line] == ["warning: a file is odd"]
    assert terminal.file.getvalue().count("a file is odd") == 1


def test_lines_of_progress_are_thinned_and_a_second_start_is_appended(tmp_path):
    now = [0.0]
    for start in ("==== started", "==== continued"):
        with RunLog(tmp_path, None, clock=lambda: now[0]) as log:
            log.open(start)
            with Progress(log.console, every_seconds=0.0) as progress:
                for step in range(100):
                    now[0] += 30.0
                    progress.show("step", step, 100, "loss 1")
    found = lines(tmp_path)
    assert [line for line in found if "====" in line] == ["==== started", "==== continued"]
    assert 2 * 5 <= len([line for line in found if "loss 1" in line]) <= 2 * 6
    with RunLog(tmp_path, None, active=False) as silent:
        silent.open("never")
        assert silent.console is None
    assert lines(tmp_path) == found


def test_a_full_disk_stops_nothing_and_is_said_once(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with RunLog(tmp_path, None) as log:
        log.open("==== started")
        for number in range(3):
            log.console.print(f"line {number}")
        assert capsys.readouterr().err.count("No space left on device") == 1
        (tmp_path / "log.txt").unlink()
        log._file = None  # the disk has room again
        log.console.print("last")
        log.console.print("very last")
    found = lines(tmp_path)
    assert found == ["(4 messages are missing here: No space left on device)", "last", "very last"]
