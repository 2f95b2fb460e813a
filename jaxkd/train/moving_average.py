"""Decay of the moving average of the weights, and how much of it the initial weights still are."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

INITIAL_SHARE = 0.01  # of the initial weights in a moving average, above which it is warned of


def warmed_decay(decay: float, step: jax.Array) -> jax.Array:
    """min(decay, (1 + t) / (10 + t)), t being the optimiser steps done before this one: 0.1, 0.18, 0.25, ...

    The average follows the weights closely at first, so that little of the random start stays in it. Source:
    TensorFlow's `ExponentialMovingAverage` with `num_updates`.

    Args:
      decay: of the moving average, from 0 to below 1.
      step: () int32, t.

    Returns:
      () fp32.
    """
    t = step.astype(jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1.0 + t) / (10.0 + t))


def initial_share(decay: float, steps: int, *, warmup: bool = False) -> float:
    """Share of the initial weights in the moving average after `steps` optimiser steps: the product of the decays.

    Args:
      decay: `ema.decay`; 0 where there is no average, of which nothing is initial.
      steps: done.
      warmup: `ema.warmup`, see `warmed_decay`.
    """
    if decay == 0:
        return 0.0
    if not warmup or decay < 0.1:
        return decay**steps
    rising = min(steps, math.ceil((10 * decay - 1) / (1 - decay)))  # before it (1 + t) / (10 + t) is the smaller one
    # The product of (1 + t) / (10 + t) for t below n is n! 9! / (n + 9)!.
    early = math.lgamma(rising + 1) + math.lgamma(10) - math.lgamma(rising + 10)
    return math.exp(early + (steps - rising) * math.log(decay))


def initial_share_warning(decay: float, steps: int, *, warmup: bool = False) -> str:
    """A sentence where more than 1 % of the average after `steps` steps are the initial weights, otherwise ""."""
    share = initial_share(decay, steps, warmup=warmup)
    if share <= INITIAL_SHARE:
        return ""
    how = "the product of ema.decay and its warm-up" if warmup else "ema.decay ** step"
    return f"The moving average at step {steps} still holds {100 * share:.0f} % of the initial weights ({how})."
