"""Conversion between timm's state dicts and jaxkd's parameters: exact inverses, bit for bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import Shape, WeightMismatchError, key_diff
from jaxkd.weights.resize import resize_position_embedding, resize_relative_bias_table
from jaxkd.weights.rules import BUFFERS, HEAD, from_torch_layout, to_torch_key, to_torch_layout, torch_shape

PyTree = Any
StateDict = dict[str, np.ndarray]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """The parameter of one array of a state dict."""

    path: str  # "blocks_0/attn/qkv/kernel"
    layout: str  # see `rules`
    shape: Shape  # in PyTorch's layout


def _images(model: nn.Module) -> jax.Array:
    # Networks without a size of their own take every size.
    return jnp.zeros((1, *getattr(model, "img_size", (1, 1)), model.in_chans), jnp.float32)


def manifest(model: nn.Module) -> dict[str, Entry]:
    """timm's keys of `model` -> the parameter of each array. Nothing is computed."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), _images(model)))["params"]
    entries = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        key, layout = to_torch_key(path)
        entries[key] = Entry(path, layout, torch_shape(leaf.shape, layout))
    return entries


def _square(count: int) -> int | None:
    """n for count == n * n, else None."""
    root = math.isqrt(count)
    return root if root * root == count else None


def _resized(model: nn.Module, key: str, array: np.ndarray, shape: Shape) -> np.ndarray | None:
    """`array` interpolated to the network's grid or window, or None where that cannot be done."""
    if key == "pos_embed" and array.ndim == 3 and array.shape[2] == shape[2]:
        grid = model.grid_size
        prefix = shape[1] - grid[0] * grid[1]
        old = _square(array.shape[1] - prefix) if array.shape[1] > prefix else None
        if old:
            return np.asarray(resize_position_embedding(array, old_grid=(old, old), new_grid=grid, prefix=prefix))
    if key.endswith("relative_position_bias_table") and array.ndim == 2 and array.shape[1] == shape[1]:
        side = _square(array.shape[0])
        if side and side % 2:
            old, new = (side + 1) // 2, model.block_window(int(key.split(".")[1]))
            return np.asarray(resize_relative_bias_table(array, old_window=(old, old), new_window=new))
    return None


def _new_head(model: nn.Module, key: jax.Array | None) -> dict[str, jax.Array]:
    """Freshly drawn parameters of the classifier alone: what init computes beside them is dropped by XLA."""
    if key is None:
        raise WeightMismatchError(
            "new_head=True draws a classifier at random, and key=None was given. Pass key=jax.random.key(seed)."
        )

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = flatten_dict(model.init(key, _images(model))["params"], sep="/")
        return {path: value for path, value in params.items() if HEAD.match(to_torch_key(path)[0])}

    return jax.jit(init)(key)


def _is_resizable(key: str) -> bool:
    return key == "pos_embed" or key.endswith("relative_position_bias_table")


def _log_ambiguous_grid(model: nn.Module, array: np.ndarray) -> None:
    """Says so where as many positions as the network has could be another grid: 7 x 28 patches, or 14 x 14."""
    grid = model.grid_size
    side = _square(grid[0] * grid[1])
    if side and grid[0] != grid[1]:
        _log.warning(
            "pos_embed %s was kept as %d x %d positions, which are as many as %d x %d. If it was made for those, "
            "resize it first with weights.resize_position_embedding.",
            array.shape,
            *grid,
            side,
            side,
        )


def _hints(expected: Mapping[str, Shape], given: Mapping[str, Shape], resize: bool) -> str:
    """Advice against a mismatch, as sentences."""
    wrong = {k for k in expected if k in given and expected[k] != given[k]} | (expected.keys() ^ given.keys())
    heads = {k for k in wrong if HEAD.match(k)}
    sizes = {k for k in wrong if _is_resizable(k) and k in expected and k in given}
    if wrong - heads - sizes:
        return "Choose the network that the file was made for (models.list_models()), or another file."
    hints = []
    if heads and any(HEAD.match(k) for k in expected):
        hints.append("new_head=True replaces a classifier of another size by a freshly drawn one.")
    elif heads:
        hints.append("new_head=True leaves the file's classifier out.")
    if sizes and not resize:
        hints.append("resize=True interpolates position embeddings and relative-bias tables to this image size.")
    elif sizes:
        hints.append(
            "resize=True takes old grids and windows to be square, and these cannot be: resize them first with "
            "weights.resize_position_embedding or weights.resize_relative_bias_table, which are told the old size."
        )
    return " ".join(hints)


def from_timm(
    model: nn.Module,
    state_dict: Mapping[str, np.ndarray],
    *,
    resize: bool = False,
    new_head: bool = False,
    key: jax.Array | None = None,
    origin: str = "The state dict",
) -> PyTree:
    """Variables of `model` from a timm state dict.

    Args:
      model: a network of `jaxkd.models`.
      state_dict: PyTorch names and layouts; buffers that follow from the configuration are ignored.
      resize: interpolate `pos_embed` and relative-bias tables to the network's image size.
      new_head: replace a classifier that is absent or of another size by a new one, drawn with `key`; drop one that
        the network does not have.
      key: needed where `new_head` draws one.
      origin: what the error calls the state dict.

    Returns:
      `{"params": ...}`, fp32 arrays of JAX that share no memory with `state_dict`.

    Raises:
      WeightMismatchError: missing, unused or misshapen keys, all of them in one diff in PyTorch's names.
    """
    entries = manifest(model)
    given = {k: np.asarray(v) for k, v in state_dict.items() if not BUFFERS.search(k)}
    expected = {k: e.shape for k, e in entries.items()}
    if resize:
        for name in expected.keys() & given.keys():
            if given[name].shape != expected[name]:
                resized = _resized(model, name, given[name], expected[name])
                given[name] = given[name] if resized is None else resized
            elif name == "pos_embed":
                _log_ambiguous_grid(model, given[name])
    fresh: dict[str, jax.Array] = {}
    if new_head:
        heads, file_heads = ({k for k in side if HEAD.match(k)} for side in (expected, given))
        dropped = file_heads - heads
        if any(k not in given or given[k].shape != expected[k] for k in heads):
            fresh, dropped = _new_head(model, key), file_heads
        given = {k: v for k, v in given.items() if k not in dropped}
        expected = {k: v for k, v in expected.items() if entries[k].path not in fresh}
    shapes = {k: v.shape for k, v in given.items()}
    diff = key_diff(expected, shapes)
    if diff:
        raise WeightMismatchError(
            f"{origin} does not fit this {type(model).__name__}. {_hints(expected, shapes, resize)}\n{diff}"
        )
    params = {
        entries[k].path: jnp.array(from_torch_layout(v.astype(np.float32), entries[k].layout)) for k, v in given.items()
    }
    return {"params": unflatten_dict({**params, **fresh}, sep="/")}


def to_timm(model: nn.Module, variables: PyTree) -> StateDict:
    """timm state dict of `variables`, the exact inverse of `from_timm`.

    Args:
      model: the network that the variables belong to.
      variables: `{"params": ...}`.

    Returns:
      PyTorch names and layouts, fp32 NumPy arrays.

    Raises:
      WeightMismatchError: the variables belong to another network.
    """
    flat = flatten_dict(variables["params"], sep="/")
    arrays = {}
    for path, value in flat.items():
        name, layout = to_torch_key(path)
        arrays[name] = to_torch_layout(np.asarray(value, np.float32), layout)
    diff = key_diff({k: e.shape for k, e in manifest(model).items()}, {k: v.shape for k, v in arrays.items()})
    if diff:
        raise WeightMismatchError(
            f"The variables do not belong to this {type(model).__name__}. Pass the network that they were made for.\n"
            f"{diff}"
        )
    return arrays
