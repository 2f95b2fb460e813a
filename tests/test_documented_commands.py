"""Commands in docstrings and documents: each one is parsed by its own program, and none is run."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxkd import main
from jaxkd.cli.commands import COMMANDS
from jaxkd.errors import JaxkdError

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("jaxkd", "configs", "launch", "benchmarks", "docs", "examples", "tests")
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
SHELL = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.sh"))
MARKDOWN = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])

INSTALLED = rf"jaxkd (?:{'|'.join(COMMANDS)})(?= --| \.\.\.| \[| \w+/|`|$)"  # not "jaxkd report" in a sentence
PROGRAM = rf"(?:python3? (?:-m jaxkd\.\w+|benchmarks/\w+\.py)|{INSTALLED})"
COMMAND_LINE = re.compile(rf"^\s*(?:\$ )?(?:\w+=\S+ |pip .* && )*({PROGRAM}\b.*)$")
INLINE = re.compile(rf"`({PROGRAM}\b[^`]*)`")
MENTION = re.compile(rf"{PROGRAM}\b(?:\s+--?[\w-]+[\w.-]*(?:=\S+)?)*")


class Parsed(BaseException):
    """Raised in place of running a program; no `except Exception` of a program catches it."""


def command_lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number, command) of each line of `text` that is a command, with the lines that a backslash joins to it.

    Raises:
      ValueError: a line of options follows a command that does not end in a backslash, or jaxkd has no such command.
    """
    lines = text.splitlines()
    i = 0
    while i < len(lines):
        start, line = i, lines[i].rstrip()
        while line.endswith("\\") and i + 1 < len(lines):
            i += 1
            line = line[:-1] + " " + lines[i].strip()
        i += 1
        found = COMMAND_LINE.match(line)
        if not found and (wrong := re.match(r"\s*(?:\$ )?jaxkd ([a-z]+)(?= --)", line)):
            raise ValueError(f"line {i}: there is no command jaxkd {wrong[1]}")
        if not found:
            continue
        if i < len(lines) and lines[i].strip().startswith("--"):
            raise ValueError(f"line {i} continues on the next one without a backslash: {line.strip()}")
        yield from ((start + 1, part) for part in found[1].split(" && ") if re.match(PROGRAM, part))


def words_of(command: str) -> tuple[list[str], bool]:
    """The words of a command without comments, brackets and redirections; and whether some may be missing.

    `[--crop=4]` is an option that may be left out, `...` stands for options that are not shown, a remark in
    parentheses after two spaces is a comment.
    """
    command = re.sub(r"\s{2,}(\(.*|# .*)?$", "", command.strip())
    command = re.split(r"\s(?:>|2>|\||&&)\s?", command)[0]
    command = re.sub(r"\[((?:--|\.\.\.)[^\]]*)\]", r"\1", command)
    words = shlex.split(command.replace("$@", "..."), comments=True)
    return [word for word in words if word != "..."], "..." in words


def parse(words: list[str], partial: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the program that `words` names parse its arguments.

    Args:
      words: the whole command, from "python" on.
      partial: whether required options may be missing.

    Raises:
      ValueError: the program does not exist or refuses the arguments.
    """
    if words[0] == "jaxkd":
        words = ["python", "-m", f"jaxkd.{COMMANDS[words[1]][0]}", *words[2:]]
    module = words[2] if words[1] == "-m" else Path(words[1]).stem
    argv = words[3:] if words[1] == "-m" else words[2:]
    if words[1] == "-m" and (ROOT / module.replace(".", "/") / "__main__.py").is_file():
        module += ".__main__"
    if words[1] == "-m" and not (ROOT / (module.replace(".", "/") + ".py")).is_file():
        raise ValueError(f"there is no {module}")
    if words[1] != "-m" and not (ROOT / words[1]).is_file():
        raise ValueError(f"there is no {words[1]}")
    if "--help" in argv or (partial and not argv) or (module == "jaxkd.main" and " ".join(argv).startswith("--fields")):
        return

    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        self.allow_abbrev = False
        for action in self._actions:
            action.required = action.required and not partial
        original(self, args, namespace)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.chdir(ROOT)
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [words[1], *argv])
        try:
            if module in ("jaxkd.main", "jaxkd.study") and partial:
                argv = [*argv, "--workdir=runs/x"]
            if module == "jaxkd.main":
                main.parse(argv)
                return
            program = importlib.import_module(module)
            if hasattr(program, "parse"):
                program.parse(argv)  # may hand what it does not know to jaxkd.main.parse
                return
            parameters = inspect.signature(program.main).parameters.values()
            if [p for p in parameters if p.default is p.empty]:
                inspect.signature(program.main).bind(*argv)
                return
            program.main(argv) if parameters else program.main()
            raise ValueError("the program did not parse its arguments")
        except Parsed:
            return
        except (JaxkdError, TypeError) as error:
            raise ValueError(str(error)) from None
        except SystemExit as error:
            raise ValueError(f"refused with exit code {error.code}; run it to see why") from None


def literal(node: ast.AST) -> str:
    """The text of a string or f-string, with 1 for each inserted value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "1" for part in node.values)
    return ""


def commands_of(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(where, command, whether required options may be missing) of every command in a file."""
    text = path.read_text()
    if path.suffix != ".py":
        inside, prose, blocks = False, [], []
        for line in text.splitlines():
            fence = line.lstrip().startswith("```")
            inside ^= fence
            prose.append("" if inside or fence else line)
            blocks.append(line if inside and not fence else "")
        block = "\n".join(blocks) if path.suffix == ".md" else text
        yield from ((f"line {n}", command, path.suffix == ".sh") for n, command in command_lines(block))
        yield from (("inline", m[1], True) for m in INLINE.finditer("\n".join(prose)))
        return
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        node.body[0].value: node.body[0].lineno
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and ast.get_docstring(node) is not None
    }
    for node, start in docstrings.items():
        yield from ((f"line {start + n - 1}", command, False) for n, command in command_lines(node.value))
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in (node for node in ast.walk(tree) if node not in parts):
        if node in docstrings:
            text = "\n".join(line for line in node.value.splitlines() if not COMMAND_LINE.match(line))
        else:
            text = "" if path.is_relative_to(ROOT / "tests") else literal(node)
        yield from ((f"line {node.lineno}", found[0].rstrip(".,;:)"), True) for found in MENTION.finditer(text))


def complaints(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """(number of commands, what is wrong with them) of one file."""
    wrong, count = [], 0
    try:
        for where, command, optional in commands_of(path):
            count += 1
            words, partial = words_of(" ".join(command.split("\n")))
            try:
                parse(words, partial or optional, monkeypatch)
            except ValueError as error:
                wrong.append(f"{path.name}, {where}: {command}\n    {error}")
    except ValueError as error:
        wrong.append(f"{path.name}, {error}")
    return count, wrong


@pytest.mark.parametrize(
    "path",
    [path for path in (*MARKDOWN, *SHELL, *PYTHON) if re.search(PROGRAM, path.read_text()) and path != Path(__file__)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_command_is_accepted_by_its_program(path, monkeypatch):
    _, wrong = complaints(path, monkeypatch)
    assert not wrong, "\n".join(wrong)


def test_the_commands_of_the_readme_and_the_configs_are_found(monkeypatch):
    assert complaints(ROOT / "README.md", monkeypatch)[0] >= 7
    assert sum(complaints(page, monkeypatch)[0] for page in (ROOT / "docs" / "tutorials").glob("*.md")) >= 20
    assert complaints(ROOT / "docs" / "superres.md", monkeypatch)[0] >= 10
    for path in sorted((ROOT / "configs").glob("*.py")):
        assert complaints(path, monkeypatch)[0] >= 2, path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python -m jaxkd.main --config=configs/swin_swin.py --workdir=a\n    --config.seed=1", "without a backslash"),
        ("python -m jaxkd.shards --in=a --out=b python -m jaxkd.shards --in=c --out=d", "exit code 2"),
        ("python -m jaxkd.main --config=configs/swin_swin.py --workdir=a python -m jaxkd.main", "flag 'm'"),
        ("python -m jaxkd.shards --in=a --out=b --resized=256", "exit code 2"),
        ("python -m jaxkd.shard --in=a --out=b", "there is no jaxkd.shard"),
        ("jaxkd plam --config=deit_cait", "no command jaxkd plam"),
        ("pip install jaxkd && jaxkd decode --weights=a --out=b && jaxkd decode --weight=a --out=b", "exit code 2"),
        ("python benchmarks/step.py --batch-size=8", "there is no benchmarks/step.py"),
        ("python benchmarks/step_time.py --batch-size=8 --pear=torch --config=configs/deit_cait.py", "pear"),
        ("jaxkd shards --in=a --out=b --resized=256", "exit code 2"),
        ("jaxkd train --config=swin_swim:embedded --workdir=a", "is no recipe"),
        ("python -m jaxkd.main --config=configs/swin.py --workdir=a", "is not a file"),
        ("python -m jaxkd.main --config=configs/swin_swin.py:students=x --workdir=a", "students"),
        ("python -m jaxkd.main --config=configs/swin_swin.py --workdir=a --config.train.batch=8", "not a field"),
    ],
)
@pytest.mark.parametrize("form", ["module.py", "page.md"])
def test_a_wrong_command_is_found(text, words, form, tmp_path, monkeypatch):
    path = tmp_path / form
    path.write_text(
        f'"""A module.\n\n    {text}\n"""\n' if form == "module.py" else f"# A page\n\n```bash\n{text}\n```\n"
    )
    count, wrong = complaints(path, monkeypatch)
    assert len(wrong) == 1 and words in wrong[0], (count, wrong)


def test_comments_brackets_and_ellipses_are_no_arguments():
    shown = "python -m jaxkd.evaluate --weights=runs/a [--crop=4] [--rgb] --data='Set 5=x' ...      (no data, no GPU)"
    assert words_of(shown) == (
        ["python", "-m", "jaxkd.evaluate", "--weights=runs/a", "--crop=4", "--rgb", "--data=Set 5=x"],
        True,
    )
    assert words_of("python benchmarks/superres.py --peer=torch > a.json") == (
        ["python", "benchmarks/superres.py", "--peer=torch"],
        False,
    )
