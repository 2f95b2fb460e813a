"""What a person sees while a run goes on."""

import io

import pytest
from rich.console import Console

from jaxkd.train.progress import TrainProgress, duration


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
    assert lines_of(3600.0) == ["epoch 1: [bold]"]


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
