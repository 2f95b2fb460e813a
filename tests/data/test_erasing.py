"""Random erasing: by hand, and distributed like timm's."""

from __future__ import annotations

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributions import DRAWS, QUICK, same_distribution, same_share
from scipy.stats import kstest

from jaxkd.data.transforms import erasing
from jaxkd.data.transforms.erasing import EraseBox, EraseConfig, choose_box, random_erase
from jaxkd.errors import ConfigError

KEY = jax.random.key(0)
# Compiled, as in a step: run operation by operation, every one of them would be compiled on its own.
jit_erase = jax.jit(random_erase, static_argnums=2, **QUICK)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, r"erase.probability=1.5 is out of range.*Give a number, at least 0 and at most 1"),
        ({"mode": "pixels"}, r'erase.mode="pixels" is not possible. Did you mean "pixel"'),
        ({"min_area": 0.5}, r"min_area=0.5, max_area=0.33\d* is not a range"),
        ({"min_aspect": 0.0}, r"min_aspect=0.0, max_aspect=None is not a range"),
        ({"min_aspect": 2.0}, r"min_aspect=2.0.*max_aspect=None stands for 1 / min_aspect"),
        ({"min_count": 3, "max_count": 2}, r"min_count=3, max_count=2 is not a range"),
        ({"max_count": 0}, r"max_count=0 is not a range"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EraseConfig(**options)
