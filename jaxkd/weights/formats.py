"""Checkpoint formats of other trainers, converted to timm's names.

`choose` picks one of the state dicts of a training checkpoint, and `to_timm_names` converts its names. timm's own files
need neither; the original files of DeiT, CaiT, Swin, MAE, DINO, DINOv2 and CLIP need one or both, and BasicSR's files
the first.
"""

from __future__ import annotations

import logging
import re

import numpy as np

from jaxkd.errors import ConfigError, WeightSourceError, did_you_mean
from jaxkd.weights.readers import Nested

StateDict = dict[str, np.ndarray]

# (raw weights, their moving average) in a training checkpoint: timm; DeiT, CaiT, Swin, MAE; DINO; BasicSR.
BASICSR = ("params", "params_ema")
CONTAINERS = (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("student", "teacher"), BASICSR)
VARIANTS = ("raw", "ema")

# Put before every name by DistributedDataParallel and torch.compile, in either order.
_WRAPPERS = ("module.", "_orig_mod.")

_log = logging.getLogger(__name__)


def choose(content: Nested, variant: str | None, origin: str) -> tuple[StateDict, str]:
    """The state dict of a checkpoint that `variant` names, and which one it is.

    Args:
      content: what `readers.read` gave.
      variant: "raw", "ema" (the moving average of the weights), or None: where there are both, the raw ones, but of
        BasicSR's `params` and `params_ema` the average, which is what BasicSR itself validates; the log then says so.
      origin: the checkpoint's name in messages.

    Returns:
      name -> array; and its description, e.g. `"params_ema", the moving average of the weights`, or "" where the
      file holds one set of weights and nothing else.

    Raises:
      ConfigError: another variant.
      WeightSourceError: the checkpoint holds no such variant, or no weights at all.
    """
    if variant not in (None, *VARIANTS):
        raise ConfigError(
            f'variant="{variant}" does not exist.{did_you_mean(variant, VARIANTS)} Use "raw", "ema" or None.'
        )
    content = _nested(content)
    found = {
        kind: name
        for pair in reversed(CONTAINERS)
        for kind, name in zip(VARIANTS, pair, strict=True)
        if isinstance(content.get(name), dict)
    }
    if not found:
        arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
        if not arrays:
            raise WeightSourceError(
                f'"{origin}" holds no weights: its top level is {", ".join(list(content)[:8]) or "empty"}. They are '
                f"looked for there and under {', '.join(n for pair in CONTAINERS for n in pair)}. Save the network's "
                "state_dict()."
            )
        found, content = {"raw": ""}, {"": arrays}
    if variant is not None and variant not in found:
        meant = "moving average of the weights" if variant == "ema" else "raw weights beside the moving average"
        held = [name or "one set of weights" for name in found.values()]
        raise WeightSourceError(
            f'variant="{variant}", but "{origin}" holds no {meant}: there is only {", ".join(held)}. Leave '
            "variant out to load it."
        )
    chosen = variant or ("ema" if "raw" not in found or tuple(found.values()) == BASICSR else "raw")
    if variant is None and len(found) > 1:
        _log.warning(
            '"%s" holds raw weights ("%s") and their moving average ("%s"); the %s taken. '
            'Say variant="ema" or variant="raw" to choose.',
            origin,
            found["raw"],
            found["ema"],
            "raw ones were" if chosen == "raw" else "average was",
        )
    elif chosen == "ema" and variant is None:
        _log.warning('"%s" holds only a moving average ("%s"), which was taken.', origin, found["ema"])
    name = found[chosen]
    if not name:
        return content[name], ""
    state, _ = choose(content[name], None, origin)
    return state, f'"{name}", the {"raw weights" if chosen == "raw" else "moving average of the weights"}'


def _nested(content: Nested) -> Nested:
    """BasicSR's two levels, where a format without levels has written them as `params.NAME` and `params_ema.NAME`."""
    split = {name: name.split(".", 1) for name in content}
    if not content or not all(len(parts) == 2 and parts[0] in BASICSR for parts in split.values()):
        return content
    levels: Nested = {}
    for name, (level, rest) in split.items():
        levels.setdefault(level, {})[rest] = content[name]
    return levels


def to_timm_names(state: StateDict) -> StateDict:
    """A published state dict -> timm's names; one that has them already stays as it is.

    Args:
      state: names and layouts of any format in this module.

    Returns:
      A new dict; arrays are shared with `state` where they did not change.
    """
    state = _unwrapped(state)
    for recognises, convert in _FORMATS:
        if recognises(state):
            state = convert(state)
    return state


def unsupported(state: StateDict) -> str:
    """A sentence on a format that is recognised but not read, or ''."""
    if any("embeddings.patch_embeddings.projection." in name for name in state):
        return (
            "Its names are those of the transformers library, which jaxkd does not read; the Hub has the same weights "
            "under timm/NAME.TAG."
        )
    if any(name.startswith("Transformer/encoder") for name in state):
        return (
            "Its names are those of Google's JAX code, which jaxkd does not read; the Hub has them under timm/NAME.TAG."
        )
    return ""


def _unwrapped(state: StateDict) -> StateDict:
    """Without the wrappers' prefixes, which are on all names or on none."""
    while state:
        wrapper = next((w for w in _WRAPPERS if all(name.startswith(w) for name in state)), None)
        if wrapper is None:
            break
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def _dino(state: StateDict) -> StateDict:
    """DINO's training checkpoint: the network is `backbone`, the rest its projection head, of no use afterwards."""
    return {name.removeprefix("backbone."): a for name, a in state.items() if name.startswith("backbone.")}


def _mae_or_dinov2(state: StateDict) -> StateDict:
    """Without what only pre-training needs: the token of masked patches, and MAE's decoder."""
    return {name: a for name, a in state.items() if name != "mask_token" and not name.startswith("decoder_")}


def _dinov2_registers(state: StateDict) -> StateDict:
    """DINOv2 with registers: the class token's position embedding is added to it for good.

    The registers, between class token and patches, have no position embedding; timm then gives it to patches only.
    """
    state = dict(state)
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


_CLIP_NAMES = {
    "conv1": "patch_embed.proj",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "ln_pre": "norm_pre",
    "ln_post": "norm",
    "transformer.resblocks": "blocks",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_CLIP_PATTERN = re.compile(r"(?<![\w])(" + "|".join(map(re.escape, _CLIP_NAMES)) + ")")


def _clip(state: StateDict) -> StateDict:
    """CLIP and OpenCLIP: the image tower alone, whose projection into the common space is timm's classifier."""
    tower = {name.removeprefix("visual."): a for name, a in state.items() if name.startswith("visual.")}
    out = {_CLIP_PATTERN.sub(lambda m: _CLIP_NAMES[m[1]], name): a for name, a in tower.items() if name != "proj"}
    out["cls_token"] = out["cls_token"][None, None]
    out["pos_embed"] = out["pos_embed"][None]
    if "proj" in tower:
        out["head.weight"] = tower["proj"].T
        out["head.bias"] = np.zeros(tower["proj"].shape[1], np.float32)
    return out


def _microsoft_swin(state: StateDict) -> StateDict:
    """Microsoft's Swin: a stage ends with the downsampling that opens timm's next one; the classifier is `head`."""

    def renamed(name: str) -> str:
        name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
        return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)

    return {renamed(name): array for name, array in state.items()}


_DINO_HEAD = ("head.mlp.", "head.last_layer.")
_FORMATS = (
    (
        lambda s: "backbone.cls_token" in s and all(n.startswith(("backbone.", *_DINO_HEAD)) for n in s),
        _dino,
    ),
    (lambda s: "visual.class_embedding" in s, _clip),
    (lambda s: "mask_token" in s, _mae_or_dinov2),
    (lambda s: "register_tokens" in s and "pos_embed" in s, _dinov2_registers),
    (lambda s: "layers.0.downsample.reduction.weight" in s, _microsoft_swin),
)
