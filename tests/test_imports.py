"""What importing costs, who may import whom, and how large a file may be."""

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
HEAVY = ("torch", "torchvision", "timm", "tensorflow", "matplotlib", "onnx", "onnxruntime")

# unit -> units that it may import, besides itself. A unit is a folder or a file of jaxkd/; `analysis` and
# `distill.pairing` are finer, see `unit_of`. "jaxkd" is the bare package, which holds the version and imports nothing.
BASE = {"errors"}
NUMERICS = {"models", "losses", "metrics", "analysis", "data", "parallel"}  # these do not know one another
BELOW_TASKS = {*BASE, *NUMERICS, "weights", "distill", "distill.pairing", "train", "analysis.all", "analysis.stream"}
BELOW_RUNNER = {*BELOW_TASKS, "tasks", "jaxkd"}
SETTINGS = {"recipes", "validate"}
PROBLEMS = {"problem", "classifying", "restoring"}
READERS = {"analysis.figures", "analysis.report", "curves", "dynamics_tables"}  # of results only
RESULT_READERS = {  # files beside figures.py and report.py that belong to them
    **dict.fromkeys(("reading", "drawing", "captions", "sep_sentences", "depth_figures"), "analysis.figures"),
    **dict.fromkeys(("spectrum_figures", "lowrank_figures", "sep_figures", "similarity_figures"), "analysis.figures"),
    "branch_figures": "analysis.figures",
    **dict.fromkeys(("tables", "report_style", "branch_tables"), "analysis.report"),
}
ENTRY_POINTS = {"main", "evaluate", "analyze", "upscale", "study", "plan", "shards", "convert", "subimages"}
MAY_IMPORT: dict[str, set[str]] = {
    "jaxkd": set(),
    "errors": set(),
    **{unit: BASE for unit in NUMERICS},
    "analysis.stream": {*BASE, "analysis", "parallel"},
    "analysis.figures": {*BASE, "analysis"},
    "analysis.report": {*BASE, "analysis", "analysis.figures"},
    "analysis.all": {"analysis", "analysis.stream", "analysis.figures", "analysis.report"},  # its __init__
    "weights": {*BASE, "models", "losses"},
    "distill.pairing": {*BASE, "losses", "analysis"},  # layers from a spectrum
    "distill": {*BASE, "models", "losses", "distill.pairing"},
    "train": {*BASE, "data", "metrics", "parallel"},  # knows a Task, never a model
    "tasks": {*BELOW_TASKS, "jaxkd"},
    # what a config may say imports no network and no JAX; a picture of results knows only its numbers
    "recipes": BASE,
    "validate": {*BASE, "recipes"},
    "curves": BASE,
    "dynamics_tables": BASE,
    "command": BASE,
    "workdir": {*BASE, "recipes", "parallel", "train"},
    "stages": {*BASE, *SETTINGS, "curves", "train"},
    "problem": {*BASE, "train"},
    "announcement": {*BASE, "parallel", "problem", "train"},
    "classifying": {*BELOW_RUNNER, "validate", "auto_pairs", "problem"},
    "restoring": {*BELOW_RUNNER, "problem", "curves"},
    "evaluate_restoration": {*BELOW_RUNNER, "restoring", "command"},
    "auto_pairs": {*BELOW_RUNNER, "recipes", "workdir"},
    "runner": {*BELOW_RUNNER, *SETTINGS, *PROBLEMS, "stages", "workdir", "announcement", "dynamics_tables"},
    # nobody imports an entry point
    **{unit: {*BELOW_RUNNER, *SETTINGS, *READERS, "command", "stages", "runner"} for unit in ENTRY_POINTS},
    "evaluate": {*BELOW_RUNNER, "command", "evaluate_restoration"},  # of which it is the entry
}


def unit_of(parts: tuple[str, ...]) -> str:
    """("analysis", "stream") -> "analysis.stream"; ("train", "loop") -> "train"; () -> "jaxkd"."""
    if not parts:
        return "jaxkd"
    if parts[0] == "analysis":
        if len(parts) == 1:
            return "analysis.all"
        if parts[1] in RESULT_READERS:
            return RESULT_READERS[parts[1]]
        return f"analysis.{parts[1]}" if parts[1] in ("stream", "figures", "report") else "analysis"
    return "distill.pairing" if parts[:2] == ("distill", "pairing") else parts[0]


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


def test_every_unit_is_in_the_table():
    units = {unit_of(module_of(file)) for file in FILES}
    assert units <= set(MAY_IMPORT), "say in MAY_IMPORT what the new part may import"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_down_only(file):
    unit = unit_of(module_of(file))
    for line, parts in imported(ast.parse(file.read_text())):
        other = unit_of(parts)
        assert other == unit or other in MAY_IMPORT[unit], f"{file}:{line}: {unit} imports {other}"


def test_the_table_has_no_circle():
    done: set[str] = set()
    while len(done) < len(MAY_IMPORT):
        free = {u for u, others in MAY_IMPORT.items() if u not in done and others - {u} - ENTRY_POINTS <= done}
        assert free, f"a circle among {sorted(set(MAY_IMPORT) - done)}"
        done |= free


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
    for code in ("import jaxkd", "import jaxkd.errors", "import jaxkd.recipes", "import jaxkd, jaxkd.validate"):
        assert not loaded_by(code) & {*HEAVY, "jax", "jaxlib", "flax"}, code


def test_all_of_it_imports_nothing_heavy():
    names = [".".join(("jaxkd", *module_of(file))) for file in FILES]
    loaded = loaded_by("\n".join(f"import {name}" for name in names))
    assert "jax" in loaded and not loaded & {*HEAVY, "tensorboard"}


def test_files_are_small_and_named_after_what_they_do():
    for folder in ("jaxkd", "tests", "configs", "launch", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            lines = len(file.read_text().splitlines())
            assert lines <= 400, f"{file} has {lines} lines; a file over 400 lines is two files"
            assert file.stem not in ("utils", "util", "helpers", "common", "misc"), file
