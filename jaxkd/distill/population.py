"""The objectives of a population as one: every term of any member, with weights that depend on the member."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from types import MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.distill.objective import Batch, ModelOutput, Objective, Term, masked_mean
from jaxkd.distill.schedules import weight_schedule
from jaxkd.distill.terms import TERMS

PyTree = Any
MEMBER = "member"  # key of a batch: () int32, the member that the batch is for
# Terms that are the mean over pairs of layers of a function of one pair; members with other pairs share those.
MEANS_OVER_PAIRS = ("spectral", "mse")


@dataclass(frozen=True, eq=False)
class _Column:
    """A term of one or more members. Lists have one entry for each member.

    Attributes:
      term: as the first member has it, under a name that no other column has.
      name: that the term is logged under; columns of one name belong to different members.
      parts: functions as `Term.fn`, whose means add up to the term: one, or one for each pair of layers.
      shares: (parts, members) fp32 factors of the parts; 0 where a member lacks the part.
      weights: the member's schedule of the term's weight, None where it lacks the term.
      places: of the term in the member's own objective; 0 where it lacks the term.
    """

    term: Term
    name: str
    parts: tuple[Callable[..., Any], ...]
    shares: np.ndarray
    weights: tuple[Any, ...]
    places: tuple[int, ...]

    def used(self, member: jax.Array) -> jax.Array | None:
        """() bool, whether the member has the term; None if all have it."""
        return (
            None if all(w is not None for w in self.weights) else _entry([w is not None for w in self.weights], member)
        )

    def weight(self, step: int | jax.Array, member: jax.Array) -> jax.Array:
        """() fp32 weight of the term at `step`."""
        specs: list[Any] = []
        index: list[int] = []
        for spec in self.weights:
            spec = 0.0 if spec is None else spec
            if not any(equal(spec, s) for s in specs):
                specs.append(spec)
            index.append(next(i for i, s in enumerate(specs) if equal(spec, s)))
        values = [weight_schedule(spec)(step) for spec in specs]
        return values[0] if len(values) == 1 else jnp.stack(values)[_entry(index, member)]


@dataclass(frozen=True, eq=False)
class PopulationObjective(Objective):
    """Objectives of many students as a function of one of them, `batch["member"]`; made by `join_objectives`.

    A member has the loss of its own objective. Terms of other members have weight 0 in it, are logged as 0 and pass on
    neither their gradients nor their NaN.

    Attributes:
      student_taps: of the student that any term reads.
      teacher_taps: of the teacher, likewise.
      terms: of all members, each once, under unique names that their parameters are kept under.
      columns: the same terms with what the members do with them.
    """

    columns: tuple[_Column, ...] = ()

    def init(
        self, key: jax.Array, shapes: tuple[ModelOutput, ModelOutput | None], member: int = 0
    ) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """Parameters and state as the member's own objective draws them, and those of terms that it lacks."""
        params, mutable = {}, {}
        for column in self.columns:
            if column.term.init is not None:
                place = column.places[member]
                drawn = column.term.init(jax.random.fold_in(key, place), *shapes)
                params[column.term.name], mutable[column.term.name] = drawn
        return params, mutable

    def __call__(
        self,
        params: PyTree,
        mutable: PyTree,
        student_out: ModelOutput,
        teacher_out: ModelOutput | None,
        batch: Batch,
        step: int | jax.Array,
        **options: Any,
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        """As `Objective`; `batch` also has `MEMBER`."""
        member = batch[MEMBER]
        total: jax.Array = jnp.zeros((), jnp.float32)
        logged: dict[str, jax.Array] = {}
        changed: dict[str, PyTree] = {}
        for column in self.columns:
            mean, state = _mean(column, params, mutable, student_out, teacher_out, batch, options)
            if state is not None:
                changed[column.term.name] = state
            weighted = column.weight(step, member) * mean
            for name, value in ((column.name, mean), (f"{column.name}_weighted", weighted)):
                logged[name] = logged[name] + value if name in logged else value
            total = total + weighted
        return total, logged, changed

    def predict(
        self, params: PyTree, student_out: ModelOutput, classifier: Mapping[str, jax.Array], batch: Batch
    ) -> tuple[jax.Array, jax.Array]:
        """As `Objective.predict`, of the first such term of the member `batch[MEMBER]`; False where it has none."""
        logits, found = None, jnp.asarray(False)
        for column in self.columns:
            if (predict := column.term.predict) is None:
                continue
            own = predict(params[column.term.name], student_out, classifier)
            logits = own if logits is None else jnp.where(found, logits, own)
            found = found | _entry([w is not None for w in column.weights], batch[MEMBER])
        if logits is None:
            raise ValueError("no term predicts")
        return logits, found


def join_objectives(objectives: Sequence[Objective]) -> PopulationObjective:
    """The objective of a population whose members have these ones.

    Args:
      objectives: one for each member, in their order.

    Returns:
      An objective that reads `batch["member"]`, the number of the student.
    """
    members = len(objectives)
    columns: list[_Column] = []
    for member, objective in enumerate(objectives):
        for place, term in enumerate(objective.terms):
            known = [i for i, c in enumerate(columns) if c.weights[member] is None and _same(c, term)]
            if not known:
                taken = {c.term.name for c in columns}
                names = [term.name, *(f"{term.name}@{n}" for n in range(2, len(taken) + 3))]
                named = replace(term, name=next(n for n in names if n not in taken), weight=1.0)
                known = [len(columns)]
                columns.append(
                    _Column(named, term.name, (), np.zeros((0, members)), (None,) * members, (place,) * members)
                )
            columns[known[0]] = _add_member(columns[known[0]], member, place, term)
    student_taps, teacher_taps = (
        tuple(dict.fromkeys(t for o in objectives for t in getattr(o, f"{s}_taps"))) for s in ("student", "teacher")
    )
    return PopulationObjective(tuple(c.term for c in columns), student_taps, teacher_taps, columns=tuple(columns))


def _same(column: _Column, term: Term) -> bool:
    """Whether a term and that of a column differ in nothing but their weight and, where they are means, their pairs."""
    if column.name != term.name:
        return False
    ignored = {"weight", "name"}
    if _is_mean(column.term) and _is_mean(term):
        ignored |= {"pairs", "fn"}
        functions: list[Any] = [column.term.fn, term.fn]
        first, second = ({k: v for k, v in fn.keywords.items() if k != "pairs"} for fn in functions)
        if functions[0].func is not functions[1].func or not equal(first, second):
            return False
    names = [f.name for f in fields(Term) if f.name not in ignored]
    return all(equal(getattr(column.term, n), getattr(term, n)) for n in names)


def _is_mean(term: Term) -> bool:
    known = [TERMS[name].fn for name in MEANS_OVER_PAIRS if name in TERMS]
    return term.init is None and isinstance(term.fn, partial) and any(term.fn.func is fn for fn in known)


def equal(one: Any, other: Any) -> bool:
    """Whether two values that terms are made of compute the same; looks into partial functions and dataclasses."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    parts: list[Any]
    if isinstance(one, partial):
        parts = [(v.func, v.args, v.keywords) for v in (one, other)]
    elif isinstance(one, MethodType):
        parts = [(v.__func__, v.__self__) for v in (one, other)]
    elif is_dataclass(one):
        parts = [tuple(getattr(v, f.name) for f in fields(v)) for v in (one, other)]
    elif isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    elif isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    else:
        return bool(one == other)
    return equal(*parts)


def _add_member(column: _Column, member: int, place: int, term: Term) -> _Column:
    """`column` with the term of another member."""
    pairs = column.term.pairs if column.parts else ()
    union = tuple(dict.fromkeys((*pairs, *term.pairs)))
    fn: Any = term.fn
    parts: tuple[Callable[..., Any], ...]
    if not _is_mean(term):
        parts = (fn,)
        shares = column.shares if column.parts else np.zeros((1, len(column.weights)), np.float32)
        shares[0, member] = 1.0
    else:
        parts = tuple(partial(fn.func, **{**fn.keywords, "pairs": (pair,)}) for pair in union)
        shares = np.zeros((len(union), len(column.weights)), np.float32)
        shares[: len(pairs)] = column.shares
        for pair in term.pairs:
            shares[union.index(pair), member] = 1.0 / len(term.pairs)
    weights, places = list(column.weights), list(column.places)
    weights[member], places[member] = term.weight, place
    return replace(
        column,
        term=replace(column.term, pairs=union),
        parts=parts,
        shares=shares,
        weights=tuple(weights),
        places=tuple(places),
    )


def _mean(
    column: _Column,
    params: PyTree,
    mutable: PyTree,
    student_out: ModelOutput,
    teacher_out: ModelOutput | None,
    batch: Batch,
    options: dict[str, Any],
) -> tuple[jax.Array, PyTree | None]:
    """The mean of a term over the examples of the batch, 0 for a member without it, and its new state."""
    member, mask, term = batch[MEMBER], batch.get("mask"), column.term
    options = {"key": jax.random.fold_in(options["key"], _entry(column.places, member))} if term.needs_key else {}
    used, state = column.used(member), None
    total: Any = 0.0
    for fn, shares in zip(column.parts, column.shares, strict=True):
        share = _entry(shares, member)
        has = None if shares.all() else share > 0
        if term.init is None:
            values = fn(_gate(has, student_out), teacher_out, batch, **options)
        else:
            own = _gate(has, params[term.name])
            values, new = fn(own, mutable[term.name], _gate(has, student_out), teacher_out, batch, **options)
            state = new if used is None else jax.tree.map(partial(jnp.where, used), new, mutable[term.name])
        mean = share * masked_mean(values, mask)
        total = total + (mean if has is None else jnp.where(has, mean, 0.0))
    return total, state


def _gate(used: jax.Array | None, tree: PyTree) -> PyTree:
    """The same values, whose gradients are exactly 0 where `used` is False: 0 times a NaN would be NaN."""
    if used is None:
        return tree
    return jax.tree.map(lambda x: jnp.where(used, x, jax.lax.stop_gradient(x)), tree)


def _entry(values: Sequence[Any] | np.ndarray, member: jax.Array) -> Any:
    """`values[member]`; a constant where all are equal."""
    table = np.asarray(values)
    return table.dtype.type(table[0]) if (table == table[0]).all() else jnp.asarray(table)[member]
