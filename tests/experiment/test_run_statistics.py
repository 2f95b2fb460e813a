"""Statistics during whole runs: that the flag changes no parameter and no program, and what is left in the folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_weights import random_variables
from stopping import run_stopped
from test_run import TEACHER, assert_trees_equal, config, final_params, with_teacher

from jaxkd import models, parallel, train, weights
from jaxkd.config import validate
from jaxkd.errors import ConfigError, TapError
from jaxkd.experiment import build, workdir
from jaxkd.experiment import run as run_module
from jaxkd.experiment.classification import resolve

ON = {"dynamics.every_steps": 2, "dynamics.images": 16, "dynamics.rank_images": 2}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    model = models.create("cait_xxs24_224", num_classes=10, **TEACHER)
    variables = random_variables(model)
    path = tmp_path_factory.mktemp("teacher") / "cait.safetensors"
    weights.save_safetensors(path, model, variables)
    return path


def programs(config):
    """(the plain step as text, the step with statistics as text or None)."""
    experiment = build(config, parallel.make_mesh())
    batch = parallel.put_batch(next(experiment.pipeline), experiment.mesh)
    arguments = (experiment.abstract_state, batch, experiment.key, experiment.constants)
    plain = experiment.compile_step().lower(*arguments).as_text()
    if experiment.statistics is None:
        return plain, None
    return plain, experiment.compile_step(statistics=True).lower(*arguments).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_flag_off_is_the_same_program_and_on_it_is_the_plain_step_of_most_steps(teacher_file, accumulate):
    more = {"optimizer.accumulate": accumulate}
    off, none = programs(with_teacher(teacher_file, **more))
    on, observed = programs(with_teacher(teacher_file, **more, **ON))
    assert on == off and none is None
    assert "fft" in observed and observed != off and len(observed) > len(off)


TWO_PROGRAMS = """
import sys
import jax, numpy as np
from test_run_statistics import ON, build, parallel, with_teacher

jax.config.update("jax_default_matmul_precision", "highest")
ends = []
for more in ({}, ON):
    one = build(with_teacher(sys.argv[1], **{"train.batch_size": 32}, **more), parallel.make_mesh())
    state, step = one.init_state(), one.compile_step(statistics=bool(more))
    for _ in range(2):
        batch = parallel.put_batch(next(one.pipeline), one.mesh)
        state, metrics = step(state, batch, one.key, one.constants)
    assert ("statistics" in metrics) == bool(more)
    ends.append((state.params, state.ema, state.opt_state))
jax.tree.map(np.testing.assert_array_equal, *ends)
"""


@pytest.mark.slow
def test_a_distillation_ends_in_the_same_bits_with_statistics(teacher_file):
    here = Path(__file__).parent
    # XLA compiles two programs, but the statistics only read what the step computes: on CPU not one bit differs. That
    # holds for the fusions of real runs, which conftest.py turns off.
    flags = os.environ["XLA_FLAGS"].replace("--xla_cpu_use_fusion_emitters=false", "")
    path = os.pathsep.join([str(here), str(here.parent), str(here.parents[1])])
    command = [sys.executable, "-c", TWO_PROGRAMS, str(teacher_file)]
    done = subprocess.run(
        command, env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_statistics_go_on_where_a_resumed_run_goes_on(tmp_path, monkeypatch, teacher_file):
    on = with_teacher(teacher_file, **ON, **{"log.tensorboard": True})
    run_module.run(on, tmp_path / "on")
    assert not run_stopped(monkeypatch, on, tmp_path / "halves", after=3)["finished"]
    assert (tmp_path / "halves" / "dynamics" / "entropy.csv").read_text().count("\n") == 3
    run_module.run(on, tmp_path / "halves")
    assert_trees_equal(final_params(tmp_path / "on"), final_params(tmp_path / "halves"))

    rows, again = (train.read_metrics(tmp_path / name, "dynamics") for name in ("on", "halves"))
    assert [r["step"] for r in rows] == [1, 2, 4, 6] and rows == again
    assert rows[0]["layers"] == ["block_0", "block_1"]
    names = {k for k, v in rows[0].items() if isinstance(v, list)} - {"layers"}
    assert names >= {"intensity", "entropy", "activation_mean", "activation_max", "gradient", "rank_99", "stable_rank"}
    folder = tmp_path / "on" / "dynamics"
    assert {p.name for p in folder.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("csv", "png")}
    for name in names:
        text = (folder / f"{name}.csv").read_text()
        assert text.splitlines()[0] == "step,epoch,block_0,block_1"
        assert text == (tmp_path / "halves" / "dynamics" / f"{name}.csv").read_text()
    assert b"dynamics/entropy/block_1" in next((tmp_path / "on" / "tensorboard").glob("events*")).read_bytes()
    # statistics only watch, so that a run may go on without them
    workdir.claim_workdir(resolve(with_teacher(teacher_file), num_classes=10), tmp_path / "on")


def test_a_layer_that_does_not_exist_is_said_before_anything_is_built(tmp_path):
    with pytest.raises(TapError, match="Did you mean"):
        run_module.run(config(**{"dynamics.every_steps": 2, "dynamics.layers": ("blok_1",)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dynamics.images": 8}, "dynamics.every_steps=0"),
        ({**ON, "dynamics.ranks": False}, "dynamics.ranks=False"),
        ({**ON, "dynamics.images": 0}, "out of range"),
        ({"dynamics.every_steps": -1}, "out of range"),
    ],
)
def test_settings_that_nothing_reads_or_that_are_impossible(changes, words):
    with pytest.raises(ConfigError, match=words):
        validate.validate(config(**changes))
