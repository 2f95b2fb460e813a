"""Normalising, erasing and mixing inside the step: by hand, against timm, and on eight devices."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest

from jaxkd.data import erasing
from jaxkd.data.erasing import EraseBox, EraseConfig, choose_box, random_erase
from jaxkd.data.mixing import (
    MixConfig,
    Mixing,
    apply_mixing,
    cutmix_box,
    draw_mixing,
    minmax_box,
    mix,
    smooth_one_hot,
)
from jaxkd.data.on_device import prepare_train_images
from jaxkd.errors import ConfigError, ShapeError
from jaxkd.losses import cross_entropy

KEY = jax.random.key(0)
DRAWS = 4000

# Compiled, as in a step: run operation by operation, every one of them would be compiled on its own. Not optimised,
# because most of the time of these tests is LLVM's.
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}
jit_erase = jax.jit(random_erase, static_argnums=2, **QUICK)
jit_draw = jax.jit(draw_mixing, static_argnums=(1, 2, 3), **QUICK)
jit_mix = jax.jit(mix, static_argnums=3, static_argnames="num_classes", **QUICK)
jit_prepare = jax.jit(prepare_train_images, static_argnames=("mean", "std", "erase", "mix", "num_classes"), **QUICK)
BOXES = MixConfig(0.0, cutmix_minmax=(0.2, 0.8), mode="elem")  # without a gamma variable it compiles in half the time


def same_distribution(a, b) -> None:
    """Two samples that a Kolmogorov-Smirnov test cannot tell apart; in fp32, where equal shares of an image are."""
    result = ks_2samp(np.asarray(a, np.float32), np.asarray(b, np.float32))
    assert result.pvalue > 1e-3, f"{result}; means {np.mean(a)} and {np.mean(b)}"


def same_share(a, b) -> None:
    """Two shares of boolean samples that are within four standard errors."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype == bool
    pooled = (a.mean() + b.mean()) / 2
    assert abs(a.mean() - b.mean()) <= 4 * np.sqrt(pooled * (1 - pooled) * (1 / len(a) + 1 / len(b)))


# --- the whole -------------------------------------------------------------------------------------------------------


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
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (8, 6, 6, 3), np.uint8), jnp.arange(8) % 5
    alone, with_erasing = (prepare(pixels, labels, erase=e, mix=BOXES)[1] for e in (None, EraseConfig(1.0)))
    np.testing.assert_array_equal(alone, with_erasing)
    assert (prepare(pixels, labels, mix=BOXES, key=jax.random.key(1))[1] != alone).any()


# --- erasing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fixed_boxes(monkeypatch):
    """`fixed_boxes((top, left, height, width), ...)`: the boxes of every image, in this order."""

    def fix(*boxes):
        remaining = list(boxes)
        monkeypatch.setattr(erasing, "choose_box", lambda *_: EraseBox(*(jnp.int32(edge) for edge in remaining.pop(0))))

    return fix


def erase_anew(images, config) -> np.ndarray:
    """Compiles again, as boxes are fixed while it does."""
    return np.asarray(jax.jit(lambda x: random_erase(KEY, x, config), **QUICK)(images))


def test_a_box_is_filled_as_the_mode_says(fixed_boxes):
    images = jnp.full((3, 6, 8, 2), 9.0)
    expected = np.zeros((3, 6, 8), bool)
    expected[:, 1:4, 2:7] = True
    filled = {}
    for mode in ("const", "rand", "pixel"):
        fixed_boxes((1, 2, 3, 5))
        out = erase_anew(images, EraseConfig(1.0, mode=mode))
        for channel in range(2):
            np.testing.assert_array_equal(out[..., channel] != 9.0, expected)
        filled[mode] = out[:, 1:4, 2:7]
    assert (filled["const"] == 0).all()
    assert (filled["rand"] == filled["rand"][:, :1, :1]).all() and len(np.unique(filled["rand"])) == 3 * 2
    assert len(np.unique(filled["pixel"])) == filled["pixel"].size


def test_the_first_box_that_fits_is_taken():
    config = EraseConfig(min_area=0.1, max_area=0.5, min_aspect=0.25)
    too_high, square, flat = (0.999, 0.999), (0.0, 0.5), (0.0, 0.0)  # 20 x 5, round(sqrt(20)) = 4, 2 x 9
    corner = (0.5, 0.999)

    def choose(*attempts, parts=1):
        attempts = [*attempts, *[too_high] * (10 - len(attempts))]
        uniforms = jnp.array([*(a for a, _ in attempts), *(r for _, r in attempts), *corner])
        return tuple(int(edge) for edge in choose_box(uniforms, (10, 20), parts, config))

    assert choose(square, flat) == (3, 16, 4, 4)  # the 4th of 7 rows, the last of 17 columns
    assert choose(too_high, flat, square) == (4, 11, 2, 9)
    assert choose(*[too_high] * 9, square) == (3, 16, 4, 4)
    assert choose()[2:] == (0, 0)
    assert choose(square, parts=2) == (4, 17, 3, 3)  # round(sqrt(20 / 2))


def test_a_later_box_covers_an_earlier_one(fixed_boxes):
    fixed_boxes((0, 0, 2, 2), (1, 1, 2, 2))
    out = erase_anew(jnp.full((1, 4, 4, 1), 9.0), EraseConfig(1.0, mode="rand", min_count=2))[0, ..., 0]
    first, second = out[0, 0], out[1, 1]
    expected = [[first, first, 9, 9], [first, second, second, 9], [9, second, second, 9], [9, 9, 9, 9]]
    np.testing.assert_array_equal(out, np.array(expected, np.float32))
    assert first != second


def test_an_image_is_erased_by_its_place_not_by_its_neighbours():
    images = jax.random.uniform(jax.random.key(5), (6, 8, 8, 3)) + 10.0
    config = EraseConfig(0.6, mode="pixel", max_count=2)
    whole = jit_erase(KEY, images, config)
    changed = np.asarray((whole != images).any((1, 2, 3)))
    assert changed.any() and not changed.all()
    np.testing.assert_array_equal(jit_erase(KEY, images[:4], config), whole[:4])
    np.testing.assert_array_equal(jit_erase(KEY, images.at[4:].set(3.0), config)[:4], whole[:4])


def test_probability_is_what_it_says():
    images = jnp.ones((DRAWS, 8, 8, 1))
    for probability in (0.0, 0.25, 1.0):
        out = jit_erase(KEY, images, EraseConfig(probability))
        erased = np.asarray((out == 0).any((1, 2, 3)))
        assert abs(erased.mean() - probability) < (0.03 if 0 < probability < 1 else 1e-9)


def test_pixels_are_standard_normal():
    out = np.asarray(jit_erase(KEY, jnp.full((200, 16, 16, 3), 99.0), EraseConfig(1.0, mode="pixel")))
    assert kstest(out[out != 99.0][:20000], "norm").pvalue > 1e-3


def boxes_of(erased: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (n, H, W) with one box each -> its measures; empty masks are left out."""
    erased = erased[erased.any((1, 2))]
    rows, columns = erased.any(2), erased.any(1)
    height, width = rows.sum(1), columns.sum(1)
    assert (erased.sum((1, 2)) == height * width).all()
    return {
        "top": rows.argmax(1),
        "left": columns.argmax(1),
        "height": height,
        "width": width,
        "aspect": height / width,
    }


def erased_by_both(size: tuple[int, int], **options) -> tuple[np.ndarray, np.ndarray]:
    """What we and timm make of (DRAWS, H, W) ones."""
    import torch
    from timm.data.random_erasing import RandomErasing

    random.seed(1)
    torch.manual_seed(1)
    theirs = RandomErasing(device="cpu", **options)(torch.ones(DRAWS, 1, *size)).numpy()[:, 0]
    return np.asarray(jit_erase(KEY, jnp.ones((DRAWS, *size, 1)), EraseConfig(**options)))[..., 0], theirs


@pytest.mark.parity
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((24, 32), {"probability": 1.0}),
        # Most boxes are too high for this strip, and for many images all ten are.
        ((6, 60), {"probability": 0.7, "min_area": 0.15, "max_area": 0.9, "min_aspect": 0.2, "max_aspect": 2.0}),
    ],
)
def test_boxes_are_distributed_like_timm(timm, size, options):
    ours, theirs = (out == 0 for out in erased_by_both(size, **options))
    same_share(ours.any((1, 2)), theirs.any((1, 2)))
    if options["probability"] < 1:
        assert ours.any((1, 2)).mean() < 0.6  # some did not fit
    a, b = boxes_of(ours), boxes_of(theirs)
    for name in a:
        same_distribution(a[name], b[name])


@pytest.mark.parity
def test_several_boxes_are_as_many_and_as_large_as_timm_s(timm):
    options = {"probability": 1.0, "mode": "rand", "min_count": 2, "max_count": 4, "max_area": 0.6}
    ours, theirs = erased_by_both((12, 16), **options)
    same_distribution(*((out != 1).sum((1, 2)) for out in (ours, theirs)))
    # Every box has a colour, and few boxes are covered by later ones.
    counts = [np.array([len(np.unique(image[image != 1])) for image in out]) for out in (ours, theirs)]
    for colours in (2, 3, 4):
        same_share(*(c == colours for c in counts))


# --- mixing ----------------------------------------------------------------------------------------------------------


def mixing_of(lam, cutmix, box) -> Mixing:
    return Mixing(jnp.asarray(lam, jnp.float32), jnp.asarray(cutmix), jnp.asarray(box, jnp.int32))


def test_mixup_by_hand():
    images = jnp.array([4.0, 8.0]).reshape(2, 1, 1, 1)
    targets = smooth_one_hot(jnp.array([0, 2]), 4, 0.2)
    np.testing.assert_allclose(targets, [[0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]], rtol=1e-6)
    mixed, soft = apply_mixing(images, targets, mixing_of([0.75], [False], [[0, 0, 0, 0]]))
    np.testing.assert_array_equal(mixed.ravel(), [5.0, 7.0])
    np.testing.assert_allclose(soft, [[0.65, 0.05, 0.25, 0.05], [0.25, 0.05, 0.65, 0.05]], rtol=1e-6)


def test_cutmix_by_hand():
    images = jnp.stack([jnp.full((2, 3, 1), v) for v in (0.1, 0.7)])
    mixed, soft = apply_mixing(images, jnp.eye(2), mixing_of([2 / 3], [True], [[1, 2, 0, 2]]))
    expected = np.array([[[0.1, 0.1, 0.1], [0.7, 0.7, 0.1]], [[0.7, 0.7, 0.7], [0.1, 0.1, 0.7]]], np.float32)
    np.testing.assert_array_equal(mixed[..., 0], expected)
    np.testing.assert_allclose(soft, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], rtol=1e-6)


def test_a_label_outside_is_no_probability():
    soft = smooth_one_hot(jnp.array([-1, 1, 3]), 3, 0.1)
    np.testing.assert_array_equal(np.isnan(soft).all(1), [True, False, True])
    assert not np.isnan(soft[1]).any()


def test_smoothing_may_be_left_to_the_loss():
    images, labels = jnp.ones((6, 4, 4, 3)), jnp.arange(6)
    logits = jax.random.normal(KEY, (6, 7))
    smooth, sharp = (
        jit_mix(KEY, images, labels, dataclasses.replace(BOXES, smoothing=s), num_classes=7)[1] for s in (0.1, 0.0)
    )
    assert (smooth > 0).all() and (sharp == 0).any()
    np.testing.assert_allclose(cross_entropy(logits, smooth), cross_entropy(logits, sharp, smoothing=0.1), rtol=1e-5)


def test_modes_say_who_shares_what_is_drawn():
    draw = {m: jit_draw(KEY, 64, (99, 99), MixConfig(0.8, 1.0, mode=m)) for m in ("batch", "pair", "elem")}
    assert draw["batch"].lam.shape == (1,) and draw["elem"].lam.shape == draw["pair"].lam.shape == (64,)
    for array in draw["pair"]:
        np.testing.assert_array_equal(array, array[::-1])
    assert len(np.unique(draw["pair"].lam[:32])) > 28 and len(np.unique(draw["elem"].lam)) > 58
    assert (draw["elem"].lam != draw["elem"].lam[::-1]).mean() > 0.9
    for mode in ("pair", "elem"):
        assert 0.3 < draw[mode].cutmix.mean() < 0.7


@pytest.mark.parametrize("minmax", [None, (0.3, 0.7)])
def test_the_label_follows_the_pixels(minmax):
    """Of images that are 1 where they are i's and 0 where they are j's, the mean is the share in the label."""
    images = jnp.concatenate([jnp.ones((32, 9, 13, 1)), jnp.zeros((32, 9, 13, 1))])
    config = MixConfig(0.0, 0.0 if minmax else 1.0, minmax, prob=0.7, mode="elem")
    drawn = jit_draw(KEY, 64, (9, 13), config)
    mixed, soft = apply_mixing(images, jnp.repeat(jnp.eye(2), 32, axis=0), drawn)
    np.testing.assert_allclose(soft[:, 0], mixed.mean((1, 2, 3)), atol=1e-6)
    assert 0.15 < (soft.max(1) == 1.0).mean() < 0.5  # the others of prob=0.7
    if minmax is None:
        lam = jit_draw(KEY, 64, (9, 13), dataclasses.replace(config, correct_lam=False)).lam
        assert (lam <= drawn.lam + 1e-6).all()  # a clipped box covers less than it was to
        assert (lam < drawn.lam - 0.05).sum() > 5


def timm_mixup(config: MixConfig, num_classes: int = 5):
    from timm.data.mixup import Mixup

    options = {name: getattr(config, name) for name in config.__dataclass_fields__ if name != "smoothing"}
    return Mixup(label_smoothing=config.smoothing, num_classes=num_classes, **options)


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_same_lambda_and_box_give_timm_s_numbers(timm, monkeypatch, mode, smoothing):
    import timm.data.mixup as theirs_module
    import torch

    rng = np.random.default_rng(0)
    images = rng.integers(-64, 64, (8, 6, 7, 3)).astype(np.float32)  # exact with these lambdas, in any order
    labels = rng.integers(0, 5, 8)
    count = {"batch": 1, "pair": 4, "elem": 8}[mode]
    lam = np.array([0.75, 0.5, 1.0, 0.25, 0.0, 0.375, 0.875, 0.5], np.float32)[:count]
    top, left = rng.integers(0, 3, count), rng.integers(0, 3, count)
    boxes = np.stack([top, top + rng.integers(0, 4, count), left, left + rng.integers(1, 5, count)], axis=1)
    theirs = timm_mixup(MixConfig(1.0, 1.0, mode=mode, smoothing=smoothing))
    for cutmix in (np.arange(count) % 2 == 0, np.arange(count) % 2 == 1):
        order = iter([i for i in range(count) if cutmix[i] and lam[i] != 1])
        monkeypatch.setattr(
            theirs_module, "cutmix_bbox_and_lam", lambda *_, order=order, **__: (boxes[i := next(order)], lam[i])
        )
        theirs._params_per_batch = lambda c=cutmix: (float(lam[0]), c[0])
        theirs._params_per_elem = lambda n, c=cutmix: (lam.copy(), c)
        expected_x, expected_y = theirs(torch.tensor(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
        fold = (lambda a: np.concatenate([a, a[::-1]])) if mode == "pair" else (lambda a: a)
        pasted = cutmix & (lam != 1)  # timm pastes nothing at lambda 1
        mixing = mixing_of(fold(lam), fold(pasted), fold(np.where(pasted[:, None], boxes, 0)))
        x, y = apply_mixing(jnp.asarray(images), smooth_one_hot(jnp.asarray(labels), 5, smoothing), mixing)
        np.testing.assert_array_equal(x, expected_x.permute(0, 2, 3, 1).numpy())
        np.testing.assert_allclose(y, expected_y.numpy(), rtol=0, atol=6e-8)  # one rounding of 1 - smoothing + ...
        assert next(order, None) is None


@pytest.mark.parity
@pytest.mark.parametrize("lam", [0.0, 0.3, 0.9])
def test_cutmix_boxes_are_timm_s(timm, lam):
    from timm.data.mixup import rand_bbox

    np.random.seed(0)
    edges = rand_bbox((3, 7, 10), np.float32(lam), count=DRAWS)
    theirs = np.stack(edges, axis=1)
    ours = np.asarray(jax.vmap(lambda u: cutmix_box(u, (7, 10), jnp.float32(lam)))(jax.random.uniform(KEY, (DRAWS, 2))))
    assert {tuple(b) for b in ours.tolist()} == {tuple(b) for b in theirs.tolist()}
    for i in range(4):
        same_distribution(ours[:, i], theirs[:, i])


@pytest.mark.parity
def test_minmax_boxes_are_timm_s(timm):
    from timm.data.mixup import rand_bbox_minmax

    np.random.seed(0)
    theirs = np.stack(rand_bbox_minmax((3, 7, 5), (0.3, 0.85), count=DRAWS), axis=1)
    ours = np.asarray(jax.vmap(lambda u: minmax_box(u, (7, 5), (0.3, 0.85)))(jax.random.uniform(KEY, (DRAWS, 4))))
    assert {tuple(b) for b in ours.tolist()} == {tuple(b) for b in theirs.tolist()}
    for a, b in ((ours, theirs), (ours[:, 1::2] - ours[:, ::2], theirs[:, 1::2] - theirs[:, ::2])):
        for i in range(a.shape[1]):
            same_distribution(a[:, i], b[:, i])


@pytest.mark.parity
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("batch", {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.8, "switch_prob": 0.3}),
        ("elem", {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.8, "switch_prob": 0.3}),
        ("elem", {"mixup_alpha": 0.2}),
        ("elem", {"mixup_alpha": 0.0, "cutmix_alpha": 0.5, "prob": 0.5}),
        ("elem", {"mixup_alpha": 0.4, "cutmix_minmax": (0.2, 0.8), "prob": 0.9}),
    ],
)
def test_lambdas_are_distributed_like_timm(timm, mode, options):
    """The weights in the labels, after the correction for clipped boxes, and how often which kind is drawn."""
    from timm.data.mixup import cutmix_bbox_and_lam

    np.random.seed(0)
    config = MixConfig(mode=mode, **options)
    theirs = timm_mixup(config)
    if mode == "batch":
        lams, kinds = (np.array(v) for v in zip(*(theirs._params_per_batch() for _ in range(DRAWS)), strict=True))
        steps = jax.jit(jax.vmap(lambda k: draw_mixing(k, 2, (14, 10), config)), **QUICK)
        ours = steps(jax.random.split(KEY, DRAWS))
        ours = jax.tree.map(lambda x: x[:, 0], ours)
    else:
        lams, kinds = theirs._params_per_elem(DRAWS)
        ours = jit_draw(KEY, DRAWS, (14, 10), config)
    kinds = kinds.astype(bool) & (lams != 1)
    for i in np.flatnonzero(kinds):
        lams[i] = cutmix_bbox_and_lam((3, 14, 10), lams[i], ratio_minmax=config.cutmix_minmax)[1]
    same_share(np.asarray(ours.cutmix), kinds)
    same_distribution(ours.lam, lams)
    for kind in (True, False):
        a, b = np.asarray(ours.lam)[np.asarray(ours.cutmix) == kind], lams[kinds == kind]
        assert bool(len(a)) == bool(len(b))
        if len(a):
            same_distribution(a, b)


# --- compiled, split, refused ----------------------------------------------------------------------------------------

SHARDED = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxkd.data.erasing import EraseConfig
from jaxkd.data.mixing import MixConfig
from jaxkd.data.on_device import prepare_train_images

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
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
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


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EraseConfig, {"probability": 1.5}, r"erase.probability=1.5 is not a probability.*Give a number from 0 to 1"),
        (EraseConfig, {"mode": "pixels"}, r'erase.mode="pixels" does not exist. Did you mean "pixel"'),
        (EraseConfig, {"min_area": 0.5}, r"erase.min_area=0.5, erase.max_area=0.33\d* is not a range"),
        (EraseConfig, {"min_aspect": 0.0}, r"erase.min_aspect=0.0, erase.max_aspect=None is not a range"),
        (EraseConfig, {"min_aspect": 2.0}, r"erase.min_aspect=2.0.*max_aspect=None stands for 1 / min_aspect"),
        (EraseConfig, {"min_count": 3, "max_count": 2}, r"erase.min_count=3, erase.max_count=2 is not a range"),
        (EraseConfig, {"max_count": 0}, r"erase.max_count=0 is not a range"),
        (MixConfig, {"mixup_alpha": -1.0}, r"mix.mixup_alpha=-1.0 is out of range"),
        (MixConfig, {"cutmix_alpha": float("nan")}, r"mix.cutmix_alpha=nan is out of range"),
        (MixConfig, {"switch_prob": 2}, r"mix.switch_prob=2 is not a probability"),
        (MixConfig, {"smoothing": 1.0}, r"mix.smoothing=1.0 is out of range"),
        (MixConfig, {"mode": "pairs"}, r'mix.mode="pairs" does not exist. Did you mean "pair"'),
        (MixConfig, {"mixup_alpha": 0.0}, r"mix nothing.*leave mixing out altogether \(mix=None\)"),
        (MixConfig, {"cutmix_minmax": (0.8, 0.2)}, r"mix.cutmix_minmax=\(0.8, 0.2\) is not a range"),
        (MixConfig, {"cutmix_minmax": (0.2, 0.8), "cutmix_alpha": 0.5}, r"mix.cutmix_alpha=0.5 is never read"),
    ],
)
def test_what_cannot_be_is_refused(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind(**options)


def test_batches_that_cannot_be_mixed_are_refused():
    images, labels = jnp.zeros((3, 4, 4, 3)), jnp.arange(3)
    with pytest.raises(ShapeError, match=r"The batch has 3 images.*Use an even batch size"):
        jit_mix(KEY, images, labels, MixConfig(), num_classes=3)
    with pytest.raises(ShapeError, match=r"labels are float32 of shape \(2, 3\).*Pass \(batch,\) integers"):
        jit_mix(KEY, images[:2], jnp.ones((2, 3)), MixConfig(), num_classes=3)
    with pytest.raises(ConfigError, match=r"leaves no box for images 4 pixels.*from 1 to below 1"):
        jit_mix(KEY, images[:2], labels[:2], MixConfig(cutmix_minmax=(0.3, 0.4)), num_classes=3)
