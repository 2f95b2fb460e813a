"""Odd values of every config field: each is refused in words or is a value of the field's own kind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from jaxkd import main, study
from jaxkd.config.fields import base, change, flatten
from jaxkd.config.validate import check_stages, validate
from jaxkd.errors import JaxkdError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"--config={ROOT / 'configs' / 'supervised.py'}:deit_tiny_patch16_224"
ODD = (
    *("", "0x10", "x", "1_000", str(2**63), "~nosuchuser", "nan", "inf", "-1", "1e-9", "None", "True", "()", "(1,2)"),
    *("{}", "'a'", "1e400", "-0.0", "\x00", "é🙂", "[[[", "0", "1.5", "9" * 400),
)


def read(field: str, text: str):
    """The value that a field takes from the command line; raises JaxkdError where it is refused."""
    config = main.parse(
        [CONFIG, "--workdir=w", "--config.data.source=embedded:digits", f"--config.{field}={text}"]
    ).config
    check_stages(config)
    if not config.stages:
        validate(config)
    return flatten(config)[field]


@pytest.mark.parametrize("field", sorted(flatten(base())))
def test_odd_values_are_refused_or_of_the_fields_kind(field):
    default = flatten(base())[field]
    for text in ODD:
        try:
            value = read(field, text)
        except JaxkdError as error:
            assert len(str(error)) > 30 and str(error).endswith("."), (text, str(error))
            continue
        if default is None:
            assert value is None, text
            continue
        assert type(value) is type(default), text
        if isinstance(value, float):
            assert math.isfinite(value), text
        if isinstance(value, str):
            assert "\x00" not in value


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("stages", "0x10", "is not a list of stages"),
        ("data.mix.cutmix_minmax", "x", "two numbers from 0 to 1"),
        ("data.mix.cutmix_minmax", "(0.8,0.2)", "the smaller one first"),
        ("student.old_grid", "(2,0)", "is not a grid"),
        ("data.augment.scale", "(0.5,nan)", "two numbers above 0 and at most 1"),
        ("student.freeze", "1_000", "is not a list of texts"),
        ("distill.terms", "kl", "is not a list of terms"),
        ("seed", str(2**63), "at most 4.29497e+09"),
        ("optimizer.eps", "nan", "above 0 and at most 1"),
        ("optimizer.learning_rate", "inf", "above 0"),
        ("data.mix.mixup", "inf", "at least 0"),
        ("eval.crop_pct", "1e-9", "from 0.05 to 1"),
        ("mesh.data", "0", "-1 for the rest"),
        ("data.source", "a\x00b", "zero byte"),
        ("data.class_order", "size", "natural"),
        ("precision.remat", "atention", 'Did you mean "attention"?'),
        ("precision.remat", "1", 'Use one of: False, True, "attention", "dots"'),
        ("precision.scan_blocks", "both", 'Use one of: False, True, "student", "teacher"'),
    ],
)
def test_values_that_once_passed_in_silence_are_refused(field, text, words):
    with pytest.raises(JaxkdError) as raised:
        read(field, text)
    assert field in str(raised.value) and words in str(raised.value)


@pytest.mark.parametrize("stages", [None, 3, "teacher", ({"student.name": "x"},)])
def test_stages_of_a_config_file_that_are_no_stages(stages, tmp_path, capsys):
    file = tmp_path / "odd.py"
    file.write_text(
        f"from jaxkd.config import fields\ndef get_config():\n    config = fields.base()\n"
        f"    with config.ignore_type():\n        config.stages = {stages!r}\n    return config\n"
    )
    for command in (main.main, study.main):
        with pytest.raises(SystemExit):
            command([f"--config={file}", f"--workdir={tmp_path}/w", "--config.distill.preset=soft"])
        said = capsys.readouterr().err
        assert f"stages={stages!r} is not a list of stages. Write dicts" in said and len(said.splitlines()) == 1, said


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("distill.alpha", "None", None),
        ("distill.pairs", "None", None),
        ("seed", "0x10", 16),
        ("eval.crop_pct", "1", 1.0),
        ("precision.remat", "true", True),
        ("precision.remat", "False", False),
        ("precision.remat", "attention", "attention"),
        ("precision.scan_blocks", "True", True),
    ],
)
def test_values_that_are_understood(field, text, value):
    assert read(field, text) == value


def test_a_switch_without_a_value_is_on():
    given = ["--config.precision.remat", "--workdir=w", "--config.precision.scan_blocks"]
    assert main.parse([CONFIG, *given]).config.precision.to_dict() == {
        "compute": "float32",
        "remat": True,
        "scan_blocks": True,
    }


def test_a_loop_over_a_teacher_that_is_not_there_is_refused():
    with pytest.raises(JaxkdError, match=r"precision\.scan_blocks=.*a run without a teacher"):
        read("precision.scan_blocks", "teacher")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("student.freeze", 5), ("student.freeze", "blocks_0"), ("data.mix.cutmix_minmax", 5), ("mesh.data", "x")],
        *[("train.epochs", 1.5), ("student.name", 5), ("data.augment.auto_augment", 5), ("log.tensorboard", 1)],
    ],
)
def test_changes_of_a_stage_have_the_types_of_their_fields(field, value):
    config = main.parse([CONFIG, "--workdir=w", "--config.data.source=embedded:digits"]).config
    with pytest.raises(JaxkdError, match=rf"{field}=.* is of the wrong type"):
        validate(change(config, {field: value}).lock())
