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

from jaxkd.errors import ConfigError, Shape, WeightMismatchError, WeightSourceError, key_diff
from jaxkd.models import abstract_variables, init_variables
from jaxkd.weights.misfit import cause
from jaxkd.weights.resize import Size, resize_position_embedding, resize_relative_bias_table
from jaxkd.weights.rules import (
    BUFFERS,
    HEAD,
    from_torch_layout,
    is_position_embedding,
    is_resizable,
    to_torch_key,
    to_torch_layout,
    torch_shape,
)

PyTree = Any
StateDict = dict[str, np.ndarray]
DIFF_LINES = 6  # of each kind in an error

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """The parameter of one array of a state dict."""

    path: str  # "blocks_0/attn/qkv/kernel"
    layout: str  # see `rules`
    shape: Shape  # in PyTorch's layout


def _image_shape(model: nn.Module) -> tuple[int, ...]:
    # Networks without a size of their own take every size.
    if hasattr(model, "example_shape"):
        return model.example_shape
    return (1, *getattr(model, "img_size", (1, 1)), model.in_chans)


def manifest(model: nn.Module) -> dict[str, Entry]:
    """timm's keys of `model` -> the parameter of each array. Nothing is computed."""
    shapes = abstract_variables(model, _image_shape(model))["params"]
    entries = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        key, layout = to_torch_key(path)
        entries[key] = Entry(path, layout, torch_shape(leaf.shape, layout))
    return entries


def _square(count: int) -> int | None:
    """n for count == n * n, else None."""
    root = math.isqrt(count)
    return root if root * root == count else None


def _resized(model: nn.Module, old: nn.Module | None, key: str, array: np.ndarray, shape: Shape) -> np.ndarray | None:
    """`array` interpolated to the network's grid or window, or None where that cannot be done.

    Without `old`, the network as it was when the array was made, grids and windows are taken to be square.
    """
    if is_position_embedding(key) and array.ndim == 3 and array.shape[2] == shape[2]:
        grid = model.grid_size
        prefix = shape[1] - grid[0] * grid[1]
        side = _square(array.shape[1] - prefix) if array.shape[1] > prefix else None
        old_grid: Any = old.grid_size if old else (side, side)
        if old_grid[0] and array.shape[1] == prefix + old_grid[0] * old_grid[1]:
            return np.asarray(resize_position_embedding(array, old_grid=old_grid, new_grid=grid, prefix=prefix))
    if key.endswith("relative_position_bias_table") and array.ndim == 2 and array.shape[1] == shape[1]:
        stage, side = int(key.split(".")[1]), _square(array.shape[0])
        old_window = old.block_window(stage) if old else ((side + 1) // 2,) * 2 if side and side % 2 else (0, 0)
        if (2 * old_window[0] - 1) * (2 * old_window[1] - 1) == array.shape[0]:
            new_window = model.block_window(stage)
            return np.asarray(resize_relative_bias_table(array, old_window=old_window, new_window=new_window))
    return None


def _as_it_was(model: nn.Module, old_grid: Size | None, old_window: Any) -> nn.Module | None:
    """`model` for images of `old_grid` patches, with windows of `old_window` if not None; None for no old grid.

    Raises:
      ConfigError: the network has no grid, or `old_grid` is no pair of positive numbers.
    """
    if old_grid is None:
        return None
    if not hasattr(model, "grid_size"):
        raise ConfigError(
            f"old_grid={old_grid} was given, but this {type(model).__name__} has no grid of patches. Leave it out."
        )
    if not (isinstance(old_grid, tuple | list) and len(old_grid) == 2 and all(_is_count(n) for n in old_grid)):
        raise ConfigError(f"old_grid={old_grid!r} is not a grid. Give its rows and columns, e.g. old_grid=(2, 8).")
    old = model.clone(img_size=tuple(int(n) * p for n, p in zip(old_grid, model.patch_size, strict=True)))
    if old_window is None or not hasattr(model, "window_size"):
        return old
    try:
        return old.clone(window_size=old_window)
    except ConfigError:  # of a network with other stages, which does not fit anyway
        return old


def _explains(old: nn.Module, key: str, array: np.ndarray) -> bool:
    """Whether a bias table has as many rows as the windows of `old` give it."""
    height, width = old.block_window(int(key.split(".")[1]))
    return array.ndim == 2 and array.shape[0] == (2 * height - 1) * (2 * width - 1)


def _is_count(value: Any) -> bool:
    return bool(isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0)


def _fit_to_grid(
    model: nn.Module,
    given: StateDict,
    expected: Mapping[str, Shape],
    made_for: nn.Module | None,
    resize: bool,
    origin: str,
) -> StateDict:
    """`given` with arrays of the network's image size, where `resize` allows it.

    Args:
      model, given, expected, resize, origin: see `from_timm`.
      made_for: the network as it was when the arrays were made, if known.

    Raises:
      WeightMismatchError: the file's grid is another one, or may be, and nothing says what to do.
    """
    fitted = dict(given)
    for name in (n for n in expected if n in given and is_resizable(n)):
        array, same, old = given[name], given[name].shape == expected[name], made_for
        if old is not None and not is_position_embedding(name) and not _explains(old, name, array):
            old = None  # it had another window, which is taken to be square
        moved = old is not None and _geometry(old, name) != _geometry(model, name)
        if same and old is None:
            _check_ambiguous_grid(model, name, array, resize, origin)
        elif moved and not resize:
            assert old is not None  # moved
            raise WeightMismatchError(
                f"{origin} was made for {_geometry(old, name)}, and {name} has as many positions as this network, with "
                f"{_geometry(model, name)}. Add resize=True (--resize) to interpolate it, or create the "
                "network for that grid."
                if same
                else f"{origin} was made for {_geometry(old, name)} and this network has {_geometry(model, name)}. Add "
                "resize=True (--resize) to interpolate position embeddings and relative-bias tables."
            )
        elif resize and (moved or not same):
            resized = _resized(model, old, name, array, expected[name])
            if resized is None and old is not None:
                raise WeightMismatchError(
                    f"{origin} has {name} of shape {array.shape}, which is not that of {_geometry(old, name)}. Give "
                    "the old_grid that it was made for, e.g. old_grid=(2, 8) (--old-grid=2x8)."
                )
            if resized is not None:
                fitted[name] = resized
                if old is None and is_position_embedding(name):
                    _log.warning("%s: pos_embed %s was taken to be of a square grid.", origin, array.shape)
    return fitted


def _geometry(model: nn.Module, key: str) -> str:
    """The grid or window that the size of an array follows from."""
    if is_position_embedding(key):
        return "{} x {} positions".format(*model.grid_size)
    return "a window of {} x {}".format(*model.block_window(int(key.split(".")[1])))


def _check_ambiguous_grid(model: nn.Module, name: str, array: np.ndarray, resize: bool, origin: str) -> None:
    """Says so, or refuses, where as many positions as the network has could be those of another grid.

    Raises:
      WeightMismatchError: the network's grid is not square, a square one has as many positions, and `resize` asks for
        the right one.
    """
    if not is_position_embedding(name):
        return
    grid = model.grid_size
    side = _square(grid[0] * grid[1])
    if resize and side and grid[0] != grid[1]:
        raise WeightMismatchError(
            f"{origin} does not say whether its pos_embed {array.shape} is of {grid[0]} x {grid[1]} or of {side} x "
            f"{side} positions, which are as many. Say which: old_grid=({side}, {side}) (--old-grid={side}x{side}) or "
            f"old_grid={grid} (--old-grid={grid[0]}x{grid[1]})."
        )
    if (resize and grid[0] * grid[1] > 1) or (side and grid[0] != grid[1]):
        _log.warning(
            "%s: pos_embed %s was kept as %d x %d positions. If it was made for another grid with as many, say so with "
            "resize=True and old_grid=(rows, columns) (--resize --old-grid=2x8).",
            origin,
            array.shape,
            *grid,
        )


def _new_head(model: nn.Module, key: jax.Array | None) -> dict[str, jax.Array]:
    """Freshly drawn parameters of the classifier alone: what init computes beside them is dropped by XLA."""
    if key is None:
        raise WeightMismatchError(
            "new_head=True draws a classifier at random, and key=None was given. Pass key=jax.random.key(seed)."
        )

    def init(key: jax.Array) -> dict[str, jax.Array]:
        params = flatten_dict(init_variables(model, key, _image_shape(model))["params"], sep="/")
        return {path: value for path, value in params.items() if HEAD.match(to_torch_key(path)[0])}

    return jax.jit(init)(key)


def _hints(expected: Mapping[str, Shape], given: Mapping[str, Shape], resize: bool) -> str:
    """Advice against a mismatch, as sentences."""
    wrong = {k for k in expected if k in given and expected[k] != given[k]} | (expected.keys() ^ given.keys())
    heads = {k for k in wrong if HEAD.match(k)}
    sizes = {k for k in wrong if is_resizable(k) and k in expected and k in given}
    if wrong - heads - sizes:
        return "Choose the network that the file was made for (models.list_models()), or another file."
    hints = []
    if heads and any(HEAD.match(k) for k in expected):
        hints.append("new_head=True replaces a classifier of another size by a freshly drawn one.")
    elif heads:
        hints.append("new_head=True leaves the file's classifier out.")
    if sizes and not resize:
        hints.append(
            "resize=True interpolates position embeddings and relative-bias tables to this image size (--resize)."
        )
    elif sizes:
        hints.append(
            "resize=True takes old grids and windows to be square, and these cannot be: say old_grid=(rows, columns), "
            "the grid of patches that they were made for (--old-grid=2x8)."
        )
    return " ".join(hints)


def from_timm(
    model: nn.Module,
    state_dict: Mapping[str, np.ndarray],
    *,
    resize: bool = False,
    old_grid: Size | None = None,
    old_window: Any = None,
    new_head: bool = False,
    key: jax.Array | None = None,
    on_host: bool = False,
    origin: str = "The state dict",
) -> PyTree:
    """Variables of `model` from a timm state dict.

    Args:
      model: a network of `jaxkd.models`.
      state_dict: PyTorch names and layouts; buffers that follow from the configuration are ignored.
      resize: interpolate `pos_embed` and relative-bias tables to the network's image size.
      old_grid: (rows, columns) of patches that the state dict was made for; None: where `resize` needs it, a square.
      old_window: window_size of the Swin that the state dict was made for; None: the network's own. Only beside
        `old_grid`; a table that neither gives is taken to be of a square window.
      new_head: replace a classifier that is absent or of another size by a new one, drawn with `key`; drop one that
        the network does not have.
      key: needed where `new_head` draws one.
      on_host: leave the arrays in NumPy, for weights that go to several devices: else the first one holds all of them.
      origin: what the error calls the state dict.

    Returns:
      `{"params": ...}`, fp32 arrays of JAX, of NumPy with `on_host`, that share no memory with `state_dict`.

    Raises:
      WeightMismatchError: missing, unused or misshapen keys, the cause first and a diff in PyTorch's names; or position
        embeddings of another grid.
      WeightSourceError: an array holds NaN or infinity.
    """
    entries = manifest(model)
    given = {k: np.asarray(v) for k, v in state_dict.items() if not BUFFERS.search(k)}
    expected = {k: e.shape for k, e in entries.items()}
    given = _fit_to_grid(model, given, expected, _as_it_was(model, old_grid, old_window), resize, origin)
    fresh: dict[str, jax.Array] = {}
    if new_head:
        heads, file_heads = ({k for k in side if HEAD.match(k)} for side in (expected, given))
        dropped = file_heads - heads
        if any(k not in given or given[k].shape != expected[k] for k in heads):
            fresh, dropped = _new_head(model, key), file_heads
        given = {k: v for k, v in given.items() if k not in dropped}
        expected = {k: v for k, v in expected.items() if entries[k].path not in fresh}
    shapes = {k: v.shape for k, v in given.items()}
    diff = key_diff(expected, shapes, most=DIFF_LINES)
    if diff:
        words = (f"{origin} does not fit this {type(model).__name__}.", cause(expected, shapes))
        hints = _hints(expected, shapes, resize)
        raise WeightMismatchError(f"{' '.join(filter(None, (*words, hints)))}\n{diff}")
    with np.errstate(over="ignore"):  # what overflows is refused as infinity
        arrays = {k: v.astype(np.float32) for k, v in given.items()}
    require_finite(arrays, origin)
    params = {entries[k].path: from_torch_layout(v, entries[k].layout) for k, v in arrays.items()}
    place = jax.device_get if on_host else jnp.array
    return {"params": unflatten_dict({k: place(v) for k, v in {**params, **fresh}.items()}, sep="/")}


def require_finite(arrays: Mapping[str, Any], origin: str) -> None:
    """Raises WeightSourceError that names the first array with NaN or infinity.

    Args:
      arrays: name -> fp32 array.
      origin: what the error calls them.
    """
    bad = [name for name, array in arrays.items() if not np.isfinite(np.asarray(array)).all()]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise WeightSourceError(
            f'{origin} holds NaN or infinity in "{bad[0]}"{more}, so every output would be worthless. Use an earlier '
            "checkpoint, or train again with a lower learning rate or in float32."
        )


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
