"""Losses on logits: label-smoothed cross-entropy, soft and hard knowledge distillation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError, check_range
from jaxkd.losses.arguments import check_logits, exclude, full_precision, include


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0, where: jax.Array | None = None
) -> jax.Array:
    """Cross-entropy with label smoothing.

    (1 - smoothing) * (-log p[label]) + smoothing * (mean over classes of -log p), which is the cross-entropy to the
    target (1 - smoothing) * onehot + smoothing / K (timm, loss/cross_entropy.py). Probabilities are smoothed by the
    same rule, so that one-hot rows and integers give the same loss. timm's soft-target loss never smooths, because its
    mixup already has: pass smoothing=0 with smoothed labels.

    Args:
      logits: (B, K), any float type; computed in at least fp32.
      labels: (B,) integers in [0, K), or (B, K) probabilities. An integer outside gives NaN.
      smoothing: fraction of the target that is spread evenly over the classes, in [0, 1).
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats.

    Raises:
      ConfigError: smoothing outside [0, 1).
      ShapeError: labels of another shape or kind.
    """
    check_range("smoothing", smoothing, 0, below=1, hint="published recipes use 0.1")
    shape = jnp.shape(labels)
    integer = jnp.issubdtype(jnp.result_type(labels), jnp.integer)
    if logits.ndim != 2 or shape != logits.shape[: 1 if integer else 2]:
        raise ShapeError(
            f"The logits have shape {logits.shape} and the labels are {jnp.result_type(labels)} of shape {shape}. "
            "Pass labels as (batch,) integers, or probabilities of the shape (batch, classes) of the logits."
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
        # Nothing is renormalised here: probabilities that do not sum to 1 keep their sum.
        nll = (1.0 - smoothing) * nll - smoothing * jnp.mean(log_p, axis=1)
    return exclude(where, nll)


def kl(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 1.0, where: jax.Array | None = None
) -> jax.Array:
    """Soft knowledge distillation: T^2 KL(teacher || student), both softened by T, summed over classes.

    Its mean over the batch is PyTorch's `batchmean` times T^2, as in SpectralKD (DeiT also divides by the number of
    classes).

    Args:
      student_logits: (B, K), any float type; computed in at least fp32.
      teacher_logits: (B, K). The gradient is not stopped here; `distill.Teacher` does that.
      temperature: T, above 0.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats times T^2.

    Raises:
      ConfigError: a temperature that is not above 0.
      ShapeError: logits that differ in shape.
    """
    check_range("temperature", temperature, above=0, hint="published recipes use 1")
    check_logits(student_logits.shape, teacher_logits.shape)
    student, teacher = include(where, full_precision(student_logits), full_precision(teacher_logits))
    log_s, log_t = jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature)
    return exclude(where, temperature**2 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=1))


def hard(
    student_logits: jax.Array, teacher_logits: jax.Array, *, smoothing: float = 0.0, where: jax.Array | None = None
) -> jax.Array:
    """Hard knowledge distillation: cross-entropy to the teacher's top class.

    Args:
      student_logits: (B, K), any float type; computed in at least fp32.
      teacher_logits: (B, K); ties go to the first class.
      smoothing: of the teacher's label; the published objective does not smooth it.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats.

    Raises:
      ConfigError: smoothing outside [0, 1).
      ShapeError: logits that differ in shape.
    """
    check_logits(student_logits.shape, teacher_logits.shape)
    return cross_entropy(student_logits, jnp.argmax(teacher_logits, axis=1), smoothing=smoothing, where=where)
