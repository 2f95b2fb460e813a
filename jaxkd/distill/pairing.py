"""Which layer of the student is compared with which layer of the teacher."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from jaxkd.errors import ConfigError, ShapeError, TapError, UnknownNameError, did_you_mean, in_words
from jaxkd.losses.arguments import check_features

Pair = tuple[str, str]  # (student tap, teacher tap)

_BLOCK, _STAGE = re.compile(r"block_\d+"), re.compile(r"stage_\d+")


def _layers(taps: Iterable[str]) -> tuple[str, ...]:
    """What integers count, in depth order: `stage_i` of a network in stages, `block_i` of any other."""
    taps = tuple(taps)
    return tuple(t for t in taps if _STAGE.fullmatch(t)) or tuple(t for t in taps if _BLOCK.fullmatch(t))


def _ends(student: tuple[str, ...], teacher: tuple[str, ...], indices: tuple[int, ...]) -> tuple[Pair, ...]:
    for side, taps in (("student", student), ("teacher", teacher)):
        if not _layers(taps):
            raise TapError(
                f"The {side} has no layers that could be paired by position. Those are taps block_i or stage_i, and "
                f"it has {in_words(taps)}. Name the taps in pairs, as (student tap, teacher tap)."
            )
    # A network of one layer has the same first and last.
    return tuple(dict.fromkeys((_layers(student)[i], _layers(teacher)[i]) for i in indices))


def _first(student: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[Pair, ...]:
    return _ends(student, teacher, (0,))


def _last(student: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[Pair, ...]:
    return _ends(student, teacher, (-1,))


def _first_last(student: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[Pair, ...]:
    return _ends(student, teacher, (0, -1))


def _stages(student: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[Pair, ...]:
    ours, theirs = (tuple(t for t in taps if _STAGE.fullmatch(t)) for taps in (student, teacher))
    for side, stages, taps in (("student", ours, student), ("teacher", theirs, teacher)):
        if not stages:
            raise TapError(
                f'pairs="stages" pairs every stage, but the {side} has none: its layers are '
                f'{in_words(_layers(taps))}. Only networks such as Swin are built in stages. Use "last" or '
                '"first+last", or give the pairs by number.'
            )
    if len(ours) != len(theirs):
        raise ConfigError(
            f'pairs="stages" pairs stage i with stage i, but the student has {len(ours)} ({in_words(ours)}) and the '
            f"teacher {len(theirs)} ({in_words(theirs)}). Some would be left out unseen. Give the pairs by number, "
            "as in ((0, 0), (1, 1))."
        )
    return tuple(zip(ours, theirs, strict=True))


# Layers chosen from the teacher's spectrum ("auto") enter here once the analysis numerics exist.
_NAMED = {"first": _first, "last": _last, "first+last": _first_last, "stages": _stages}
_WRITE = (
    'Write pairs such as ((0, 0), (6, 18)), or {"student": [0, 6], "teacher": [0, 18]}, or one of the names '
    f"{', '.join(_NAMED)}."
)


def resolve_pairs(spec: Any, student_taps: Sequence[str], teacher_taps: Sequence[str]) -> tuple[Pair, ...]:
    """From what a config says to names of taps.

    Args:
      spec: one of
        "first", "last", "first+last": by position in depth;
        "stages": stage i with stage i, for two networks of equally many stages;
        a sequence of (student, teacher) pairs, each an integer that counts blocks (stages for Swin), or a tap's name;
        {"student": [0, 1, 6], "teacher": [0, 1, 18]}: the same in two columns of equal length;
        the text of any of these, as a command line gives it: "(0, 0), (6, 18)";
        "", None or (): no pairs.
      student_taps: all taps of the student in depth order (`models.tap_names`).
      teacher_taps: likewise.

    Returns:
      (student tap, teacher tap) in the order of `spec`.

    Raises:
      ConfigError: not of this form, columns or stages of unequal length, a negative number, or a pair that is there
        twice.
      TapError: a layer that the network does not have; the message says which side and what exists.
      UnknownNameError: a name that is none of the above.
    """
    student_taps, teacher_taps = tuple(student_taps), tuple(teacher_taps)
    if isinstance(spec, str):
        if spec in _NAMED:
            return _NAMED[spec](student_taps, teacher_taps)
        spec = _parse(spec)
    pairs = tuple(
        (_tap(ours, student_taps, "student", place), _tap(theirs, teacher_taps, "teacher", place))
        for ours, theirs, place in _explicit(spec)
    )
    for pair in pairs:
        if pairs.count(pair) > 1:
            raise ConfigError(
                f"The pair {pair} is there {pairs.count(pair)} times. The feature loss is the mean over pairs, so it "
                "would weigh more than the others by accident. Give each pair once."
            )
    return pairs


def _parse(text: str) -> Any:
    """Reads pairs written as text; any other text is an unknown name."""
    if not text.strip():
        return ()
    if text.strip()[0] in "([{":
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise ConfigError(
                f"pairs={text!r} cannot be read. It begins like a list of pairs but is not one. {_WRITE}"
            ) from None
    if text == "auto":
        raise UnknownNameError(
            f'pairs="auto" is not possible yet. Layers cannot be chosen from the teacher\'s spectrum so far. {_WRITE}'
        )
    raise UnknownNameError(
        f'pairs="{text}" is not a way to pair layers.{did_you_mean(text, _NAMED)} A single text is the name of a '
        f"set of pairs. {_WRITE}"
    )


def _explicit(spec: Any) -> list[tuple[Any, Any, str]]:
    """(student layer, teacher layer, where in the spec) of pairs written out in either form."""
    if spec is None:
        return []
    if isinstance(spec, Mapping) or hasattr(spec, "keys"):  # a ConfigDict is no Mapping
        return _columns({str(k): spec[k] for k in spec})
    if not isinstance(spec, Sequence):
        raise ConfigError(f"pairs={spec!r} is not a list of pairs. {_WRITE}")
    rows = []
    for index, pair in enumerate(spec):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ConfigError(
                f"pairs[{index}]={pair!r} is not a pair. Each entry is (student layer, teacher layer). {_WRITE}"
            )
        rows.append((pair[0], pair[1], f"pairs[{index}]"))
    return rows


def _columns(spec: dict[str, Any]) -> list[tuple[Any, Any, str]]:
    if set(spec) != {"student", "teacher"} or any(
        isinstance(v, str) or not isinstance(v, Sequence) for v in spec.values()
    ):
        raise ConfigError(
            f"pairs={spec!r} is not understood. In two columns, pairs are one list of layers per network. Write "
            '{"student": [0, 6], "teacher": [0, 18]}.'
        )
    ours, theirs = spec["student"], spec["teacher"]
    if len(ours) != len(theirs):
        raise ConfigError(
            f"pairs lists {len(ours)} student layers {list(ours)} and {len(theirs)} teacher layers {list(theirs)}. "
            "Layers are paired one by one in order. Give both lists the same length."
        )
    return [(a, b, f"pairs entry {i}") for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]


def _tap(layer: Any, taps: tuple[str, ...], side: str, place: str) -> str:
    """The tap that `layer`, a number or a name, means in the network of `side`."""
    what = f"{place} names layer {layer!r} of the {side}"
    if isinstance(layer, str):
        if layer not in taps:
            raise TapError(
                f"{what}, which does not exist.{did_you_mean(layer, taps)} The {side} can only be read where it has "
                f"taps: {in_words(taps)}. Choose among those."
            )
        return layer
    if not isinstance(layer, Integral) or isinstance(layer, bool):
        raise ConfigError(
            f'{what}. A layer is a number, counted from 0, or the name of a tap. Write e.g. 11 or "block_11".'
        )
    layers = _layers(taps)
    if layer < 0:
        near = len(layers) + layer
        do = f"Write {near}." if near >= 0 else f"Write a number from 0 to {len(layers) - 1}."
        raise ConfigError(
            f"{what}. Layers are counted from 0 and never from the end, so that a pair reads as it is meant. {do}"
        )
    if layer >= len(layers):
        raise TapError(
            f"{what}, which does not exist. The {side} has {len(layers)} layers: {in_words(layers)}. Choose among "
            "those."
        )
    return layers[layer]


def check_pairs(
    pairs: Iterable[Pair],
    student_shapes: Mapping[str, tuple[int, ...]],
    teacher_shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Checks that the features of every pair can be compared, before anything compiles.

    Args:
      pairs: (student tap, teacher tap), from `resolve_pairs`.
      student_shapes: tap -> (B, ..., C), from `jax.eval_shape` of `model.apply`.
      teacher_shapes: likewise.

    Raises:
      ShapeError: grids, ranks or batches that differ; with both shapes.
      TapError: a tap whose shape was not given.
    """
    for ours, theirs in pairs:
        for side, tap, shapes in (("student", ours, student_shapes), ("teacher", theirs, teacher_shapes)):
            if tap not in shapes:
                raise TapError(
                    f'The pair ("{ours}", "{theirs}") reads "{tap}" of the {side}, whose shape is not known. The '
                    f'shapes given are of {in_words(shapes)}. Ask the network for it: taps=("{tap}", ...).'
                )
        names = (f'student\'s "{ours}"', f'teacher\'s "{theirs}"')
        try:
            check_features(student_shapes[ours], teacher_shapes[theirs], names=names)
        except ShapeError as error:
            raise ShapeError(f'The pair ("{ours}", "{theirs}") cannot be compared. {error}') from None
