"""Populations: the members are the single runs that they stand for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from population_runs import MEMBERS, STEPS, config, experiment, summary, train

from jaxkd import parallel
from jaxkd.config.population import members

HERE = Path(__file__).resolve().parent
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh()


@pytest.fixture(scope="module")
def population(mesh):
    """(experiment, last state, metrics of each step)."""
    built = experiment(config(), mesh)
    return built, *train(built)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(6))
def test_a_member_is_a_run_of_its_own(population, mesh, index):
    built, state, metrics = population
    member = built.members[index]
    single, alone = train(experiment(member.config, mesh))
    assert alone["loss"].shape == (STEPS,) and set(alone) <= set(metrics)
    assert alone["grad_norm"].max() > 1.0 or member.group == "soft"  # the norm that is clipped to 1
    for name, values in alone.items():
        if name != "images":
            np.testing.assert_allclose(metrics[name][:, index], values, **TOLERANCE, err_msg=name)
    for own, expected in ((state.params, single.params), (state.ema, single.ema)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[index], b, **TOLERANCE), own, expected)
    absent = {"kl", "spectral"} - {name for name in alone}
    assert all((metrics[name][:, index] == 0).all() for name in absent) and absent | {"loss"} <= set(metrics)


@pytest.mark.slow
def test_members_on_eight_devices_are_those_on_one(population, mesh, tmp_path):
    out, environment = tmp_path / "out.npz", os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    subprocess.run([sys.executable, HERE / "population_runs.py", out, "8x1", "2x4"], env=environment, check=True)
    expected, found = summary(experiment(config(), mesh)), np.load(out)
    assert expected["shard"].tolist() == found["8x1/shard"].tolist() == [6, 24, 72]
    assert found["2x4/shard"].tolist() == [3, 24, 18]  # members over the batch's devices, columns over the model's
    for words in ("8x1", "2x4"):
        for name in expected:
            if name != "shard":
                np.testing.assert_allclose(found[f"{words}/{name}"], expected[name], rtol=2e-5, atol=2e-5, err_msg=name)


def test_names_and_groups_of_members():
    found = members(config())
    assert [m.name for m in found][:4] == ["none-seed_0", "soft-seed_0", "spectral-seed_0", "none-seed_3"]
    assert [m.group for m in found] == ["none", "soft", "spectral"] * len(MEMBERS["seed"])
    assert {(m.config.data.seed, m.config.population) for m in found} == {(0, None)}
    assert [m.config.task for m in found][:2] == ["classification", "distillation"]
