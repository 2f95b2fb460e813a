"""AdamW with timm's decay groups, and the learning-rate schedules."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from jaxkd.errors import ConfigError, check_choice
from jaxkd.parallel.sharding import path_of

PyTree = Any
Schedule = Callable[[jax.Array], jax.Array]

# timm's `no_weight_decay()` lists of ViT, CaiT and Swin; biases and norms follow from having one axis.
TOKENS = r"(^|/)(pos_embed|cls_token|dist_token)$"
NO_DECAY = (TOKENS, r"(^|/)relative_position_bias_table$")

SCHEDULES = ("cosine", "timm_epoch", "constant")


def decay_mask(params: PyTree, *, tokens: bool = False) -> PyTree:
    """True where weight decay applies: more than one axis and not in `NO_DECAY` (timm `param_groups_weight_decay`).

    Args:
      params: arrays or their shapes.
      tokens: whether class token, distillation token and position embedding decay too, as they do in the authors' Lift,
        WideLast and UniformWide, which have no list of exceptions.
    """
    exceptions = NO_DECAY[1:] if tokens else NO_DECAY

    def decays(path: tuple, leaf: Any) -> bool:
        name = path_of(path)
        return len(leaf.shape) > 1 and not any(re.search(pattern, name) for pattern in exceptions)

    return jax.tree_util.tree_map_with_path(decays, params)


def timm_epoch_rates(
    *, learning_rate: float, epochs: int, warmup_epochs: int, warmup_lr: float, min_lr: float
) -> np.ndarray:
    """(epochs,) float64: the rate that the published recipes really use in each epoch.

    timm's cosine without warm-up prefix is stepped *after* each epoch with that epoch's number, so epochs 0 and 1 both
    run at the warm-up rate and everything else is one epoch late (papers: encoding-mismatch reference, 5.7).
    """
    late = np.maximum(np.arange(epochs, dtype=np.float64) - 1, 0)
    ramp = warmup_lr + late * (learning_rate - warmup_lr) / max(warmup_epochs, 1)
    cosine = min_lr + 0.5 * (learning_rate - min_lr) * (1 + np.cos(np.pi * late / epochs))
    return np.where(late < warmup_epochs, ramp, cosine)


def make_schedule(
    kind: str,
    *,
    learning_rate: float,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_lr: float = 0.0,
    min_lr: float = 0.0,
) -> Schedule:
    """A function step -> learning rate.

    Args:
      kind: `cosine` (per step, warm-up then half a cosine to `min_lr` at the last step: for new work), `timm_epoch`
        (`timm_epoch_rates`: what the published runs used) or `constant` (after the warm-up).
      learning_rate: peak rate, already scaled to the batch size.
      total_steps: optimiser steps of the whole run.
      steps_per_epoch: optimiser steps of an epoch.
      warmup_epochs: length of the linear warm-up from `warmup_lr`.
      warmup_lr: rate at step 0.
      min_lr: rate at the end.
    """
    check_choice("schedule.kind", kind, SCHEDULES)
    warmup = round(warmup_epochs * steps_per_epoch)
    if warmup >= total_steps:
        raise ConfigError(
            f"schedule.warmup_epochs={warmup_epochs} is {warmup} steps, but the run has only {total_steps}. "
            "Lower schedule.warmup_epochs or raise train.epochs."
        )
    if kind == "timm_epoch":
        if warmup_epochs != int(warmup_epochs):
            raise ConfigError(
                f'schedule.warmup_epochs={warmup_epochs} is no whole number, but schedule.kind="timm_epoch" changes '
                'the rate only between epochs. Give a whole number, or use schedule.kind="cosine".'
            )
        epochs = -(-total_steps // steps_per_epoch)
        rates = timm_epoch_rates(
            learning_rate=learning_rate,
            epochs=epochs,
            warmup_epochs=int(warmup_epochs),
            warmup_lr=warmup_lr,
            min_lr=min_lr,
        )
        table = jax.numpy.asarray(rates, jax.numpy.float32)
        return lambda step: table[jax.numpy.minimum(step // steps_per_epoch, epochs - 1)]
    ramp = optax.linear_schedule(warmup_lr, learning_rate, max(warmup, 1))
    if kind == "constant":
        after: Schedule = optax.constant_schedule(learning_rate)
    else:
        after = optax.cosine_decay_schedule(learning_rate, total_steps - warmup, alpha=min_lr / learning_rate)
    return optax.join_schedules([ramp, after], [warmup]) if warmup else after


def make_optimizer(
    schedule: Schedule | float,
    *,
    weight_decay: float = 0.05,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip_norm: float = 0.0,
    decay_tokens: bool = False,
    frozen: PyTree | None = None,
    projector_rate: float = 1.0,
    projector_decay: float | None = None,
) -> optax.GradientTransformation:
    """AdamW (decoupled decay times the learning rate, as torch.optim.AdamW), clipping first.

    Args:
      schedule: learning rate, a number or a function of the step.
      weight_decay: on the parameters of `decay_mask`.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      clip_norm: global gradient norm over what trains is clipped to this; 0 is off.
      decay_tokens: see `decay_mask`.
      frozen: tree of bool; True parameters get no update, no decay and no moments.
      projector_rate: learning rate of `params["projectors"]` over that of the student, at every step.
      projector_decay: weight decay of `params["projectors"]`; None for `weight_decay`.
    """
    mask = partial(decay_mask, tokens=decay_tokens)

    def adamw(rate: float, decay: float) -> optax.GradientTransformation:
        scaled = schedule
        if not _equal(rate, 1.0):
            scaled = (lambda step: rate * schedule(step)) if callable(schedule) else rate * schedule
        return optax.adamw(scaled, b1=b1, b2=b2, eps=eps, weight_decay=decay, mask=mask)

    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    any_frozen = frozen is not None and any(jax.tree.leaves(frozen))
    if _equal(projector_rate, 1.0) and (projector_decay is None or _equal(projector_decay, weight_decay)):
        tx = optax.chain(*clip, adamw(1.0, weight_decay))
        if not any_frozen:
            return tx
        labels = jax.tree.map(lambda f: "frozen" if f else "trains", frozen)
        return optax.multi_transform({"trains": tx, "frozen": optax.set_to_zero()}, labels)

    def labels_of(params: PyTree) -> PyTree:
        names = {root: jax.tree.map(lambda _, root=root: root, tree) for root, tree in params.items()}
        if not any_frozen:
            return names
        return jax.tree.map(lambda name, f: "frozen" if f else name, names, frozen)

    own = {
        "student": adamw(1.0, weight_decay),
        "projectors": adamw(projector_rate, weight_decay if projector_decay is None else projector_decay),
        "frozen": optax.set_to_zero(),
    }
    if clip and any_frozen:  # the norm is over what trains
        clip = [optax.masked(clip[0], jax.tree.map(lambda f: not f, frozen))]
    return optax.chain(*clip, optax.multi_transform(own, labels_of))


def _equal(one: float, other: float) -> bool:
    """Whether two numbers are equal; False for those of a population that differ between members, which are traced."""
    return all(isinstance(value, int | float) for value in (one, other)) and one == other


def member_optimizer(
    make: Callable[[jax.Array], optax.GradientTransformation], members: int
) -> optax.GradientTransformation:
    """The optimisers of a population as one, for trees with the members along the first axis of each array.

    Args:
      make: member, () int32 and traced -> its optimiser, whose rules see the shapes of one member.
      members: how many.
    """
    numbers = np.arange(members)

    def init(params: PyTree) -> PyTree:
        return jax.vmap(lambda member, p: make(member).init(p))(numbers, params)

    def update(grads: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        return jax.vmap(lambda member, g, s, p: make(member).update(g, s, p))(numbers, grads, state, params)

    return optax.GradientTransformation(init, update)
