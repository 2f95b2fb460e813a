"""`experiment.build`: what a run, a plan, a benchmark and a test get of a config."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.table import Table

from jaxkd import models, parallel, tasks, weights
from jaxkd.cli import training_config
from jaxkd.config import fields
from jaxkd.config.population import members
from jaxkd.distill import preset
from jaxkd.errors import ConfigError, TapError, WeightMismatchError
from jaxkd.experiment import Components, build, register_task
from jaxkd.experiment.build import STEPS_WITHOUT_DATA, build_optimizer, loop_settings, warm_up_warning
from jaxkd.experiment.objective import build_objective, simkd_note
from jaxkd.experiment.registry import registered_task

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3}


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh()


def config(**changes):
    given = {"data.source": "embedded:digits", "data.workers": 0, "train.batch_size": 64, "ema.decay": 0.9}
    given |= {"schedule.warmup_epochs": 0} | {f"student.args.{k}": v for k, v in SMALL.items()}
    return fields.change(fields.base(), given | changes).lock()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    model = models.create("deit_tiny_patch16_224", num_classes=10, **SMALL)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    weights.save_safetensors(path, model, variables)
    return path, variables


def test_without_data_the_warm_up_is_shorter_than_a_run_of_given_steps(mesh):
    given = {"schedule.steps": 50, "schedule.warmup_epochs": 2, "student.args.num_classes": 10}
    schedule = build(config(**given), mesh, open_data=False, load=False).schedule
    assert schedule(0) < schedule(20) > schedule(49)


SPLIT = """
    import sys, jax, numpy as np
    from jaxkd import parallel
    from jaxkd.config import fields
    from jaxkd.experiment import build

    small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 10}
    changes = {f"student.args.{k}": v for k, v in small.items()} | {"ema.decay": 0.9, "optimizer.reference_batch": 0}
    mesh = parallel.make_mesh(1, 2)
    for path in ("", sys.argv[1]):  # random and loaded
        changes |= {"mesh.data": 1, "mesh.model": 2, "student.weights": path}
        experiment = build(fields.change(fields.base(), changes).lock(), mesh, open_data=False, load=bool(path))
        state = experiment.init_state()
        assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, state, experiment.shardings))
        kernel = state.params["student"]["blocks_0"]["mlp"]["fc1"]["kernel"]
        assert {s.data.shape for s in kernel.addressable_shards} == {(24, 48)}
        expected = experiment.task.init(jax.random.key(0))[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), state.params, expected)
        jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
        print("same")
"""


@pytest.mark.slow
def test_a_state_that_is_split_is_the_same_one(weights_file):
    given = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", textwrap.dedent(SPLIT), str(weights_file[0])]
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["same"] * 2, done.stderr


@pytest.mark.parametrize("loaded", [False, True])
def test_the_first_state_is_that_of_the_task_and_owns_its_buffers(mesh, weights_file, loaded):
    path, variables = weights_file
    experiment = build(config(**({"student.weights": str(path)} if loaded else {})), mesh)
    state = experiment.init_state()
    expected = variables["params"] if loaded else experiment.task.init(jax.random.key(0))[0]["student"]
    jax.tree.map(np.testing.assert_array_equal, state.params["student"], expected)
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), experiment.abstract_state
    )
    assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, state, experiment.shardings)))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size]
    assert len(set(pointers)) == len(pointers)


def test_the_step_takes_the_first_state_and_the_loaded_weights_outlive_it(mesh, weights_file):
    path, variables = weights_file
    experiment = build(config(**{"student.weights": str(path)}), mesh)
    batch = parallel.put_batch(next(experiment.pipeline), mesh)
    state = experiment.init_state()
    after, metrics = experiment.compile_step()(state, batch, experiment.key, experiment.constants)
    assert int(after.step) == 1 and np.isfinite(metrics["loss"]) and "statistics" not in metrics
    assert state.params["student"]["norm"]["scale"].is_deleted()
    again = experiment.init_state().params["student"]
    jax.tree.map(np.testing.assert_array_equal, again, variables["params"])


def test_loaded_weights_are_on_no_device_before_the_mesh_has_them(mesh, weights_file):
    """Else the first device would hold a teacher whole beside its part of the one that is split."""
    teacher = {f"teacher.args.{k}": v for k, v in SMALL.items()} | {"teacher.name": "deit_tiny_patch16_224"}
    teacher |= {"teacher.weights": str(weights_file[0]), "student.weights": str(weights_file[0])}
    teacher |= {"student.new_head": True, "distill.preset": "spectral", "distill.pairs": "last"}
    experiment = build(config(**teacher, task="distillation"), mesh)
    loaded = (experiment.task.constants, experiment.task.student.variables)
    assert {type(leaf) for leaf in jax.tree.leaves(loaded)} == {np.ndarray}
    jax.tree.map(np.testing.assert_array_equal, loaded, (weights_file[1],) * 2)
    assert {type(leaf) for leaf in jax.tree.leaves(weights.load(experiment.task.teacher.model, weights_file[0]))} == {
        type(experiment.constants["params"]["norm"]["scale"])
    }


def leaf(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return fields.change(module.get_config(), {"stages": (), "train.batch_size": 64}).lock()


@pytest.mark.parametrize("name", ["deit_cait", "swin_swin", "supervised", "mdbn_x4"])
def test_a_plan_needs_neither_data_nor_weights(mesh, name):
    experiment = build(leaf(name), mesh, load=False, open_data=False)
    assert experiment.pipeline is None and experiment.make_evaluator is None
    assert experiment.settings.steps_per_epoch == STEPS_WITHOUT_DATA
    assert (
        experiment.parameters
        == {
            "deit_cait": 5_717_416,
            "swin_swin": 28_288_354,
            "supervised": 5_717_416,
            "mdbn_x4": experiment.parameters,
        }[name]
    )
    assert float(experiment.schedule(np.int32(0))) >= 0


def test_a_task_of_the_users_own(mesh, monkeypatch):
    network = weights.build_network("deit_tiny_patch16_224", SMALL | {"num_classes": 3}, compute="float32", remat=False)

    def own(config, mesh, *, workdir, console, load, open_data):
        assert (workdir, console, load, open_data) == (None, None, False, False)
        task = tasks.ClassificationTask(network, preset("none"))
        return Components(config=config, task=task, best_metric="mine", summary=("mine",))

    register_task("counting", own, lambda configs, results, workdir: Table())
    experiment = build(config(task="counting"), mesh, load=False, open_data=False)
    with pytest.raises(ConfigError, match='A task "counting" is registered already'):
        register_task("counting", own, lambda configs, results, workdir: None)
    assert experiment.best_metric == "mine" and experiment.task.student is network
    assert experiment.abstract_state.params["student"]["head"]["bias"].shape == (3,)


def test_a_task_that_nobody_registered(mesh):
    with pytest.raises(ConfigError, match=r'task="distilation" is not possible. Did you mean "distillation"'):
        registered_task("distilation")
    with pytest.raises(ConfigError, match=r'task="distilation" is not possible'):
        build(config(task="distilation"), mesh, load=False, open_data=False)


def test_a_learning_rate_that_would_rise_is_an_error(mesh):
    one = config(**{"optimizer.learning_rate": 1e-6, "schedule.min_lr": 1e-5})
    with pytest.raises(ConfigError, match=r"= 1.25e-07, below schedule.min_lr=1e-05. Raise the rate"):
        build(one, mesh, load=False, open_data=False)


def test_a_warm_up_that_is_too_long_is_said_and_none_of_a_recipe_is():
    def said(steps_per_epoch=10, **changes):
        one = config(**{k.replace("__", "."): v for k, v in changes.items()})
        return warm_up_warning(one, loop_settings(one, steps_per_epoch))

    text = said(train__epochs=9, schedule__warmup_epochs=5)
    assert text.startswith("schedule.warmup_epochs=5 is too long for this run: the learning rate rises for 50 steps")
    assert text.endswith("Set --config.schedule.warmup_epochs=1, or a larger --config.train.epochs (now 9).")
    late = {"schedule__kind": "timm_epoch", "train__epochs": 6}  # whose warm-up ends an epoch later
    assert "highest rate is" in said(**late, schedule__warmup_epochs=5) and not said(**late, schedule__warmup_epochs=1)
    assert "(now 30)" in said(train__steps=30, schedule__warmup_epochs=5)  # of 300 epochs
    assert not said(schedule__warmup_epochs=5) and not said(train__epochs=10, schedule__warmup_epochs=5)
    for name in ("deit_cait", "swin_swin", "lift_cait:embedded", "mdbn_x4"):
        shipped = training_config.parse([f"--config={name}", "--workdir=a"]).config
        assert not warm_up_warning(shipped, loop_settings(shipped, 20)), name


@pytest.mark.parametrize("order", [1, -1])
def test_projectors_of_a_member_have_their_rate_beside_members_without_projectors(order):
    """The first update of a population is that of each member's own optimiser."""
    term = {"loss": "mse", "weight": 0.2, "projector": {"student": "linear"}}
    population = (
        {"name": "soft", "distill.preset": "soft", "optimizer.weight_decay": 0.3},
        {"name": "projector", "distill.terms": ({"loss": "ce"}, term), "optimizer.learning_rate": 2e-3},
    )
    changes = {"task": "distillation", "teacher.name": "cait_s24_224", "train.steps": 10, "distill.pairs": "last"}
    changes |= {"distill.projector_learning_rate": 5e-3, "distill.projector_weight_decay": 0.1}
    config = fields.change(fields.base(), {**changes, "population": population[::order]}).lock()
    settings = loop_settings(config, 10)
    leaf = np.full((3, 2), 0.5, np.float32)
    params = {"student": {"kernel": leaf}, "projectors": {"mse": {"kernel": 2 * leaf}}}
    stacked = jax.tree.map(lambda x: np.stack([x, x]), params)
    together = build_optimizer(config, settings, None)[1]
    found = together.update(stacked, together.init(stacked), stacked)[0]
    for index, member in enumerate(members(config)):
        alone = build_optimizer(member.config, settings, None)[1]
        expected = alone.update(params, alone.init(params), params)[0]
        if member.name == "soft":  # it has no projectors
            expected, own = expected["student"], found["student"]
        else:
            own = found
        jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-9), own, expected)
        assert np.abs(jax.tree.leaves(expected)[0]).max() > 0


def test_pairs_of_a_term_are_named_by_their_term():
    taps = ("block_0", "block_1")
    terms = ({"loss": "ce"}, {"loss": "mse", "pairs": (("block_0", "block_1"), ("lifted", "block_1"))})
    with pytest.raises(TapError, match=r"distill.terms\[1\].pairs\[1\] names layer 'lifted' of the student"):
        build_objective(fields.change(fields.base(), {"distill.terms": terms}), taps, taps)


def test_a_run_with_simkd_says_whose_classifier_is_scored():
    terms = ({"loss": "simkd", "pairs": "last"}, {"loss": "ce"})
    single = fields.change(fields.base(), {"task": "distillation", "teacher.name": "x", "distill.terms": terms})
    assert "exported weights are those of the student with its own classifier" in simkd_note(single, False)
    assert "top1_teacher_head" in simkd_note(single, True) and "scored only" not in simkd_note(single, True)
    assert "a teacher with one classifier and the student's classes" in simkd_note(single, False)
    assert simkd_note(fields.change(single, {"distill.terms": ({"loss": "ce"},)}), False) == ""
    member = ({"name": "a", "distill.terms": terms}, {"name": "b", "distill.terms": ({"loss": "ce"},)})
    assert simkd_note(fields.change(single, {"distill.terms": (), "population": member}), False)


def test_a_teacher_without_arguments_is_the_network_that_its_file_records(mesh, tmp_path):
    args = {"num_classes": 10, "img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "depth_token_only": 1}
    network = weights.build_network("cait_xxs24_224", args | {"num_heads": 3, "drop_path_rate": 0.1})
    shapes = models.abstract_variables(network.model, (1, 16, 16, 3))
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.01, np.float32), shapes)
    path = tmp_path / "teacher.safetensors"
    weights.save_safetensors(path, network.model, variables, weights.to_metadata(network))
    given = {"task": "distillation", "teacher.name": "cait_s24_224", "teacher.weights": str(path)}
    given |= {"distill.preset": "soft", "student.args.img_size": 16}
    built = build(config(**given), mesh)
    teacher = built.config.teacher
    assert (teacher.name.partition(".")[0], teacher.args.embed_dim, teacher.args.depth) == ("cait_xxs24_224", 24, 2)
    assert "drop_path_rate" not in teacher.args and built.task.teacher.image_size == (16, 16)
    said = f"{teacher.name}, depth=2, depth_token_only=1, embed_dim=24, num_heads=3, patch_size=8: as {path} records"
    assert built.summary[0] == f"teacher {said}"
    with pytest.raises(WeightMismatchError):  # arguments of the config are taken as they are
        build(config(**given, **{"teacher.args.depth": 2}), mesh)
