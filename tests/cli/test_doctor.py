"""`jaxkd doctor`: a sound installation, and one whose packages are too old or missing."""

from __future__ import annotations

import json
import sys

import pytest
from packaging.requirements import Requirement

from jaxkd import doctor
from jaxkd.cli import installation
from jaxkd.experiment import self_test

REQUIRED = [Requirement("numpy>=2.0"), Requirement("jax[cuda]>=0.10")]


@pytest.mark.slow
def test_an_installation_that_works_and_one_that_does_not(monkeypatch, capsys):
    monkeypatch.setattr(installation, "requirements", lambda: {"": REQUIRED[:1], "cuda": REQUIRED[1:]})
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == [] and found["extras"] == {"cuda": False} and found["devices"]["platform"] == "cpu"
    assert found["computation"]["loss"] > 0 and found["computation"]["spectral_difference"] < 1e-5
    assert found["compile_cache"]["writable"] and found["this_folder"]["free"] > 0 and found["versions"]["numpy"]

    monkeypatch.setattr(self_test, "train_step", lambda: {"loss": 1.0})
    monkeypatch.setattr(self_test, "spectral_difference", lambda: float("nan"))
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "PROBLEM: the spectral loss differs from NumPy's by nan" in said and said.endswith("does not work here.\n")

    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "jax", None)  # as where importing it fails
        assert doctor.main([]) == 1
    assert "PROBLEM: JAX cannot be used or finds no device: ModuleNotFoundError" in capsys.readouterr().out

    monkeypatch.setattr(installation, "version_of", {"numpy": "1.26", "jax": "0.10", "jaxkd": "0.1"}.get)
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "PROBLEM: numpy is 1.26, and jaxkd needs >=2.0" in said and "devices" not in said
    assert "note: What is installed is called 0.1." in said
