"""Losses on logits: label-smoothed cross-entropy, soft and hard knowledge distillation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, ShapeError
from jaxkd.losses.arguments import check_logits, exclude, full_precision, include


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0, where: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy with label smoothing.

    (1 - smoothing) * (-log p[label]) + smoothing * (mean over classes of -log p), which is the cross-entropy to the
    target (1 - smoothing) * onehot + smoothing / K (timm, loss/cross_entropy.py). Probabilities are smoothed by the
    same rule, so one-hot rows give what integers give. timm's own soft-target loss never smooths, because its mixup has
    done so before: pass smoothing=0 with labels that are smooth already.

    Args:
      logits: (B, K), any float type; computed in at least fp32.
      labels: (B,) integers in [0, K), or (B, K) probabilities. An integer outside gives NaN, never a wrong number.
      smoothing: share of the target that is spread evenly over the classes, in [0, 1).
      where: (B,) bool; False gives exactly 0 and no gradient, whatever the example holds.

    Returns:
      (B,) in nats.

    Raises:
      ConfigError: smoothing outside [0, 1).
      ShapeError: labels of another shape or kind.
    """
    if not 0.0 <= smoothing < 1.0:
        raise ConfigError(
            f"smoothing={smoothing} is out of range. It is the share of the target that is spread over all classes. "
            "Give a number from 0 (off) to below 1; published recipes use 0.1."
        )
    shape = jnp.shape(labels)
    integer = jnp.issubdtype(jnp.result_type(labels), jnp.integer)
    if logits.ndim != 2 or shape != logits.shape[: 1 if integer else 2]:
        raise ShapeError(
            f"The logits have shape {logits.shape} and the labels are {jnp.result_type(labels)} of shape {shape}. "
            "Labels are (batch,) integers, or probabilities shaped like the (batch, classes) logits. Pass one of these."
        )
    (logits,) = include(where, full_precision(logits))
    log_p = jax.nn.log_softmax(logits)
    if integer:
        labels = jnp.asarray(labels, jnp.int32)
        labels = jnp.where(labels < 0, log_p.shape[1], labels)  # or -1 would be the last class
        nll = -jnp.take_along_axis(log_p, labels[:, None], axis=1, mode="fill", fill_value=jnp.nan)[:, 0]
    else:
        (labels,) = include(where, full_precision(labels))
        nll = -jnp.sum(labels * log_p, axis=1)
    if smoothing:
        # Probabilities that do not sum to 1 keep their sum, as nothing here renormalises them.
        nll = (1.0 - smoothing) * nll - smoothing * jnp.mean(log_p, axis=1)
    return exclude(where, nll)


def kl(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0, where: jax.Array | None = None
) -> jax.Array:
    """Soft knowledge distillation: T^2 KL(teacher || student), both softened by T, summed over classes.

    Its mean over the batch is PyTorch's `batchmean` times T^2, as SpectralKD has it (DeiT divides by the classes as
    well).

    Args:
      student_logits: (B, K), any float type; computed in at least fp32.
      teacher_logits: (B, K). The gradient is not stopped here; `distill.Teacher` does that.
      temperature: T, above 0.
      where: (B,) bool; False gives exactly 0 and no gradient, whatever the example holds.

    Returns:
      (B,) in nats times T^2.

    Raises:
      ConfigError: a temperature that is not above 0.
      ShapeError: logits that differ in shape.
    """
    if not temperature > 0:
        raise ConfigError(
            f"temperature={temperature} is out of range. Logits are divided by it. Give a number above 0; published "
            "recipes use 1."
        )
    check_logits(student_logits.shape, teacher_logits.shape)
    student, teacher = include(where, full_precision(student_logits), full_precision(teacher_logits))
    log_s, log_t = jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature)
    return exclude(where, temperature**2 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=1))


def hard(
    student_logits: jax.Array, teacher_logits: jax.Array, *, smoothing: float = 0.0, where: jax.Array | None = None
) -> jax.Array:
    """Hard knowledge distillation: cross-entropy to the class that the teacher ranks first.

    Args:
      student_logits: (B, K), any float type; computed in at least fp32.
      teacher_logits: (B, K); of equal logits the first class counts.
      smoothing: of the teacher's label; the published objective does not smooth it.
      where: (B,) bool; False gives exactly 0 and no gradient, whatever the example holds.

    Returns:
      (B,) in nats.

    Raises:
      ConfigError: smoothing outside [0, 1).
      ShapeError: logits that differ in shape.
    """
    check_logits(student_logits.shape, teacher_logits.shape)
    return cross_entropy(student_logits, jnp.argmax(teacher_logits, axis=1), smoothing=smoothing, where=where)
