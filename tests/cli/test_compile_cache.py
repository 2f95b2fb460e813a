"""The compile cache: a second process loads what a first one compiled, and nothing that happens to it ends one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from jaxkd.cli.compile_cache import use_compile_cache
if "--coordinator" in sys.argv:
    import jax
    jax.distributed.initialize(sys.argv[-1], 1, 0)
use_compile_cache("--no-compile-cache" not in sys.argv)
import jax
import jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)

@jax.jit
def total(x):
    return jnp.sum(jnp.sin(x) @ x)

print(float(total(jnp.arange(64.0).reshape(8, 8))).hex(), len(hits) > 0)
"""


@pytest.fixture
def run(tmp_path):
    """`run(*argv, **environment)` -> (result, whether programs were loaded, stderr) of a fresh process."""

    def start(*argv: str, **environment: str) -> tuple[str, bool, str]:
        names = {"JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"}
        names |= {"JAX_ENABLE_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"}
        env = {name: value for name, value in os.environ.items() if name not in names}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XDG_CACHE_HOME": str(tmp_path)} | environment
        command = [sys.executable, "-c", PROGRAM, *argv]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        value, loaded = done.stdout.split()
        return value, loaded == "True", done.stderr

    return start


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*-cache"))


@pytest.mark.slow
def test_the_second_process_loads_what_the_first_compiled_whatever_happened_to_it(run, tmp_path):
    value, loaded, said = run()
    assert not loaded and not said
    (folder,) = (tmp_path / "jaxkd" / "compiled").iterdir()
    assert entries(folder)
    assert run() == (value, True, "")

    for entry in entries(folder):  # as a lost disk block does
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    again, loaded, said = run()
    assert again == value and not loaded
    assert said.startswith("jaxkd: compiled programs cannot be kept in or read from") and said.count("\n") == 1
    assert run() == (value, True, "")

    (unfinished := folder / "jit_total-0-cache").write_bytes(b"")  # of a process that was killed
    assert run() == (value, True, "") and not unfinished.exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_said_and_the_user_may_choose_another_or_none(run, tmp_path):
    (file := tmp_path / "file").write_text("")
    value, _, said = run(XDG_CACHE_HOME=str(file))
    assert "(Not a directory)" in said and "--no-compile-cache" in said and said.count("\n") == 1
    assert run("--no-compile-cache") == (value, False, "")
    assert run(JAX_ENABLE_COMPILATION_CACHE="false") == (value, False, "")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    assert run("--coordinator", coordinator)[:2] == (value, False)  # of several hosts only the first would write
    assert not (tmp_path / "jaxkd").exists()
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == (value, False, "")
    assert not (tmp_path / "jaxkd").exists() and entries(tmp_path / "mine")
