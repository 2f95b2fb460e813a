"""Shared by all tests: CPU, quick compilation, highest matmul precision, golden files, PyTorch's missing schemas."""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import version
from pathlib import Path


def _compile_quickly() -> None:
    """Sets, for this process and those it starts, fast compilation and a compilation cache kept between runs.

    `JAXKD_TEST_CACHE` names another folder for the cache; set to nothing it turns the cache off.
    """
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = os.environ.get("JAXKD_TEST_CACHE", str(Path(home) / "jaxkd-tests" / f"jax-{version('jax')}"))
    if folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
_compile_quickly()  # before JAX is imported, which reads the environment then

import jax
import numpy as np
import pytest

jax.config.update("jax_default_matmul_precision", "highest")

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


@pytest.fixture(scope="session")
def timm():
    """timm with PyTorch on one consistent CPU set-up, or a skip where the extra `parity` is not installed."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    # torchvision's wheel beside a CPU build of torch has no compiled operators; timm needs only their schemas.
    library = torch.library.Library("torchvision", "DEF")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        with contextlib.suppress(RuntimeError):  # a complete torchvision has them already
            library.define(schema)
    timm = pytest.importorskip("timm", reason="needs the extra `parity`")
    timm._jaxkd_library = library  # keeps the definitions alive
    return timm
