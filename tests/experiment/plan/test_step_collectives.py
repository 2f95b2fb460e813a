"""The compiled step moves no activations between devices: only gradients and metrics are summed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def collectives():
    """ "closed 16" -> [[kind, bytes, count, module], ...] of the step at that batch on eight simulated devices."""
    given = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(HERE.parents[2])}
    done = subprocess.run([sys.executable, str(HERE / "compiled_steps.py")], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def growing(small, large):
    """Kinds of `large` that move more bytes than in `small`, a batch half as large."""

    def by_kind(rows):
        return {kind: sum(size * count for k, size, count, _ in rows if k == kind) for kind, *_ in rows}

    before, after = by_kind(small), by_kind(large)
    return {kind for kind, size in after.items() if size > before.get(kind, 0)}


@pytest.mark.slow
def test_a_step_with_statistics_moves_no_more_between_devices_for_a_larger_batch(collectives):
    small, large = collectives["closed 16"], collectives["closed 32"]
    # The first images of a batch lie on the first devices, and statistics spread these few over all.
    assert growing(small, large) <= {"collective-permute"}
    assert sum(size * count for kind, size, count, _ in large if kind == "collective-permute") < 100_000
    assert "all-gather" not in {kind for kind, *_ in large}
    gradients = max(size for kind, size, *_ in large if kind == "all-reduce")
    assert gradients > 4 * 10_000  # fp32, of every parameter of the student


@pytest.mark.slow
def test_the_spectral_loss_with_an_fft_gathers_no_activations(collectives):
    small, large = collectives["fft 16"], collectives["fft 32"]
    assert growing(small, large) == set()
    assert {kind for kind, *_ in large} == {"all-reduce"}


@pytest.mark.slow
def test_an_activation_that_is_gathered_is_found(collectives):
    """XLA does not partition an FFT: a term that has one in the open gathers its maps on every device."""
    assert growing(collectives["gathered 16"], collectives["gathered 32"]) == {"all-gather"}
    assert any("fft" in module for kind, *_, module in collectives["gathered 32"] if kind == "all-gather")
