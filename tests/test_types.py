"""The annotations of the packages that users import from agree, by mypy with the settings of `pyproject.toml`."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed (extra `test`)")
def test_mypy_accepts_the_public_packages():
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-pretty", "--hide-error-context"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
