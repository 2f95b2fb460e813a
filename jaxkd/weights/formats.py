"""Names of other trainers, converted to timm's (of super-resolution networks: BasicSR's).

Read are the original files of Swin, DINOv2 and CLIP, Hugging Face transformers' ViT, DeiT, Swin and DINOv2 (files, and
the names that releases 4 and 5 have in memory), and EDSR-PyTorch. Each is recognised by one name that no other has, so
that it is found below any prefix; DeiT, CaiT, MAE and DINO have timm's names below a prefix, which `candidates.py`
finds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

# Arrays by name; `pickles.Unreadable` in the place of an array that no network can use.
State = dict[str, Any]

# Parts of a name that DistributedDataParallel, torch.compile, FSDP and activation checkpointing put before the
# submodule that they wrap.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def to_timm_names(state: State) -> State:
    """A published state dict -> timm's names, below the prefix that it has; one with timm's names stays as it is.

    Args:
      state: names and layouts of any format in this module.

    Returns:
      A new dict; arrays are shared with `state` where they did not change.
    """
    state = _unwrapped(state)
    for anchor, convert in _FORMATS:
        for prefix in [n.removesuffix(anchor) for n in state if n == anchor or n.endswith(f".{anchor}")]:
            if convert is _transformers:
                prefix = re.sub(rf"(^|(?<=\.)){_FAMILIES}$", "", prefix)
            inside = {n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)}
            outside = {n: a for n, a in state.items() if not n.startswith(prefix)}
            state = outside | {prefix + n: a for n, a in convert(inside).items()}
    return state


def unsupported(state: State) -> str:
    """A sentence on a format that is recognised but not read, or ''."""
    names = [re.sub(r"^([\w]+\.)*?(?=Transformer/|embeddings\.|layer\.)", "", name) for name in state]
    if any(name.startswith("Transformer/encoder") for name in names):
        return (
            "Its names are those of Google's JAX code, which jaxkd does not read; the Hub has them under timm/NAME.TAG."
        )
    if any(name.startswith("embeddings.patch_embeddings.") for name in names):
        return "Its names are those of a network of Hugging Face transformers that jaxkd does not have."
    head: Any = state.get("head.weight")
    token: Any = state.get("cls_token")
    if getattr(head, "ndim", 0) == 2 and getattr(token, "ndim", 0) and head.shape[1] == 2 * token.shape[-1]:
        return (
            "Its classifier is that of Dinov2ForImageClassification (DINOv2's linear evaluation), which reads the "
            "class token and the mean of the patches side by side; jaxkd has no such head. Take the backbone with "
            "num_classes=0, or give it a new head (new_head)."
        )
    return ""


def _unwrapped(state: State) -> State:
    """Names without the parts that wrappers add, unless two names would become one."""
    short = {name: _WRAPPERS.sub("", name) for name in state}
    counts = Counter(short.values())
    return {(short[name] if counts[short[name]] == 1 else name): array for name, array in state.items()}


def _replaced(rules: tuple[tuple[str, str], ...], name: str) -> str:
    """`name` after the first rule whose pattern matches its beginning."""
    for pattern, new in rules:
        if match := re.match(pattern, name):
            return match.expand(new) + name[match.end() :]
    return name


# Hugging Face transformers: the name of a family, which classes with a head put before the backbone.
_FAMILIES = r"(?:vit|deit|swin|dinov2|dinov2_with_registers)\."
_OUTSIDE_BLOCKS = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.distillation_token$", "dist_token"),
    (r"embeddings\.(cls_token|register_tokens|mask_token)$", r"\1"),
    (r"layernorm\.", "norm."),
    (r"(?:cls_)?classifier\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
)
_BLOCK = re.compile(r"(?:encoder\.)?(?:layers\.(\d+)\.blocks|layers?)\.(\d+)\.")
_IN_BLOCK = (
    (r"attention\.(?:attention\.|self\.)?(q)(?:uery|_proj)\.", r"attn.\1."),
    (r"attention\.(?:attention\.|self\.)?(k)(?:ey|_proj)\.", r"attn.\1."),
    (r"attention\.(?:attention\.|self\.)?(v)(?:alue|_proj)\.", r"attn.\1."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"attention\.(?:self\.|relative_position_bias\.)?(relative_position_\w+)$", r"attn.\1"),
    (r"(?:intermediate\.dense|mlp\.fc1)\.", "mlp.fc1."),
    (r"(?:output\.dense|mlp\.fc2)\.", "mlp.fc2."),
    (r"(?:layernorm_before|norm1)\.", "norm1."),
    (r"(?:layernorm_after|norm2)\.", "norm2."),
    (r"layer_scale(\d)\.lambda1$", r"ls\1.gamma"),
)
_DOWNSAMPLE = re.compile(r"encoder\.layers\.(\d+)\.downsample\.")


def _transformers(state: State) -> State:
    """ViT, DeiT, Swin and DINOv2 of Hugging Face transformers: query, key and value become one matrix."""
    short = {name: re.sub(f"^{_FAMILIES}", "", name) for name in state}
    is_swin = any((match := _BLOCK.match(name)) and match[1] for name in short.values())

    def renamed(name: str) -> str:
        if match := _DOWNSAMPLE.match(name):
            return f"layers.{int(match[1]) + 1}.downsample.{name[match.end() :]}"
        if match := _BLOCK.match(name):
            block = f"layers.{match[1]}.blocks.{match[2]}" if match[1] else f"blocks.{match[2]}"
            return f"{block}.{_replaced(_IN_BLOCK, name[match.end() :])}"
        name = _replaced(_OUTSIDE_BLOCKS, name)
        return re.sub(r"^head\.", "head.fc.", name) if is_swin else name

    out = {renamed(short[name]): array for name, array in state.items()}
    for name in [n for n in out if re.search(r"\.attn\.q\.(weight|bias)$", n)]:
        parts = [re.sub(r"\.q\.(?=\w+$)", f".{part}.", name) for part in "qkv"]
        if all(isinstance(out.get(part), np.ndarray) for part in parts):
            joined = np.concatenate([out.pop(part) for part in parts])
            out[re.sub(r"\.q\.(?=\w+$)", ".qkv.", name)] = joined
    return _one_head_of_two(out) if "dist_token" in out and "classifier.weight" in short.values() else out


def _one_head_of_two(state: State) -> State:
    """DeiTForImageClassification, which classifies by the class token alone, as the mean of timm's two heads.

    The head of the class token is doubled and the one of the distillation token is zero, which is exact.
    """
    heads = {name: state[name] for name in ("head.weight", "head.bias") if isinstance(state.get(name), np.ndarray)}
    return (
        state | {n: 2 * a for n, a in heads.items()} | {n.replace("head", "head_dist"): 0 * a for n, a in heads.items()}
    )


def _registers(state: State) -> State:
    """DINOv2 with registers: the class token's position embedding is added to it for good.

    The registers, between class token and patches, have no position embedding; timm then gives it to patches only.
    """
    position: Any = state.get("pos_embed")
    token: Any = state.get("cls_token")
    if not all(isinstance(a, np.ndarray) and a.ndim == 3 for a in (position, token)):
        return state
    if position.shape[2] != token.shape[2]:
        return state
    state = dict(state)
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"], state["pos_embed"] = token + position[:, :1], position[:, 1:]
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


def _clip(state: State) -> State:
    """CLIP and OpenCLIP: the image tower alone, whose projection into the common space is timm's classifier."""
    tower = {name.removeprefix("visual."): a for name, a in state.items() if name.startswith("visual.")}
    out = {_CLIP_PATTERN.sub(lambda m: _CLIP_NAMES[m[1]], name): a for name, a in tower.items() if name != "proj"}
    for name, missing_axes in (("cls_token", (0, 1)), ("pos_embed", (0,))):
        if isinstance(out.get(name), np.ndarray):
            out[name] = np.expand_dims(out[name], missing_axes)
    if isinstance(tower.get("proj"), np.ndarray) and tower["proj"].ndim == 2:
        out["head.weight"] = tower["proj"].T
        out["head.bias"] = np.zeros(tower["proj"].shape[1], np.float32)
    return out


def _microsoft_swin(state: State) -> State:
    """Microsoft's Swin: a stage ends with the downsampling that opens timm's next one; the classifier is `head`."""

    def renamed(name: str) -> str:
        name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
        return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)

    return {renamed(name): array for name, array in state.items()}


_EDSR_NAMES = (
    (r"head\.0\.", "conv_first."),
    (r"body\.(\d+)\.body\.0\.", r"body.\1.conv1."),
    (r"body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
    (r"body\.\d+\.(?=(?:weight|bias)$)", "conv_after_body."),
    (r"tail\.0\.(\d+)\.", r"upsample.\1."),
    (r"tail\.1\.", "conv_last."),
)


def _edsr_pytorch(state: State) -> State:
    """EDSR-PyTorch, the first release of EDSR in PyTorch; its constant colour shifts are kept to be compared."""
    return {_replaced(_EDSR_NAMES, n): a for n, a in state.items()}


# (a name that only this format has, its conversion), in the order in which they are applied.
_FORMATS: tuple[tuple[str, Callable[[State], State]], ...] = (
    ("embeddings.patch_embeddings.projection.weight", _transformers),
    ("visual.class_embedding", _clip),
    ("register_tokens", _registers),
    ("layers.0.downsample.reduction.weight", _microsoft_swin),
    ("body.0.body.0.weight", _edsr_pytorch),
)
