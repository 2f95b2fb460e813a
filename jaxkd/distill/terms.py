"""The registry of objective terms: a config's `{"loss": name, "weight": ..., ...}` becomes a `Term`.

A term is a function `(student, teacher, batch, *, arguments) -> (B,)` and its registration:

    @distill.register_term("logit_mse", compares_logits=True)
    def logit_mse(student, teacher, batch, *, scale=1.0):
        return scale * jnp.square(student[0] - teacher[0]).mean(axis=1)

Its keyword-only arguments are what a config may set. Three of them are filled in where the config leaves them out:
`pairs`, the resolved `distill.pairs`; `smoothing`, the run's `label_smoothing`; and `class_head`, whether another term
teaches the second head of a student with two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jaxkd import losses
from jaxkd.distill.objective import Batch, ModelOutput, Objective, Term, TermFn
from jaxkd.distill.pairing import Pair
from jaxkd.errors import ConfigError, TapError, UnknownNameError, check_range, did_you_mean
from jaxkd.losses.spectral import DEFAULT_METHOD, check_method

_ENTRY_KEYS = ("loss", "weight", "name")  # of an entry of `distill.terms`; the others are arguments of the loss


@dataclass(frozen=True)
class RegisteredTerm:
    """A registered term."""

    fn: Callable[..., Any]  # the function with its keyword-only arguments
    needs_teacher: bool  # whether it reads the teacher
    compares_logits: bool  # whether it compares logits with the teacher's
    # `(key, student shapes, teacher shapes, **arguments) -> (params, mutable)` or None; see `Term.init`
    init: Callable[..., Any] | None
    # called with the arguments before anything compiles, to raise ConfigError for a value out of range
    check: Callable[..., None] | None

    @property
    def arguments(self) -> dict[str, inspect.Parameter]:
        """Keyword-only arguments of `fn` by name."""
        given = inspect.signature(self.fn).parameters
        return {name: p for name, p in given.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


TERMS: dict[str, RegisteredTerm] = {}


def register_term(
    name: str,
    *,
    needs_teacher: bool = True,
    compares_logits: bool = False,
    init: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that registers a function as the term `name`; see the module.

    Args:
      name: the `loss` of an entry of `config.distill.terms`.
      needs_teacher: whether the function reads the teacher.
      compares_logits: whether it compares logits, so that both networks need the same classes.
      init: for a term with parameters or state; takes the same arguments as the function, which then is
        `(params, mutable, student, teacher, batch, *, arguments) -> ((B,), mutable)`.
      check: takes the same arguments and raises ConfigError where they make no sense.

    Raises:
      ConfigError: the name is taken.
    """

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        if name in TERMS:
            raise ConfigError(
                f'The term "{name}" is registered already, by {TERMS[name].fn.__module__}. Choose another name.'
            )
        TERMS[name] = RegisteredTerm(fn, needs_teacher, compares_logits, init, check)
        return fn

    return register


def build_objective(terms: Sequence[Mapping[str, Any]], *, pairs: Any = (), smoothing: float = 0.1) -> Objective:
    """The objective that `config.distill.terms` describes.

    Args:
      terms: each `{"loss": registered name, "weight": number or schedule (1), "name": logged name (the loss's), ...}`
        with arguments of the loss.
      pairs: (student tap, teacher tap) for terms that compare features and do not bring their own.
      smoothing: of the labels, for terms that take it and do not bring their own.

    Raises:
      UnknownNameError: a loss that is not registered.
      ConfigError: an entry of another form, an argument that the loss does not take, lacks or cannot use.
    """
    entries = [_entry(entry, index) for index, entry in enumerate(terms)]
    logits = any(TERMS[entry["loss"]].compares_logits for entry in entries)
    filled_in = {"pairs": as_pairs(pairs), "smoothing": smoothing, "class_head": logits}
    return Objective(tuple(_term(entry, index, filled_in) for index, entry in enumerate(entries)))


def check_terms(terms: Sequence[Any], pairs: Any = None) -> None:
    """Checks losses and names of arguments of `config.distill.terms`; the values are checked by `build_objective`.

    Raises:
      UnknownNameError: a loss that is not registered. ConfigError: an argument that it does not take, or `pairs`
        (`config.distill.pairs`) that no term reads.
    """
    entries = [_entry(entry, index) for index, entry in enumerate(terms)]
    read = any("pairs" in TERMS[entry["loss"]].arguments and "pairs" not in entry for entry in entries)
    if pairs and entries and not read:
        raise ConfigError(
            f"distill.pairs={pairs!r} is set, but no term of distill.terms reads it. Leave it at None, or add a term "
            "that compares layers."
        )


def _entry(entry: Any, index: int) -> dict[str, Any]:
    where = f"distill.terms[{index}]"
    if not (isinstance(entry, Mapping) or hasattr(entry, "keys")) or "loss" not in entry:
        raise ConfigError(
            f'{where}={entry!r} is not a term. Write e.g. {{"loss": "kl", "weight": 0.9, "temperature": 1.0}}.'
        )
    entry = {str(key): entry[key] for key in entry}
    if entry["loss"] not in TERMS:
        raise UnknownNameError(
            f'{where} has the loss "{entry["loss"]}", which is not registered.{did_you_mean(entry["loss"], TERMS)} '
            f"Choose one of {', '.join(TERMS)}, or register it with distill.register_term."
        )
    accepted = (*_ENTRY_KEYS, *TERMS[entry["loss"]].arguments)
    for key in entry:
        if key not in accepted:
            raise ConfigError(
                f'{where} (loss "{entry["loss"]}") has the argument "{key}", which it does not take.'
                f"{did_you_mean(key, accepted)} It takes: {', '.join(accepted)}."
            )
    return entry


def _term(entry: dict[str, Any], index: int, filled_in: dict[str, Any]) -> Term:
    kind = TERMS[entry["loss"]]
    where = f'distill.terms[{index}] (loss "{entry["loss"]}")'
    accepted = kind.arguments
    given = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
    if "pairs" in given:
        given["pairs"] = as_pairs(given["pairs"])
    given = {key: value for key, value in filled_in.items() if key in accepted} | given
    missing = [key for key, p in accepted.items() if p.default is p.empty and key not in given]
    if missing:
        raise ConfigError(f"{where} lacks the argument {', '.join(missing)}. Add it to the term.")
    if "pairs" in given and not given["pairs"]:
        raise ConfigError(
            f'{where} compares features, but no layers are paired. Give pairs in distill.pairs, e.g. "last" or '
            "((0, 0), (11, 23)), or leave the term out."
        )
    if kind.check is not None:
        kind.check(**given)
    name = str(entry.get("name", entry["loss"]))
    return Term(
        name,
        entry.get("weight", 1.0),
        partial(kind.fn, **given),
        needs_teacher=kind.needs_teacher,
        compares_logits=kind.compares_logits,
        pairs=given.get("pairs", ()),
        init=None if kind.init is None else partial(kind.init, **given),
    )


def as_pairs(pairs: Any) -> tuple[Pair, ...]:
    """`pairs` as a tuple of (student tap, teacher tap)."""
    pairs = tuple(pairs)
    if not all(isinstance(p, tuple | list) and len(p) == 2 and all(isinstance(tap, str) for tap in p) for p in pairs):
        raise ConfigError(
            f"pairs={pairs!r} are not pairs of taps. Pass what distill.resolve_pairs(pairs, student_taps, "
            "teacher_taps) returns."
        )
    return tuple((student, teacher) for student, teacher in pairs)


def feature_mean(student: ModelOutput, teacher: ModelOutput, batch: Batch, *, loss: TermFn, pairs: tuple[Pair, ...]):
    """(B,) mean over `pairs` of a loss on features."""
    for side, output, taps in (
        ("student", student, [p[0] for p in pairs]),
        ("teacher", teacher, [p[1] for p in pairs]),
    ):
        for tap in taps:
            if tap not in output[1]:
                raise TapError(
                    f'The objective reads "{tap}" of the {side}, which returned {sorted(output[1]) or "no features"}. '
                    f"Call apply with taps=objective.{side}_taps."
                )
    values = [loss(student[1][s], teacher[1][t], where=batch.get("mask")) for s, t in pairs]
    return sum(values[1:], start=values[0]) / len(values)


def _head(output: Any, index: int | None) -> jax.Array:
    """One head of a network with two, by index, or their mean; the output itself of a network with one."""
    if not isinstance(output, tuple | list):
        return output
    return sum(output[1:], start=output[0]) / len(output) if index is None else output[index]


def _check_smoothing(*, smoothing: Any, **_: Any) -> None:
    check_range("smoothing", smoothing, 0, below=1)


def _check_temperature(*, temperature: Any = 1.0, **_: Any) -> None:
    check_range("temperature", temperature, above=0)


def _check_spectral(*, method: str = DEFAULT_METHOD, **_: Any) -> None:
    check_method(method)


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


@register_term("spectral", check=_check_spectral)
def spectral(
    student: ModelOutput, teacher: ModelOutput, batch: Batch, *, pairs: tuple[Pair, ...], method: str = DEFAULT_METHOD
) -> jax.Array:
    """Mean over pairs of the SpectralKD loss; `method` is "closed" or "fft"."""
    return feature_mean(student, teacher, batch, loss=partial(losses.spectral, method=method), pairs=pairs)


@register_term("mse")
def mse(student: ModelOutput, teacher: ModelOutput, batch: Batch, *, pairs: tuple[Pair, ...]) -> jax.Array:
    """Mean over pairs of the MSE between features."""
    return feature_mean(student, teacher, batch, loss=losses.feature_mse, pairs=pairs)
