"""Populations: the members are the single runs that they stand for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from population_runs import MEMBERS, STEPS, TEACHER, arrays_of, config, experiment, program, small, train
from random_weights import random_variables
from rich.console import Console
from stopping import run_stopped

from jaxkd import evaluate, main, models, parallel, weights
from jaxkd import train as train_module
from jaxkd.config import fields
from jaxkd.config.population import explicit, members
from jaxkd.config.validate import validate
from jaxkd.data import EvalBatches, eval_preprocess, normalise, open_source, subset_membership
from jaxkd.errors import CheckpointError, ConfigError, JaxkdError, NonFiniteLossError, TapError
from jaxkd.experiment.members import member_results
from jaxkd.experiment.run import run
from jaxkd.train import read_metrics

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh()


@pytest.fixture(scope="module")
def population(mesh):
    """(experiment, last state, metrics of each step)."""
    built = experiment(config(), mesh)
    return built, *train(built)


@pytest.fixture(scope="module")
def singles(mesh):
    """config, number of steps -> arrays of the single run, which is trained once."""
    known = {}

    def single(config, steps):
        key = config.to_json_best_effort()
        if key not in known:
            known[key] = arrays_of(*train(experiment(config, mesh), steps))
        return known[key]

    return single


def assert_single(found, index, expected, columns=()):
    """Member `index` of a population's arrays is a single run, in every array that this has.

    Args:
      found: arrays of the population.
      index: of the member.
      expected: arrays of the single run.
      columns: (name of a term there, name in the population) of terms that members have under one name.
    """
    names = {name for name in expected if name != "metrics/images"}
    assert {"metrics/loss", "metrics/grad_norm"} <= names and any(name.startswith("params/") for name in names)
    for name in names:
        there = name
        for own, other in columns:
            there = there.replace(f"projectors/{own}/", f"projectors/{other}/").replace(
                f"statistics/{own}/", f"statistics/{other}/"
            )
        np.testing.assert_allclose(found[there][index], expected[name], **TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def small_singles(singles, mesh):
    """Arrays of the single runs that the members of `small` stand for."""
    given, steps = program("small")
    return [singles(member.config, steps) for member in members(given)]


SMALL_COLUMNS = ((), (("mse", "mse@2"),))  # one projector is frozen and the other is not: two terms


def test_members_with_projectors_are_runs_of_their_own(mesh, small_singles):
    given, steps = program("small")
    built = experiment(given, mesh)
    found = arrays_of(*train(built, steps))
    for index, (expected, columns) in enumerate(zip(small_singles, SMALL_COLUMNS, strict=True)):
        assert_single(found, index, expected, columns)
    check_projectors(small_singles, experiment(members(given)[0].config, mesh))


@pytest.mark.slow
def test_members_with_and_without_projectors_are_runs_of_their_own_over_twenty_steps(mesh, singles):
    soft = {"name": "soft", "seed": 0, "distill.preset": "soft", "distill.temperature": 2.0}
    larger = {f"{side}.args.depth": 2 for side in ("student", "teacher")}
    larger |= {"student.args.drop_path_rate": 0.2, "data.mix.mixup": 0.5}
    given = fields.change(small(), {**larger, "population": (*small().population, soft)}).lock()
    built = experiment(given, mesh)
    found = arrays_of(*train(built))
    for index, (member, columns) in enumerate(zip(built.members, (*SMALL_COLUMNS, ()), strict=True)):
        assert_single(found, index, singles(member.config, STEPS), columns)


def check_projectors(singles, built):
    """Of single runs, the first with a frozen projector: it stays and the other moves, and statistics of both do."""
    frozen, trained = singles
    start = arrays_of(built.init_state(), {})
    heads = [name for name in start if name.startswith("params/projectors/")]
    assert len(heads) == 6 and all((frozen[name] == start[name]).all() for name in heads)
    kernel = "params/projectors/mse/pair_0/student/linear/kernel"
    assert np.abs(trained[kernel]).max() > 0 and not np.array_equal(trained[kernel], start[kernel])
    statistics = [name for name in start if name.startswith("statistics/")]
    assert len(statistics) == 4
    for name in statistics:
        assert all(np.abs(run[name] - start[name]).max() > 1e-3 for run in singles), name


def test_members_on_eight_devices_are_runs_of_their_own(small_singles, tmp_path):
    found = on_eight_devices("small", tmp_path / "out.npz", "2x4")["2x4"]
    assert found["shard"].tolist() == [1, 24, 18]  # one member on each half of the devices, a quarter of the columns
    for index, (expected, columns) in enumerate(zip(small_singles, SMALL_COLUMNS, strict=True)):
        assert_single(found, index, expected, columns)


def on_eight_devices(kind, out, *meshes):
    """mesh -> arrays of the population there."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    subprocess.run([sys.executable, HERE / "population_runs.py", kind, out, *meshes], env=environment, check=True)
    arrays = np.load(out)
    return {words: {n.removeprefix(f"{words}/"): arrays[n] for n in arrays if n.startswith(words)} for words in meshes}


@pytest.mark.slow
@pytest.mark.parametrize("index", range(6))
def test_a_member_is_a_run_of_its_own(population, singles, index):
    built, state, metrics = population
    member = built.members[index]
    found, expected = arrays_of(state, metrics), singles(member.config, STEPS)
    assert expected["metrics/loss"].shape == (STEPS,)
    assert expected["metrics/grad_norm"].max() > 1.0 or member.group == "soft"  # the norm that is clipped to 1
    assert_single(found, index, expected)
    absent = {name for name in ("kl", "spectral") if f"metrics/{name}" not in expected}
    assert all((metrics[name][:, index] == 0).all() for name in absent) and absent | {"loss"} <= set(metrics)


@pytest.mark.slow
def test_members_of_other_rates_decays_weights_temperatures_and_pairs_with_accumulation(mesh, singles):
    soft = {
        "distill.preset": "soft+spectral",
        "distill.temperature": 2.0,
        "distill.alpha": 0.5,
        "distill.pairs": "last",
    }
    given = (
        {"name": "a", **soft, "optimizer.learning_rate": 1e-3},
        {
            "name": "b",
            **soft,
            "distill.temperature": 4.0,
            "distill.alpha": 0.8,
            "distill.feature_weight": 0.6,
            "distill.pairs": ((0, 0), (1, 1)),
            "optimizer.weight_decay": 0.5,
        },
    )
    built = experiment(config(**{"population": given, "optimizer.accumulate": 2, "distill.pairs": None}), mesh)
    found = arrays_of(*train(built, 4))
    for index, member in enumerate(built.members):
        assert_single(found, index, singles(member.config, 4))
    kl, weighted = found["metrics/kl"], found["metrics/kl_weighted"]
    np.testing.assert_allclose(weighted / kl, [[0.5] * 4, [0.8] * 4], rtol=1e-5)


@pytest.mark.slow
def test_six_members_on_eight_devices_are_runs_of_their_own(population, singles, tmp_path):
    """In every metric, parameter and average of 20 steps to 1e-5; the largest difference seen is a thirtieth of it."""
    found = on_eight_devices("large", tmp_path / "out.npz", "8x1", "2x4")
    assert found["8x1"]["shard"].tolist() == [6, 24, 72]
    assert found["2x4"]["shard"].tolist() == [3, 24, 18]  # members over the batch's devices, columns over the model's
    for index, member in enumerate(population[0].members):
        for arrays in found.values():
            assert_single(arrays, index, singles(member.config, STEPS))


WILD = {"name": "wild", "seed": 0, "distill.preset": "spectral", "distill.feature_weight": 1e38}


@pytest.mark.slow
def test_a_member_that_diverges_stays_and_the_others_go_on(population, mesh):
    built, _, metrics = population
    calm = {"name": "calm", "seed": 0, "distill.preset": "spectral"}
    pair = experiment(config(population=(calm, WILD)), mesh)
    start, (state, found) = pair.init_state(), train(pair, 4)
    assert found["diverged_at"].tolist() == [[-1, 1]] * 4 and not np.isfinite(found["grad_norm"][0, 1])
    index = [m.name for m in built.members].index("spectral-seed_0")
    np.testing.assert_allclose(found["loss"][:, 0], metrics["loss"][:4, index], **TOLERANCE)
    assert np.ptp(found["loss"][:, 0]) > 0
    for tree, first in ((state.params, start.params), (state.ema, start.ema), (state.opt_state, start.opt_state)):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), tree, first)


@pytest.mark.slow
def test_a_run_names_members_that_diverge_and_ends_without_any(tmp_path, teacher_file, capsys):
    two = {"name": "calm", "seed": 0, "distill.preset": "none"}
    result = run(with_teacher(teacher_file, population=(two, WILD)), tmp_path / "two", console=Console(width=200))
    said = capsys.readouterr().out
    assert 'member "wild" diverged at step 1: "grad_norm" became ' in said and "1 of 2 members go on" in said
    calm, wild = result["members"]
    assert (calm["diverged_at_step"], wild["diverged_at_step"], wild["top1"]) == (None, 1, None)
    assert 0 < calm["top1"] <= calm["best_top1"] == result["best_top1"] and "best_top1" not in wild
    assert json.loads((tmp_path / "two" / "result.json").read_text()) == result
    rows = read_metrics(tmp_path / "two", "train")
    assert all(row["loss"][1] == "nan" and np.isfinite(row["loss"][0]) for row in rows)
    assert train_module.checkpoint_steps(tmp_path / "two" / "members" / "wild") == [0]
    with pytest.raises(NonFiniteLossError, match=r'All 1 members .* \(member "wild" diverged at step 1'):
        run(with_teacher(teacher_file, population=(WILD,)), tmp_path / "one")


@pytest.mark.slow
def test_a_continued_population_is_the_uninterrupted_one_and_its_members_load(
    tmp_path, teacher_file, monkeypatch, capsys
):
    given = with_teacher(teacher_file, population=MEMBERS)
    whole = run(given, tmp_path / "whole")
    half = run_stopped(monkeypatch, given, tmp_path / "halves", after=3)
    assert not half["finished"] and [m["name"] for m in half["members"]] == [m["name"] for m in whole["members"]]
    rest = run(given, tmp_path / "halves")
    assert rest["members"] == whole["members"] and len(whole["members"]) == 6
    for member in whole["members"]:
        folders = [tmp_path / name / "members" / member["name"] for name in ("whole", "halves")]
        for choice in ({"step": "best"}, {"variant": "ema"}):
            one, other = (train_module.load_run_weights(f, **choice)[0] for f in folders)
            jax.tree.map(np.testing.assert_array_equal, one, other)
        saved = json.loads((folders[0] / "config.json").read_text())
        assert saved["seed"] == member["seed"] and saved["data"]["seed"] == 0 and saved["population"] is None
    with pytest.raises(CheckpointError, match=r"trained a population of 6 students. Name one .*members/none-seed_0"):
        train_module.load_run_weights(tmp_path / "whole")
    capsys.readouterr()
    evaluate.main([f"--weights={folders[0]}", "--data=embedded:digits"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["top1"] == pytest.approx(whole["members"][-1]["top1"])


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    model = models.create("cait_xxs24_224", num_classes=10, **TEACHER)
    path = tmp_path_factory.mktemp("teacher") / "cait.safetensors"
    weights.save_safetensors(path, model, random_variables(model, 5))
    return path


def with_teacher(path, **changes):
    """Six steps of 64 images with an evaluation every two."""
    length = {"train.batch_size": 64, "train.steps": 6, "log.every_steps": 1, "log.tensorboard": False}
    return config(**{"teacher.weights": str(path), "data.mix.mixup": 0.0, **length, **changes})


REFUSED = (
    ({"train.batch_size": (8, 16)}, r"changes train.batch_size \(here: 8\), which needs another program"),
    ({"student.args.depth": (1, 2)}, r"changes student.args.depth \(here: 1\), which needs another program"),
    ({"schedule.steps": (8, 16)}, "separate runs, each with its own --config.schedule.steps"),
    ({"sed": (0, 1)}, 'changes "sed", which is not a field of a config. Did you mean "seed"'),
    ({"seed": 3}, "gives seed=3, which is no list of values"),
    ({"seed": (0, 0)}, '2 members called "seed_0"'),
    ({"seed": (0, -1)}, 'Member "seed_-1" of config.population: seed=-1 is out of range'),
    ({"distill.preset": ("soft", "sofd")}, 'Did you mean "soft"'),
    ({"distill.preset": (3,)}, "distill.preset=3, which is of the wrong type"),
    ({"distill.pairs": ("auto", "last")}, "which is chosen once for all"),
    (({"name": "../x", "seed": 0},), "cannot be the name of its folder"),
    (({"name": "a"}, 5), "is no population"),
    ({}, "is no population"),
    ("seed", "is no population"),
)


@pytest.mark.parametrize(("population", "words"), REFUSED)
def test_populations_that_one_program_cannot_train(population, words):
    with pytest.raises(JaxkdError, match=words):
        validate(config(population=population))


def test_an_error_in_the_objective_of_a_member_names_it(mesh):
    pairs = {"good": ((0, 0),), "bad": ((5, 0),)}
    two = tuple({"name": k, "distill.preset": "spectral", "distill.pairs": v} for k, v in pairs.items())
    with pytest.raises(
        TapError, match=r'Member "bad" of config.population: distill.pairs\[0\] names layer 5 of the stu'
    ):
        experiment(config(**{"population": two, "distill.pairs": None}), mesh)


def test_the_advice_on_a_population_is_not_to_change_the_config_file(tmp_path, capsys):
    file = "--config=" + str(ROOT / "configs" / "deit_cait.py")
    given = '--config.population={"train.batch_size": (8, 16)}'
    with pytest.raises(SystemExit, match="2"):
        main.main([file, f"--workdir={tmp_path / 'run'}", "--config.data.source=embedded:digits", given])
    said = capsys.readouterr().err
    assert "changes train.batch_size (here: 8), which needs another program" in said and "config file set" not in said
    assert not (tmp_path / "run").exists()


def test_what_no_member_reads_is_refused_and_what_a_member_ignores_is_not():
    soft = {"distill.preset": ("none", "soft")}
    validate(config(**{"distill.pairs": None, "distill.temperature": 2.0, "population": soft}))
    with pytest.raises(ConfigError, match=r"distill.pairs=\(\(0, 0\), \(1, 1\)\) is set, but no member"):
        validate(config(population=soft))
    with pytest.raises(ConfigError, match=r'Member "feature_weight_0.1-soft" .* distill.feature_weight=0.1 is set'):
        validate(config(population={"distill.feature_weight": (0.1, 0.2), "distill.preset": ("soft", "spectral")}))
    with pytest.raises(ConfigError, match="statistics of the layers are those of one network"):
        validate(config(**{"dynamics.every_steps": 5}))


def test_a_command_line_takes_a_population(tmp_path):
    file = "--config=" + str(ROOT / "configs" / "deit_cait.py")
    given = '--config.population={"seed": (0, 1), "distill.feature_weight": (0.1, 0.2)}'
    parsed = main.parse([file, f"--workdir={tmp_path}", "--config.data.source=embedded:digits", given]).config
    assert [m.name for m in members(parsed)][:2] == ["feature_weight_0.1-seed_0", "feature_weight_0.2-seed_0"]
    assert members(explicit(parsed))[3].changes == {"seed": 1, "distill.feature_weight": 0.2}


@pytest.mark.slow
def test_a_member_learns_from_its_own_images(mesh):
    two = ({"name": "few", "data.per_class": 20}, {"name": "all"}, {"name": "other", "data.per_class": 20})
    two[2]["data.subset_seed"] = 1
    options = {"distill.preset": "spectral", "distill.pairs": ((1, 1),), "data.mix.mixup": 0.0}
    built = experiment(config(population=two, **options), mesh)
    whole = experiment(built.members[1].config, mesh)
    state, step = built.init_state(), built.compile_step()
    mine, theirs = next(built.pipeline), next(whole.pipeline)
    members_of = mine["members"]
    np.testing.assert_array_equal(mine["image"], theirs["image"])
    assert members_of[:, 1].all() and not (members_of[:, 0] == members_of[:, 2]).all()
    assert whole.train_images == built.train_images == 1438
    _, found = step(state, parallel.put_batch(mine, mesh), built.key, built.constants)
    single, key = whole.compile_step(), whole.key
    for index in range(3):
        given = theirs | {"mask": members_of[:, index]}
        _, expected = single(whole.init_state(), parallel.put_batch(given, mesh), key, whole.constants)
        for name in ("loss", "ce", "spectral", "grad_norm"):
            np.testing.assert_allclose(found[name][index], expected[name], **TOLERANCE, err_msg=name)
    with pytest.raises(ConfigError, match="neither mixing"):
        validate(config(population=two))


@pytest.mark.slow
def test_members_with_few_images_count_their_updates_and_their_folders_say_so(tmp_path, teacher_file):
    """One image a class of 1,438: most batches of 8 have none of the ten."""
    few = ({"name": "few", "data.per_class": 1, "data.subset_seed": 2}, {"name": "all"})
    changes = {"train.batch_size": 8, "train.steps": 6, "distill.pairs": None, "distill.preset": "soft"}
    given = with_teacher(teacher_file, population=few, **changes)
    one, rest = run(given, tmp_path / "pop")["members"]
    assert one["updates"] < 6 == rest["updates"] and (one["train_images"], rest["train_images"]) == (10, 1438)
    rows = read_metrics(tmp_path / "pop", "train")
    assert sum(row["loss"][0] != "nan" for row in rows) == one["updates"]
    folder = tmp_path / "pop" / "members" / "few"
    listed, meta = (json.loads((folder / p).read_text()) for p in ("subset.json", "checkpoints/6/meta/metadata"))
    own = np.flatnonzero(subset_membership(open_source("embedded:digits", "train"), 1, 2))
    assert [row[0] for row in listed["records"]] == own.tolist() and listed["sha256"] == meta["subset"]["sha256"]
    assert not (folder.parent / "all" / "subset.json").exists()  # as of a single run on all images
    said = json.loads((folder / "result.json").read_text())
    assert said["population_members"] == 2 and "own images among 8 of 1438 images" in said["batches"]
    single = members(given)[0].config
    with pytest.raises(CheckpointError, match=r"holds a member of the population .* no training continues in it"):
        run(single, folder)
    assert json.loads((folder / "result.json").read_text()) == said


@pytest.mark.slow
def test_students_of_simkd_are_also_scored_by_the_teachers_classifier(mesh, tmp_path):
    """Against products in NumPy; a member and its single run alike, and a member without the term has no such score."""
    simkd = {"loss": "simkd", "pairs": (("pre_logits", "pre_logits"),), "pooled": True}
    two = ({"name": "simkd", "distill.terms": (simkd,)}, {"name": "kl", "distill.terms": ({"loss": "kl"},), "seed": 3})
    built = experiment(config(population=two, **{"distill.pairs": None}), mesh)
    state, writer = built.init_state(), train_module.MetricWriter(tmp_path, tensorboard=False)
    scores = built.make_evaluator(writer)(state)
    student, (projector,) = (
        built.task.student,
        jax.tree.map(lambda x: np.asarray(x[0]), [*state.params["projectors"].values()]),
    )
    own = jax.tree.map(lambda x: x[0], state.params["student"])
    head = built.task.task.teacher_variables["params"]["head"]
    right = count = 0
    for batch in EvalBatches(
        open_source("embedded:digits", "val"), eval_preprocess(student.spec, (16, 16)), batch_size=64
    ):
        images = normalise(batch["image"], student.spec.mean, student.spec.std)
        features = student.model.apply({"params": own}, images, taps=("pre_logits",))[1]["pre_logits"]
        projected = np.asarray(features) @ projector["pair_0"]["kernel"] + projector["pair_0"]["bias"]
        found = (projected @ np.asarray(head["kernel"]) + np.asarray(head["bias"])).argmax(axis=1) == batch["label"]
        right, count = right + (found & batch["mask"]).sum(), count + batch["mask"].sum()
    assert count == 359 and scores["top1_teacher_head"][0] == pytest.approx(100 * right / count)
    assert np.isnan(scores["top1_teacher_head"][1]) and scores["top1"][0] != scores["top1_teacher_head"][0]
    single = experiment(built.members[0].config, mesh)
    alone = single.make_evaluator(writer)(single.init_state())
    assert alone["top1_teacher_head"] == alone["ema_top1_teacher_head"] == scores["top1_teacher_head"][0]


@pytest.mark.parametrize(("rate", "updates"), [(1e-3, None), (lambda step: 1e-3, 1)])
def test_updates_are_counted_whatever_the_optimiser(mesh, tmp_path, rate, updates):
    built = experiment(config(), mesh)
    optimizer = train_module.member_optimizer(lambda member: optax.sgd(rate, momentum=0.9), len(built.members))
    state = built.init_state()
    changed = optimizer.update(state.params, optimizer.init(state.params), state.params)[1]
    rows = member_results(built, tmp_path, state.replace(opt_state=changed), {})
    assert [row["updates"] for row in rows] == [updates] * 6


def test_the_largest_seed_has_the_keys_of_its_single_run(mesh):
    task = {"task": "classification", "teacher.name": "", "teacher.weights": "", "teacher.args": {}}
    last = {**task, "distill.pairs": None, "data.seed": 0, "population": ({"seed": 2**32 - 1},)}
    built = experiment(fields.change(config(), last).lock(), mesh)
    found, expected = (
        jax.random.key_data(key.student) for key in (built.key, experiment(built.members[0].config, mesh).key)
    )
    np.testing.assert_array_equal(found[0], expected)


def test_names_and_groups_of_members():
    found = members(config())
    assert [m.name for m in found][:4] == ["none-seed_0", "soft-seed_0", "spectral-seed_0", "none-seed_3"]
    assert [m.group for m in found] == ["none", "soft", "spectral"] * len(MEMBERS["seed"])
    assert {(m.config.data.seed, m.config.population) for m in found} == {(0, None)}
    assert [m.config.task for m in found][:2] == ["classification", "distillation"]
