"""Checks of a config against what is registered, made for every stage before the first one runs."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxkd import distill, models, train
from jaxkd.config.validate import validate
from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.experiment.registry import registered_task


def check_config(config: ConfigDict) -> None:
    """`validate`, and whether networks, their arguments, and terms exist; builds nothing and reads no weights."""
    validate(config)
    registered_task(config.task)
    for side in ("student", "teacher"):
        network = config[side]
        if not network.name:
            continue
        accepted = models.arguments(network.name)
        for key, value in network.args.items():
            if value is not None and key not in accepted:  # None leaves an argument out
                raise ConfigError(
                    f"{side}.args.{key}={value!r} is not an argument of {network.name}.{did_you_mean(key, accepted)} "
                    f"It takes: {', '.join(accepted)}."
                )
    distill.check_terms(config.distill.terms, config.distill.pairs)


def check_decay_tokens(config: ConfigDict, params: Any) -> None:
    """Raises ConfigError where optimizer.decay_tokens is set and `params`, or their shapes, hold no such token."""
    if config.optimizer.decay_tokens and train.decay_mask(params) == train.decay_mask(params, tokens=True):
        raise ConfigError(
            f"optimizer.decay_tokens=True, but {config.student.name} has no class token and no position embedding. "
            "Leave it False."
        )
