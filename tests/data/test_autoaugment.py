"""Augmentation policies against timm: the same strings, the same distributions, the same pictures."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, ks_2samp

from jaxkd.data.transforms.image_ops import OPS
from jaxkd.data.transforms.policies import AUGMIX_OPS, POLICIES
from jaxkd.data.transforms.randaugment import auto_augment, fill_from_mean

pytestmark = pytest.mark.parity
SIGNED = {
    name: 1.0 if name.endswith("Increasing") else 0.0 for name, op in OPS.items() if op.draws
}  # the neutral value
DRAWS = 10_000
RECIPE = "rand-m9-mstd0.5-inc1"
MEAN = (0.485, 0.456, 0.406)
SPECS = (
    "rand",
    RECIPE,
    "rand-m15-mmax20-n3-p0.8",
    "rand-mstd101-inc1",
    "rand-t1",
    "rand-tweights-mstd1",
    "rand-t3a-n1",
    "rand-t3aw-n4",
    "original",
    "originalr",
    "original-mstd0.5",
    "v0",
    "v0r-mstd1",
    "3a",
    "augmix",
    "augmix-m5-w4-d2-mstd0.5",
)


def timms(spec: str, interpolation: str = "bicubic", size=224):
    """timm's own policy, as its training transform builds it."""
    from timm.data.transforms_factory import transforms_imagenet_train

    stages = transforms_imagenet_train(size, auto_augment=spec, interpolation=interpolation, mean=MEAN, separate=True)
    return stages[1].transforms[0]


def ours(spec: str, interpolation: str = "bicubic", size=224):
    return auto_augment(spec, fill=fill_from_mean(MEAN), interpolation=interpolation, image_size=size)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("interpolation", "size"), [("random", 224), ("bilinear", (160, 192))])
def test_strings_mean_what_they_mean_to_timm(timm, spec, interpolation, size):
    got, expected = ours(spec, interpolation, size), timms(spec, interpolation, size)
    if spec.startswith("rand"):
        entries = [(name, got.probability, got.magnitude) for name in got.ops]
        reference = expected.ops
        assert got.layers == expected.num_layers
        if got.weights is None:
            assert expected.choice_weights is None
        else:
            np.testing.assert_allclose(got.weights, expected.choice_weights, rtol=1e-12)
    elif spec.startswith("augmix"):
        entries = [(name, 1.0, got.magnitude) for name in AUGMIX_OPS]
        reference = expected.ops
        assert (got.width, got.depth or -1, got.alpha) == (expected.width, expected.depth, expected.alpha)
    else:
        assert [len(sub) for sub in got.policy] == [len(sub) for sub in expected.policy]
        entries = [entry for sub in got.policy for entry in sub]
        reference = [op for sub in expected.policy for op in sub]
    assert entries == [(op.name, op.prob, op.magnitude) for op in reference]
    for op in reference:
        style, resample = got.style, op.kwargs["resample"]
        assert style.magnitude_std == op.magnitude_std and style.magnitude_max == (op.magnitude_max or 10)
        assert style.fill == op.kwargs["fillcolor"]
        assert style.resampling == (resample if isinstance(resample, tuple) else (resample,))
        assert style.ranges.translate_const == op.hparams["translate_const"]
        assert style.ranges.translate_pct == op.hparams.get("translate_pct", 0.45)


def draws(policy) -> list:
    rng = np.random.default_rng(0)
    return [policy.draw(rng) for _ in range(DRAWS)]


@pytest.fixture
def recorded(timm, monkeypatch):
    """`recorded(spec)` -> what 10,000 calls of timm's policy would apply: lists of (name, magnitude, arguments)."""
    from timm.data import auto_augment as reference

    def record(spec: str) -> list[list[tuple]]:
        policy, log, level = timms(spec), [], []
        for op in getattr(policy, "ops", None) or [op for sub in policy.policy for op in sub]:

            def measured(magnitude, hparams, inner=op.level_fn):
                level[:] = [magnitude]
                return inner(magnitude, hparams) if inner else ()

            op.level_fn = measured
            op.aug_fn = lambda image, *arguments, name=op.name, **_: log[-1].append((name, level[0], arguments))
        monkeypatch.setattr(reference, "random", random.Random(0))
        before = np.random.get_state()
        np.random.seed(0)
        for _ in range(DRAWS):
            log.append([])
            policy(None)
        np.random.set_state(before)
        return log

    return record


def alike(first: list, second: list) -> float:
    """p-value of two samples of a category coming from one distribution; rare categories together."""
    counts = [Counter(first), Counter(second)]
    frequent = [c for c in set(first) | set(second) if counts[0][c] + counts[1][c] >= 20]
    table = [[c[name] for name in frequent] for c in counts]
    rest = [sum(c.values()) - sum(row) for c, row in zip(counts, table, strict=True)]
    return chi2_contingency([[*row, r] if sum(rest) else row for row, r in zip(table, rest, strict=True)]).pvalue


@pytest.mark.parametrize(
    "spec",
    [RECIPE, "rand-m7-n3-p0.7-mstd101", "rand-m9-mstd0.5-tweights", "rand-t3aw-n4-mstd1", "original-mstd0.5", "v0"],
)
def test_draws_are_distributed_as_timms(recorded, spec):
    """Which, how many, in which order, how strong, which sign; without touching a picture."""
    expected, got = recorded(spec), [[step[:3] for step in steps] for steps in draws(ours(spec))]
    assert alike([len(steps) for steps in expected], [len(steps) for steps in got]) > 1e-3
    flat = [[step for steps in side for step in steps] for side in (expected, got)]
    assert alike(*([name for name, *_ in side] for side in flat)) > 1e-3
    # Pairs in a row: repetition, and what is drawn without replacement.
    rows = [
        [tuple(name for name, *_ in pair) for steps in side for pair in pairwise(steps)] for side in (expected, got)
    ]
    assert alike(*rows) > 1e-3
    assert ks_2samp(*([magnitude for _, magnitude, _ in side] for side in flat)).pvalue > 1e-3
    means, stds = ([statistic([m for _, m, _ in side]) for side in flat] for statistic in (np.mean, np.std))
    assert means[0] == pytest.approx(means[1], rel=0.03) and stds[0] == pytest.approx(stds[1], rel=0.05)
    signs = [[(n, a[0] < SIGNED[n]) for n, _, a in side if n in SIGNED] for side in flat]
    assert alike(*signs) > 1e-3
    for name in {name for name, *_ in flat[0] if OPS[name].arguments}:
        samples = [[a[0] for n, _, a in side if n == name] for side in flat]
        if min(map(len, samples)) >= 50:
            assert ks_2samp(*samples).pvalue > 1e-4, name


class Script:
    """Stands for timm's random numbers: hands out what was decided, and insists on the order in which timm asks."""

    def __init__(self):
        self.answers: list[tuple[str, object]] = []

    def _next(self, kind: str):
        expected, value = self.answers.pop(0)
        assert kind == expected, f"timm asks for {kind}, but {expected} was decided"
        return value

    def random(self):
        return self._next("random")

    def gauss(self, *_):
        return self._next("gauss")

    def uniform(self, *_):
        return self._next("uniform")

    def choice(self, *_, **__):
        return self._next("choice")

    def randint(self, *_):
        return self._next("randint")

    def dirichlet(self, *_):
        return self._next("dirichlet")

    def beta(self, *_):
        return self._next("beta")

    def decide(self, step, probability: float, style) -> None:
        """The answers of one operation; `step` is None where it is left out."""
        if probability < 1:
            self.answers.append(("random", 0.0 if step else 1.0))
        if step is None:
            return
        if style.magnitude_std:
            self.answers.append(("uniform" if math.isinf(style.magnitude_std) else "gauss", step.magnitude))
        if step.name == "GaussianBlurRand":
            self.answers.append(("uniform", step.arguments[0]))
        elif step.name in SIGNED:
            self.answers.append(("random", 0.75 if step.arguments[0] < SIGNED[step.name] else 0.25))
        if step.resample is not None and len(style.resampling) > 1:
            self.answers.append(("choice", step.resample))


class Numpy:
    """numpy with a scripted `random`."""

    def __init__(self, script: Script):
        self.random = script

    def __getattr__(self, name: str):
        return getattr(np, name)


@pytest.fixture
def script(timm, monkeypatch):
    from timm.data import auto_augment as reference

    script = Script()
    monkeypatch.setattr(reference, "random", script)
    monkeypatch.setattr(reference, "np", Numpy(script))
    # Pillow 12 and later refuse 0 bits; black is what keeping none means (and what Pillow gave before).
    posterize = reference.ImageOps.posterize
    monkeypatch.setattr(
        reference.ImageOps,
        "posterize",
        lambda image, bits: posterize(image, bits) if bits >= 1 else Image.new("RGB", image.size),
    )
    return script


@pytest.fixture
def photograph(shared_data):
    path = sorted(shared_data("imagenet_originals").glob("*.JPEG"))[1]
    with Image.open(path) as image:
        return image.convert("RGB").resize((96, 80))


@pytest.fixture(params=["drawn", "photograph"])
def subject(request, picture):
    return picture(80, 96) if request.param == "drawn" else request.getfixturevalue("photograph")


def same(got: Image.Image, expected: Image.Image, said) -> None:
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected), str(said))


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
@pytest.mark.parametrize("spec", [s for s in SPECS if s.startswith("rand")])
def test_whole_randaugment_is_timms_under_the_same_decisions(script, subject, spec, interpolation):
    policy, reference = ours(spec, interpolation, 96), timms(spec, interpolation, 96)
    by_name = {op.name: op for op in reference.ops}
    rng, changed = np.random.default_rng(0), 0
    for _ in range(60):
        steps = policy.draw(rng)
        slots = [*steps, *[None] * (policy.layers - len(steps))]
        script.answers.append(("choice", [by_name[s.name] if s else reference.ops[0] for s in slots]))
        for step in slots:
            script.decide(step, policy.probability, policy.style)
        got = policy.style.apply(subject, steps)
        same(got, reference(subject), steps)
        assert not script.answers
        changed += got.tobytes() != subject.tobytes()
    assert changed > 20
    rng = np.random.default_rng(0)  # a call is a draw and its application
    steps, rng2 = policy.draw(rng), np.random.default_rng(0)
    assert policy(subject, rng2).tobytes() == policy.style.apply(subject, steps).tobytes()


@pytest.mark.parametrize("spec", [*POLICIES, "original-mstd0.5"])
def test_every_sub_policy_is_timms_under_the_same_decisions(script, subject, spec):
    policy, reference = ours(spec, "random", 96), timms(spec, "random", 96)
    rng = np.random.default_rng(0)
    for sub, theirs in zip(policy.policy, reference.policy, strict=True):
        for _ in range(3):
            drawn = [policy.style.draw(entry, rng) for entry in sub]
            script.answers.append(("choice", theirs))
            for step, (_, probability, _) in zip(drawn, sub, strict=True):
                script.decide(step, probability, policy.style)
            steps = [step for step in drawn if step]
            same(policy.style.apply(subject, steps), reference(subject), steps)
            assert not script.answers


@pytest.mark.parametrize("spec", [s for s in SPECS if s.startswith("augmix")])
def test_whole_augmix_is_timms_under_the_same_decisions(script, subject, spec):
    policy, reference = ours(spec, "bicubic", 96), timms(spec, "bicubic", 96)
    by_name = {op.name: op for op in reference.ops}
    rng = np.random.default_rng(0)
    for _ in range(15):
        mixture = policy.draw(rng)
        script.answers += [("dirichlet", mixture.weights), ("beta", mixture.share)]
        for chain in mixture.chains:
            if not policy.depth:
                script.answers.append(("randint", len(chain)))
            script.answers.append(("choice", [by_name[step.name] for step in chain]))
            for step in chain:
                script.decide(step, 1.0, policy.style)
        same(policy.apply(subject, mixture), reference(subject), mixture)
        assert not script.answers
