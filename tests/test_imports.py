"""Cost of imports, their permitted directions, and the largest size of a file."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxkd"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "torchvision", "timm", "tensorflow", "matplotlib", "jinja2", "onnx", "onnxruntime")

# Layers, lowest first: a unit may import those of every row above its own, and within a row they do not know one
# another. A unit is a folder of jaxkd/; a command is a file directly in it.
LAYERS: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            {"errors"},
            {"config"},
            {"models", "losses", "metrics", "analysis", "data", "parallel", "language"},
            {"train"},
            {"weights", "distill", "report"},
            {"tasks", "analysis.pipeline"},
            {"superres"},
            {"experiment", "inference"},
            {"cli"},
            {"commands"},
        ),
    )
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
# All that `report` may import, never a network; `data` for files that are complete or absent.
READS_RESULTS_ONLY = {"errors", "config", "analysis", "data", "report"}


def unit_of(parts: tuple[str, ...]) -> str:
    """("analysis", "pipeline", "run") -> "analysis.pipeline"; ("train", "loop") -> "train"; ("main",) -> "commands".

    The `__main__` of a package is a command too.
    """
    if parts[-1] == "__main__":
        return "commands"
    if parts[:2] == ("analysis", "pipeline"):
        return "analysis.pipeline"
    return parts[0] if len(parts) > 1 or (PACKAGE / parts[0]).is_dir() or parts[0] == "errors" else "commands"


def module_of(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_module(parts: tuple[str, ...]) -> bool:
    path = PACKAGE.joinpath(*parts)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imported(tree: ast.AST) -> list[tuple[int, tuple[str, ...]]]:
    """(line, module below jaxkd) of every import of jaxkd, wherever it stands."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide where a name comes from"
            names = (node.module or "").split(".")
            if names[0] == "jaxkd":
                # `from jaxkd import data` names a module, `from jaxkd.errors import X` does not
                for alias in node.names:
                    longer = (*names[1:], alias.name)
                    found.append((node.lineno, longer if is_module(longer) else tuple(names[1:])))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                names = alias.name.split(".")
                if names[0] == "jaxkd":
                    found.append((node.lineno, tuple(names[1:])))
    return found


def test_every_unit_has_a_layer_and_the_table_is_short():
    assert {unit_of(module_of(file)) for file in FILES if module_of(file)} == set(LEVEL)
    assert len(LAYERS) <= 16


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_down_only(file):
    parts = module_of(file)
    if not parts:
        named = {unit_of(other) for _, other in imported(ast.parse(file.read_text()))}
        assert named == {"inference"}, "the bare package imports nothing else, and that for type checkers alone"
        return
    unit = unit_of(parts)
    for line, other_parts in imported(ast.parse(file.read_text())):
        if other_parts:  # the bare package holds the version
            other = unit_of(other_parts)
            down = other == unit != "commands" or LEVEL[other] < LEVEL[unit]
            assert down and (unit != "report" or other in READS_RESULTS_ONLY), f"{file}:{line}: {unit} imports {other}"


def test_the_top_level_holds_commands_errors_and_packages():
    commands = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "errors"}
    for name in commands:
        assert "def main(" in (PACKAGE / f"{name}.py").read_text(), f"{name} is no command"
    for folder in (p for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"):
        assert (folder / "__init__.py").exists(), folder


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_inside_functions(file):
    def outside(node):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
                yield from outside(child)

    for node in outside(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            assert not {n.split(".")[0] for n in names} & set(HEAVY), f"{file}:{node.lineno}"


def loaded_by(code: str) -> set[str]:
    """Top-level packages in sys.modules of a fresh process after `code`."""
    code += "\nimport sys\nprint(*sorted({name.split('.')[0] for name in sys.modules}))"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_the_bare_package_and_configs_import_no_jax():
    for code in (
        "import jaxkd",
        "import jaxkd.errors",
        "import jaxkd.config.recipes",
        "import jaxkd, jaxkd.config.validate",
    ):
        assert not loaded_by(code) & {*HEAVY, "jax", "jaxlib", "flax"}, code


def test_all_of_it_imports_nothing_heavy():
    names = [".".join(("jaxkd", *module_of(file))) for file in FILES]
    loaded = loaded_by("\n".join(f"import {name}" for name in names))
    assert "jax" in loaded and not loaded & {*HEAVY, "tensorboard"}


def test_files_are_small_and_named_after_what_they_do():
    for folder in ("jaxkd", "tests", "configs", "launch", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            lines = len(file.read_text().splitlines())
            assert lines <= 500, f"{file} has {lines} lines; a file over 500 lines is two files"
            assert file.stem not in ("utils", "util", "helpers", "common", "misc"), file
