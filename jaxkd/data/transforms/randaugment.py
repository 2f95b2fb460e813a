"""AutoAugment, RandAugment, AugMix and 3-Augment from timm's configuration strings, with timm's distributions.

    augment = auto_augment("rand-m9-mstd0.5-inc1", fill=fill_from_mean(mean), interpolation="bicubic", image_size=224)
    image = augment(image, rng)

Every policy first draws its random choices (`draw`) and then applies them (`apply`), so that the choices can be tested
without images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxkd.data.transforms.image_ops import FULL_MAGNITUDE, OPS, Arguments, Colour, OpRanges
from jaxkd.data.transforms.policies import (
    AUGMIX_OPS,
    POLICIES,
    RAND_3A_OPS,
    RAND_INCREASING_OPS,
    RAND_OPS,
    RAND_WEIGHTS,
    RAND_WEIGHTS_0,
    SubPolicy,
)
from jaxkd.errors import ConfigError, check_choice, check_range

# How values between pixels are found; "random" chooses for each operation.
RESAMPLING: dict[str, tuple[Image.Resampling, ...]] = {
    "nearest": (Image.Resampling.NEAREST,),
    "bilinear": (Image.Resampling.BILINEAR,),
    "bicubic": (Image.Resampling.BICUBIC,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


class Step(NamedTuple):
    """One operation that was drawn."""

    name: str  # a key of `OPS`
    magnitude: float  # after noise and clipping
    arguments: Arguments  # what the operation is called with; the sign is in them
    resample: Image.Resampling | None  # for operations that move pixels


@dataclass(frozen=True)
class OpStyle:
    """Settings of all operations of a policy."""

    fill: Colour  # RGB of the pixels that come from outside the picture
    resampling: tuple[Image.Resampling, ...]  # one is chosen for each operation that moves pixels
    ranges: OpRanges  # that depend on picture and policy
    magnitude_std: float = 0.0  # standard deviation of the magnitude; infinite: uniform from 0 to the magnitude
    magnitude_max: float = FULL_MAGNITUDE  # what magnitudes are clipped to

    def draw(self, entry: tuple[str, float, float], rng: np.random.Generator) -> Step | None:
        """Draws whether and how strongly (operation, probability, magnitude) is applied; None: not applied."""
        name, probability, magnitude = entry
        if probability < 1 and rng.random() >= probability:
            return None
        if math.isinf(self.magnitude_std):
            magnitude = rng.uniform(0, magnitude)
        elif self.magnitude_std > 0:
            magnitude = rng.normal(magnitude, self.magnitude_std)
        magnitude = max(0.0, min(float(magnitude), self.magnitude_max))
        op = OPS[name]
        chance = rng.random() if op.draws else 0.0
        arguments = () if op.arguments is None else op.arguments(magnitude, chance, self.ranges)
        if not op.moves:
            return Step(name, magnitude, arguments, None)
        which = int(rng.integers(len(self.resampling))) if len(self.resampling) > 1 else 0
        return Step(name, magnitude, arguments, self.resampling[which])

    def apply(self, image: Image.Image, steps: Sequence[Step]) -> Image.Image:
        """The picture after all steps."""
        for step in steps:
            op = OPS[step.name]
            if op.moves:
                image = op.apply(image, *step.arguments, fill=self.fill, resample=step.resample)
            else:
                image = op.apply(image, *step.arguments)
        return image


@dataclass(frozen=True)
class RandAugment:
    """`layers` operations of a set, each applied with a probability."""

    ops: tuple[str, ...]  # the set
    # how often each is chosen, summing to 1; then no operation comes twice in one picture. None: all alike, and
    # they may repeat.
    weights: tuple[float, ...] | None
    layers: int  # how many are chosen
    probability: float  # that a chosen one is applied
    magnitude: float  # before noise
    style: OpStyle  # shared by all

    def draw(self, rng: np.random.Generator) -> list[Step]:
        """The decisions for one picture; operations that are left out do not appear."""
        if self.weights is None:
            chosen = rng.integers(len(self.ops), size=self.layers)
        else:
            chosen = rng.choice(len(self.ops), self.layers, replace=False, p=self.weights)
        drawn = (self.style.draw((self.ops[i], self.probability, self.magnitude), rng) for i in chosen.tolist())
        return [step for step in drawn if step is not None]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An RGB image -> an RGB image of the same size."""
        return self.style.apply(image, self.draw(rng))


@dataclass(frozen=True)
class AutoAugment:
    """One of the sub-policies, uniformly; its operations in order, each with its own probability and magnitude."""

    policy: tuple[SubPolicy, ...]
    style: OpStyle

    def draw(self, rng: np.random.Generator) -> list[Step]:
        """As `RandAugment.draw`."""
        drawn = (self.style.draw(entry, rng) for entry in self.policy[int(rng.integers(len(self.policy)))])
        return [step for step in drawn if step is not None]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """As `RandAugment.__call__`."""
        return self.style.apply(image, self.draw(rng))


class Mixture(NamedTuple):
    """The decisions of AugMix for one picture."""

    weights: np.ndarray  # (width,) float32, of the chains; they sum to 1
    share: float  # of the mixture in the result; the rest is the picture itself
    chains: list[list[Step]]  # the operations of each chain


@dataclass(frozen=True)
class AugMix:
    """A weighted mean of differently augmented copies, blended with the picture (Hendrycks et al., 1912.02781)."""

    magnitude: float  # before noise
    width: int  # number of chains
    depth: int  # operations of a chain; 0 draws 1 to 3
    alpha: float  # of the Dirichlet and Beta distributions that weights and share come from
    style: OpStyle  # shared by all operations

    def draw(self, rng: np.random.Generator) -> Mixture:
        """The decisions for one picture."""
        weights = rng.dirichlet([self.alpha] * self.width).astype(np.float32)
        share = float(np.float32(rng.beta(self.alpha, self.alpha)))
        chains = []
        for _ in range(self.width):
            depth = self.depth or int(rng.integers(1, 4))
            chosen = rng.integers(len(AUGMIX_OPS), size=depth).tolist()
            drawn = (self.style.draw((AUGMIX_OPS[i], 1.0, self.magnitude), rng) for i in chosen)
            chains.append([step for step in drawn if step is not None])
        return Mixture(weights, share, chains)

    def apply(self, image: Image.Image, mixture: Mixture) -> Image.Image:
        """The picture after these decisions."""
        mean = np.zeros((image.height, image.width, 3), np.float32)
        for weight, chain in zip(mixture.weights, mixture.chains, strict=True):
            mean += weight * np.asarray(self.style.apply(image, chain), np.float32)
        return Image.blend(image, Image.fromarray(mean.clip(0, 255).astype(np.uint8)), mixture.share)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """As `RandAugment.__call__`."""
        return self.apply(image, self.draw(rng))


# Section -> its bounds for `check_range`; None for a name.
_WHOLE, _REAL = {"whole": True, "least": 0}, {"least": 0}
_SECTIONS: dict[str, dict[str, dict[str, float] | None]] = {
    "rand": {
        "m": _WHOLE,
        "mstd": _REAL,
        "mmax": {"whole": True, "least": 1},
        "n": _WHOLE,
        "p": {"least": 0, "most": 1},
        "inc": _WHOLE | {"most": 1},
        "w": _WHOLE | {"most": 0},
        "t": None,
    },
    "augmix": {
        "m": _WHOLE,
        "w": {"whole": True, "least": 1},
        "d": _WHOLE,
        "a": {"least": 1e-3},
        "b": _WHOLE | {"most": 0},
        "mstd": _REAL,
    },
    **{name: {"mstd": _REAL} for name in POLICIES},
}


def _parse(spec: str) -> tuple[str, dict]:
    """ "rand-m9-p0.5" -> ("rand", {"m": 9, "p": 0.5})."""
    policy, *parts = spec.split("-")
    check_choice(f'auto_augment="{spec}": policy', policy, _SECTIONS)
    known, values = _SECTIONS[policy], {}
    for part in parts:
        match = re.fullmatch(r"(t)(\w+)" if part.startswith("t") else r"([a-z]+)(\d.*)", part)
        key, text = match.groups() if match else (part, "")
        check_choice(f'auto_augment="{spec}": section', key, known, hint="each with its value, as in m9")
        if key in values:
            raise ConfigError(f'auto_augment="{spec}": section "{key}" appears twice. Remove one.')
        if not text:
            raise ConfigError(
                f'auto_augment="{spec}": section "{key}" has no value. Write it right behind the name, as in m9 or t3a.'
            )
        values[key] = text if known[key] is None else _number(f'auto_augment="{spec}": {key}', text, known[key])
    return policy, values


def _number(name: str, text: str, bounds: dict[str, float]) -> int | float:
    try:
        value = int(text) if bounds.get("whole") else float(text)
    except ValueError:
        value = text
    check_range(name, value, **bounds)
    return value


def _rand_set(spec: str, values: dict) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Operations and weights that the sections t, w and inc ask for."""
    name, increasing = values.get("t"), values.get("inc", 0)
    if "w" in values:
        if name is not None or increasing:
            raise ConfigError(
                f'auto_augment="{spec}": w0 cannot go with {"t" if name is not None else "inc1"}. Remove one of the '
                "two, or use tweights, which has weights for increasing operations."
            )
        table = RAND_WEIGHTS_0
    elif name in RAND_WEIGHTS:
        table = RAND_WEIGHTS[name]
    elif name == "3a":
        return RAND_3A_OPS, None
    elif name is None or name.isdigit():  # timm takes any other name for the standard set; t0 and t1 are in use
        return (RAND_INCREASING_OPS if increasing else RAND_OPS), None
    else:
        check_choice(f'auto_augment="{spec}": t', name, (*RAND_WEIGHTS, "3a"))
    total, layers = sum(table.values()), values.get("n", 2)
    most = sum(weight > 0 for weight in table.values())
    check_range(f'auto_augment="{spec}": n', layers, most=most, hint="with weights, no operation is drawn twice")
    return tuple(table), tuple(weight / total for weight in table.values())


def auto_augment(
    spec: str,
    *,
    fill: Colour = (128, 128, 128),
    interpolation: str = "bicubic",
    image_size: int | tuple[int, int] = 224,
) -> RandAugment | AutoAugment | AugMix:
    """A policy from timm's configuration string: `policy(image, rng) -> image`. It can be pickled.

    Strings: a policy and sections, joined by dashes.
      rand: m magnitude (10), mstd its standard deviation (0; above 100: uniform from 0 to m), mmax what it is clipped
        to (10), n operations per picture (2), p probability of each (0.5), inc1 operations that get stronger with the
        magnitude, t set of operations (tweights, t3a, t3aw), w0 weights of older versions. "rand-m9-mstd0.5-inc1".
      original, originalr, v0, v0r, 3a: mstd. 3a is DeiT III's 3-Augment without its colour jitter.
      augmix: m (3), w chains (3), d operations of a chain (0: 1 to 3), a alpha (1), mstd (uniform from 0 to m).

    Args:
      spec: the string.
      fill: RGB of what comes into the picture from outside; timm takes the model's mean, see `fill_from_mean`.
      interpolation: "nearest", "bilinear", "bicubic", or "random" (bilinear or bicubic, for each operation); timm takes
        that of the training crop, whose default is "random".
      image_size: side, or (height, width), of the training crops; TranslateX and TranslateY reach 0.45 of the shorter.

    Raises:
      ConfigError: the policy, a section, a value or the interpolation does not exist.
    """
    check_choice("interpolation", interpolation, RESAMPLING)
    policy, values = _parse(spec)
    shorter = image_size if isinstance(image_size, int) else min(image_size)
    std = values.get("mstd", math.inf if policy == "augmix" else 0.0)
    if policy == "rand" and std > 100:
        std = math.inf
    style = OpStyle(
        fill=tuple(fill),
        resampling=RESAMPLING[interpolation],
        ranges=OpRanges(int(shorter * 0.45), 0.3 if policy == "augmix" else 0.45),
        magnitude_std=std,
        magnitude_max=float(values.get("mmax", FULL_MAGNITUDE)),
    )
    if policy == "augmix":
        return AugMix(values.get("m", 3), values.get("w", 3), values.get("d", 0), values.get("a", 1.0), style)
    if policy != "rand":
        return AutoAugment(POLICIES[policy], style)
    ops, weights = _rand_set(spec, values)
    return RandAugment(ops, weights, values.get("n", 2), values.get("p", 0.5), values.get("m", 10), style)


def fill_from_mean(mean: Sequence[float]) -> Colour:
    """The colour that timm fills with: a model's mean (in 0 to 1) in grey levels."""
    red, green, blue = (min(255, round(255 * value)) for value in mean)
    return red, green, blue


def uses_color_jitter(spec: str) -> bool:
    """Whether timm's training transform also jitters the colours, after the policy: without one, or with 3-Augment."""
    return not spec or "3a" in spec
