"""Terms on logits: labels, and the teacher's distribution."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.distill.objective import Batch, ModelOutput
from jaxkd.distill.terms import register_term
from jaxkd.errors import ConfigError, check_range


def _head(output: Any, index: int | None) -> jax.Array:
    """One head of a network with two, by index, or their mean; the output itself of a network with one."""
    if not isinstance(output, tuple | list):
        return output
    mean: Any = sum(output[1:], start=output[0]) / len(output) if index is None else output[index]
    return mean


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


@register_term("decoupled_kl", compares_logits=True, check=_check_temperature)
def decoupled_kl(
    student: ModelOutput,
    teacher: ModelOutput,
    batch: Batch,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> jax.Array:
    """Decoupled KD (arXiv 2203.08679); needs integer labels, hence no mixing of images."""
    logits = _head(student[0], 1), _head(teacher[0], None)
    options: dict[str, Any] = {"alpha": alpha, "beta": beta, "temperature": temperature, "where": batch.get("mask")}
    return losses.decoupled_kl(*logits, batch["label"], **options)


@register_term("standardized_kl", compares_logits=True, check=_check_temperature)
def standardized_kl(
    student: ModelOutput, teacher: ModelOutput, batch: Batch, *, temperature: float = 2.0, ddof: int = 1
) -> jax.Array:
    """KL of logits that are standardised over the classes (arXiv 2403.01427)."""
    logits = _head(student[0], 1), _head(teacher[0], None)
    return losses.standardized_kl(*logits, temperature=temperature, ddof=ddof, where=batch.get("mask"))


@register_term("dist", compares_logits=True, check=_check_temperature)
def dist(
    student: ModelOutput,
    teacher: ModelOutput,
    batch: Batch,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    scale: bool = True,
) -> jax.Array:
    """DIST (arXiv 2205.10536): correlations within examples and within classes; one number for the batch."""
    logits = _head(student[0], 1), _head(teacher[0], None)
    options: dict[str, Any] = {"beta": beta, "gamma": gamma, "temperature": temperature, "scale": scale}
    return losses.dist(*logits, **options, where=batch.get("mask"))


def _check_token(*, smoothing: float = 0.0, temperature: float = 1.0, alpha: float = 0.5, **_: Any) -> None:
    _check_smoothing(smoothing=smoothing)
    _check_temperature(temperature=temperature)
    check_range("alpha", alpha, 0, 1)


@register_term("distillation_token", compares_logits=True, check=_check_token)
def distillation_token(
    student: ModelOutput,
    teacher: ModelOutput,
    batch: Batch,
    *,
    kind: str = "hard",
    alpha: float = 0.5,
    temperature: float = 1.0,
    smoothing: float = 0.1,
    per_class: bool = False,
) -> jax.Array:
    """DeiT's whole objective for a student with a distillation token (arXiv 2012.12877): labels and teacher."""
    if not isinstance(student[0], tuple | list) or len(student[0]) != 2:
        raise ConfigError(
            'The term "distillation_token" reads two heads, but the student has one. Choose a distilled student such '
            'as "deit_tiny_distilled_patch16_224", or use the terms "ce" and "hard".'
        )
    options: dict[str, Any] = {
        "kind": kind,
        "alpha": alpha,
        "temperature": temperature,
        "smoothing": smoothing,
        "per_class": per_class,
    }
    classes, distilled = student[0]
    teacher_logits = _head(teacher[0], None)
    return losses.distillation_token(
        classes, distilled, teacher_logits, batch["label"], **options, where=batch.get("mask")
    )
