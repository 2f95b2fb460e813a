"""A run of equal transformer blocks as one loop, whose body is traced and compiled once.

The parameters stay one set a block, `blocks_0` and so on, and are stacked where the loop starts; the gradient of
stacking hands each block its own. Random keys are those that the blocks would draw by themselves.

Legend: L blocks of a run, B batch, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core.scope import LazyRng

from jaxkd.models.contract import require

RNG = "dropout"
Draw = Callable[[nn.Module, str], jax.Array]
Call = tuple[str | int, ...]  # path of a layer below its block, and how many keys it has drawn with this one


def dropout_key(layer: nn.Module, what: str) -> jax.Array:
    """The key of one call of a layer that drops: flax's, or inside a loop over blocks that of the block in turn.

    Args:
      layer: bound to the network.
      what: the layer in words, for the error.

    Raises:
      ConfigError: `apply` got no key.
    """
    return _DRAW.get()(layer, what)


def _flax_key(layer: nn.Module, what: str) -> jax.Array:
    _require_key(layer, what)
    return layer.make_rng(RNG)


def _require_key(module: nn.Module, what: str) -> None:
    require(
        module.has_rng(RNG),
        f'{what} is on and train=True, but apply got no key named "{RNG}". Call '
        f'model.apply(..., train=True, rngs={{"{RNG}": key}}).',
    )


_DRAW: ContextVar[Draw] = ContextVar("draw", default=_flax_key)


@contextmanager
def _drawing(draw: Draw) -> Iterator[None]:
    token = _DRAW.set(draw)
    try:
        yield
    finally:
        _DRAW.reset(token)


def scan_blocks(
    network: nn.Module,
    kinds: Sequence[Callable[..., nn.Module]],
    names: Sequence[str],
    rates: Sequence[float],
    x: jax.Array,
    *,
    keep: bool,
) -> tuple[jax.Array, list[jax.Array]]:
    """Applies blocks whose kinds alternate, and which differ otherwise in parameters and stochastic depth alone.

    Args:
      network: bound; the blocks' parameters are below `names`.
      kinds: constructors of the blocks of one turn, `kind(drop_path=rate, parent=None, name=name)` -> module, x -> (x,
        features); the features are dropped.
      names: of the blocks in order, as many as make whole turns.
      rates: stochastic depth of each.
      x: (B, N, C), or another shape and type that a block keeps.
      keep: whether the results of all blocks are returned.

    Returns:
      The last block's result, and a list of all results, which is empty without `keep`.
    """
    period = len(kinds)
    turns = []
    for j, kind in enumerate(kinds):
        own, depths = names[j::period], rates[j::period]
        params: list[Any] = [network.get_variable("params", name) for name in own]
        calls = _calls(network, kind(drop_path=max(depths), parent=None), params[0], x)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        depth = None if len(set(depths)) == 1 else _rates(depths)  # a rate of 0 for all costs nothing
        turns.append((stacked, [_keys(network, own, call) for call in calls], depth))

    def turn(x: jax.Array, parts: list[tuple[Any, ...]]) -> tuple[jax.Array, list[jax.Array]]:
        results = []
        for j, (params, keys, depth) in enumerate(parts):
            left = iter(keys)
            # The name of its first block, by which a profile and a plan sum the operations of all blocks.
            block = kinds[j](drop_path=rates[j] if depth is None else depth, parent=None, name=names[j])
            # mypy infers no type of a lambda with a default.
            with _drawing(lambda layer, what, left=left: next(left)):  # type: ignore[misc]
                x, _ = block.apply({"params": params}, x)
            results.append(x)
        return x, results if keep else []

    x, results = jax.lax.scan(turn, x, turns)
    return x, [results[i % period][i // period] for i in range(len(names))] if keep else []


def _rates(rates: Sequence[float]) -> jax.Array:
    """(L,) fp32 rates r whose 1 - r in fp32 is that of the numbers in double precision (for rates up to one half)."""
    return jnp.asarray(1 - (1 - np.asarray(rates, np.float64)).astype(np.float32))


def _calls(network: nn.Module, block: nn.Module, params: Any, x: jax.Array) -> list[Call]:
    """The calls in which a block draws keys, in order; nothing is computed."""
    calls: list[Call] = []
    stand_in = jax.random.key(0)

    def record(layer: nn.Module, what: str) -> jax.Array:
        _require_key(network, what)
        path = layer.path
        calls.append((*path, 1 + sum(call[:-1] == path for call in calls)))
        return stand_in

    with _drawing(record):
        jax.eval_shape(lambda params, x: block.apply({"params": params}, x), params, x)
    return calls


def _keys(network: nn.Module, names: Sequence[str], call: Call) -> jax.Array:
    """(L,) keys that flax derives for one call in each of the blocks `names`, from the network's key and the path."""
    assert network.scope is not None  # it is bound
    return jnp.stack([LazyRng.create(network.scope.rngs[RNG], name, *call).as_jax_rng() for name in names])
