"""Rules of CONTRIBUTING.md that a program can check: sizes, docstrings, and paths in documents."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "jaxkd").rglob("*.py"))
QUESTION = re.compile(r"(What|Which|Whose|Who|How|Where|When|Why)\b")
# `jaxkd/train/step.py`, `tests/config/test_recipes.py`, `CONTRIBUTING.md`; not `runs/a/config.json`, which a run writes
PATH = re.compile(r"`((?:jaxkd|configs|tests|benchmarks|launch|docs|examples)/[\w./-]*|[A-Z]+\.md)`")
TOPICS = (
    "learning-rate schedule",
    "mixup",
    "EMA",
    "resume",
    "argument parsing",
    "default hyper-parameters",
    "train step",
    "add a KD loss",
    "add a network",
    "add a statistic",
    "tiled inference",
    "where metrics are written",
    "checkpoint policy",
    "sharding rules",
    "Hub download",
    "layer pairing",
    "data source",
    "RandAugment",
    "teacher",
    "error texts",
)


def long_functions(tree: ast.AST, limit: int = 80) -> list[str]:
    """Names and lengths of the functions with more than `limit` lines, decorators not counted."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = ((node.name, node.end_lineno - node.lineno + 1) for node in functions)
    return [f"{name} has {length} lines" for name, length in lengths if length > limit]


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, docstring or "") of public functions, classes and methods; overriding methods need no docstring."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            name = prefix + node.name
            yield name, ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{name}.")


def docstring_problems(tree: ast.Module) -> list[str]:
    """Missing docstrings, and docstrings of modules and public names that open with a question word."""
    docstrings = [("the module", ast.get_docstring(tree) or ""), *public(tree.body)]
    missing = [f"{name} has no docstring" for name, docstring in docstrings if not docstring]
    opening = [f"{name}: {docstring.splitlines()[0]}" for name, docstring in docstrings if QUESTION.match(docstring)]
    return missing + opening


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_functions_are_short_and_docstrings_state_something(file):
    tree = ast.parse(file.read_text())
    problems = [*long_functions(tree), *docstring_problems(tree)]
    assert not problems, f"{file.relative_to(ROOT)}: " + "; ".join(problems)


def test_a_long_function_and_a_questioning_docstring_are_found():
    tree = ast.parse(
        '"""What is in here."""\n\ndef long():\n    """Sums."""\n' + "    x = 1\n" * 79 + "\ndef bare():\n    pass\n"
    )
    assert long_functions(tree) == ["long has 81 lines"]
    assert docstring_problems(tree) == ["bare has no docstring", "the module: What is in here."]


@pytest.mark.parametrize("document", sorted(ROOT.glob("*.md")), ids=lambda p: p.name)
def test_paths_in_documents_exist(document):
    paths = {path for path in PATH.findall(document.read_text())}
    assert paths or document.name not in ("README.md", "CONTRIBUTING.md")
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_contributing_answers_every_question_with_one_path():
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \|$", text, re.MULTILINE)
    answers = {topic.strip(): path for topic, path in rows}
    assert set(TOPICS) <= set(answers)
    assert not [path for path in answers.values() if not (ROOT / path).is_file()]
