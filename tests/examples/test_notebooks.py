"""The notebooks of examples/ run from their first cell to their last, in a folder of their own."""

from __future__ import annotations

import os
import sys
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
