"""Rules between parameter paths of jaxkd and keys of timm and BasicSR, with the differences in layout.

Each rule is written once, as a pair of patterns with the same placeholders in braces, and read in both directions, so
that the two directions cannot disagree. Layouts: "same"; "linear", PyTorch's (out, in) and flax's (in, out); "conv",
PyTorch's (out, in, h, w) and flax's (h, w, in, out).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from jaxkd.errors import Shape, WeightMismatchError

# Placeholder -> the names that it may stand for.
_PLACEHOLDERS = {
    "i": r"\d+",
    "j": r"\d+",
    "norm": r"norm1|norm2|norm",
    "top_norm": r"norm|norm_pre|fc_norm",
    "linear": r"attn/(?:qkv|proj|proj_l|proj_w|q|k|v)|mlp/(?:fc1|fc2)|reduction",
    "token": r"cls_token|dist_token|reg_token|pos_embed",
    "gamma": r"gamma_1|gamma_2",
    "ls": r"ls1|ls2",
    "head": r"head|head_dist|head/fc",
    "base": r"baseblock1|baseblock2",
    "base_conv": r"uconv1|uconv2|dconv",
    "block_conv": r"conv1|conv2",
    "image_conv": r"conv_first|conv_after_body|conv_last",
}

# Prefixes of blocks: (jaxkd's, timm's).
_BLOCKS = (
    ("blocks_{i}", "blocks.{i}"),
    ("blocks_token_only_{i}", "blocks_token_only.{i}"),
    ("layers_{i}/blocks_{j}", "layers.{i}.blocks.{j}"),
    ("layers_{i}/downsample", "layers.{i}.downsample"),
)

# Parameters of a block: (jaxkd's, timm's, layout).
_IN_BLOCK = (
    ("{linear}/kernel", "{linear}.weight", "linear"),
    ("{linear}/bias", "{linear}.bias", "same"),
    ("{norm}/scale", "{norm}.weight", "same"),
    ("{norm}/bias", "{norm}.bias", "same"),
    ("{ls}/gamma", "{ls}.gamma", "same"),
    ("{gamma}", "{gamma}", "same"),
    ("attn/relative_position_bias_table", "attn.relative_position_bias_table", "same"),
)

_TOP = (
    ("patch_embed/proj/kernel", "patch_embed.proj.weight", "conv"),
    ("patch_embed/proj/bias", "patch_embed.proj.bias", "same"),
    ("patch_embed/norm/scale", "patch_embed.norm.weight", "same"),
    ("patch_embed/norm/bias", "patch_embed.norm.bias", "same"),
    ("{token}", "{token}", "same"),
    ("{top_norm}/scale", "{top_norm}.weight", "same"),
    ("{top_norm}/bias", "{top_norm}.bias", "same"),
    ("{head}/kernel", "{head}.weight", "linear"),
    ("{head}/bias", "{head}.bias", "same"),
)

# Convolutions of MDBN and EDSR: (jaxkd's, BasicSR's).
_UPSCALER = (
    ("{image_conv}", "{image_conv}"),
    ("body_{i}/{base}/{base_conv}", "body.{i}.{base}.{base_conv}"),
    ("body_{i}/{block_conv}", "body.{i}.{block_conv}"),
    ("upsample_{i}", "upsample.{i}"),
)

# Keys of a state dict that hold no parameter: they follow from the configuration.
BUFFERS = re.compile(r"(^|\.)(relative_position_index|attn_mask|relative_coords_table|num_batches_tracked)$")

# The classifier, which `new_head` may replace.
HEAD = re.compile(r"^(head|head_dist|head\.fc)\.(weight|bias)$")

_TO_TORCH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda a: a,
    "linear": lambda a: a.transpose(1, 0),
    "conv": lambda a: a.transpose(3, 2, 0, 1),
}
_FROM_TORCH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda a: a,
    "linear": lambda a: a.transpose(1, 0),
    "conv": lambda a: a.transpose(2, 3, 1, 0),
}


@dataclass(frozen=True)
class Rule:
    """One line of the table: patterns of jaxkd's path and of PyTorch's key, and the layout."""

    path: str
    key: str
    layout: str


RULES: tuple[Rule, ...] = (
    *(Rule(*line) for line in _TOP),
    *(Rule(f"{a}/{b}", f"{c}.{d}", layout) for a, c in _BLOCKS for b, d, layout in _IN_BLOCK),
    *(Rule(f"{a}/kernel", f"{b}.weight", "conv") for a, b in _UPSCALER),
    *(Rule(f"{a}/bias", f"{b}.bias", "same") for a, b in _UPSCALER),
)


@cache
def _regex(pattern: str, separator: str) -> re.Pattern[str]:
    """Pattern with placeholders -> regex with one named group per placeholder."""
    parts = re.split(r"\{(\w+)\}", pattern)
    text = "".join(
        re.escape(part) if n % 2 == 0 else f"(?P<{part}>{_PLACEHOLDERS[part].replace('/', re.escape(separator))})"
        for n, part in enumerate(parts)
    )
    return re.compile(text)


def _translate(name: str, source: str, target: str, separators: tuple[str, str]) -> str | None:
    """`name` rewritten from pattern `source` to pattern `target`, or None if it is not of that form."""
    match = _regex(source, separators[0]).fullmatch(name)
    if match is None:
        return None
    values = {k: v.replace(*separators) if k not in ("i", "j") else v for k, v in match.groupdict().items()}
    return target.format(**values)


def to_torch_key(path: str) -> tuple[str, str]:
    """Parameter path, e.g. "blocks_0/attn/qkv/kernel" -> timm's (BasicSR's) key, and the layout.

    Raises:
      WeightMismatchError: no rule matches this path.
    """
    for rule in RULES:
        key = _translate(path, rule.path, rule.key, ("/", "."))
        if key is not None:
            return key, rule.layout
    raise WeightMismatchError(
        f'The parameter "{path}" has no counterpart in a state dict of timm or BasicSR. Convert only '
        "networks of jaxkd.models, or add a line for it to jaxkd/weights/rules.py."
    )


def to_torch_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """Array in flax's layout -> PyTorch's layout (a contiguous copy or the array itself)."""
    return np.ascontiguousarray(_TO_TORCH[layout](array)) if array.ndim else array


def from_torch_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """Array in PyTorch's layout -> flax's layout (a contiguous copy or the array itself)."""
    return np.ascontiguousarray(_FROM_TORCH[layout](array)) if array.ndim else array


def torch_shape(shape: Shape, layout: str) -> Shape:
    """Shape in flax's layout -> PyTorch's."""
    if layout == "linear":
        return (shape[1], shape[0])
    if layout == "conv":
        return (shape[3], shape[2], shape[0], shape[1])
    return tuple(shape)
