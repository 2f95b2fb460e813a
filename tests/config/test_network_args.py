"""Constructor arguments of networks in a config: free-form, typed by how they are written, replaced as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxkd import main
from jaxkd.config import fields
from jaxkd.config.validate import validate
from jaxkd.errors import ConfigError

CONFIG = f"--config={Path(__file__).resolve().parents[2]}/configs/supervised.py"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("(2, 2)", (2, 2)),
        ("quick_gelu", "quick_gelu"),
        ("True", True),
        ("false", False),
        ("None", None),
    ],
)
def test_an_argument_on_the_command_line(text, value):
    for words in ([f"--config.student.args.own={text}"], ["--config.student.args.own", text]):
        config, workdir, *_ = main.parse([CONFIG, *words, "--workdir=x"])
        assert config.student.args.to_dict() == {"own": value} and workdir == "x"
        assert type(config.student.args.own) is type(value)


def test_the_rest_of_the_command_line_is_checked_as_before():
    with pytest.raises(ConfigError, match='--config.student.arg.depth is not a field of the config. Did you mean "'):
        main.parse([CONFIG, "--workdir=x", "--config.student.arg.depth=3"])


def test_a_stage_changes_one_argument_or_replaces_all():
    config = fields.change(fields.base(), {"student.args.depth": 3, "student.args.width": 8})
    assert fields.change(config, {"student.args.depth": 4}).student.args.to_dict() == {"depth": 4, "width": 8}
    assert fields.change(config, {"student.args": {"heads": 2}}).student.args.to_dict() == {"heads": 2}
    assert config.student.args.to_dict() == {"depth": 3, "width": 8}
    with pytest.raises(ConfigError, match='"student.arg.depth" is not a field of a config'):
        fields.change(config, {"student.arg.depth": 4})


def test_arguments_of_a_teacher_that_a_run_does_not_have():
    config = fields.change(fields.base(), {"data.source": "x", "teacher.args.depth": 3})
    with pytest.raises(ConfigError, match="teacher.args.depth=3 is set, but nothing reads it"):
        validate(config)
