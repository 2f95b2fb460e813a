"""The tables of the augmentation policies: which operations, how often, how strongly. No code that runs per image.

AutoAugment's ImageNet policies are those of Cubuk et al., arXiv:1805.09501 ("original"), and of TensorFlow's
EfficientNet ("v0"); RandAugment's sets follow arXiv:1909.13719, AugMix's arXiv:1912.02781, 3-Augment arXiv:2204.07118
(DeiT III), all as timm (timm/data/auto_augment.py) has them.
"""

from __future__ import annotations

Entry = tuple[str, float, int]  # operation, probability, magnitude
SubPolicy = tuple[Entry, ...]


def _policy(table: str) -> tuple[SubPolicy, ...]:
    """The sub-policies of a table, in which "|" ends one and "," ends an operation."""
    rows = ((entry.split() for entry in row.split(",")) for row in table.split("|"))
    return tuple(tuple((name, float(share), int(strength)) for name, share, strength in row) for row in rows)


# Posterize at magnitude 2 keeps no bit and gives black.
_V0 = _policy("""
    Equalize 0.8 1, ShearY 0.8 4 | Color 0.4 9, Equalize 0.6 3 | Color 0.4 1, Rotate 0.6 8 |
    Solarize 0.8 3, Equalize 0.4 7 | Solarize 0.4 2, Solarize 0.6 2 | Color 0.2 0, Equalize 0.8 8 |
    Equalize 0.4 8, SolarizeAdd 0.8 3 | ShearX 0.2 9, Rotate 0.6 8 | Color 0.6 1, Equalize 1 2 |
    Invert 0.4 9, Rotate 0.6 0 | Equalize 1 9, ShearY 0.6 3 | Color 0.4 7, Equalize 0.6 0 |
    Posterize 0.4 6, AutoContrast 0.4 7 | Solarize 0.6 8, Color 0.6 9 | Solarize 0.2 4, Rotate 0.8 9 |
    Rotate 1 7, TranslateYRel 0.8 9 | ShearX 0 0, Solarize 0.8 4 | ShearY 0.8 0, Color 0.6 4 |
    Color 1 0, Rotate 0.6 2 | Equalize 0.8 4, Equalize 0 8 | Equalize 1 4, AutoContrast 0.6 2 |
    ShearY 0.4 7, SolarizeAdd 0.6 7 | Posterize 0.8 2, Solarize 0.6 10 | Solarize 0.6 8, Equalize 0.6 1 |
    Color 0.8 6, Rotate 0.4 5
""")

# The paper's table has 25 rows of which five appear twice.
_ORIGINAL = _policy("""
    PosterizeOriginal 0.4 8, Rotate 0.6 9 | Solarize 0.6 5, AutoContrast 0.6 5 | Equalize 0.8 8, Equalize 0.6 3 |
    PosterizeOriginal 0.6 7, PosterizeOriginal 0.6 6 | Equalize 0.4 7, Solarize 0.2 4 | Equalize 0.4 4, Rotate 0.8 8 |
    Solarize 0.6 3, Equalize 0.6 7 | PosterizeOriginal 0.8 5, Equalize 1 2 | Rotate 0.2 3, Solarize 0.6 8 |
    Equalize 0.6 8, PosterizeOriginal 0.4 6 | Rotate 0.8 8, Color 0.4 0 | Rotate 0.4 9, Equalize 0.6 2 |
    Equalize 0 7, Equalize 0.8 8 | Invert 0.6 4, Equalize 1 8 | Color 0.6 4, Contrast 1 8 | Rotate 0.8 8, Color 1 2 |
    Color 0.8 8, Solarize 0.8 7 | Sharpness 0.4 7, Invert 0.6 8 | ShearX 0.6 5, Equalize 1 9 |
    Color 0.4 0, Equalize 0.6 3 | Equalize 0.4 7, Solarize 0.2 4 | Solarize 0.6 5, AutoContrast 0.6 5 |
    Invert 0.6 4, Equalize 1 8 | Color 0.6 4, Contrast 1 8 | Equalize 0.8 8, Equalize 0.6 3
""")


def _with_increasing_posterize(policy: tuple[SubPolicy, ...]) -> tuple[SubPolicy, ...]:
    """The same policy where a higher magnitude drops more bits (the "r" policies: Google research's reading)."""
    return tuple(
        tuple(("PosterizeIncreasing" if name.startswith("Posterize") else name, *rest) for name, *rest in sub)
        for sub in policy
    )


POLICIES: dict[str, tuple[SubPolicy, ...]] = {
    "original": _ORIGINAL,
    "originalr": _with_increasing_posterize(_ORIGINAL),
    "v0": _V0,
    "v0r": _with_increasing_posterize(_V0),
    "3a": (  # solarise above the middle, grey, or blur
        (("Solarize", 1.0, 5),),
        (("Desaturate", 1.0, 10),),
        (("GaussianBlurRand", 1.0, 10),),
    ),
}

RAND_OPS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)

_INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")

RAND_INCREASING_OPS = tuple(name + "Increasing" if name in _INCREASING else name for name in RAND_OPS)


def _weights(table: str) -> dict[str, float]:
    """Operation -> weight of a table of both, in turns."""
    words = table.split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))


# Named sets of RandAugment (section t): operation -> weight. With weights, no operation is drawn twice.
RAND_WEIGHTS: dict[str, dict[str, float]] = {
    "weights": _weights("""
        Rotate 3 ShearX 2 ShearY 2 TranslateXRel 1 TranslateYRel 1 ColorIncreasing 0.25 SharpnessIncreasing 0.25
        AutoContrast 0.25 SolarizeIncreasing 0.05 SolarizeAdd 0.05 ContrastIncreasing 0.05 BrightnessIncreasing 0.05
        Equalize 0.05 PosterizeIncreasing 0.05 Invert 0.05"""),
    "3aw": _weights("""
        SolarizeIncreasing 6 Desaturate 6 GaussianBlur 6 Rotate 3 ShearX 2 ShearY 2 PosterizeIncreasing 1 AutoContrast 1
        ColorIncreasing 1 SharpnessIncreasing 1 ContrastIncreasing 1 BrightnessIncreasing 1 Equalize 1 Invert 1"""),
}

RAND_3A_OPS = ("SolarizeIncreasing", "Desaturate", "GaussianBlur")

# Section w0, which older versions of timm had: weights of RAND_OPS. Not the same as "weights", which replaced it.
RAND_WEIGHTS_0 = _weights("""
    AutoContrast 0.025 Equalize 0.005 Invert 0 Rotate 0.3 Posterize 0 Solarize 0.005 SolarizeAdd 0.005 Color 0.025
    Contrast 0.005 Brightness 0.005 Sharpness 0.025 ShearX 0.2 ShearY 0.2 TranslateXRel 0.1 TranslateYRel 0.1""")

AUGMIX_OPS = (
    *("AutoContrast", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
    *("Equalize", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "ShearX", "ShearY", "TranslateXRel"),
    "TranslateYRel",
)
