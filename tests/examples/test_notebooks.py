"""The notebooks of examples/ run from their first cell to their last, in a folder of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `docs`")
    pytest.importorskip("ipykernel", reason="needs the extra `docs`")
    import nbformat

    command = tmp_path / "bin" / "jaxkd"  # what an installation has
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jaxkd "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    (tmp_path / "run").mkdir()
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "run")}}).execute()
    check_outputs(nbformat.writes(notebook))


def check_outputs(text: str) -> None:
    """A command that fails after "!" raises nothing."""
    for failure in ("Traceback", "jaxkd train: ", "jaxkd analyze: ", "command not found"):
        assert failure not in text, failure


def test_notebooks_are_found_and_small():
    assert {path.stem for path in NOTEBOOKS} == {"own_classes", "why"}
    for path in NOTEBOOKS:
        assert path.stat().st_size < 300_000
        check_outputs(path.read_text())


@pytest.mark.parametrize(("colab", "source"), [(True, "jaxkd-0.2.0-py3-none-any.whl"), (False, "../..")])
def test_the_first_cell_installs_jaxkd_where_it_is_missing(colab, source, monkeypatch):
    installed = []
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(subprocess, "run", lambda words, check: installed.append(words[-1]))
    if colab:
        files = types.SimpleNamespace(upload=lambda: {source: b""})
        monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(files=files))
    for path in NOTEBOOKS:
        first = next(cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
        exec("".join(first["source"]), {})  # jaxkd is there
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None)
            exec("".join(first["source"]), {})
    assert installed == [source] * len(NOTEBOOKS)
