"""Merging of MDBN's conv1 and dconv, which read the same input, into one convolution with twice the outputs.

Each output of a convolution has filters and a bias of its own, so putting the filters of two beside each other computes
the numbers of both: nothing is approximated. What it may save is reading the input a second time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError
from jaxkd.models.mdbn import MDBN

PyTree = Any
_PARTS = ("uconv1", "dconv")
_MERGED = "uconv1_dconv"

# Where the merged form was measured to be faster, by JAX's name of the backend; see `for_inference`. CPU: MDBN x2 and
# x4 with 64 channels, 64x64 to 180x320 pixels, in turns on 2 cores: merged takes 1.01 to 1.10 times as long, no gain.
MERGED_IS_FASTER = {"cpu": False}


def _require_mdbn(model: nn.Module, merged: bool) -> None:
    if isinstance(model, MDBN) and model.merged == merged:
        return
    what = f"This {type(model).__name__}" + (f" (merged={model.merged})" if isinstance(model, MDBN) else "")
    raise ConfigError(f"{what} has no branches to {'split' if merged else 'merge'}. Pass an MDBN with merged={merged}.")


def merge_branches(model: nn.Module, variables: PyTree) -> tuple[nn.Module, PyTree]:
    """An MDBN with two convolutions per base block in place of three, and its variables; the outputs are the same.

    Args:
      model: an MDBN with merged=False.
      variables: `{"params": ...}`.

    Returns:
      (MDBN with merged=True, its variables); taps stay what they were.

    Raises:
      ConfigError: another network, or one that is merged already.
    """
    _require_mdbn(model, merged=False)
    flat = flatten_dict(variables["params"])
    merged = {path: value for path, value in flat.items() if not set(_PARTS) & set(path)}
    for path in flat:
        if path[-2] == _PARTS[0]:
            both = [flat[(*path[:-2], part, path[-1])] for part in _PARTS]
            merged[(*path[:-2], _MERGED, path[-1])] = jnp.concatenate(both, axis=-1)
    return model.clone(merged=True), {**variables, "params": unflatten_dict(merged)}


def split_branches(model: nn.Module, variables: PyTree) -> tuple[nn.Module, PyTree]:
    """The exact inverse of `merge_branches`.

    Args:
      model: an MDBN with merged=True.
      variables: `{"params": ...}`.

    Returns:
      (MDBN with merged=False, its variables), the same bits as before the merging.

    Raises:
      ConfigError: the network is not a merged MDBN.
    """
    _require_mdbn(model, merged=True)
    split = {}
    for path, value in flatten_dict(variables["params"]).items():
        if path[-2] != _MERGED:
            split[path] = value
            continue
        for part, half in zip(_PARTS, jnp.split(value, 2, axis=-1), strict=True):
            split[(*path[:-2], part, path[-1])] = half
    return model.clone(merged=False), {**variables, "params": unflatten_dict(split)}


def for_inference(model: nn.Module, variables: PyTree) -> tuple[nn.Module, PyTree]:
    """`model` and `variables` in the form that is fastest on this backend; what they compute stays the same.

    Args:
      model: any network.
      variables: `{"params": ...}`.

    Returns:
      Merged (`merge_branches`) where that was measured to be faster, otherwise both as they are.
    """
    if isinstance(model, MDBN) and not model.merged and MERGED_IS_FASTER.get(jax.default_backend(), False):
        return merge_branches(model, variables)
    return model, variables
