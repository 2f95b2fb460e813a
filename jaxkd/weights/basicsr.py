"""Conversion between BasicSR's state dicts of MDBN and EDSR and jaxkd's parameters: exact inverses, bit for bit.

The names, e.g. `body.0.baseblock1.uconv1.weight`, are lines of the table in `rules.py`; BasicSR's files put them under
`params` and, for the moving average, `params_ema` (see `candidates.choose`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxkd.errors import WeightMismatchError
from jaxkd.models.edsr import EDSR
from jaxkd.models.mdbn import MDBN
from jaxkd.models.sr_base import Upscaler
from jaxkd.weights.merging import merge_branches, split_branches
from jaxkd.weights.rules import COLOUR_SHIFT
from jaxkd.weights.timm import StateDict, from_timm, to_timm

PyTree = Any


def is_upscaler(model: nn.Module) -> bool:
    """Whether the state dict of `model` has BasicSR's names."""
    return isinstance(model, Upscaler)


def _require_upscaler(model: nn.Module) -> None:
    if not is_upscaler(model):
        raise WeightMismatchError(
            f"This {type(model).__name__} is not MDBN or EDSR, whose state dicts have BasicSR's names. Use "
            "weights.from_timm and weights.to_timm."
        )


def recognise(state_dict: Mapping[str, np.ndarray]) -> tuple[str, dict[str, int]] | None:
    """The network that a state dict with BasicSR's names belongs to, by its names and shapes alone.

    Returns:
      (registered name, e.g. "mdbn_x4", arguments num_feat and num_block), or None if it is neither MDBN nor EDSR.
    """
    families = {"mdbn": "body.0.baseblock1.uconv1.weight", "edsr": "body.0.conv1.weight"}
    family = next((f for f, name in families.items() if name in state_dict), None)
    first = state_dict.get("conv_first.weight")
    if family is None or first is None or first.ndim != 4:
        return None
    factors = [
        a.shape[0] / a.shape[1] for k, a in state_dict.items() if re.fullmatch(r"upsample\.\d+\.weight", k) and a.size
    ]
    blocks = {m[1] for m in (re.match(r"body\.(\d+)\.", k) for k in state_dict) if m}
    scale = round(math.sqrt(math.prod(factors)))
    return f"{family}_x{scale}", {"num_feat": first.shape[0], "num_block": len(blocks)}


def from_basicsr(model: nn.Module, state_dict: Mapping[str, np.ndarray], *, origin: str = "The state dict") -> PyTree:
    """Variables of `model` from a BasicSR state dict.

    Args:
      model: an MDBN, merged or not, or an EDSR.
      state_dict: PyTorch names and layouts, perhaps with EDSR-PyTorch's `sub_mean` and `add_mean`.
      origin: what the error calls the state dict.

    Returns:
      `{"params": ...}`, fp32 arrays of JAX that share no memory with `state_dict`.

    Raises:
      WeightMismatchError: missing, unused or misshapen keys, all of them in one diff in PyTorch's names; or another
        kind of network; or an EDSR of another mean colour, range or standard deviation.
    """
    _require_upscaler(model)
    if isinstance(model, MDBN) and model.merged:
        plain = model.clone(merged=False)
        return merge_branches(plain, from_basicsr(plain, state_dict, origin=origin))[1]
    state_dict = _without_colour_shift(model, state_dict, origin)
    try:
        return from_timm(model, state_dict, origin=origin)
    except WeightMismatchError as error:
        found = recognise(state_dict)
        if found is None:
            raise
        first, *diff = str(error).split("\n", 1)
        args = ", ".join(f"{k}={v}" for k, v in found[1].items())
        hint = f'It has the arrays of models.create("{found[0]}", {args}).'
        raise WeightMismatchError("\n".join([f"{first} {hint}", *diff])) from None


def _without_colour_shift(
    model: nn.Module, state_dict: Mapping[str, np.ndarray], origin: str
) -> Mapping[str, np.ndarray]:
    """`state_dict` without the shift by the mean colour, which is to be the network's.

    Raises:
      WeightMismatchError: it is another one.
    """
    state = {name: array for name, array in state_dict.items() if name not in COLOUR_SHIFT}
    shifts = {name: np.asarray(state_dict[name]) for name in COLOUR_SHIFT if name in state_dict}
    if not isinstance(model, EDSR):
        return state
    for name, array in shifts.items():
        if name.endswith(".weight") and array.shape == (3, 3, 1, 1) and not _close(array[..., 0, 0], np.eye(3)):
            raise WeightMismatchError(
                f"{origin} was trained with another standard deviation than 1: {name} has the diagonal "
                f"{np.diagonal(array[..., 0, 0]).round(4).tolist()}, which jaxkd's EDSR does not have. Train it with "
                "rgb_std=(1, 1, 1), EDSR-PyTorch's default."
            )
    shift = shifts.get("sub_mean.bias", np.zeros(0))
    own = -np.asarray(model.rgb_mean) * model.img_range
    if shift.shape == (3,) and not _close(shift, own):
        img_range = 255.0 if np.abs(shift).max() > 1 else 1.0
        mean = tuple(round(float(colour), 4) + 0.0 for colour in -shift / img_range)
        text = str(mean).replace(" ", "")
        raise WeightMismatchError(
            f"{origin} subtracts another mean colour than this EDSR: sub_mean.bias is {shift.tolist()}, and "
            f"-rgb_mean * img_range is {own.round(4).tolist()}. Create the network with img_range={img_range}, "
            f'rgb_mean={mean} (--model-arg=img_range={img_range} --model-arg="rgb_mean={text}").'
        )
    back = shifts.get("add_mean.bias", np.zeros(0))
    if back.shape == (3,) and not _close(back, -own):
        raise WeightMismatchError(
            f"{origin} adds another mean colour than it subtracts: add_mean.bias is {back.tolist()}, and rgb_mean * "
            f"img_range is {(-own).round(4).tolist()}. jaxkd's EDSR adds what it subtracts; export the file again."
        )
    return state


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-3))


def to_basicsr(model: nn.Module, variables: PyTree) -> StateDict:
    """BasicSR state dict of `variables`, the exact inverse of `from_basicsr`.

    Args:
      model: the network that the variables belong to; a merged MDBN is taken apart first.
      variables: `{"params": ...}`.

    Returns:
      PyTorch names and layouts, fp32 NumPy arrays, without the level `params` of BasicSR's files.

    Raises:
      WeightMismatchError: the variables belong to another network, or the network is of another kind.
    """
    _require_upscaler(model)
    if isinstance(model, MDBN) and model.merged:
        model, variables = split_branches(model, variables)
    return to_timm(model, variables)
