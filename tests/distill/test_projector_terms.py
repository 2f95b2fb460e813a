"""A term with parameters and state, through training, checkpoints and a resume: a linear projector, centred features.

The projector maps a student's features to the teacher's width; the teacher's features are centred with a running mean.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables
from stopping import run_stopped

from jaxkd import distill, models, train, weights
from jaxkd.config import fields
from jaxkd.distill import terms as registry
from jaxkd.errors import ConfigError, JaxkdError
from jaxkd.experiment import run as run_module
from jaxkd.train.checkpoint import restore_item

SMALL = {"img_size": 16, "patch_size": 8, "depth": 1, "num_heads": 3}
WIDTHS = {"student": 24, "teacher": 36}
MOMENTUM = 0.5


def init(key, student, teacher, *, pairs):
    (source, target), *_ = pairs
    width, teacher_width = student[1][source].shape[-1], teacher[1][target].shape[-1]
    kernel = 0.1 * jax.random.normal(key, (width, teacher_width))
    return {"kernel": kernel}, {"mean": jnp.zeros(teacher_width)}


def projected(params, mutable, student, teacher, batch, *, pairs):
    (source, target), *_ = pairs
    features = teacher[1][target]
    mean = (1 - MOMENTUM) * mutable["mean"] + MOMENTUM * features.mean(axis=(0, 1, 2))
    error = student[1][source] @ params["kernel"] - (features - mean)
    return jnp.square(error).mean(axis=(1, 2, 3)), {"mean": mean}


@pytest.fixture(autouse=True)
def registered():
    distill.register_term("projected", init=init)(projected)
    yield
    del registry.TERMS["projected"]


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    model = models.create("deit_tiny_patch16_224", num_classes=10, embed_dim=WIDTHS["teacher"], **SMALL)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    weights.save_safetensors(path, model, random_variables(model, 5))
    return path


def config(teacher, **changes):
    args = {f"{side}.args.{k}": v for side, d in WIDTHS.items() for k, v in (SMALL | {"embed_dim": d}).items()}
    return fields.change(
        fields.base(),
        {
            "task": "distillation",
            "data.source": "embedded:digits",
            "data.workers": 0,
            "teacher.name": "deit_tiny_patch16_224",
            "teacher.weights": str(teacher),
            "distill.terms": ({"loss": "ce", "weight": 0.5}, {"loss": "projected", "weight": 0.5}),
            "distill.pairs": "last",
            "train.batch_size": 512,
            "train.epochs": 2,
            "schedule.warmup_epochs": 0,
            "checkpoint.every_steps": 1,
            "log.every_steps": 1,
            "log.tensorboard": False,
            **args,
            **changes,
        },
    ).lock()


def saved(workdir, step: int):
    """(projector kernel, running mean, student's head, first moment of the kernel) of a checkpoint."""
    folder = workdir / "checkpoints" / str(step)
    params, rest = restore_item(folder / "params"), restore_item(folder / "rest")
    moments = [v for path, v in jax.tree.leaves_with_path(rest["opt_state"]) if "projected" in str(path)]
    return (
        np.asarray(params["projectors"]["projected"]["kernel"]),
        np.asarray(rest["mutable"]["projectors"]["projected"]["mean"]),
        np.asarray(params["student"]["head"]["kernel"]),
        [np.asarray(v) for v in moments],
    )


def test_the_objective_hands_parameters_and_state_through():
    student = (jnp.zeros((2, 3)), {"a": jnp.ones((2, 1, 1, 2))})
    teacher = (jnp.zeros((2, 3)), {"b": jnp.full((2, 1, 1, 3), 4.0)})
    objective = distill.build_objective(({"loss": "projected"},), pairs=(("a", "b"),))
    params, mutable = objective.init(jax.random.key(0), (student, teacher))
    assert params["projected"]["kernel"].shape == (2, 3) and mutable["projected"]["mean"].shape == (3,)
    value, grad = jax.value_and_grad(lambda p: objective(p, mutable, student, teacher, {}, 0)[0])(params)
    _, _, changed = objective(params, mutable, student, teacher, {}, 0)
    np.testing.assert_allclose(changed["projected"]["mean"], 2.0)
    np.testing.assert_allclose(value, np.mean((np.ones(2) @ params["projected"]["kernel"] - 2.0) ** 2), rtol=1e-6)
    assert np.abs(grad["projected"]["kernel"]).min() > 0


@pytest.mark.slow
def test_projector_and_running_mean_train_are_saved_and_resume(tmp_path, teacher_file, monkeypatch):
    whole = run_module.run(config(teacher_file), tmp_path / "whole")
    assert whole["finished"] and whole["step"] == 4
    half = run_stopped(monkeypatch, config(teacher_file), tmp_path / "halves", after=2)
    assert half["step"] == 2
    middle = saved(tmp_path / "halves", 2)
    assert run_module.run(config(teacher_file), tmp_path / "halves")["finished"]
    end, resumed = saved(tmp_path / "whole", 4), saved(tmp_path / "halves", 4)
    assert middle[0].shape == (WIDTHS["student"], WIDTHS["teacher"])
    assert np.abs(middle[0] - end[0]).min() > 0 and np.abs(middle[1] - end[1]).min() > 0
    assert end[3] and all(np.abs(moment).max() > 0 for moment in end[3])
    jax.tree.map(np.testing.assert_array_equal, end, resumed)
    rows = train.read_metrics(tmp_path / "whole", "train")
    assert {"ce", "projected", "projected_weighted"} <= set(rows[-1])


@pytest.mark.slow
def test_frozen_students_keep_their_projectors_trainable(tmp_path, teacher_file):
    frozen = {"student.freeze": ("*",), "distill.terms": ({"loss": "projected"},), "train.steps": 2}
    run_module.run(config(teacher_file, **frozen), tmp_path / "run")
    first, second = saved(tmp_path / "run", 1), saved(tmp_path / "run", 2)
    assert np.abs(first[0] - second[0]).min() > 0
    np.testing.assert_array_equal(first[2], second[2])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"distill.preset": "soft"}, 'distill.preset="soft" and distill.terms are both set'),
        ({"distill.temperature": 2.0}, "distill.temperature=2.0 is set, but nothing reads it"),
        ({"distill.terms": ({"loss": "projektd"},)}, 'Did you mean "projected"'),
        ({"distill.terms": ({"loss": "ce"},), "distill.pairs": None}, "no term of distill.terms reads the teacher"),
        ({"task": "classification", "teacher.name": "", "teacher.weights": ""}, "pairs"),
        ({"distill.terms": ({"loss": "kl"},)}, "distill.pairs='last' is set, but nothing reads it"),
        ({"distill.terms": ({"loss": "projected", "pairs": "last"},)}, "no term of distill.terms reads it"),
        ({"distill.pairs": None}, "compares features, but no layers are paired"),
        ({"teacher.name": "", "teacher.weights": ""}, 'distill.terms with task="distillation" needs a teacher'),
    ],
)
def test_what_a_config_may_not_say(tmp_path, teacher_file, changes, text):
    teacherless = {f"teacher.args.{k}": None for k in (*SMALL, "embed_dim")} if "teacher.name" in changes else {}
    with pytest.raises(JaxkdError) as caught:
        run_module.run(config(teacher_file, **teacherless, **changes), tmp_path / "run")
    assert text in str(caught.value) and not (tmp_path / "run").exists()


def test_a_supervised_run_has_no_term_that_reads_a_teacher(tmp_path, teacher_file):
    changes = {"task": "classification", "teacher.name": "", "teacher.weights": "", "distill.pairs": None}
    changes |= {f"teacher.args.{k}": None for k in (*SMALL, "embed_dim")} | {"distill.terms": ({"loss": "kl"},)}
    with pytest.raises(ConfigError, match=r'terms that read a teacher \(kl\), but task="classification" has none'):
        run_module.run(config(teacher_file, **changes), tmp_path / "run")
