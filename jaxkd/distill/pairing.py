"""Layer pairing: from what a config says to (student tap, teacher tap) pairs."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

from jaxkd.analysis.layer_selection import Suggestion, suggest_pairs, suggest_stages
from jaxkd.errors import ConfigError, ShapeError, TapError, UnknownNameError, did_you_mean, in_words
from jaxkd.losses.arguments import check_features
from jaxkd.models.contract import depth_taps

Pair = tuple[str, str]  # (student tap, teacher tap)

_STAGE = re.compile(r"stage_\d+")


def _ends(student: tuple[str, ...], teacher: tuple[str, ...], indices: tuple[int, ...]) -> tuple[Pair, ...]:
    for side, taps in (("student", student), ("teacher", teacher)):
        if not depth_taps(taps):
            raise TapError(
                f"The {side} has no taps block_i or stage_i that could be paired by position; it has "
                f"{in_words(taps)}. Name the taps in pairs, as (student tap, teacher tap)."
            )
    # A network of one layer has the same first and last.
    return tuple(dict.fromkeys((depth_taps(student)[i], depth_taps(teacher)[i]) for i in indices))


def _stages(student: tuple[str, ...], teacher: tuple[str, ...]) -> tuple[Pair, ...]:
    student_stages, teacher_stages = (tuple(t for t in taps if _STAGE.fullmatch(t)) for taps in (student, teacher))
    for side, stages, taps in (("student", student_stages, student), ("teacher", teacher_stages, teacher)):
        if not stages:
            raise TapError(
                f'distill.pairs="stages" pairs every stage, but the {side} has none: its layers are '
                f'{in_words(depth_taps(taps))}. Use "last" or "first+last", or give the pairs by number.'
            )
    if len(student_stages) != len(teacher_stages):
        raise ConfigError(
            f'distill.pairs="stages" pairs stage i with stage i, but the student has {len(student_stages)} '
            f"({in_words(student_stages)}) and the teacher {len(teacher_stages)} ({in_words(teacher_stages)}). Give "
            "the pairs by number, as in ((0, 0), (1, 1))."
        )
    return tuple(zip(student_stages, teacher_stages, strict=True))


AUTO = "auto"
_NAMED: dict[str, Callable[..., tuple[Pair, ...]]] = {
    "first": partial(_ends, indices=(0,)),
    "last": partial(_ends, indices=(-1,)),
    "first+last": partial(_ends, indices=(0, -1)),
    "stages": _stages,
}
_WRITE = (
    'Write pairs such as ((0, 0), (6, 18)), or {"student": [0, 6], "teacher": [0, 18]}, or one of the names '
    f"{', '.join(_NAMED)}, {AUTO}."
)


def profile_taps(teacher_taps: Sequence[str]) -> tuple[str, ...]:
    """Taps whose intensities, in this order, are the profile that "auto" reads; () where it reads none (stages).

    Args:
      teacher_taps: all taps of the teacher in depth order (`models.tap_names`).

    Returns:
      Some of `teacher_taps`.
    """
    layers = depth_taps(teacher_taps)
    return () if layers and _STAGE.fullmatch(layers[0]) else layers


def suggest(student_taps: Sequence[str], teacher_taps: Sequence[str], profile: Any = None) -> Suggestion:
    """Layer pairs by SpectralKD's rule, which `jaxkd/analysis/layer_selection.py` implements.

    Args:
      student_taps: all taps of the student in depth order (`models.tap_names`).
      teacher_taps: likewise.
      profile: (L,) intensities of the teacher at `profile_taps(teacher_taps)`; not read for two networks in stages.

    Returns:
      A Suggestion, whose pairs number the layers as `resolve_pairs` does.

    Raises:
      ConfigError: no profile where one is needed. ShapeError: a profile of another length. TapError: no layers.
    """
    _ends(tuple(student_taps), tuple(teacher_taps), ())  # both have layers
    student_layers, teacher_layers = depth_taps(student_taps), depth_taps(teacher_taps)
    staged = [bool(_STAGE.fullmatch(layers[0])) for layers in (student_layers, teacher_layers)]
    if all(staged):
        return suggest_stages(len(student_layers), len(teacher_layers))
    if any(staged):
        reason = (
            f"The student has {in_words(student_layers)} and the teacher {in_words(teacher_layers)}. The rule pairs "
            "blocks with blocks or stages with stages."
        )
        return Suggestion((), 0, 0, None, False, reason)
    if profile is None:
        raise ConfigError(
            f'distill.pairs="{AUTO}" was given without a profile of the teacher, the intensity of its blocks. A '
            "training run measures it; elsewhere pass profile=, or "
            f"give the pairs by number as in ((0, 0), ({len(student_layers) - 1}, {len(teacher_layers) - 1}))."
        )
    if len(profile) != len(teacher_layers):
        raise ShapeError(
            f"The profile has {len(profile)} values, but the teacher has {len(teacher_layers)} layers: "
            f"{in_words(teacher_layers)}. Measure it at distill.profile_taps(teacher_taps)."
        )
    return suggest_pairs(profile, len(student_layers))


def resolve_pairs(
    spec: Any,
    student_taps: Sequence[str],
    teacher_taps: Sequence[str],
    *,
    profile: Any = None,
    field: str = "distill.pairs",
) -> tuple[Pair, ...]:
    """From what a config says to names of taps.

    Args:
      spec: one of
        "first", "last", "first+last": by position in depth;
        "stages": stage i with stage i, for two networks of equally many stages;
        "auto": first and last blocks where the teacher's `profile` is high, or all stages; see `suggest`;
        a sequence of (student, teacher) pairs, each an integer that counts blocks (stages for Swin), or a tap's name;
        {"student": [0, 1, 6], "teacher": [0, 1, 18]}: the same in two columns of equal length;
        the text of any of these, as a command line gives it: "(0, 0), (6, 18)";
        "", None or (): no pairs.
      student_taps: all taps of the student in depth order (`models.tap_names`).
      teacher_taps: likewise.
      profile: (L,) intensities of the teacher's blocks; read by "auto" only.
      field: of the config that `spec` stands in, for errors.

    Returns:
      (student tap, teacher tap) in the order of `spec`.

    Raises:
      ConfigError: not of this form, columns or stages of unequal length, a negative number, a pair that is there
        twice, or "auto" where the profile is missing or does not support the rule.
      TapError: a layer that the network does not have; the message says which side and what exists.
      UnknownNameError: a name that is none of the above.
    """
    student_taps, teacher_taps = tuple(student_taps), tuple(teacher_taps)
    if isinstance(spec, str):
        if spec in _NAMED:
            return _NAMED[spec](student_taps, teacher_taps)
        spec = _auto(student_taps, teacher_taps, profile) if spec == AUTO else _parse(spec, field)
    pairs = tuple(
        (_tap(student_layer, student_taps, "student", place), _tap(teacher_layer, teacher_taps, "teacher", place))
        for student_layer, teacher_layer, place in _explicit(spec, field)
    )
    for pair in pairs:
        if pairs.count(pair) > 1:
            raise ConfigError(f"The pair {pair} is there {pairs.count(pair)} times. Give each pair once.")
    return pairs


def _auto(student: tuple[str, ...], teacher: tuple[str, ...], profile: Any) -> tuple[tuple[int, int], ...]:
    found = suggest(student, teacher, profile)
    if found.supported:
        return found.pairs
    values = ""
    if profile is not None:
        shown = (f"{tap} {float(v):.3g}" for tap, v in zip(depth_taps(teacher), profile, strict=True))
        values = f" The teacher's layers and their intensities: {', '.join(shown)}."
    ends = (0, 0), (len(depth_taps(student)) - 1, len(depth_taps(teacher)) - 1)
    raise ConfigError(
        f'distill.pairs="{AUTO}" found no pairs. {found.reason}{values} Give a trained teacher (teacher.weights), or '
        f'name the pairs: distill.pairs="first+last", or numbers (student, teacher) such as "{ends}".'
    )


def _parse(text: str, field: str) -> Any:
    """Reads pairs written as text; any other text is an unknown name."""
    if not text.strip():
        return ()
    if text.strip()[0] in "([{":
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise ConfigError(f"{field}={text!r} cannot be read as a list of pairs. {_WRITE}") from None
    raise UnknownNameError(
        f'{field}="{text}" is not a way to pair layers.{did_you_mean(text, (*_NAMED, AUTO))} {_WRITE}'
    )


def _explicit(spec: Any, field: str) -> list[tuple[Any, Any, str]]:
    """(student layer, teacher layer, where in the spec) of pairs written out in either form."""
    if spec is None:
        return []
    if isinstance(spec, Mapping) or hasattr(spec, "keys"):  # a ConfigDict is no Mapping
        return _columns({str(k): spec[k] for k in spec}, field)
    if not isinstance(spec, Sequence):
        raise ConfigError(f"{field}={spec!r} is not a list of pairs. {_WRITE}")
    rows = []
    for index, pair in enumerate(spec):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ConfigError(f"{field}[{index}]={pair!r} is not a pair (student layer, teacher layer). {_WRITE}")
        rows.append((pair[0], pair[1], f"{field}[{index}]"))
    return rows


def _columns(spec: dict[str, Any], field: str) -> list[tuple[Any, Any, str]]:
    if set(spec) != {"student", "teacher"} or any(
        isinstance(v, str) or not isinstance(v, Sequence) for v in spec.values()
    ):
        raise ConfigError(
            f'{field}={spec!r} is not one list of layers per network. Write {{"student": [0, 6], "teacher": [0, 18]}}.'
        )
    student_layers, teacher_layers = spec["student"], spec["teacher"]
    if len(student_layers) != len(teacher_layers):
        raise ConfigError(
            f"{field} lists {len(student_layers)} student layers {list(student_layers)} and "
            f"{len(teacher_layers)} teacher layers {list(teacher_layers)}. Give both lists the same length."
        )
    return [(a, b, f"{field} entry {i}") for i, (a, b) in enumerate(zip(student_layers, teacher_layers, strict=True))]


def _tap(layer: Any, taps: tuple[str, ...], side: str, place: str) -> str:
    """The tap that `layer`, a number or a name, means in the network of `side`."""
    what = f"{place} names layer {layer!r} of the {side}"
    if isinstance(layer, str):
        if layer not in taps:
            raise TapError(
                f"{what}, which does not exist.{did_you_mean(layer, taps)} The {side} has the "
                f"taps {in_words(taps)}. Choose among those."
            )
        return layer
    if not isinstance(layer, Integral) or isinstance(layer, bool):
        raise ConfigError(
            f'{what}, which is neither a number from 0 nor the name of a tap. Write e.g. 11 or "block_11".'
        )
    layer, layers = int(layer), depth_taps(taps)
    if layer < 0:
        near = len(layers) + layer
        do = f"Write {near}." if near >= 0 else f"Write a number from 0 to {len(layers) - 1}."
        raise ConfigError(f"{what}, but layers are counted from 0 and never from the end. {do}")
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
    for student_tap, teacher_tap in pairs:
        for side, tap, shapes in (("student", student_tap, student_shapes), ("teacher", teacher_tap, teacher_shapes)):
            if tap not in shapes:
                raise TapError(
                    f'The pair ("{student_tap}", "{teacher_tap}") reads "{tap}" of the {side}, whose shape is not '
                    f'known. The shapes given are of {in_words(shapes)}. Ask the network for it: taps=("{tap}", ...).'
                )
        names = (f'student\'s "{student_tap}"', f'teacher\'s "{teacher_tap}"')
        try:
            check_features(student_shapes[student_tap], teacher_shapes[teacher_tap], names=names)
        except ShapeError as error:
            raise ShapeError(f'The pair ("{student_tap}", "{teacher_tap}") cannot be compared. {error}') from None
