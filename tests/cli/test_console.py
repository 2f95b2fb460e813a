"""How commands end: a signal is never lost, wherever it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxkd.cli import console


class Finaliser:
    """An object in whose finaliser a signal arrives, where Python drops the exception that the signal raises."""

    def __init__(self, number: int):
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_inside_a_finaliser_ends_the_command(number, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)

    @console.command("stopped here.")
    def main() -> int:
        Finaliser(number)
        for _ in range(500):
            time.sleep(0.01)
        return 0

    try:
        assert main() == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGHUP, hangup)
    assert capsys.readouterr().err == "jaxkd: stopped here.\n"


ABANDONED = """
import sys, warnings
from jaxkd.cli import console
from jaxkd.errors import CheckpointError, storage_error

kept = []

async def write_fragment():
    pass

@console.command()
def main(kind):
    here = write_fragment()  # dropped with the error
    kept.append(write_fragment())  # dropped at exit
    warnings.warn("another one", RuntimeWarning)
    if kind == "user":
        raise CheckpointError("The disk is full. Free space.")
    if kind == "disk":
        raise OSError(28, "No space left on device", "/a")
    raise KeyError("a bug")

main(sys.argv[1])
"""


@pytest.mark.parametrize(("kind", "code", "noise"), [("user", 2, False), ("disk", 2, False), ("bug", 1, True)])
def test_writes_that_an_error_broke_off_add_nothing_to_its_message(kind, code, noise):
    done = subprocess.run([sys.executable, "-c", ABANDONED, kind], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("was never awaited" in done.stderr) == noise and "RuntimeWarning: another one" in done.stderr
    assert ("Traceback" in done.stderr) == (kind == "bug")


@pytest.mark.parametrize("notebook", ["pipe", "pseudo-terminal"])
def test_bars_in_a_notebook_are_lines(notebook, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    if notebook == "pseudo-terminal":
        monkeypatch.setenv("JPY_PARENT_PID", "1")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.progress(every_seconds=0.0) as bar:
        for step in range(3):
            bar.show("images", step, 3, "fast")
    assert capsys.readouterr().err.splitlines() == [f"images {step}/3 fast" for step in range(3)]


def test_the_backend_of_a_notebook_does_not_end_a_command(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://no_such_backend")

    @console.command()
    def main():
        import matplotlib.figure

        return bool(matplotlib.figure.Figure)

    assert main()
    assert "MPLBACKEND" not in os.environ
