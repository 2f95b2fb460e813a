"""Mixup and CutMix: by hand, timm's numbers where the same is drawn, and drawn like timm's."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributions import DRAWS, QUICK, same_distribution, same_share

from jaxkd.data.transforms.mixup import (
    MixConfig,
    Mixing,
    apply_mixing,
    cutmix_box,
    draw_mixing,
    minmax_box,
    mix,
    smooth_one_hot,
)
from jaxkd.errors import ConfigError, ShapeError
from jaxkd.losses import cross_entropy

KEY = jax.random.key(0)
# Compiled, as in a step: run operation by operation, every one of them would be compiled on its own.
jit_draw = jax.jit(draw_mixing, static_argnums=(1, 2, 3), **QUICK)
jit_mix = jax.jit(mix, static_argnums=3, static_argnames="num_classes", **QUICK)
BOXES = MixConfig(0.0, cutmix_minmax=(0.2, 0.8), mode="elem")  # without a gamma variable it compiles in half the time


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

    names = {"mixup": "mixup_alpha", "cutmix": "cutmix_alpha", "smoothing": "label_smoothing"}
    options = {names.get(name, name): getattr(config, name) for name in config.__dataclass_fields__}
    return Mixup(num_classes=num_classes, **options)


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
        ("batch", {"mixup": 0.8, "cutmix": 1.0, "prob": 0.8, "switch_prob": 0.3}),
        ("elem", {"mixup": 0.8, "cutmix": 1.0, "prob": 0.8, "switch_prob": 0.3}),
        ("elem", {"mixup": 0.2}),
        ("elem", {"mixup": 0.0, "cutmix": 0.5, "prob": 0.5}),
        ("elem", {"mixup": 0.4, "cutmix_minmax": (0.2, 0.8), "prob": 0.9}),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": -1.0}, r"mix.mixup=-1.0 is out of range"),
        ({"cutmix": float("nan")}, r"mix.cutmix=nan is out of range"),
        ({"switch_prob": 2}, r"mix.switch_prob=2 is out of range"),
        ({"smoothing": 1.0}, r"smoothing=1.0 is out of range"),
        ({"mode": "pairs"}, r'mix.mode="pairs" is not possible. Did you mean "pair"'),
        ({"mixup": 0.0}, r"mix nothing.*leave mixing out \(mix=None\)"),
        ({"cutmix_minmax": (0.8, 0.2)}, r"mix.cutmix_minmax=\(0.8, 0.2\) is not a range"),
        ({"cutmix_minmax": (0.2, 0.8), "cutmix": 0.5}, r"mix.cutmix=0.5 has no effect"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MixConfig(**options)


def test_batches_that_cannot_be_mixed_are_refused():
    images, labels = jnp.zeros((3, 4, 4, 3)), jnp.arange(3)
    with pytest.raises(ShapeError, match=r"The batch has 3 images.*Use an even batch size"):
        jit_mix(KEY, images, labels, MixConfig(), num_classes=3)
    with pytest.raises(ShapeError, match=r"labels are float32 of shape \(2, 3\).*Pass \(batch,\) integers"):
        jit_mix(KEY, images[:2], jnp.ones((2, 3)), MixConfig(), num_classes=3)
    with pytest.raises(ConfigError, match=r"leaves no box for images 4 pixels.*from 1 to below 1"):
        jit_mix(KEY, images[:2], labels[:2], MixConfig(cutmix_minmax=(0.3, 0.4)), num_classes=3)
