"""Registration of losses between paired features as terms: plain ones, and ones with parameters for each pair."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jaxkd.distill.objective import Batch, ModelOutput
from jaxkd.distill.pair_features import feature_mean, features_of
from jaxkd.distill.pairing import Pair
from jaxkd.distill.terms import register_term

PyTree = Any


def _with_arguments_of(function: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the signature that `register_term` reads: `pairs` and the keyword-only arguments of `loss`."""
    given = inspect.signature(function).parameters.values()
    named = [p for p in given if p.kind is not inspect.Parameter.VAR_KEYWORD]
    of_loss = inspect.signature(loss).parameters.values()
    own = [p for p in of_loss if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "where"]
    function.__signature__ = inspect.Signature([*named, *own])  # type: ignore[attr-defined]
    function.__doc__, function.__module__ = loss.__doc__, loss.__module__
    return function


def register_pair_loss(name: str, loss: Callable[..., jax.Array], **options: Any) -> None:
    """Registers the term `name`: the mean over pairs of a loss.

    Args:
      name: of the term.
      loss: (student feature, teacher feature, *, where, arguments) -> (B,) or (); a config may set its arguments.
      **options: of `register_term`.
    """

    def term(
        student: ModelOutput, teacher: ModelOutput, batch: Batch, *, pairs: tuple[Pair, ...], **arguments: Any
    ) -> jax.Array:
        return feature_mean(student, teacher, batch, loss=partial(loss, **arguments), pairs=pairs)

    register_term(name, **options)(_with_arguments_of(term, loss))


def register_parametric_loss(
    name: str,
    loss: Callable[..., jax.Array],
    init: Callable[..., PyTree],
    *,
    reduce: str = "mean",
    needs_key: bool = False,
    **options: Any,
) -> None:
    """Registers the term `name`: a loss whose parameters are trained, with parameters of its own for each pair.

    Args:
      name: of the term.
      loss: (params, student feature, teacher feature, *, where, arguments) -> (B,); with `needs_key` also `key=`.
      init: (key, student shape, teacher shape, *, the same arguments) -> params of one pair.
      reduce: "mean" or "sum" over pairs.
      needs_key: whether the loss draws random numbers.
      **options: of `register_term`.
    """

    def start(
        key: jax.Array, student: ModelOutput, teacher: ModelOutput, *, pairs: tuple[Pair, ...], **arguments: Any
    ) -> tuple[PyTree, PyTree]:
        params = {}
        for index, (s, t) in enumerate(features_of(student, teacher, pairs)):
            shapes = tuple(s.shape), tuple(t.shape)
            params[f"pair_{index}"] = init(jax.random.fold_in(key, index), *shapes, **arguments)
        return params, {}

    def term(
        params: PyTree,
        mutable: PyTree,
        student: ModelOutput,
        teacher: ModelOutput,
        batch: Batch,
        *,
        pairs: tuple[Pair, ...],
        **arguments: Any,
    ) -> tuple[jax.Array, PyTree]:
        key, values = arguments.pop("key", None), []
        for index, (s, t) in enumerate(features_of(student, teacher, pairs)):
            drawn = {} if key is None else {"key": jax.random.fold_in(key, index)}
            values.append(loss(params[f"pair_{index}"], s, t, where=batch.get("mask"), **drawn, **arguments))
        total = sum(values[1:], start=values[0])
        return total / len(values) if reduce == "mean" else total, mutable

    register_term(name, init=start, needs_key=needs_key, **options)(_with_arguments_of(term, loss))
