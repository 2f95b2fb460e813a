"""How commands end: a signal is never lost, wherever it comes."""

from __future__ import annotations

import signal
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
