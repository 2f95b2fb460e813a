"""The registry of objective terms: a config's `{"loss": name, "weight": ..., ...}` becomes a `Term`.

A term is a function `(student, teacher, batch, *, arguments) -> (B,)` and its registration:

    @distill.register_term("logit_mse", compares_logits=True)
    def logit_mse(student, teacher, batch, *, scale=1.0):
        return scale * jnp.square(student[0] - teacher[0]).mean(axis=1)

Its keyword-only arguments are what a config may set. Three of them are filled in where the config leaves them out:
`pairs`, the resolved `distill.pairs`; `smoothing`, the run's `label_smoothing`; and `class_head`, whether another term
teaches the second head of a student with two. A term of pairs may also be given `resize` and `projector`, which act on
its features before the function sees them, and a term with parameters may be given `frozen`.

The terms of this package are in `logit_terms`, `feature_terms` and `relation_terms`; docs/objectives.md lists them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxkd.distill.objective import Objective, Term
from jaxkd.distill.pair_features import PreparedPairs, as_pairs, check_resize, pairs_of_taps
from jaxkd.distill.projectors import read_projector
from jaxkd.errors import ConfigError, UnknownNameError, check_choice, did_you_mean

_ENTRY_KEYS = ("loss", "weight", "name")  # of every entry of `distill.terms`; the others depend on the loss
_FILLED_IN = ("pairs", "smoothing", "class_head")  # see the module


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
    needs_key: bool  # whether `fn` takes `key=`
    taps: tuple[str, ...]  # taps of each paired block that it reads in place of the block's output
    projector: str  # the heads in front of it where the config names none
    maps: bool  # whether it takes `projector` and `resize`
    # `(params, student, classifier, *, arguments) -> (B, K)` or None; see `register_term`
    predict: Callable[..., Any] | None = None

    @property
    def arguments(self) -> dict[str, inspect.Parameter]:
        """Keyword-only arguments of `fn` by name, without the key."""
        given = inspect.signature(self.fn).parameters
        return {name: p for name, p in given.items() if p.kind is inspect.Parameter.KEYWORD_ONLY and name != "key"}

    @property
    def options(self) -> tuple[str, ...]:
        """Further keys that an entry of this term may hold, besides its arguments."""
        options: tuple[str, ...] = ()
        if self.maps and "pairs" in self.arguments:
            options = ("resize",) if self.init else ("resize", "projector")
        options = (*options, "frozen") if self.init or options else options
        return tuple(name for name in options if name not in self.arguments)


TERMS: dict[str, RegisteredTerm] = {}


def register_term(
    name: str,
    *,
    needs_teacher: bool = True,
    compares_logits: bool = False,
    init: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
    needs_key: bool = False,
    taps: tuple[str, ...] = (),
    projector: str = "",
    maps: bool = True,
    predict: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that registers a function as the term `name`; see the module.

    Args:
      name: the `loss` of an entry of `config.distill.terms`.
      needs_teacher: whether the function reads the teacher.
      compares_logits: whether it compares logits, so that both networks need the same classes.
      init: for a term with parameters or state, whose function is
        `(params, mutable, student, teacher, batch, *, arguments) -> (values, mutable)`. It takes those of the arguments
        that are filled in, have no default or are set by a config; the others keep their defaults in the function.
      check: takes the same arguments and raises ConfigError where they make no sense.
      needs_key: whether the function also takes `key=`, a random key of its own in every step; no config sets it.
      taps: for a function that reads other taps of the paired blocks than their output, the names before the number:
        with ("attn",), `distill.pairs="last"` pairs the attentions of the last blocks. Of several, each pair of blocks
        becomes one pair per name.
      projector: the heads of a term whose config names none; see `projectors`.
      maps: False for a function whose features are no maps, tokens or vectors with channels last, so that it takes
        neither `projector` nor `resize`.
      predict: for a term with parameters that map the student's feature to the one that the teacher's classifier reads,
        `(params, student, classifier, *, arguments) -> (B, K)`, the logits by that classifier, a dict of kernel (C, K)
        and bias (K,). Runs whose only pair has the teacher's `pre_logits` then report `top1_teacher_head`.

    Returns:
      The decorator, which returns the function as it is.

    Raises:
      ConfigError: the name is taken, or the function or `init` cannot be called as above.
    """

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        if name in TERMS:
            raise ConfigError(
                f'The term "{name}" is registered already, by {TERMS[name].fn.__module__}. Choose another name.'
            )
        _check_signatures(name, fn, init, needs_key)
        TERMS[name] = RegisteredTerm(
            fn, needs_teacher, compares_logits, init, check, needs_key, taps, projector, maps, predict
        )
        return fn

    return register


def _signature(name: str, fn: Any) -> inspect.Signature:
    """The arguments of `fn` without their types.

    Raises:
      ConfigError: `fn` is a class, no function, or one whose arguments Python does not know.
    """
    if isinstance(fn, type):
        raise ConfigError(
            f'The term "{name}" is registered with the class {fn.__name__}. Pass a function, or an instance of a class '
            "with __call__."
        )
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(
            f'The term "{name}" is registered with {fn!r}, whose arguments are unknown. Pass a function that is '
            "written in Python."
        ) from None
    return inspect.Signature([p.replace(annotation=p.empty) for p in parameters])


def _takes(signature: inspect.Signature, count: int) -> bool:
    """Whether a function takes `count` positional arguments; keyword-only ones do not matter."""
    places = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    return sum(p.default is p.empty for p in places) <= count and (any_number or count <= len(places))


def _takes_any_keyword(signature: inspect.Signature) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _check_signatures(name: str, fn: Any, init: Any, needs_key: bool) -> None:
    """Raises ConfigError where the objective could not call `fn` or `init`."""
    signature, forms = _signature(name, fn), ("student, teacher, batch", "params, mutable, student, teacher, batch")
    form, other = forms[init is not None], forms[init is None]
    prefix, count = f'The function of the term "{name}" takes {signature}', form.count(",") + 1
    key = signature.parameters.get("key")
    without = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "key"])
    called = without if needs_key else signature  # with the positional arguments
    if needs_key and (not _takes_any_keyword(signature) if key is None else not _by_name(signature, "key", count)):
        raise ConfigError(f'{prefix}, but needs_key=True passes key= too. Put "key" behind the star: ({form}, *, key).')
    by_place = _takes(without, count) and not _takes(signature, count)  # the key alone is too many
    if not needs_key and key is not None and key.default is key.empty and (key.kind is key.KEYWORD_ONLY or by_place):
        raise ConfigError(f"{prefix}, but no key would be passed. Give register_term needs_key=True.")
    if not _takes(called, count):
        hint = "leave init= out, if it has no parameters" if init else "give register_term init=, if it has parameters"
        hint = f", or {hint}" if _takes(called, other.count(",") + 1) else ""
        raise ConfigError(f"{prefix}, but would be called with ({form}). Write it as ({form}, *, arguments){hint}.")
    if init is None:
        return
    start = _signature(name, init)
    options = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != "key"]
    passed = [p.name for p in options if p.default is p.empty or p.name in _FILLED_IN]
    lacking = not _takes_any_keyword(start) and set(passed) - {*start.parameters}
    if lacking or not _takes(start, 3):
        form = ", ".join(["key, student, teacher", *(["*", *passed] if passed else [])])
        raise ConfigError(
            f'The init of the term "{name}" takes {start}, but would be called with ({form}). Use this signature.'
        )


def _by_name(signature: inspect.Signature, name: str, count: int) -> bool:
    """Whether the parameter `name` can be passed by its name, after `count` positional arguments."""
    kind, place = signature.parameters[name].kind, list(signature.parameters).index(name)
    return kind is inspect.Parameter.KEYWORD_ONLY or (
        kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and place >= count
    )


def _check_init(where: str, init: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raises ConfigError where a config sets an argument that `init` does not take."""
    signature = inspect.signature(init)
    for key in given:
        if key not in signature.parameters and not _takes_any_keyword(signature):
            raise ConfigError(
                f"{where} sets the argument {key}, which the init of the term does not take. Leave it out, or add "
                f'"{key}" to the arguments of the init.'
            )


def build_objective(terms: Sequence[Mapping[str, Any]], *, pairs: Any = (), smoothing: float = 0.1) -> Objective:
    """The objective that `config.distill.terms` describes.

    Args:
      terms: each `{"loss": registered name, "weight": number or schedule (1), "name": logged name (the loss's), ...}`
        with arguments of the loss.
      pairs: (student tap, teacher tap) for terms that compare features and do not bring their own.
      smoothing: of the labels, for terms that take it and do not bring their own.

    Returns:
      The weighted sum of the terms; `init` makes their parameters.

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

    Args:
      terms: as of `build_objective`.
      pairs: `config.distill.pairs`; None where the config names none.

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
    kind = TERMS[entry["loss"]]
    accepted = (*_ENTRY_KEYS, *kind.arguments, *kind.options)
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
    given = {k: _of_type(f"{where}: {k}", v, accepted[k].default) for k, v in entry.items() if k in accepted}
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
    if kind.init is not None:
        _check_init(where, kind.init, given)
    if kind.check is not None:
        kind.check(**given)
    pairs = pairs_of_taps(given.get("pairs", ()), kind.taps)
    fn, init = _functions(kind, given | {"pairs": pairs} if pairs else given, entry)
    frozen = entry.get("frozen", False) if "frozen" in kind.options else False
    check_choice(f"{where}: frozen", frozen, (True, False))
    at_classifier = [teacher for _, teacher in pairs] == ["pre_logits"]
    predict = partial(kind.predict, **given) if kind.predict is not None and at_classifier else None
    name = entry.get("name", entry["loss"])
    if not isinstance(name, str) or not name:
        raise ConfigError(f'{where} has name={name!r}, under which it would be logged. Write a text such as "first".')
    if frozen and init is None:
        raise ConfigError(f"{where} is frozen, but has no parameters. Give it a projector, or leave frozen out.")
    return Term(
        name,
        entry.get("weight", 1.0),
        fn,
        needs_teacher=kind.needs_teacher,
        compares_logits=kind.compares_logits,
        pairs=pairs,
        init=init,
        needs_key=kind.needs_key,
        frozen=frozen,
        maps=kind.maps,
        predict=predict,
    )


def _of_type(what: str, value: Any, default: Any) -> Any:
    """`value` where it can stand for `default`: a bool for a bool, a finite number for a float.

    Without this check the text "False", for instance, would count as True.

    Raises:
      ConfigError: it cannot.
    """
    if isinstance(default, bool):
        check_choice(what, value, (True, False))
    if not isinstance(default, float) or hasattr(value, "dtype"):  # an array is a value of a population
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    raise ConfigError(f"{what}={value!r} is not a finite number. Use e.g. {default}, the default.")


def _functions(
    kind: RegisteredTerm, given: dict[str, Any], entry: dict[str, Any]
) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """`fn` and `init` of a Term, with the heads and the resizing of its entry."""
    options = {"resize": "", "projector": kind.projector} | {k: v for k, v in entry.items() if k in kind.options}
    resize, projector = options["resize"], read_projector(options["projector"])
    check_resize(resize)
    if not resize and projector is None:
        return partial(kind.fn, **given), None if kind.init is None else partial(kind.init, **given)
    rest = {key: value for key, value in given.items() if key != "pairs"}
    init = None if kind.init is None else partial(kind.init, **rest)
    term = PreparedPairs(partial(kind.fn, **rest), given["pairs"], resize=resize, projector=projector, own_init=init)
    return (term.stateless, None) if kind.init is None and projector is None else (term.stateful, term.init)
