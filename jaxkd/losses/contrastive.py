"""Contrastive loss between the features of a student and a teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError, check_range
from jaxkd.losses.arguments import exclude, full_precision, include
from jaxkd.losses.norms import unit


def contrastive(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float = 0.07,
    eps: float = 1e-12,
    where: jax.Array | None = None,
) -> jax.Array:
    """In-batch contrastive distillation: the other examples of the batch are the negatives. Batch-level.

    Half the cross-entropy of row i plus half that of column i of the logits unit(s) unit(t)' / T, with class i. Both
    features are linear projections to one width (`losses.project`). Source: arXiv 2103.00020, the symmetric loss;
    open_clip, `ClipLoss`; idea of contrasting student and teacher: arXiv 1910.10699. It is not that paper's CRD, which
    has a memory bank and another normaliser. Public code compares the examples of one device unless it gathers them;
    here B is the global batch. Duplicates in a batch are false negatives. Memory: B^2 values.

    Args:
      student: (B, D), any float type; computed in at least fp32.
      teacher: (B, D); the gradient is not stopped here, as its projection is trained.
      temperature: T, above 0.
      eps: lower bound of a vector's length; shorter ones have no slope.
      where: (B,) bool; examples with False give exactly 0, are no negatives and may hold NaN.

    Returns:
      (B,) in nats; 0 for one example.

    Raises:
      ConfigError: a temperature or eps that is not above 0.
      ShapeError: not two (B, D) of the same shape.
    """
    check_range("temperature", temperature, above=0, hint="CLIP starts from 0.07")
    check_range("eps", eps, above=0, hint="the golden values use 1e-12")
    shapes = tuple(student.shape), tuple(teacher.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise ShapeError(
            f"The student's feature has shape {shapes[0]} and the teacher's {shapes[1]}, but both must be the same "
            "(batch, channels). Pool maps, and project both features to one width."
        )
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    student, teacher = unit(student, eps=eps), unit(teacher, eps=eps)
    logits = jnp.einsum("ic,jc->ij", student, teacher, precision=jax.lax.Precision.HIGHEST) / temperature
    match = jnp.diagonal(logits)
    if where is not None:
        # Finite: a row without any example would be NaN with -inf.
        logits = jnp.where(where[:, None] & where[None, :], logits, -1e30)
    both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
    return exclude(where, both / 2.0 - match)
