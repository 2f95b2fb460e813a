"""Messages about numbers out of range and unknown choices, and the config fields that messages name."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import jaxkd
from jaxkd import models
from jaxkd.config.fields import ARGS, base, flatten
from jaxkd.errors import ConfigError, DataError, check_choice, check_range, is_out_of_memory, storage_error
from jaxkd.experiment import run_log
from jaxkd.experiment.study import summary as study_summary


@pytest.mark.parametrize(
    ("value", "bounds", "advice"),
    [
        (-1, {"least": 0}, "Give a number, at least 0."),
        (0, {"above": 0}, "Give a number, above 0."),
        (2, {"most": 1}, "Give a number, at most 1."),
        (1, {"below": 1}, "Give a number, below 1."),
        (1.5, {"least": 0, "most": 1}, "Give a number, at least 0 and at most 1."),
        (1.0, {"least": 0, "below": 1}, "Give a number, at least 0 and below 1."),
        (0, {"above": 0, "most": 1}, "Give a number, above 0 and at most 1."),
        (1, {"above": 0, "below": 1}, "Give a number, above 0 and below 1."),
        (1.5, {"least": 1, "whole": True}, "Give a whole number, at least 1."),
        (float("nan"), {}, "Give a number."),
        (float("inf"), {"above": 0}, "Give a number, above 0."),
        (True, {"least": 0}, "Give a number, at least 0."),
        ("3", {"least": 0}, "Give a number, at least 0."),
        (None, {"least": 0}, "Give a number, at least 0."),
    ],
)
def test_a_number_out_of_range(value, bounds, advice):
    with pytest.raises(ConfigError) as raised:
        check_range("data.mix.prob", value, **bounds)
    assert str(raised.value) == f"data.mix.prob={value!r} is out of range. {advice}"


def test_numbers_in_range_also_at_inclusive_bounds_and_of_numpy():
    check_range("n", 0, 0, 1)
    check_range("n", 1.0, 0, 1)
    check_range("n", np.float32(0.5), above=0, below=1)
    check_range("n", np.int64(3), 1, whole=True)
    check_range("n", -5)


def test_meaning_hint_and_type_of_the_error():
    with pytest.raises(DataError) as raised:
        check_range("--bins", 0, 1, whole=True, meaning="the bins of a histogram", hint="100 is usual", error=DataError)
    assert str(raised.value) == (
        "--bins=0 is out of range. It is the bins of a histogram. Give a whole number, at least 1; 100 is usual."
    )


@pytest.mark.parametrize(
    ("value", "choices", "message"),
    [
        ("bach", ("batch", "pair"), 'mode="bach" is not possible. Did you mean "batch"? Use one of: "batch", "pair".'),
        (5, (2, 3, 4), "mode=5 is not possible. Use one of: 2, 3, 4."),
        (None, ("", "a"), 'mode=None is not possible. Use one of: "a".'),
        (True, (1, 2), "mode=True is not possible. Use one of: 1, 2."),
    ],
)
def test_an_unknown_choice(value, choices, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_choice("mode", value, choices)


def test_choices_that_exist():
    check_choice("mode", "", ("", "a"))
    check_choice("scale", 4, (2, 3, 4))
    with pytest.raises(DataError, match="; a is usual.$"):
        check_choice("mode", "x", ("a", "b"), hint="a is usual", error=DataError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), '"/run" cannot be read or written (No space left on device)'),
        (PermissionError(13, "Permission denied", "/data/a.png"), '"/data/a.png" cannot be'),
        (FileNotFoundError(2, "No such file or directory", "data/a.png"), '"data/a.png" cannot be'),
        (ValueError('INTERNAL: Error opening "/a/b": Permission denied'), '"/a/b" cannot be'),
        (ValueError("[Errno 20] Not a directory: '/a/c'"), '"/a/c" cannot be'),
        (RuntimeError("Too many open files [OS error 24]"), "limit of open files"),
        (FileNotFoundError(2, "No such file or directory", "nvcc"), ""),
        (PermissionError(13, "Permission denied"), ""),  # of a socket
        (PermissionError(1, "Operation not permitted"), ""),
        (RuntimeError("CUDA error: No such device"), ""),
        (RuntimeError("INTERNAL: bind: Permission denied"), ""),
    ],
)
def test_what_a_file_system_refused_is_told_from_sockets_devices_and_programs(error, words):
    found = storage_error(error, path="/run")
    assert words in str(found) if words else found is None


def test_out_of_memory():
    wrapped = ValueError("the restore failed")
    wrapped.__cause__ = RuntimeError("RESOURCE_EXHAUSTED: 3 GiB")
    assert is_out_of_memory(wrapped) and is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError("3"))


PACKAGE = Path(jaxkd.__file__).parent
FIELDS = flatten(base())
SECTIONS = "|".join(name for name in base() if isinstance(base()[name], ConfigDict))
DOTTED = re.compile(rf"(?<![\w./-])(?:--config\.)?((?:{SECTIONS})(?:\.(?:\w+|\{{\}}))+)")  # {} stands for a value


FILES = (
    study_summary.PAGE,
    study_summary.FIGURE,
    run_log.FILE,
)  # names of files that begin as a section of the config does


def is_field(name: str) -> bool:
    if f"{name}.".startswith(ARGS):  # free-form: what some network takes
        argument = name.partition(".args")[2].lstrip(".")
        return argument in ("", "{}") or any(argument in models.arguments(known) for known in models.list_models())
    pattern = re.compile(re.escape(name).replace(r"\{\}", r"[\w.]+") + r"(\.|$)")
    return any(pattern.match(field) or name.startswith(f"{field}.") for field in FIELDS)


def is_public(name: str) -> bool:
    """Whether it is a function of the package of that name, such as distill.resolve_pairs."""
    section, attribute, *rest = name.split(".")
    found = importlib.util.find_spec(f"jaxkd.{section}") and importlib.import_module(f"jaxkd.{section}")
    return not rest and hasattr(found, attribute)


def texts(file: Path):
    """(line, text) of every string of a file that is no docstring; {} where an f-string has a value."""
    tree = ast.parse(file.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr):
            skipped.add(node.body[0].value)
        if isinstance(node, ast.JoinedStr):
            skipped.update(node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_config_fields_in_messages_exist(file):
    for line, text in texts(file):
        for name in DOTTED.findall(text):
            known = name in FILES or is_field(name) or is_public(name)
            assert known, f"{file}:{line}: {name} is no field of the config"
