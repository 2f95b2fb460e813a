"""What is minimised: a sum of named terms, each with a weight that may change over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.distill.schedules import Schedule, weight_schedule
from jaxkd.errors import ConfigError

# (output, features) as `model.apply` hands it back; the output of a network with two heads may be a pair.
Answer = tuple[Any, Mapping[str, jax.Array]]
Batch = Mapping[str, jax.Array]
TermFn = Callable[[Answer, Answer | None, Batch], jax.Array]


@dataclass(frozen=True)
class Term:
    """One part of an objective.

    Attributes:
      name: under which it is logged.
      weight: a number, a function step -> scalar, or a schedule as `weight_schedule` takes it.
      fn: (student (output, features), teacher (output, features) or None, batch) -> (B,), one value per example. It
        should pass `batch.get("mask")` on as `where`, so that excluded examples have no gradient even if they hold NaN.
      needs_teacher: whether `fn` reads the teacher.
    """

    name: str
    weight: float | Schedule | Mapping[str, Any]
    fn: TermFn
    needs_teacher: bool = True


@dataclass(frozen=True)
class Objective:
    """loss = sum over terms of weight(step) * (mean of the term over the examples that count).

    Attributes:
      terms: of unique names.
      student_taps: features that the terms read of the student, each once.
      teacher_taps: likewise of the teacher.

    Example:
      def ce(student, teacher, batch):
          return losses.cross_entropy(student[0], batch["label"])

      objective = Objective((Term("ce", 1.0, ce, needs_teacher=False),))
      loss, terms = objective(model.apply(variables, images), None, {"label": labels}, step=0)

    Raises:
      ConfigError: no terms, or names that cannot be told apart in a log.
    """

    terms: tuple[Term, ...]
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        object.__setattr__(self, "student_taps", tuple(dict.fromkeys(self.student_taps)))
        object.__setattr__(self, "teacher_taps", tuple(dict.fromkeys(self.teacher_taps)))
        names = [t.name for t in self.terms]
        logged = ["loss", *names, *(f"{n}_weighted" for n in names)]
        if not names or len(set(logged)) != len(logged):
            raise ConfigError(
                f"The objective has the terms {names}. Each is logged as its name and as name_weighted, beside the "
                'total loss, so there must be at least one and all of these must differ. Rename them; "loss" is taken.'
            )
        weights = tuple(weight_schedule(t.weight, name=f'the weight of "{t.name}"') for t in self.terms)
        object.__setattr__(self, "_weights", weights)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher."""
        return any(t.needs_teacher for t in self.terms)

    def __call__(
        self, student_out: Answer, teacher_out: Answer | None, batch: Batch, step: int | jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of one batch.

        Args:
          student_out: (output, features) with `student_taps`; the output may be the pair (class, distillation).
          teacher_out: (output, features) with `teacher_taps`; None where `needs_teacher` is False.
          batch: "label" (B,) integers or (B, K) probabilities, and optionally "mask" (B,) bool, False for examples that
            do not count.
          step: optimiser step that the weights are read at.

        Returns:
          The scalar to minimise, and for each term `name` (mean, unweighted) and `name_weighted`, whose sum over the
          terms is the loss. All are 0 if no example counts.

        Raises:
          ConfigError: a term needs a teacher and there is none.
        """
        if teacher_out is None and self.needs_teacher:
            names = ", ".join(t.name for t in self.terms if t.needs_teacher)
            raise ConfigError(
                f"The objective was called without a teacher, but its terms {names} compare with one. Pass "
                'what it answers, or use an objective without such terms, e.g. distill.preset("none").'
            )
        mask = batch.get("mask")
        total: jax.Array = jnp.zeros((), jnp.float32)
        logged: dict[str, jax.Array] = {}
        for term, weight in zip(self.terms, self._weights, strict=True):
            mean = masked_mean(term.fn(student_out, teacher_out, batch), mask)
            weighted = weight(step) * mean
            logged[term.name] = mean
            logged[f"{term.name}_weighted"] = weighted
            total = total + weighted
        return total, logged


def masked_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean of (B,) values where (B,) bool `mask` is True; 0 if that is nowhere."""
    if mask is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask, dtype=values.dtype), 1.0)
