"""Projector heads: the published ProjectorKD, batch statistics, widths, what trains and what does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables
from stopping import run_stopped

from jaxkd import distill, models, weights
from jaxkd.config import fields
from jaxkd.distill import projectors
from jaxkd.errors import ConfigError, JaxkdError, ShapeError, UnknownNameError
from jaxkd.experiment import run as run_module
from jaxkd.train.checkpoint import restore_item

PAIRS = (("block_0", "block_1"),)
PUBLISHED = {"loss": "mse", "projector": {"student": "linear_batchnorm", "teacher": "batchnorm"}, "frozen": True}


def outputs(student, teacher):
    return (jnp.zeros((len(student), 3)), {"block_0": student}), (jnp.zeros((len(teacher), 3)), {"block_1": teacher})


def maps(batch=4, widths=(6, 9), grids=((4, 4), (4, 4)), seed=0):
    rng = np.random.default_rng(seed)
    return outputs(
        *(jnp.asarray(rng.normal(size=(batch, *g, w)), jnp.float32) for g, w in zip(grids, widths, strict=True))
    )


def test_the_published_projector(golden):
    g = golden("kd_losses")
    student, teacher = (jnp.asarray(g[f"projector_{s}"]).transpose(0, 2, 3, 1) for s in ("student", "teacher"))
    objective = distill.build_objective((PUBLISHED,), pairs=PAIRS)
    params, mutable = objective.init(jax.random.key(0), outputs(student, teacher))
    assert objective.has_frozen and all(jax.tree.leaves(objective.frozen(params)))
    linear = params["mse"]["pair_0"]["student"]["linear"]
    assert np.abs(linear["kernel"]).max() <= 6**-0.5 and np.std(linear["kernel"]) > 0.2  # uniform, as PyTorch
    linear |= {"kernel": jnp.asarray(g["projector_weight"].T), "bias": jnp.asarray(g["projector_bias"])}
    loss, _, changed = objective(params, mutable, *outputs(student, teacher), {}, 0)
    np.testing.assert_allclose(loss, g["projector_loss"], rtol=1e-5)
    statistics = changed["mse"]["pair_0"]["student"]["batchnorm"]
    np.testing.assert_allclose(statistics["mean"], g["projector_running_mean_student"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(statistics["var"], g["projector_running_var_student"], rtol=1e-5)


@pytest.mark.parametrize("kind", projectors.HEADS)
def test_every_parameter_of_every_head_gets_a_gradient(kind):
    widths = (9, 9) if kind in ("batchnorm", "layernorm") else (6, 9)
    student, teacher = maps(widths=widths)
    objective = distill.build_objective(({"loss": "mse", "projector": kind},), pairs=PAIRS)
    params, mutable = objective.init(jax.random.key(1), (student, teacher))
    grads = jax.grad(lambda p: objective(p, mutable, student, teacher, {}, 0)[0])(params)
    for path, grad in jax.tree.leaves_with_path(grads):
        # a normalisation behind it takes the bias of a linear map out again
        cancelled = kind == "linear_batchnorm" and "'linear'" in str(path) and "bias" in str(path)
        assert (np.abs(grad).max() < 1e-6) if cancelled else (np.abs(grad).min() > 0), path
    assert bool(jax.tree.leaves(mutable)) == ("batchnorm" in kind)


def test_examples_that_do_not_count_are_not_in_the_batch_statistics():
    student, teacher = maps(batch=5)
    where = np.array([True, False, True, True, False])
    for side in (student, teacher):
        for tap, x in side[1].items():
            side[1][tap] = x.at[1].set(jnp.nan)
    kept = [(o[0][where], {k: v[where] for k, v in o[1].items()}) for o in (student, teacher)]
    objective = distill.build_objective((PUBLISHED,), pairs=PAIRS)
    params, mutable = objective.init(jax.random.key(0), (student, teacher))

    def run(p, *sides, batch):
        loss, _, changed = objective(p, mutable, *sides, batch, 0)
        return loss, changed

    (loss, state), grads = jax.value_and_grad(run, has_aux=True)(params, student, teacher, batch={"mask": where})
    (expected, few), few_grads = jax.value_and_grad(run, has_aux=True)(params, *kept, batch={})
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for a, b in zip(jax.tree.leaves((state, grads)), jax.tree.leaves((few, few_grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    _, unchanged = run(params, student, teacher, batch={"mask": np.zeros(5, bool)})
    jax.tree.map(np.testing.assert_array_equal, unchanged, mutable)


def test_two_pairs_of_one_tap_have_heads_of_their_own():
    student, teacher = maps()
    teacher[1]["block_2"] = 2 * teacher[1]["block_1"]
    pairs = (*PAIRS, ("block_0", "block_2"))
    objective = distill.build_objective(({"loss": "mse", "projector": "linear"},), pairs=pairs)
    params, mutable = objective.init(jax.random.key(0), (student, teacher))
    assert objective.student_taps == ("block_0",) and objective.teacher_taps == ("block_1", "block_2")
    loss = objective(params, mutable, student, teacher, {}, 0)[0]
    x = student[1]["block_0"]
    expected = []
    for name, tap in (("pair_0", "block_1"), ("pair_1", "block_2")):
        linear = params["mse"][name]["student"]["linear"]
        expected.append(jnp.square(x @ linear["kernel"] + linear["bias"] - teacher[1][tap]).mean())
    np.testing.assert_allclose(loss, sum(expected) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("projector", "widths"),
    [
        ("linear", (9, 9)),
        ({"teacher": "linear"}, (6, 6)),
        ({"student": "mlp", "teacher": "linear_layernorm"}, (9, 9)),
        ({"student": "linear", "teacher": "linear", "width": 4}, (4, 4)),
        ({"student": "layernorm", "teacher": "layernorm"}, (6, 9)),
    ],
)
def test_widths(projector, widths):
    assert projectors.read_projector(projector).widths(6, 9) == widths


@pytest.mark.parametrize("method", ["bilinear", "pool"])
def test_the_finer_grid_is_resized_to_the_coarser(method):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    student, teacher = maps(widths=(6, 6), grids=((5, 7), (10, 14)))
    objective = distill.build_objective(({"loss": "mse", "resize": method},), pairs=PAIRS)
    assert not objective.has_variables
    nchw = torch.from_numpy(np.array(teacher[1]["block_1"])).permute(0, 3, 1, 2)
    if method == "pool":
        small = torch.nn.functional.adaptive_avg_pool2d(nchw, (5, 7))
    else:
        small = torch.nn.functional.interpolate(nchw, (5, 7), mode="bilinear", antialias=True)
    expected = np.square(np.asarray(student[1]["block_0"]) - small.permute(0, 2, 3, 1).numpy()).mean()
    np.testing.assert_allclose(objective({}, {}, student, teacher, {}, 0)[0], expected, rtol=1e-5)
    swapped = (student[0], {"block_0": teacher[1]["block_1"]}), (teacher[0], {"block_1": student[1]["block_0"]})
    np.testing.assert_allclose(objective({}, {}, *swapped, {}, 0)[0], expected, rtol=1e-5)
    odd = maps(widths=(6, 6), grids=((4, 6), (5, 7)))  # windows that overlap
    assert np.isfinite(objective({}, {}, *odd, {}, 0)[0])


def test_a_term_with_parameters_of_its_own_reads_resized_maps():
    student, teacher = maps(grids=((4, 4), (8, 8)))
    objective = distill.build_objective(({"loss": "hint", "resize": "pool", "frozen": True},), pairs=PAIRS)
    params, mutable = objective.init(jax.random.key(0), (student, teacher))
    kernel, bias = params["hint"]["pair_0"]["kernel"], params["hint"]["pair_0"]["bias"]
    small = teacher[1]["block_1"].reshape(4, 4, 2, 4, 2, 9).mean(axis=(2, 4))
    expected = np.square(student[1]["block_0"] @ kernel + bias - small).mean()
    np.testing.assert_allclose(objective(params, mutable, student, teacher, {}, 0)[0], expected, rtol=1e-5)
    assert objective.has_frozen and objective.frozen(params) == {"hint": {"pair_0": {"kernel": True, "bias": True}}}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"projector": "linaer"}, UnknownNameError, "projector is 'linaer'.*Did you mean \"linear\""),
        ({"projector": {"studnt": "linear"}}, ConfigError, 'the key "studnt".*Did you mean "student"'),
        ({"projector": 3}, ConfigError, "projector=3 is not a projector"),
        ({"projector": {"student": "linear", "width": -1}}, ConfigError, "projector width=-1 is out of range"),
        ({"projector": {"student": "batchnorm", "width": 4}}, ConfigError, "no head that maps to it"),
        ({"resize": "nearest"}, ConfigError, 'resize="nearest" is not possible'),
        ({"frozen": True}, ConfigError, "is frozen, but has no parameters"),
        ({"frozen": "yes", "projector": "linear"}, ConfigError, 'frozen="yes" is not possible'),
    ],
)
def test_what_an_entry_may_not_say(options, error, text):
    with pytest.raises(error, match=text):
        distill.build_objective(({"loss": "mse", **options},), pairs=PAIRS)


def test_logit_terms_take_no_projector():
    with pytest.raises(ConfigError, match=r'loss "kl".*"projector", which it does not take'):
        distill.build_objective(({"loss": "kl", "projector": "linear"},))


SMALL = {"img_size": 16, "patch_size": 8, "depth": 1, "num_heads": 3}


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    model = models.create("deit_tiny_patch16_224", num_classes=10, embed_dim=36, **SMALL)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    weights.save_safetensors(path, model, random_variables(model, 5))
    return path


def config(teacher, **changes):
    widths = {"student": 24, "teacher": 36}
    args = {f"{side}.args.{k}": v for side, w in widths.items() for k, v in (SMALL | {"embed_dim": w}).items()}
    trained = PUBLISHED | {"name": "trained", "frozen": False, "weight": 0.5}
    return fields.change(
        fields.base(),
        {
            "task": "distillation",
            "data.source": "embedded:digits",
            "data.workers": 0,
            "teacher.name": "deit_tiny_patch16_224",
            "teacher.weights": str(teacher),
            "distill.terms": ({"loss": "ce"}, trained, PUBLISHED | {"name": "published", "weight": 0.5}),
            "distill.pairs": "last",
            "distill.projector_learning_rate": 5e-3,
            "distill.projector_weight_decay": 0.0,
            "train.batch_size": 512,
            "train.epochs": 1,
            "schedule.warmup_epochs": 0,
            "checkpoint.every_steps": 1,
            "log.every_steps": 1,
            "log.tensorboard": False,
            **args,
            **changes,
        },
    ).lock()


def saved(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    return restore_item(folder / "params"), restore_item(folder / "rest")["mutable"]["projectors"]


@pytest.mark.slow
def test_trained_heads_move_frozen_ones_stay_and_students_leave_them_behind(tmp_path, teacher_file, monkeypatch):
    run_module.run(config(teacher_file), tmp_path / "whole")
    (first, state), (second, later) = (saved(tmp_path / "whole", step) for step in (1, 2))
    heads = [jax.tree.map(np.asarray, params["projectors"]) for params in (first, second)]
    for path, leaf in jax.tree.leaves_with_path(heads[0]["trained"]):
        if "'linear'" not in str(path) or "kernel" in str(path):
            other = dict(jax.tree.leaves_with_path(heads[1]["trained"]))[path]
            assert np.abs(other - leaf).min() > 0, path
    jax.tree.map(np.testing.assert_array_equal, heads[0]["published"], heads[1]["published"])
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(later), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() > 0  # the batch statistics, of frozen heads too
    run_stopped(monkeypatch, config(teacher_file), tmp_path / "halves", after=1)
    run_module.run(config(teacher_file), tmp_path / "halves")
    jax.tree.map(np.testing.assert_array_equal, (second, later), saved(tmp_path / "halves", 2))
    student = models.create("deit_tiny_patch16_224", num_classes=10, embed_dim=24, **SMALL)
    exported = weights.load(student, str(tmp_path / "whole"))
    assert jax.tree.structure(exported["params"]) == jax.tree.structure(second["student"])


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"distill.terms": ({"loss": "mse", "projector": {"student": "linear", "width": 8}},)},
            ConfigError,
            'term "mse" does not fit these networks. The projector .* gives the student 8 channels and the teacher 36',
        ),
        ({"distill.terms": ({"loss": "mse"},)}, ConfigError, "distill.projector_learning_rate=0.005 is set, but no te"),
        ({"teacher.args.patch_size": 4}, ShapeError, r'\("block_0", "block_0"\) cannot be compared.*grids'),
        ({"distill.terms": (), "distill.pairs": None, "distill.preset": "soft"}, ConfigError, "nothing reads it"),
        ({"distill.projector_weight_decay": -0.1}, ConfigError, "projector_weight_decay=-0.1 is out of range"),
    ],
)
def test_refused_before_training(tmp_path, teacher_file, changes, error, text):
    with pytest.raises(JaxkdError, match=text) as caught:
        run_module.run(config(teacher_file, **changes), tmp_path / "run")
    assert isinstance(caught.value, error) and not (tmp_path / "run").exists()


def test_conv1x1_is_another_name_of_linear():
    given = {"student": "conv1x1", "teacher": "conv1x1", "width": 5}
    assert projectors.read_projector(given) == projectors.Projector("linear", "linear", 5)


def test_a_projector_that_does_not_fit_is_written_as_in_a_config():
    with pytest.raises(
        ConfigError, match=r'The projector {"student": "linear", "width": 32} gives the student 32 chan'
    ):
        projectors.Projector("linear", width=32).widths(24, 48)
