"""The whole of what the step does to images: its order, its random numbers, on one device and on eight."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributions import QUICK

from jaxkd.data.transforms.erasing import EraseConfig
from jaxkd.data.transforms.mixup import MixConfig
from jaxkd.data.transforms.on_device import prepare_train_images

KEY = jax.random.key(0)
jit_prepare = jax.jit(prepare_train_images, static_argnames=("mean", "std", "erase", "mix", "num_classes"), **QUICK)
BOXES = MixConfig(0.0, cutmix_minmax=(0.2, 0.8), mode="elem")  # without a gamma variable it compiles in half the time


def prepare(images, labels, key=KEY, **options):
    settings = {"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.5, 2.0), "erase": None, "mix": None, "num_classes": 5}
    return jit_prepare(key, images, labels, **(settings | options))


def test_without_erasing_and_mixing_labels_stay_integers():
    pixels = jnp.full((3, 2, 2, 3), 255, jnp.uint8)  # an odd batch is fine where nothing is mixed
    images, labels = prepare(pixels, jnp.array([4, 0, 1]))
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images[2, 1, 1], [1.0, 1.5, 0.5], rtol=1e-6)
    assert labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, [4, 0, 1])


def test_images_are_normalised_then_erased_then_mixed():
    pixels = jnp.full((2, 12, 12, 3), 255, jnp.uint8)
    erase = EraseConfig(1.0, min_area=0.2)
    images, labels = prepare(pixels, jnp.array([3, 1]), erase=erase, mix=MixConfig(smoothing=0.0))
    lam = float(labels[0, 3])
    np.testing.assert_allclose(labels, [[0, 1 - lam, 0, lam, 0], [0, lam, 0, 1 - lam, 0]], atol=1e-7)
    # 1.5 is a whole pixel of the second channel. Erased after mixing, it would be 1.5 or 0 everywhere; erased before
    # normalising, never 0.
    found = np.unique(np.asarray(images[..., 1]).round(5))
    np.testing.assert_allclose(found, sorted([0, 1.5 * lam, 1.5 * (1 - lam), 1.5]), atol=1e-5)


def test_erasing_and_mixing_do_not_share_random_numbers():
    pixels, labels = np.full((64, 6, 6, 3), 255, np.uint8), jnp.arange(64) % 5
    erase, mixing = EraseConfig(0.5, min_area=0.2), dataclasses.replace(BOXES, prob=0.5)
    erased = np.asarray((prepare(pixels, labels, erase=erase)[0] == 0).any((1, 2, 3)))
    soft = prepare(pixels, labels, mix=mixing)[1]
    mixed = np.asarray(soft.max(1) < 0.91)
    for flags in (erased, mixed, erased == mixed):
        assert 0.3 < flags.mean() < 0.7
    np.testing.assert_array_equal(prepare(pixels, labels, erase=erase, mix=mixing)[1], soft)
    assert (prepare(pixels, labels, mix=mixing, key=jax.random.key(1))[1] != soft).any()


SHARDED = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxkd.data.transforms.erasing import EraseConfig
from jaxkd.data.transforms.mixup import MixConfig
from jaxkd.data.transforms.on_device import prepare_train_images

assert len(jax.devices()) == 8
mesh = Mesh(np.array(jax.devices()).reshape(8, 1), ("data", "model"))
split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
images = np.random.default_rng(0).integers(0, 256, (32, 12, 10, 3), np.uint8)
labels = np.arange(32, dtype=np.int32) % 7
for mode, erasing in (("batch", "const"), ("pair", "rand"), ("elem", "pixel")):
    def step(key, images, labels):
        return prepare_train_images(
            key, images, labels, mean=(0.5,) * 3, std=(0.25,) * 3, num_classes=7,
            erase=EraseConfig(0.5, mode=erasing, max_count=2), mix=MixConfig(0.8, 1.0, mode=mode),
        )
    key = jax.random.key(3)
    one = jax.jit(step)(key, *jax.device_put((images, labels), jax.devices()[0]))
    eight = jax.jit(step, in_shardings=(whole, split, split), out_shardings=split)
    lowered = eight.lower(key, images, labels).compile()
    for a, b in zip(one, lowered(key, *jax.device_put((images, labels), split)), strict=True):
        assert b.sharding.is_equivalent_to(split, b.ndim)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-6)
    text = lowered.as_text()
    assert "collective-permute" in text and "all-gather" not in text and "all-to-all" not in text
    assert not re.search(r"f32\\[32,12,10", text), "a device holds the whole batch"
print("same")
"""


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one():
    flags = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0 and result.stdout == "same\n", result.stderr[-3000:]


def test_it_compiles_once_for_all_keys():
    traces = []

    @functools.partial(jax.jit, **QUICK)
    def step(key, images, labels):
        traces.append(1)
        options = {"erase": EraseConfig(0.5, mode="pixel"), "mix": MixConfig(0.8, 1.0)}
        return prepare_train_images(key, images, labels, mean=(0.5,), std=(0.5,), num_classes=5, **options)

    pixels, labels = np.full((4, 8, 8, 3), 200, np.uint8), np.arange(4)
    outs = [step(jax.random.key(i), pixels, labels) for i in range(3)]
    assert len(traces) == 1
    assert len({float(images.sum()) for images, _ in outs}) == 3
    for images, soft in outs:
        assert images.shape == (4, 8, 8, 3) and soft.shape == (4, 5) and soft.dtype == jnp.float32
        np.testing.assert_allclose(soft.sum(1), 1.0, rtol=1e-6)
