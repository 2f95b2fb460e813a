"""The fields of a config with type, default and meaning, read off `jaxkd/config/fields.py` and its comments.

Imports no JAX.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from jaxkd.config import fields


class FieldDoc(NamedTuple):
    """A field of a config.

    Attributes:
      name: dotted, "train.batch_size".
      kind: type of its values in a word; "object" is any.
      default: its value in `fields.base()`.
      meaning: the comment beside or above it.
    """

    name: str
    kind: str
    default: Any
    meaning: str


def field_docs(pattern: str = "*") -> tuple[FieldDoc, ...]:
    """Every field whose dotted name matches a shell pattern ("optimizer.*") or holds it as text ("batch").

    The groups of free-form arguments, `student.args` and `teacher.args`, count as fields of the type dict.

    Args:
      pattern: case does not matter.

    Returns:
      In the order of `fields.base()`.
    """
    wanted = pattern.lower() if any(c in pattern for c in "*?[") else f"*{pattern.lower()}*"
    return tuple(doc for doc in _all() if fnmatchcase(doc.name.lower(), wanted))


@functools.cache
def _all() -> tuple[FieldDoc, ...]:
    meanings = dict(_meanings())
    defaults = fields.flatten(fields.base())
    docs = {
        name: FieldDoc(name, fields.kind_of(name), defaults[name], meanings.get(name, ""))
        for name in defaults
        if not name.startswith(fields.ARGS)
    }
    for name in (dotted.rstrip(".") for dotted in fields.ARGS):
        docs[name] = FieldDoc(name, "dict", {}, meanings.get(name, ""))
    order = {name: i for i, name in enumerate(meanings)}
    return tuple(sorted(docs.values(), key=lambda doc: order.get(doc.name, len(order))))


def _meanings() -> Iterator[tuple[str, str]]:
    """(dotted name, comment) of each field, in the order in which `base` sets them."""
    source = inspect.getsource(fields)
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    beside, above = _comments(source)

    def comment(node: ast.AST) -> str:
        """The comment lines directly above, and the comment behind the first or the last line."""
        words, line = [], node.lineno - 1
        while line in above:
            words.insert(0, above[line])
            line -= 1
        lines = dict.fromkeys((node.lineno, node.end_lineno))
        return " ".join(words + [beside[line] for line in lines if line in beside])

    def walk(function: ast.FunctionDef, prefix: str) -> Iterator[tuple[str, str]]:
        for node in function.body:
            if not isinstance(node, ast.Assign) or not ast.unparse(node.targets[0]).startswith("config"):
                continue
            dotted = prefix + ast.unparse(node.targets[0]).removeprefix("config").lstrip(".")
            called = node.value.func.id if isinstance(node.value, ast.Call) else ""
            if called in functions:
                yield from walk(functions[called], f"{dotted}.")
            elif called == "ConfigDict" and node.value.args:
                for key in node.value.args[0].keys:
                    yield f"{prefix if dotted == prefix else f'{dotted}.'}{key.value}", comment(key)
            elif called != "ConfigDict" or f"{dotted}." in fields.ARGS:
                yield dotted, comment(node)

    yield from walk(functions["base"], "")


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those behind code, and those on a line of their own."""
    beside: dict[int, str] = {}
    above: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line.lstrip().startswith("#")
            (above if alone else beside)[token.start[0]] = token.string.lstrip("# ")
    return beside, above
