"""Settings of XLA's compiler: which programs get them."""

from __future__ import annotations

import types

import numpy as np

from jaxkd import parallel
from jaxkd.train import cpu_compiler

NAME = "xla_cpu_experimental_ynn_fusion_type"


def test_only_settings_that_this_xla_knows_reach_a_program_for_cpus(monkeypatch):
    mesh = parallel.make_mesh()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    settings = {"xla_cpu_prefer_vector_width": "256", "xla_cpu_no_such": "1"}
    monkeypatch.setattr(cpu_compiler, "_SETTINGS", settings)
    assert cpu_compiler.compiler_options(mesh) == {"xla_cpu_prefer_vector_width": "256"}


def test_flags_of_the_environment_win(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{NAME}=")
    assert cpu_compiler.compiler_options(parallel.make_mesh()) is None


def test_a_program_for_another_platform_gets_none():
    device = types.SimpleNamespace(platform="tpu")
    assert cpu_compiler.compiler_options(types.SimpleNamespace(devices=np.array([device], dtype=object))) is None
