"""The registry: timm's names -> networks, and the facts that belong to their weights.

`create("deit_tiny_patch16_224", num_classes=10)` builds a network from timm's arguments; `name.tag` picks published
weights, and with them mean, std, crop, interpolation, default image size and number of classes (timm 1.0.31,
`default_cfgs`). Without a tag, timm's default tag, the first in the table of `specs.py`, is meant. Super-resolution
networks take BasicSR's arguments, `create("mdbn_x4", num_feat=32)`; their names end in the scale and have no tags.
Encoders of EEG words, `create("eeg_words_tiny", out_features=128)`, have no tags either.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from flax import linen as nn

from jaxkd.errors import ConfigError, UnknownNameError, did_you_mean
from jaxkd.models.cait import Cait
from jaxkd.models.contract import ModelSpec
from jaxkd.models.edsr import EDSR
from jaxkd.models.eeg_words import EegWords
from jaxkd.models.mdbn import MDBN
from jaxkd.models.specs import SPECS
from jaxkd.models.students import Lift, WideLast, uniform_wide
from jaxkd.models.swin import SwinTransformer
from jaxkd.models.vit import VisionTransformer

_DINOV2: dict[str, Any] = {"patch_size": 14, "init_values": 1e-5}
_REGISTERS: dict[str, Any] = {"reg_tokens": 4, "no_embed_class": True}
_CLIP: dict[str, Any] = {"pre_norm": True, "norm_eps": 1e-5}

# size -> (embed_dim, depth, num_heads)
_VITS = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


def _vits(
    pattern: str, sizes: str, family: type[nn.Module] = VisionTransformer, **args: Any
) -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
    """Vision transformers that differ in size alone."""
    return {
        pattern.format(size): (family, dict(zip(("embed_dim", "depth", "num_heads"), _VITS[size], strict=True)) | args)
        for size in sizes.split()
    }


# name -> (family, arguments that make it what it is)
_BUILT_IN: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    **_vits("deit_{}_patch16_224", "tiny small base"),
    **_vits("deit_{}_distilled_patch16_224", "tiny small base", distillation_token=True),
    # The wide map has twice the narrow width: for DeiT-Tiny that of CaiT-S24, as published.
    **_vits("lift_deit_{}_patch16_224", "tiny", Lift, target_dim=384),
    **_vits("lift_deit_{}_patch16_224", "small", Lift, target_dim=768),
    **_vits("widelast_deit_{}_patch16_224", "tiny", WideLast, wide_dim=384),
    **_vits("widelast_deit_{}_patch16_224", "small", WideLast, wide_dim=768),
    **_vits("vit_{}_patch16_224", "tiny small base large"),
    **_vits("vit_{}_patch14_224", "huge", patch_size=14),
    **_vits("vit_{}_patch14_dinov2", "small base large", **_DINOV2),
    **_vits("vit_{}_patch14_reg4_dinov2", "small base large", **_DINOV2, **_REGISTERS),
    **_vits("vit_{}_patch16_clip_224", "base", **_CLIP),
    **_vits("vit_{}_patch14_clip_224", "large", **_CLIP, patch_size=14),
    **_vits("vit_{}_patch16_clip_quickgelu_224", "base", **_CLIP, act_layer="quick_gelu"),
    **_vits("vit_{}_patch14_clip_quickgelu_224", "large", **_CLIP, patch_size=14, act_layer="quick_gelu"),
    **{
        name: (Cait, {"embed_dim": width, "depth": depth, "num_heads": heads, "init_values": scale})
        for names, width, depth, heads, scale in (
            ("cait_xxs24_224 cait_xxs24_384", 192, 24, 4, 1e-5),
            ("cait_xxs36_224 cait_xxs36_384", 192, 36, 4, 1e-5),
            ("cait_xs24_384", 288, 24, 6, 1e-5),
            ("cait_s24_224 cait_s24_384", 384, 24, 8, 1e-5),
            ("cait_s36_384", 384, 36, 8, 1e-6),
        )
        for name in names.split()
    },
    **{
        f"swin_{size}_patch4_window7_224": (
            SwinTransformer,
            {"embed_dim": width, "depths": (2, 2, middle, 2), "num_heads": tuple(heads * 2**i for i in range(4))},
        )
        for size, width, middle, heads in (
            ("tiny", 96, 6, 3),
            ("small", 96, 18, 3),
            ("base", 128, 18, 4),
            ("large", 192, 18, 6),
        )
    },
    **{f"mdbn_x{scale}": (MDBN, {"scale": scale}) for scale in (2, 3, 4, 8)},
    **{f"edsr_x{scale}": (EDSR, {"scale": scale}) for scale in (2, 3, 4)},
    "eeg_words_linear": (EegWords, {"embed_dim": 0, "depth": 0, "drop_rate": 0.0}),
    "eeg_words_tiny": (EegWords, {"embed_dim": 64, "mlp_dim": 128, "depth": 1, "out_features": 32}),
    "eeg_words_base": (EegWords, {}),
    "eeg_words_context": (EegWords, {"mix_depth": 2}),
}

# Arguments that the name or a conversion of the weights decides.
_DECIDED_BY_NAME = frozenset({"distillation_token", "scale", "merged", "strip_pixels"})


class Entry(NamedTuple):
    """A registered network.

    Attributes:
      constructor: linen module class, or a function that returns a module.
      specs: tag -> facts, the default tag first; the tag of a network without tags is "".
      arguments: names that `create` passes on.
    """

    constructor: Callable[..., nn.Module]
    specs: dict[str, ModelSpec]
    arguments: tuple[str, ...]


REGISTRY: dict[str, Entry] = {}


def register(
    name: str,
    constructor: Callable[..., nn.Module],
    spec: ModelSpec | Sequence[ModelSpec],
    *,
    arguments: Sequence[str] | None = None,
) -> None:
    """Registers a network, so that `create`, configs and commands know it by its name.

    Args:
      name: without a dot, which separates a tag.
      constructor: a linen module class, or a function that returns a module. `create` passes the user's arguments on,
        and img_size, num_classes, dtype, remat and scan_blocks where the constructor takes them. The module keeps the
        contract of `models/contract.py`: `apply(variables, images, train=..., taps=..., offsets=...)` returns (output,
        features), and `tap_names()` lists the taps.
      spec: preprocessing constants and defaults; several for several tags of weights, the default first.
      arguments: names a user may give; None takes them from the constructor's signature.

    Raises:
      ConfigError: the name has a dot or is taken.
    """
    if "." in name:
        raise ConfigError(f'The network name "{name}" has a dot, which separates a tag of weights. Leave it out.')
    if name in REGISTRY:
        raise ConfigError(
            f'The network "{name}" is registered already, by {_origin(REGISTRY[name].constructor)}. Choose another '
            "name."
        )
    specs = (spec,) if isinstance(spec, ModelSpec) else tuple(spec)
    if arguments is None:
        arguments = [key for key in inspect.signature(constructor).parameters if key not in ("parent", "name")]
    by_tag = {one.tag: dataclasses.replace(one, name=name) for one in specs}
    REGISTRY[name] = Entry(constructor, by_tag, tuple(arguments))


def _origin(constructor: Any) -> str:
    constructor = getattr(constructor, "func", constructor)  # of a partial
    return f"{constructor.__module__}.{constructor.__qualname__}"


def _arguments(family: type[nn.Module]) -> list[str]:
    """Arguments of a built-in network that a user may give."""
    decided = {*_DECIDED_BY_NAME, *getattr(family, "fixed_arguments", ()), "parent", "name"}
    return [f.name for f in dataclasses.fields(family) if f.name not in decided]


for _name, (_family, _args) in _BUILT_IN.items():
    register(_name, functools.partial(_family, **_args), SPECS[_name], arguments=_arguments(_family))
for _name, _width, _heads in (("tiny", 204, 3), ("small", 408, 6)):  # the authors' code has the tiny one only
    register(
        f"uniformwide_deit_{_name}_patch16_224",
        functools.partial(uniform_wide, embed_dim=_width, published_heads=_heads),
        SPECS[f"uniformwide_deit_{_name}_patch16_224"],
        arguments=(*_arguments(VisionTransformer), "head_dim"),
    )


def list_models(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern, e.g. "cait*"; a pattern with a dot matches `name.tag`.

    Args:
      pattern: with `*`, `?` and `[...]`; case matters.

    Returns:
      Sorted; [] where nothing matches.
    """
    names: Iterable[str] = REGISTRY
    if "." in pattern:
        names = [f"{name}.{tag}" for name, entry in REGISTRY.items() for tag in entry.specs if tag]
    return sorted(fnmatch.filter(names, pattern))


def spec(name: str) -> ModelSpec:
    """Preprocessing constants and class count of `name` or `name.tag`.

    Args:
      name: one of `list_models()`, perhaps with a tag; without one, the first tag is meant.

    Returns:
      The facts, with the size of the input in pixels and mean and std of images in [0, 1].

    Raises:
      UnknownNameError: the name is not registered, or has no such tag.
    """
    base, _, tag = str(name).partition(".")
    if base not in REGISTRY:
        raise UnknownNameError(
            f'The model "{base}" is not registered.{did_you_mean(base, REGISTRY)} '
            "jaxkd.models.list_models() lists all names; a network of your own is added with models.register."
        )
    tags = REGISTRY[base].specs
    if not tag:
        return next(iter(tags.values()))
    if set(tags) == {""}:
        raise UnknownNameError(f'The model "{base}" has no tags, and "{tag}" was given. Write "{base}".')
    if tag not in tags:
        raise UnknownNameError(
            f'The model "{base}" has no weights tagged "{tag}".{did_you_mean(tag, tags)} Leave the tag out for the '
            f"first of these, or use one of: {', '.join(tags)}."
        )
    return tags[tag]


def arguments(name: str) -> tuple[str, ...]:
    """Names of the arguments that `create(name, ...)` takes.

    Args:
      name: one of `list_models()`, perhaps with a tag.

    Returns:
      In the order of the constructor.

    Raises:
      UnknownNameError: unknown name or tag.
    """
    return REGISTRY[spec(name).name].arguments


def create(name: str, **kwargs: Any) -> nn.Module:
    """Builds the network `name` (or `name.tag`), e.g. `create("cait_s24_224", img_size=64, depth=2)`.

    Args:
      name: one of `list_models()`; its tag decides the default `img_size` and `num_classes`.
      **kwargs: timm's constructor arguments (BasicSR's for super-resolution), plus `dtype` (jnp.float32 or
        jnp.bfloat16: type of the arithmetic), `remat` (what the backward pass recomputes) and, for transformers,
        `scan_blocks` (compute equal blocks as one loop).

    Returns:
      A linen module; see the contract in `models/contract.py`.

    Raises:
      UnknownNameError: unknown name or tag.
      ConfigError: an argument that the network does not take, or that it cannot be built with.
    """
    facts = spec(name)
    entry = REGISTRY[facts.name]
    for key in kwargs:
        if key not in entry.arguments:
            raise ConfigError(
                f'"{key}" is not an argument of {facts.name}.{did_you_mean(key, entry.arguments)} '
                f"It takes: {', '.join(entry.arguments)}."
            )
    if facts.task == "classification":
        defaults = {"img_size": facts.input_size, "num_classes": facts.num_classes}
        kwargs = {key: value for key, value in defaults.items() if key in entry.arguments} | kwargs
    return entry.constructor(**kwargs)


def tap_names(model: nn.Module) -> tuple[str, ...]:
    """Names that `taps` and `offsets` of `model` accept, in depth order.

    Args:
      model: a linen module, as `create` returns it.

    Returns:
      () of a module that names none.
    """
    return model.tap_names() if hasattr(model, "tap_names") else ()
