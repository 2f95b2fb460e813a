"""Terms on logits: labels, and the teacher's distribution."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.distill.objective import Batch, ModelOutput
from jaxkd.distill.terms import register_term
from jaxkd.errors import check_range


def _head(output: Any, index: int | None) -> jax.Array:
    """One head of a network with two, by index, or their mean; the output itself of a network with one."""
    if not isinstance(output, tuple | list):
        return output
    return sum(output[1:], start=output[0]) / len(output) if index is None else output[index]


def _check_smoothing(*, smoothing: Any, **_: Any) -> None:
    check_range("smoothing", smoothing, 0, below=1)


def _check_temperature(*, temperature: Any = 1.0, **_: Any) -> None:
    check_range("temperature", temperature, above=0)


@register_term("ce", needs_teacher=False, check=_check_smoothing)
def cross_entropy(
    student: ModelOutput, teacher: ModelOutput | None, batch: Batch, *, smoothing: float = 0.1, class_head: bool = False
) -> jax.Array:
    """Label-smoothed cross-entropy of the class head, or of the mean of both heads where no term compares logits."""
    logits = _head(student[0], 0 if class_head else None)
    return losses.cross_entropy(logits, batch["label"], smoothing=smoothing, where=batch.get("mask"))


@register_term("kl", compares_logits=True, check=_check_temperature)
def kl(student: ModelOutput, teacher: ModelOutput, batch: Batch, *, temperature: float = 1.0) -> jax.Array:
    """T^2 KL from the teacher's to the student's distribution."""
    student_logits, teacher_logits = _head(student[0], 1), _head(teacher[0], None)
    return losses.kl(student_logits, teacher_logits, temperature=float(temperature), where=batch.get("mask"))


@register_term("hard", compares_logits=True)
def hard(student: ModelOutput, teacher: ModelOutput, batch: Batch) -> jax.Array:
    """Cross-entropy to the teacher's first class."""
    return losses.hard(_head(student[0], 1), _head(teacher[0], None), where=batch.get("mask"))
