"""Shared by all tests: CPU, quick compilation, highest matmul precision, golden files, PyTorch's missing schemas."""

from __future__ import annotations

import gc
import os
import re
import tracemalloc  # noqa: F401  pytest imports it to report a warning, which etils' lazy imports would replace
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np
import pytest
from torchvision_operators import torchvision_library

os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # also of the processes that tests start
jax.config.update("jax_default_matmul_precision", "highest")


def _compile_quickly() -> None:
    """Sets fast compilation and a compilation cache kept between runs, here and in the processes that tests start.

    `JAXKD_TEST_CACHE` names another folder for the cache; set to the empty string it turns the cache off.
    """
    flags = os.environ.get("XLA_FLAGS", "")  # read when the first program is compiled
    if "xla_backend_optimization_level" not in flags:
        quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        # Without the fusion emitters, which lower each fusion through MLIR, compiling takes half the time. JAX 0.12 has
        # no such flag, and one that XLA does not know ends the process.
        if jax.__version_info__ < (0, 11):
            quick += " --xla_cpu_use_fusion_emitters=false"
        quick += " --xla_cpu_parallel_codegen_split_count=1"  # a small program is compiled as a whole
        os.environ["XLA_FLAGS"] = f"{flags} {quick}".strip()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = os.environ.get("JAXKD_TEST_CACHE", str(home / "jaxkd-tests" / f"jax-{jax.__version__}"))
    if folder:
        settings = {
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0.1,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        for name, value in settings.items():
            if name.upper() not in os.environ:
                os.environ[name.upper()] = str(value)
                jax.config.update(name, value)
    else:  # nor that of the commands
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        jax.config.update("jax_enable_compilation_cache", False)


_compile_quickly()
# Commands that tests call in this process would keep freed memory for good (`jaxkd.cli.host_memory`), 6 GB a worker. A
# setting of malloc turns that off; this one changes nothing else, as it is above the default.
os.environ.setdefault("MALLOC_ARENA_MAX", "64")
# Tracing makes many short-lived objects, and each full collection visits all of JAX: a tenth of the suite's time.
gc.freeze()
gc.set_threshold(20_000, 20, 20)

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared"


@pytest.fixture(scope="session")
def golden():
    """`golden("cait")` -> the loaded npz of tests/golden, else of ../shared/golden, else a skip."""

    def load(name: str):
        for folder in (HERE / "golden", SHARED / "golden"):
            if (folder / f"{name}.npz").exists():
                return np.load(folder / f"{name}.npz")
        pytest.skip(f"golden file {name}.npz is neither in tests/golden nor in ../shared/golden")

    return load


@pytest.fixture(scope="session")
def golden_path():
    """`golden_path("lr_schedule.csv")` -> its path in tests/golden or ../shared/golden, else a skip."""

    def find(name: str) -> Path:
        for folder in (HERE / "golden", SHARED / "golden"):
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"golden file {name} is neither in tests/golden nor in ../shared/golden")

    return find


@pytest.fixture(scope="session")
def shared_data():
    """`shared_data("imagenet1k_sample_256")` -> that folder of ../shared/data, else a skip."""

    def find(name: str) -> Path:
        folder = SHARED / "data" / name
        if not folder.exists():
            pytest.skip(f"../shared/data/{name} is not here")
        return folder

    return find


@pytest.fixture
def complaint_of(capsys):
    """`complaint_of(main, argv)` -> the one paragraph that a command prints before it exits with code 2."""

    def run(main, argv: list[str]) -> str:
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
        # Without the lines of progress, which a busy machine has time to print.
        text = re.sub(r"(?m)^[\w: ]*\d+/\d+.*\n", "", capsys.readouterr().err).strip()
        assert text.startswith("jaxkd: ") and "Traceback" not in text
        return text

    return run


@pytest.fixture(scope="session")
def timm():
    """timm with PyTorch on one consistent CPU set-up, or a skip where the extra `parity` is not installed."""
    pytest.importorskip("torch", reason="needs the extra `parity`")
    library = torchvision_library()
    timm = pytest.importorskip("timm", reason="needs the extra `parity`")
    timm._jaxkd_library = library  # keeps the definitions alive
    return timm
