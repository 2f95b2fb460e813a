"""Progress of a run on the terminal and in a file."""

import io
import time

import pytest
from rich.console import Console

from jaxkd.cli.console import replace_characters
from jaxkd.train import progress as progress_module
from jaxkd.train.progress import Progress, TrainProgress, duration, shorten


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-1, "0s"), (59.4, "59s"), (83, "1m23s"), (3599.6, "1h00m"), (3723, "1h02m"), (90000, "25h00m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def lines_of(every_seconds: float) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with TrainProgress(console, "toy", 10, 0, every_seconds=every_seconds) as progress:
        progress.update(1, "[loss] 1.0")
        progress.update(2, "[loss] 0.5")
        progress.say("epoch 1: [bold]")
    return console.file.getvalue().splitlines()


def test_a_log_file_gets_a_line_now_and_then_and_what_stays():
    assert lines_of(0.0) == ["toy step 1/10 [loss] 1.0", "toy step 2/10 [loss] 0.5", "epoch 1: [bold]"]
    assert lines_of(3600.0) == ["toy step 1/10 [loss] 1.0", "epoch 1: [bold]"]


def test_an_ascii_log_file_gets_other_signs():
    replace_characters()
    for errors, line in (("jaxkd", "loss 1.0 - 5 images/s \\xe9"), ("strict", "loss 1.0 ? 5 images/s ?")):
        file = io.TextIOWrapper(io.BytesIO(), "ascii", errors)
        Progress(Console(file=file, width=200)).say("loss 1.0 · 5 images/s é")
        file.flush()
        assert file.buffer.getvalue().decode().rstrip() == line


def test_a_terminal_gets_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with TrainProgress(console, "toy", 10, 3) as progress:
        progress.update(4, "12 images/s")
        progress.say("kept")
    text = console.file.getvalue()
    assert "4/10" in text and "12 images/s" in text and "kept" in text


def test_other_hosts_are_silent(capsys):
    with TrainProgress(None, "toy", 10, 0, every_seconds=0.0) as progress:
        progress.update(1, "x")
        progress.say("x")
    assert capsys.readouterr() == ("", "")


def test_commands_show_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with Progress(console, every_seconds=5.0) as progress:
        for done in range(0, 31, 10):
            progress("[mdbn]", "images", done, 100)
            now[0] += 5.0
        progress.show("shards", 1, 4, detail="3.2 MB/s")
        progress.show("shards", 2, 4, detail="3.2 MB/s")  # too early for another line
    assert console.file.getvalue().splitlines() == [
        "[mdbn]: images 0/100",
        "[mdbn]: images 10/100 2.0/s, 45s left",
        "[mdbn]: images 20/100 2.0/s, 40s left",
        "[mdbn]: images 30/100 2.0/s, 35s left",
        "shards 1/4 3.2 MB/s",
    ]


def test_a_log_file_gets_a_line_while_nothing_is_reported(monkeypatch):
    monkeypatch.setattr(progress_module, "QUIET", 0.05)
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with Progress(console) as progress:
        progress("deit", "compiling", 0, 6)
        deadline = time.monotonic() + 10
        while "still" not in console.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    first, second = console.file.getvalue().splitlines()[:2]
    assert first == "deit: compiling 0/6" and second.startswith("deit: compiling 0/6, still running after ")


def test_names_that_the_console_cannot_show():
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), force_terminal=False, width=200)
    with Progress(console) as progress:
        progress.say("caf\udce9 café")
    console.file.flush()
    assert console.file.buffer.getvalue() == b"caf? caf?\n"


def test_each_title_gets_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(console) as progress:
        progress("a [x]", "images", 1, 2)
        progress("b", "images", 3, 7)
    text = console.file.getvalue()
    assert "a [x]: images" in text and "b: images" in text and "3/7" in text


def test_a_narrow_terminal_gets_the_loss_and_the_time_left():
    status = "loss 2.303 · 1500 images/s · 341 ms/step · data wait 2 % · 12h10m left"
    assert shorten(status, 100) == status
    assert shorten(status, 60) == "loss 2.303 · 1500 images/s · 341 ms/step · 12h10m left"
    assert shorten(status, 30) == "loss 2.303 · 12h10m left" and shorten(status, 12) == "loss 2.303"
    assert shorten(status, 4) == "loss" and shorten(status, -3) == ""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with TrainProgress(console, "student_distilled", 375_300, 0) as progress:
        progress.update(200_000, status)
    text = console.file.getvalue()
    assert "loss 2.303" in text and "ms/step" not in text and "200000/375300" in text and "…" not in text
