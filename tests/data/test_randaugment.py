"""Augmentation policies: the grammar, its errors, and the distributions, against what can be said by hand."""

from __future__ import annotations

import math
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare, kstest

from jaxkd.data.transforms.image_ops import OPS
from jaxkd.data.transforms.policies import POLICIES, RAND_INCREASING_OPS, RAND_OPS, RAND_WEIGHTS, RAND_WEIGHTS_0
from jaxkd.data.transforms.randaugment import Mixture, Step, auto_augment, fill_from_mean, uses_color_jitter
from jaxkd.errors import ConfigError

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
RECIPE = "rand-m9-mstd0.5-inc1"  # that of DeiT and most others
ALL_KINDS = (RECIPE, "rand-m7-n4-p0.8-tweights", "rand-w0", "rand-t3a", "rand-t3aw-mstd101", *POLICIES, "augmix")
SIGNED = {
    name: 1.0 if name.endswith("Increasing") else 0.0 for name, op in OPS.items() if op.draws
}  # the neutral value
DRAWS = 10_000


def draws(policy, count: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [policy.draw(rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("spec", "expected"),  # ops, weights, layers, probability, magnitude, std, max
    [
        ("rand", (RAND_OPS, False, 2, 0.5, 10, 0, 10)),
        (RECIPE, (RAND_INCREASING_OPS, False, 2, 0.5, 9, 0.5, 10)),
        ("rand-inc1-mstd0.5-m9", (RAND_INCREASING_OPS, False, 2, 0.5, 9, 0.5, 10)),
        ("rand-n3-m9-p0.5-t1-mmax15", (RAND_OPS, False, 3, 0.5, 9, 0, 15)),
        ("rand-m5-mstd101-inc0-p1", (RAND_OPS, False, 2, 1.0, 5, math.inf, 10)),
        ("rand-mstd100", (RAND_OPS, False, 2, 0.5, 10, 100, 10)),
        ("rand-mstd1-w0", (tuple(RAND_WEIGHTS_0), True, 2, 0.5, 10, 1, 10)),
        ("rand-mstd1-tweights", (tuple(RAND_WEIGHTS["weights"]), True, 2, 0.5, 10, 1, 10)),
        ("rand-t3aw", (tuple(RAND_WEIGHTS["3aw"]), True, 2, 0.5, 10, 0, 10)),
        ("rand-n1-t3a", (("SolarizeIncreasing", "Desaturate", "GaussianBlur"), False, 1, 0.5, 10, 0, 10)),
    ],
)
def test_the_grammar_of_randaugment(spec, expected):
    got = auto_augment(spec)
    style = got.style
    found = (got.ops, got.weights is not None, got.layers, got.probability, got.magnitude)
    assert (*found, style.magnitude_std, style.magnitude_max) == expected
    if got.weights:
        assert sum(got.weights) == pytest.approx(1)
        assert dict(zip(got.ops, got.weights, strict=True))["Rotate"] == pytest.approx(
            {"rand-mstd1-w0": 0.3, "rand-mstd1-tweights": 3 / 10.1, "rand-t3aw": 3 / 33}[spec]
        )


def test_the_grammar_of_the_others():
    assert auto_augment("original-mstd0.5").style.magnitude_std == 0.5
    assert auto_augment("v0").policy[15] == (("Rotate", 1.0, 7), ("TranslateYRel", 0.8, 9))
    assert auto_augment("v0r").policy[12] == (("PosterizeIncreasing", 0.4, 6), ("AutoContrast", 0.4, 7))
    assert auto_augment("originalr").policy[0][0] == ("PosterizeIncreasing", 0.4, 8)
    assert [len(POLICIES[name]) for name in ("original", "originalr", "v0", "v0r", "3a")] == [25, 25, 25, 25, 3]
    mix = auto_augment("augmix-m5-w4-d2-a0.5-mstd1")
    assert (mix.magnitude, mix.width, mix.depth, mix.alpha, mix.style.magnitude_std) == (5, 4, 2, 0.5, 1)
    assert auto_augment("augmix").style.magnitude_std == math.inf


def test_what_the_caller_passes_reaches_the_operations():
    style = auto_augment(RECIPE, fill=(1, 2, 3), interpolation="random", image_size=(160, 224)).style
    assert style.fill == (1, 2, 3) and style.resampling == (BILINEAR, BICUBIC)
    assert (style.ranges.translate_const, style.ranges.translate_pct) == (72, 0.45)  # 0.45 of the shorter side
    assert auto_augment("augmix", image_size=100).style.ranges.translate_pct == 0.3
    assert fill_from_mean((0.485, 0.456, 0.406)) == (124, 116, 104)
    assert fill_from_mean((0.5, 1.0, 1.01)) == (128, 255, 255)
    assert [uses_color_jitter(s) for s in (None, "", "3a", "rand-t3a", RECIPE, "v0")] == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("randd-m9", ': policy="randd" is not.* Did you mean "rand".*Use one of: "rand", "augmix", "original"'),
        ("", ': policy="" is not possible'),
        ("orignal-mstd1", ': policy="orignal".* Did you mean "original" or "originalr"'),
        ("rand-m9-q3", ': section="q".*Use one of: "m", "mstd", "mmax", "n", "p", "inc", "w", "t".*as in m9'),
        ("rand-mst0.5", 'section="mst".* Did you mean "mstd"'),
        ("rand-9", 'section="9"'),
        ("rand-", 'section=""'),
        ("v0-m9", 'section="m".*Use one of: "mstd"'),
        ("augmix-p0.5", 'section="p"'),
        ("rand-inc", '"inc" has no value.*behind the name'),
        ("rand-m9.5", ": m='9.5' is out of range.*whole number, at least 0"),
        ("rand-p1.5", ": p=1.5 is out of range.*number, at least 0 and at most 1"),
        ("rand-mmax0", ": mmax=0 is out of range.*at least 1"),
        ("rand-mstd0.5x", ": mstd='0.5x' is out of range"),
        ("rand-w1", ": w=1 is out of range"),
        ("augmix-b1", ": b=1 is out of range"),
        ("rand-t", '"t" has no value.*t3a'),
        ("rand-m9-m8", '"m" appears twice.*Remove one'),
        ("rand-tweigths", ': t="weigths" is not.* Did you mean "weights".*"weights", "3aw", "3a"'),
        ("rand-w0-inc1", "w0 cannot go with inc1.*Remove one.*tweights"),
        ("rand-w0-t3a", "w0 cannot go with t"),
        ("rand-n14-w0", ": n=14 is out of range.*at most 13.*no operation is drawn twice"),
    ],
)
def test_impossible_strings_say_what_why_and_what_to_do(spec, message):
    with pytest.raises(ConfigError, match=f'auto_augment="{spec}".*{message}'):
        auto_augment(spec)


def test_impossible_interpolation():
    with pytest.raises(ConfigError, match='interpolation="lanczos" is not.*"nearest", "bilinear", "bicubic", "random"'):
        auto_augment(RECIPE, interpolation="lanczos")


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_the_picture_is_a_function_of_the_generator_also_after_pickling(picture, spec):
    image, policy = picture(24, 31), auto_augment(spec, interpolation="random")
    copy = pickle.loads(pickle.dumps(policy))
    assert copy == policy and len(pickle.dumps(policy)) < 8000
    state = random.getstate(), np.random.get_state()[1].tolist()
    first, again = (
        [p(image, rng).tobytes() for _ in range(40)]
        for p, rng in ((q, np.random.default_rng(5)) for q in (policy, copy))
    )
    assert first == again and len(set(first)) > 5
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # nothing comes from elsewhere
    got = policy(image, np.random.default_rng(1))
    assert got.size == image.size and got.mode == "RGB"


def test_operations_of_randaugment_are_uniform_and_applied_half_of_the_time():
    steps = [step for drawn in draws(auto_augment(RECIPE), DRAWS) for step in drawn]
    counts = Counter(step.name for step in steps)
    assert set(counts) == set(RAND_INCREASING_OPS)
    assert chisquare(list(counts.values())).pvalue > 1e-3
    assert len(steps) == pytest.approx(DRAWS, rel=0.02)  # two operations, each with probability one half
    assert all(step.resample == BICUBIC if OPS[step.name].moves else step.resample is None for step in steps)


def test_magnitudes_and_signs_of_randaugment():
    steps = [step for drawn in draws(auto_augment("rand-m7-mstd0.5-inc1-p1"), DRAWS) for step in drawn]
    magnitudes = np.array([step.magnitude for step in steps])
    assert kstest((magnitudes - 7) / 0.5, "norm").pvalue > 1e-3
    clipped = [s.magnitude for drawn in draws(auto_augment(RECIPE), DRAWS) for s in drawn]
    assert max(clipped) == 10 and np.mean(np.equal(clipped, 10)) == pytest.approx(0.0228, abs=0.005)  # two sigma up
    uniform = [s.magnitude for drawn in draws(auto_augment("rand-m8-mstd101"), DRAWS) for s in drawn]
    assert kstest(uniform, "uniform", (0, 8)).pvalue > 1e-3
    negative = [step.arguments[0] < SIGNED[step.name] for step in steps if step.name in SIGNED]
    assert np.mean(negative) == pytest.approx(0.5, abs=0.015)
    by_hand = {s.name: s for s in steps}["Rotate"]
    assert abs(by_hand.arguments[0]) == pytest.approx(3 * by_hand.magnitude)


def test_random_interpolation_chooses_both_alike():
    steps = [s for drawn in draws(auto_augment(RECIPE, interpolation="random"), DRAWS) for s in drawn]
    chosen = Counter(step.resample for step in steps if OPS[step.name].moves)
    assert set(chosen) == {BILINEAR, BICUBIC} and chisquare(list(chosen.values())).pvalue > 1e-3


def test_weighted_sets_repeat_nothing_and_follow_their_weights():
    policy = auto_augment("rand-n1-p1-tweights")
    counts = Counter(steps[0].name for steps in draws(policy, DRAWS))
    expected = [weight * DRAWS for weight in policy.weights]
    assert chisquare([counts[name] for name in policy.ops], expected).pvalue > 1e-3
    names = [[step.name for step in steps] for steps in draws(auto_augment("rand-n5-p1-w0"), 500)]
    assert all(len(set(five)) == 5 for five in names)
    assert not {"Posterize", "Invert"} & {name for five in names for name in five}  # weight 0
    assert any(a == b for a, b in draws_of_names("rand-p1", 300))  # without weights they may repeat


def draws_of_names(spec: str, count: int) -> list[list[str]]:
    return [[step.name for step in steps] for steps in draws(auto_augment(spec), count)]


def test_three_augment_is_one_of_three_at_its_fixed_strength():
    drawn = draws(auto_augment("3a"), DRAWS)
    assert all(len(steps) == 1 for steps in drawn)
    counts = Counter(steps[0].name for steps in drawn)
    assert (
        set(counts) == {"Solarize", "Desaturate", "GaussianBlurRand"} and chisquare(list(counts.values())).pvalue > 1e-3
    )
    assert {s[0].arguments for s in drawn if s[0].name == "Solarize"} == {(128,)}
    assert {s[0].arguments for s in drawn if s[0].name == "Desaturate"} == {(1.0,)}
    radii = [s[0].arguments[0] for s in drawn if s[0].name == "GaussianBlurRand"]
    assert kstest(radii, "uniform", (0.1, 1.9)).pvalue > 1e-3


def test_sub_policies_are_uniform_with_their_own_probabilities():
    policy = auto_augment("v0")
    drawn = draws(policy, DRAWS)
    share = np.mean([[s.name for s in steps] == ["Rotate", "TranslateYRel"] for steps in drawn])
    assert share == pytest.approx(0.8 / 25, abs=0.006)
    applied = sum(len(steps) for steps in drawn) / DRAWS
    assert applied == pytest.approx(sum(p for sub in policy.policy for _, p, _ in sub) / 25, abs=0.02)


def test_steps_are_applied_in_their_order():
    style = auto_augment(RECIPE).style
    steps = [Step("Invert", 9, (), None), Step("Solarize", 9, (200,), None)]
    dark = Image.new("RGB", (1, 1), (20, 20, 20))
    assert style.apply(dark, steps).getpixel((0, 0)) == (20, 20, 20)  # 235 is above the threshold and turned back
    assert style.apply(dark, steps[::-1]).getpixel((0, 0)) == (235, 235, 235)


def test_mixture_by_hand(picture):
    image, mix = picture(16, 20), auto_augment("augmix-w2")
    alone = mix.apply(image, Mixture(np.float32([0.5, 0.5]), 1.0, [[], []]))
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(image)).max() == 0
    invert = auto_augment("rand-p1-n1").style.draw(("Invert", 1.0, 10), np.random.default_rng(0))
    grey = mix.apply(image, Mixture(np.float32([0.5, 0.5]), 1.0, [[], [invert]]))
    assert set(np.asarray(grey).ravel().tolist()) == {127}  # (v + 255 - v) / 2, cut off
    black = invert._replace(name="Brightness", arguments=(0.0,))
    dark = mix.apply(image, Mixture(np.float32([0.75, 0.25]), 1.0, [[black], []]))
    np.testing.assert_array_equal(np.asarray(dark), np.asarray(image) // 4)
    assert mix.apply(image, Mixture(np.float32([0.5, 0.5]), 0.0, [[], [invert]])).tobytes() == image.tobytes()
    drawn = draws(auto_augment("augmix"), 3000)
    assert all(m.weights.sum() == pytest.approx(1) and len(m.chains) == 3 for m in drawn)
    depths = Counter(len(chain) for m in drawn for chain in m.chains)
    assert set(depths) == {1, 2, 3} and chisquare(list(depths.values())).pvalue > 1e-3
    assert kstest([m.share for m in drawn], "uniform").pvalue > 1e-3  # Beta(1, 1)
    assert {len(chain) for m in draws(auto_augment("augmix-d2"), 20) for chain in m.chains} == {2}
