"""Objectives: weighted sums of named terms, whose weights may change over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.distill.schedules import Schedule, weight_schedule
from jaxkd.errors import ConfigError

PyTree = Any
# (output, features) as `model.apply` returns it; the output of a network with two heads may be a pair.
ModelOutput = tuple[Any, Mapping[str, jax.Array]]
Batch = Mapping[str, jax.Array]
# (student, teacher, batch) -> (B,) values, or () for a loss of the whole batch
TermFn = Callable[..., jax.Array]
# (params, mutable, student, teacher, batch) -> (values, mutable)
StatefulTermFn = Callable[..., tuple[jax.Array, PyTree]]
# (key, student shapes, teacher shapes) -> (params, mutable); shapes are ModelOutputs of `jax.ShapeDtypeStruct`
TermInit = Callable[[jax.Array, ModelOutput, ModelOutput | None], tuple[PyTree, PyTree]]


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, as weights may be dicts
class Term:
    """One part of an objective.

    Attributes:
      name: the name it is logged under.
      weight: a number, a function step -> scalar, or a schedule as `weight_schedule` takes it.
      fn: (student (output, features), teacher (output, features) or None, batch) -> (B,), one value per example, or a
        scalar for a loss that compares the examples of a batch with each other. It should pass `batch.get("mask")` on
        as `where`, so that excluded examples have no gradient even if they hold NaN; a scalar must honour it itself.
        With `init`: (params, mutable, student, teacher, batch) -> (values, mutable). With `needs_key` also `key=`.
      needs_teacher: whether `fn` reads the teacher.
      compares_logits: whether `fn` compares the logits of student and teacher, so that their classes must agree.
      pairs: (student tap, teacher tap) whose features `fn` compares.
      init: (key, student shapes, teacher shapes) -> (params, mutable) of a term with parameters, such as a projector,
        or state, such as a running mean; the shapes are those of a batch of one. None for a term without either.
      needs_key: whether `fn` takes `key=`, a random key of its own in every step and micro-batch.
      frozen: whether the parameters of `init` keep their initial values.
      maps: whether `fn` compares features with channels last, which attention has not.
      predict: (params, student (output, features), the teacher's classifier: kernel (C, K) and bias (K,)) -> (B, K)
        logits that the student has by that classifier; None for a term without such logits.
    """

    name: str
    weight: float | Schedule | Mapping[str, Any]
    fn: TermFn | StatefulTermFn
    needs_teacher: bool = True
    compares_logits: bool = False
    pairs: tuple[tuple[str, str], ...] = ()
    init: TermInit | None = None
    needs_key: bool = False
    frozen: bool = False
    maps: bool = True
    predict: Callable[..., jax.Array] | None = None


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, as weights may be dicts
class Objective:
    """loss = sum over terms of weight(step) * (mean of the term over the examples that count).

    A term that compares the examples of a batch with each other gives one number for them. Under jit that is of the
    global batch, whatever the mesh; with gradient accumulation it is of each micro-batch, and the step's mean over
    micro-batches weighs them by their examples that count.

    Attributes:
      terms: of unique names.
      student_taps: features of the student that the terms read, each once; those of the terms' pairs come first.
      teacher_taps: likewise of the teacher.

    Examples:
      ```python
      def ce(student, teacher, batch):
          return losses.cross_entropy(student[0], batch["label"])

      objective = Objective((Term("ce", 1.0, ce, needs_teacher=False),))
      output = model.apply(variables, images)
      loss, terms, mutable = objective({}, {}, output, None, {"label": labels}, step=0)
      ```

    Raises:
      ConfigError: no terms, or names that cannot be told apart in a log.
    """

    terms: tuple[Term, ...]
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        pairs = [pair for term in self.terms for pair in term.pairs]
        for side, field in enumerate(("student_taps", "teacher_taps")):
            taps = dict.fromkeys([pair[side] for pair in pairs] + list(getattr(self, field)))
            object.__setattr__(self, field, tuple(taps))
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

    @property
    def compares_logits(self) -> bool:
        """Whether any term compares the logits of student and teacher."""
        return any(t.compares_logits for t in self.terms)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The (student tap, teacher tap) pairs of all terms, each once."""
        return tuple(dict.fromkeys(pair for term in self.terms for pair in term.pairs))

    @property
    def has_variables(self) -> bool:
        """Whether any term has parameters or state."""
        return any(t.init is not None for t in self.terms)

    @property
    def has_frozen(self) -> bool:
        """Whether any term has parameters that do not train."""
        return any(t.frozen and t.init is not None for t in self.terms)

    @property
    def needs_key(self) -> bool:
        """Whether any term draws random numbers."""
        return any(t.needs_key for t in self.terms)

    @property
    def predicting_taps(self) -> tuple[str, ...]:
        """Features of the student that `predict` reads; () where no term predicts by the teacher's classifier."""
        return tuple(dict.fromkeys(source for t in self.terms if t.predict is not None for source, _ in t.pairs))

    def predict(
        self, params: PyTree, student_out: ModelOutput, classifier: Mapping[str, jax.Array], batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        """The student's logits by the teacher's classifier, of the first term that has such logits.

        Args:
          params: of the terms, from `init`.
          student_out: (output, features) with `predicting_taps`.
          classifier: the teacher's, kernel (C, K) and bias (K,).
          batch: not read, except by the objective of a population.

        Returns:
          (B, K) logits, and () bool, whether there are any.
        """
        for term in self.terms:
            if term.predict is not None:
                return term.predict(params[term.name], student_out, classifier), jnp.asarray(True)
        raise ValueError("no term predicts")

    def frozen(self, params: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Tree of bool like `params` of `init`, True where a term is frozen."""
        return {
            term.name: jax.tree.map(lambda _, frozen=term.frozen: frozen, params[term.name])
            for term in self.terms
            if term.init is not None
        }

    def init(
        self, key: jax.Array, shapes: tuple[ModelOutput, ModelOutput | None]
    ) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """Parameters and mutable state of the terms that have any.

        Args:
          key: the term at place i draws with `fold_in(key, i)`.
          shapes: outputs of student and teacher for a batch of one, as `jax.eval_shape` returns them.

        Returns:
          `{term name: params}` and `{term name: mutable}`, both {} where no term has any.
        """
        params, mutable = {}, {}
        for index, term in enumerate(self.terms):
            if term.init is not None:
                params[term.name], mutable[term.name] = term.init(jax.random.fold_in(key, index), *shapes)
        return params, mutable

    def __call__(
        self,
        params: PyTree,
        mutable: PyTree,
        student_out: ModelOutput,
        teacher_out: ModelOutput | None,
        batch: Batch,
        step: int | jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        """The loss of one batch.

        Args:
          params: of the terms, from `init`; {} where no term has any.
          mutable: likewise.
          student_out: (output, features) with `student_taps`; the output may be the pair (class, distillation).
          teacher_out: (output, features) with `teacher_taps`; None where `needs_teacher` is False.
          batch: "label" (B,) integers or (B, K) probabilities, and optionally "mask" (B,) bool, False for examples that
            do not count.
          step: optimiser step that the weights are read at.
          key: of this step and micro-batch, where `needs_key`; the term at place i draws with `fold_in(key, i)`.

        Returns:
          The scalar to minimise; for each term `name` (mean, unweighted) and `name_weighted`, whose sum over the terms
          is the loss, all 0 if no example counts; and the new mutable state.

        Raises:
          ConfigError: a term needs a teacher or a key and there is none.
        """
        if teacher_out is None and self.needs_teacher:
            names = ", ".join(t.name for t in self.terms if t.needs_teacher)
            raise ConfigError(
                f"The objective was called without a teacher, but its terms {names} compare with one. Pass the "
                'teacher\'s output, or use an objective without such terms, e.g. distill.preset("none").'
            )
        if key is None and self.needs_key:
            names = ", ".join(t.name for t in self.terms if t.needs_key)
            raise ConfigError(
                f"The objective was called without a key, but its terms {names} draw random numbers. Pass "
                "key=jax.random.fold_in(key, step)."
            )
        mask = batch.get("mask")
        total: jax.Array = jnp.zeros((), jnp.float32)
        logged: dict[str, jax.Array] = {}
        changed: dict[str, PyTree] = {}
        weights = self._weights  # type: ignore[attr-defined] # set by __post_init__ and no field
        values: Any
        for index, (term, weight) in enumerate(zip(self.terms, weights, strict=True)):
            name = term.name
            options = {"key": jax.random.fold_in(key, index)} if term.needs_key and key is not None else {}
            if term.init is None:
                values = term.fn(student_out, teacher_out, batch, **options)
            else:
                values, changed[name] = term.fn(params[name], mutable[name], student_out, teacher_out, batch, **options)
            mean = masked_mean(values, mask)
            weighted = weight(step) * mean
            logged[name] = mean
            logged[f"{name}_weighted"] = weighted
            total = total + weighted
        return total, logged, changed


def masked_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean of (B,) values where (B,) bool `mask` is True, 0 if that is nowhere; a scalar of a batch as it is."""
    if values.ndim == 0:
        return values
    if mask is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask, dtype=values.dtype), 1.0)
