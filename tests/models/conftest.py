"""Small networks of each family, and random parameters that make every one of them matter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.weights.timm import from_timm

TINY = {
    "deit": ("deit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "distilled": (
        "deit_tiny_distilled_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    ),
    "cait": ("cait_xxs24_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 36,
            "embed_dim": 8,
            "depths": (2, 2),
            "num_heads": (1, 2),
            "window_size": 3,
            "drop_path_rate": 0.0,
        },
    ),
}


@pytest.fixture
def tiny():
    """`tiny("cait", depth=2)` -> a small network of the family with 5 classes."""

    def build(family: str, **kwargs):
        name, args = TINY[family]
        return models.create(name, **{**args, "num_classes": 5, **kwargs})

    return build


@pytest.fixture
def randomised():
    """`randomised(model)` -> variables away from their initial values: no zero bias, no tiny LayerScale."""

    def value(rng, path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        if name == "scale":
            return rng.normal(1, 0.2, leaf.shape)
        return rng.normal(0, 0.5, leaf.shape)

    def draw(model, seed: int = 0):
        images = jnp.zeros((1, *model.img_size, model.in_chans))
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
        rng = np.random.default_rng(seed)
        return jax.tree_util.tree_map_with_path(lambda p, x: jnp.asarray(value(rng, p, x), jnp.float32), shapes)

    return draw


@pytest.fixture
def random_key():
    """`random_key(3)` -> a key of XLA's own generator, whose programs compile several times faster than threefry's."""
    return partial(jax.random.key, impl="rbg")


@pytest.fixture
def pictures():
    """`pictures(model, 2)` -> random images (2, H, W, 3)."""

    def draw(model, count: int = 2, seed: int = 1):
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.normal(size=(count, *model.img_size, model.in_chans)), jnp.float32)

    return draw


@pytest.fixture(scope="session")
def golden_network(golden):
    """`golden_network("cait")` -> (model, variables, images NHWC, the golden arrays)."""

    def load(name: str, **kwargs):
        data = golden(name)
        meta = json.loads(str(data["meta"]))
        args = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["kwargs"].items()}
        model = models.create(meta["model"], **{**args, **kwargs})
        state = {k.removeprefix("state/"): data[k] for k in data.files if k.startswith("state/")}
        headless = {k: v for k, v in state.items() if not k.startswith("head")}
        variables = from_timm(model, state if model.num_classes else headless)
        return model, variables, jnp.asarray(data["input_nchw"]).transpose(0, 2, 3, 1), data

    return load


@pytest.fixture
def compile_for_tpu():
    """Runs a script of Python with the compiler of TPUs and returns what it prints; no TPU is needed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the compiler of TPUs, is not installed (extra `tpu`)")

    def run(script: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # libtpu ends at another's flag
        environment |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        environment |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # as in parity tests
        environment |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
        command = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run
