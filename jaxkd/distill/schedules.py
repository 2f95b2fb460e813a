"""Weights of loss terms that change over the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, UnknownNameError, check_range, did_you_mean

_HINT = 'or a schedule such as {"schedule": "linear", "from": 0.2, "to": 0.0, "end_step": 1000}'
Step = int | jax.Array
Schedule = Callable[[Step], jax.Array]

# kind -> (fields it needs, fields it may have)
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "constant": (("value",), ()),
    "linear": (("from", "to", "end_step"), ("start_step",)),
    "cosine": (("from", "to", "end_step"), ("start_step",)),
    "step": (("from", "to", "start_step"), ()),
    "one_minus": (("of",), ()),
}


def is_spec(weight: Any) -> bool:
    """Whether `weight` is a schedule written as a dict."""
    return isinstance(weight, Mapping) or hasattr(weight, "keys")  # a ConfigDict is no Mapping


def weight_schedule(spec: Any, *, name: str = "weight", most: float = math.inf) -> Schedule:
    """A weight as a function of the optimiser step.

    Args:
      spec: a number, or one of
        {"schedule": "constant", "value": 0.2};
        {"schedule": "linear", "from": 0.2, "to": 0.0, "start_step": 0, "end_step": 1000}: `from` up to start_step (0 if
        it is not given), a straight line to `to` at end_step, `to` from then on;
        {"schedule": "cosine", ...}: likewise, along half a cosine, flat at both ends;
        {"schedule": "step", "from": 0.2, "to": 0.0, "start_step": 1000}: `from` before start_step, `to` from it on;
        {"schedule": "one_minus", "of": 0.9}: 1 minus another number or schedule, whose values are at most 1;
        or a function of the step, which is returned as it is.
      name: what the errors call it.
      most: largest value that makes sense.

    Returns:
      step (scalar integer, traced or not) -> fp32 scalar.

    Raises:
      ConfigError: a field that is missing, unknown or out of range.
      UnknownNameError: another schedule.
    """
    if callable(spec):
        return spec
    if not is_spec(spec):
        spec = {"schedule": "constant", "value": spec}
    spec = {str(k): spec[k] for k in spec}
    kind = spec.pop("schedule", None)
    if kind not in _FIELDS:
        raise UnknownNameError(
            f"{name} has schedule={kind!r}, which does not exist.{did_you_mean(str(kind), _FIELDS)} "
            f"Choose one of {', '.join(_FIELDS)}, or give a plain number."
        )
    needed, optional = _FIELDS[kind]
    for field in spec:
        if field not in needed + optional:
            raise ConfigError(
                f'{name} has a field "{field}" that nothing reads.{did_you_mean(field, needed + optional)} A {kind} '
                f"schedule has {', '.join(needed + optional)}. Remove it or correct its name."
            )
    for field in needed:
        if field not in spec:
            raise ConfigError(
                f'{name} lacks the field "{field}". A {kind} schedule cannot be drawn without it. Give '
                f"{', '.join(needed)}."
            )
    if kind == "one_minus":
        other = weight_schedule(spec["of"], name=name, most=1.0)
        return lambda step: 1.0 - other(step)
    for field in ("value", "from", "to"):
        if field in spec:
            where = name if field == "value" else f"{name}.{field}"
            check_range(where, spec[field], 0, None if most == math.inf else most, hint=_HINT)
    if kind == "constant":
        return lambda step: jnp.float32(spec["value"])
    start, end = (spec.get(field, 0) for field in ("start_step", "end_step"))
    for field, step in (("start_step", start), ("end_step", end)):
        check_range(f"{name}.{field}", step, 0, whole=True)
    if kind != "step" and end <= start:
        raise ConfigError(f"{name} changes from step {start} to step {end}. Set end_step above start_step.")
    return _curve(kind, float(spec["from"]), float(spec["to"]), start, end)


def _curve(kind: str, first: float, last: float, start: int, end: int) -> Schedule:
    def schedule(step: Step) -> jax.Array:
        if kind == "step":
            return jnp.where(jnp.asarray(step) < start, jnp.float32(first), jnp.float32(last))
        done = jnp.clip((jnp.asarray(step, jnp.float32) - start) / (end - start), 0.0, 1.0)
        if kind == "cosine":
            done = 0.5 * (1.0 - jnp.cos(math.pi * done))
        return first * (1.0 - done) + last * done  # exact at both ends

    return schedule
