"""Rules between parameter paths of jaxkd and keys of timm and BasicSR, with the differences in layout.

A rule is a pattern of paths with placeholders in braces, and a layout; the key follows from the path. Layouts: "same";
"linear", PyTorch's (out, in) and flax's (in, out); "conv", PyTorch's (out, in, h, w) and flax's (h, w, in, out).
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from jaxkd.errors import Shape, WeightMismatchError

# Placeholder -> the names that it may stand for.
_PLACEHOLDERS = {
    "i": r"\d+",
    "j": r"\d+",
    "norm": r"norm1|norm2|norm",
    "top_norm": r"norm|norm_pre|fc_norm|projector_norm|widen_norm",
    "top_norms": r"projector_norms|widen_norms",
    "top_linear": r"head|head_dist|head/fc|projector|widen|input",
    "top_linears": r"projectors|widens",
    "linear": r"attn/(?:qkv|proj|proj_l|proj_w|q|k|v)|mlp/(?:fc1|fc2)|reduction",
    "token": r"cls_token|dist_token|reg_token|pos_embed",
    "gamma": r"gamma_1|gamma_2",
    "ls": r"ls1|ls2",
    "base": r"baseblock1|baseblock2",
    "base_conv": r"uconv1|uconv2|dconv",
    "block_conv": r"conv1|conv2",
    "image_conv": r"conv_first|conv_after_body|conv_last",
}

_BLOCKS: tuple[str, ...] = ("blocks_{i}", "blocks_token_only_{i}", "layers_{i}/blocks_{j}", "layers_{i}/downsample")
_BLOCKS += ("wide_block", "wide_blocks_{i}")  # of WideLast
_BLOCKS += ("mix_{i}",)  # of the encoders of EEG words, which timm does not have
_LINEAR = ("{top_linear}", "{top_linears}_{i}", *(f"{block}/{{linear}}" for block in _BLOCKS))
_NORMS = ("patch_embed/norm", "{top_norm}", "{top_norms}_{i}", *(f"{block}/{{norm}}" for block in _BLOCKS))
_IN_BLOCK = ("{ls}/gamma", "{gamma}", "attn/relative_position_bias_table")
# Of the patch embedding, and of MDBN and EDSR.
_CONVOLUTIONS = (
    "patch_embed/proj",
    "{image_conv}",
    "body_{i}/{base}/{base_conv}",
    "body_{i}/{block_conv}",
    "upsample_{i}",
)

# Keys of a state dict that hold no parameter: they follow from the configuration, or counters put them there.
BUFFERS = re.compile(
    r"(^|\.)(relative_position_index|attn_mask|relative_coords_table|num_batches_tracked|total_ops|total_params|"
    r"n_averaged)$"
)

# Of EDSR-PyTorch's files: the constants of its first and last layer, the identity over the standard deviation and minus
# the mean colour times range. Here they are arguments of the network, with which they are compared.
COLOUR_SHIFT = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")

# The classifier, which `new_head` may replace.
HEAD = re.compile(r"^(head|head_dist|head\.fc|base\.head)\.(weight|bias)$")


# The DeiT inside a Lift.
BASE = "base/"


def is_position_embedding(key: str) -> bool:
    """Whether the array holds one vector for each position of the grid."""
    return key in ("pos_embed", "base.pos_embed")


def is_resizable(key: str) -> bool:
    """Whether the size of the array follows from the image size, so that `resize` can change it."""
    return is_position_embedding(key) or key.endswith("relative_position_bias_table")


# Layout -> the axes of flax's array in PyTorch's order, where that is another.
_AXES = {"linear": (1, 0), "conv": (3, 2, 0, 1)}

# Pattern of a path -> layout.
RULES: dict[str, str] = {
    **{f"{module}/kernel": "linear" for module in _LINEAR},
    **{f"{module}/kernel": "conv" for module in _CONVOLUTIONS},
    **{f"{module}/scale": "same" for module in _NORMS},
    **{f"{module}/bias": "same" for module in (*_LINEAR, *_CONVOLUTIONS, *_NORMS)},
    **{f"{block}/{name}": "same" for block in _BLOCKS for name in _IN_BLOCK},
    "{token}": "same",
    "places/pos_embed": "same",  # of the encoders of EEG words
}


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    """Pattern with placeholders -> regex with one named group per placeholder."""
    parts = re.split(r"\{(\w+)\}", pattern)
    return re.compile(
        "".join(re.escape(part) if n % 2 == 0 else f"(?P<{part}>{_PLACEHOLDERS[part]})" for n, part in enumerate(parts))
    )


def _key(pattern: str) -> str:
    """The key of a path, both with placeholders: "blocks_{i}/{norm}/scale" -> "blocks.{i}.{norm}.weight"."""
    pattern = re.sub(r"/(kernel|scale)$", "/weight", pattern)
    return re.sub(r"_(?=\{[ij]\})|/", ".", pattern)


def to_torch_key(path: str) -> tuple[str, str]:
    """Parameter path, e.g. "blocks_0/attn/qkv/kernel" -> timm's (BasicSR's) key, and the layout."""
    if path.startswith(BASE):
        key, layout = to_torch_key(path.removeprefix(BASE))
        return f"base.{key}", layout
    for pattern, layout in RULES.items():
        if match := _regex(pattern).fullmatch(path):
            return _key(pattern).format(**{k: v.replace("/", ".") for k, v in match.groupdict().items()}), layout
    raise WeightMismatchError(
        f'The parameter "{path}" has no counterpart in a state dict of timm or BasicSR. Convert only '
        "networks of jaxkd.models, or add a line for it to jaxkd/weights/rules.py."
    )


def to_torch_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """Array in flax's layout -> PyTorch's layout (a contiguous copy or the array itself)."""
    return np.ascontiguousarray(array.transpose(_AXES.get(layout, range(array.ndim)))) if array.ndim else array


def from_torch_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """Array in PyTorch's layout -> flax's layout (a contiguous copy or the array itself)."""
    axes = np.argsort(_AXES.get(layout, range(array.ndim)))
    return np.ascontiguousarray(array.transpose(axes)) if array.ndim else array


def torch_shape(shape: Shape, layout: str) -> Shape:
    """Shape in flax's layout -> PyTorch's."""
    return tuple(shape[axis] for axis in _AXES.get(layout, range(len(shape))))
