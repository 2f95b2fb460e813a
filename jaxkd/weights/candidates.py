"""The state dict in a training checkpoint that fits a network, under any container name and any prefix.

A candidate is a container of the file ("state_dict", "model_ema", ...) and a prefix of its names ("module.", "net.",
"backbone.", ...) behind which the names of the network are found. Of several that fit, `variant` chooses between raw
weights and a moving average; the log says which was taken and how to choose.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jaxkd.errors import ConfigError, Shape, WeightSourceError, did_you_mean, first_few
from jaxkd.weights.formats import State, to_timm_names
from jaxkd.weights.pickles import Unreadable
from jaxkd.weights.readers import Nested
from jaxkd.weights.rules import BUFFERS, COLOUR_SHIFT, HEAD, is_resizable

VARIANTS = ("raw", "ema")
BASICSR = ("params", "params_ema")

# Customary names of the network's container, in the order in which they are taken where two hold raw weights.
_FIRST = ("state_dict", "model", "student", "params", "model_state_dict", "module", "net", "network", "weights")

# A part of a container's name or prefix that says that it holds a moving average.
_EMA = re.compile(r"(?:^|_)(?:ema|swa)\d*(?:_|$)|^(?:momentum|target|averaged|shadow)_", re.I)

# One that says so only beside a student of the same shapes (DINO, Mean Teacher); the teacher of a distillation is
# another network.
_TEACHER = re.compile(r"(?:^|\.)teacher(?=[_.]|$)", re.I)

# Containers of a trainer's state, whose arrays are no weights though they may have the weights' names: whole words,
# also in camelCase, so that "upscaler" and "upgraded_model" are none of them.
_TRAINER_STATE = re.compile(
    r"(?:^|[^A-Za-z]|(?<=[a-z])(?=[A-Z]))"
    r"(?i:optim(?:i[sz]er)?s?|exp_avgs?|sched(?:uler)?s?|lrscheduler|(?:grad)?scalers?|grad(?:ient)?s?)"
    r"(?=[^A-Za-z]|[A-Z]|$)"
)

# Parts of a network that only pre-training needs; beside a backbone that fits they are left out and named.
_PRETRAINING = re.compile(
    r"^(?:mask_token|mask_embed|decoder\w*|project(?:or|ion)\w*|proj_head|predict(?:or|ion)\w*|prototypes?|queue\w*|"
    r"(?!head_)\w+_head|center|logit_scale|temperature|pooler|neck|head\.(?:mlp|last_layer|layers|project\w*|\d+))(?:\.|$)"
)

# What a Lift has beside its DeiT ("base."). That DeiT has a norm and a classifier of its own, which never train.
_LIFT = re.compile(r"^(?:projector|projector_norm|projectors\.\d+|projector_norms\.\d+)\.(?:weight|bias)$")

_log = logging.getLogger(__name__)


@dataclass
class Candidate:
    """Arrays of a file that may be a network's.

    Attributes:
      label: container and prefix, e.g. "state_dict.model"; "" for the file itself.
      is_ema: whether the label says that they are a moving average.
      state: name -> array, the names as the network's.
      left_out: names beside the network's.
      misfits: how many names or shapes differ from the network's, but for its classifier and what `resize` changes.
      replaceable: how many arrays of its classifier, or that `resize` changes, are absent or of another shape.
    """

    label: str
    is_ema: bool
    state: State
    left_out: list[str]
    misfits: int
    replaceable: int

    @property
    def description(self) -> str:
        """`"params_ema", the moving average of the weights`, or "" for a file that holds one set of weights."""
        kind = "moving average of the weights" if self.is_ema else "raw weights"
        return f'"{self.label}", the {kind}' if self.label else ""


def choose(content: Nested, expected: Mapping[str, Shape], variant: str | None, origin: str) -> Candidate:
    """The candidate of a checkpoint that fits a network and is of the variant that `variant` names.

    Args:
      content: what `readers.read` gave.
      expected: the network's names and shapes in PyTorch's layout.
      variant: "raw", "ema" (the moving average of the weights), or None: where there are both, the raw ones, but of
        BasicSR's `params` and `params_ema` the average, which is what BasicSR itself validates; the log then says so.
      origin: the checkpoint's name in messages.

    Returns:
      The best candidate; where none fits, the one with the fewest differences.

    Raises:
      ConfigError: another variant.
      WeightSourceError: the checkpoint holds no such variant, or no weights at all.
    """
    if variant not in (None, *VARIANTS):
        raise ConfigError(
            f'variant="{variant}" does not exist.{did_you_mean(variant, VARIANTS)} Use "raw", "ema" or None.'
        )
    unnamed = _unnamed_average(content)
    found = [c for path, arrays in _levels(content) for c in _candidates(path, arrays, expected)]
    if not found:
        raise WeightSourceError(
            f'"{origin}" holds no weights: its top level is {first_few(list(content), 8) or "empty"}. They are looked '
            "for there and in every container inside. " + (unnamed or "Save the network's state_dict().")
        )
    most = max(len(c.state.keys() & expected.keys()) for c in found)
    found = [c for c in found if 2 * len(c.state.keys() & expected.keys()) >= most]
    _mark_teachers(found)
    # Where no name is the network's, the container with most arrays is the network that the file was made for.
    found.sort(key=(lambda c: (c.misfits, c.replaceable, _rank(c))) if most else (lambda c: (-len(c.state), _rank(c))))
    found_of_variant = [c for c in found if variant is None or c.is_ema == (variant == "ema")]
    if not found_of_variant:
        meant = "moving average of the weights" if variant == "ema" else "raw weights beside the moving average"
        held = [c.label or "one set of weights" for c in found]
        raise WeightSourceError(
            f'variant="{variant}", but "{origin}" holds no {meant}: there is only {", ".join(held)}. '
            f"{unnamed or 'Leave variant out to load it.'}"
        )
    fitting = [c for c in found_of_variant if not c.misfits]
    pool = [c for c in fitting if not c.replaceable] or fitting or found_of_variant
    by_kind = {kind: [c for c in pool if c.is_ema == (kind == "ema")] for kind in VARIANTS}
    is_basicsr = tuple(c[0].label for c in by_kind.values() if c) == BASICSR
    chosen = by_kind["ema"] if is_basicsr or not by_kind["raw"] else by_kind["raw"]
    best = chosen[0]
    if not best.misfits:
        _log_choice(best, chosen, by_kind, variant, origin)
        if unnamed and variant is None:
            _log.warning('"%s": %s was taken. %s', origin, best.description or "the set of weights with names", unnamed)
    return best


def _unnamed_average(content: Nested, depth: int = 3) -> str:
    """Sentences on a moving average that torch-ema (and trainers after it) saved as a list without names, or ""."""
    if isinstance(content.get("shadow_params"), list):
        return (
            f'Its "shadow_params" are a moving average in a list of {len(content["shadow_params"])} arrays without '
            "names, which only the program that wrote it can tell apart. Save them there as a network: "
            'shadow.copy_to(model.parameters()); torch.save(model.state_dict(), "averaged.pth").'
        )
    inside = (v for v in content.values() if isinstance(v, dict) and depth)
    return next(filter(None, (_unnamed_average(v, depth - 1) for v in inside)), "")


def _mark_teachers(found: list[Candidate]) -> None:
    """Marks each teacher that has the arrays of a student, in name and shape, as a moving average."""
    shapes = [{name: tuple(array.shape) for name, array in c.state.items()}.items() for c in found]
    students = [s for c, s in zip(found, shapes, strict=True) if re.search(r"(?:^|\.)student(?=[_.]|$)", c.label, re.I)]
    for candidate, own in zip(found, shapes, strict=True):
        if _TEACHER.search(candidate.label) and any(own <= student for student in students):
            candidate.is_ema = True


def _rank(candidate: Candidate) -> int:
    """Position of a candidate's container among the customary ones; the file itself comes first."""
    container = candidate.label.split(".")[0]
    return -1 if not container else _FIRST.index(container) if container in _FIRST else len(_FIRST)


def _log_choice(
    best: Candidate, chosen: list[Candidate], by_kind: dict[str, list[Candidate]], variant: str | None, origin: str
) -> None:
    """Logs which of several candidates was taken, and what was left out of it."""
    if variant is None and by_kind["raw"] and by_kind["ema"]:
        _log.warning(
            '"%s" holds raw weights ("%s") and their moving average ("%s"); the %s taken. '
            'Say variant="ema" or variant="raw" to choose.',
            origin,
            by_kind["raw"][0].label,
            by_kind["ema"][0].label,
            "average was" if best.is_ema else "raw ones were",
        )
    elif variant is None and best.is_ema:
        _log.warning('"%s" holds only a moving average ("%s") that fits, which was taken.', origin, best.label)
    rivals = [c for c in chosen[1:] if (c.misfits, c.replaceable) == (0, best.replaceable)]
    others = [c for c in rivals if not _same(c.state, best.state)]
    if others:
        _log.warning(
            '"%s" holds several sets of weights that fit: "%s" was taken and not %s. To take another, save it alone.',
            origin,
            best.label,
            ", ".join(f'"{c.label}"' for c in others),
        )
    if best.left_out:
        # The pattern matches any text.
        groups = Counter(re.match(r"(?:head\.)?[^.]*", name)[0] for name in best.left_out)  # type: ignore[index]
        _log.warning(
            '"%s" also holds arrays that do not belong to the network and were left out: %s.',
            origin,
            ", ".join(f"{name} ({count})" for name, count in list(groups.items())[:8]),
        )


def _same(a: State, b: State) -> bool:
    return all(name in b and np.array_equal(array, b[name]) for name, array in a.items())


def _levels(content: Nested, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """(names of the containers, arrays) of every dict of a checkpoint that holds arrays."""
    arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray | Unreadable)}
    if arrays:
        yield path, arrays
    for name, value in content.items():
        if isinstance(value, dict) and not _TRAINER_STATE.search(name):
            yield from _levels(value, (*path, name))


def _candidates(path: tuple[str, ...], arrays: State, expected: Mapping[str, Shape]) -> list[Candidate]:
    """The candidates of one container: one for each prefix behind which the network's names begin."""
    averaged = _averaged(arrays)
    state = to_timm_names({name: array for name, array in arrays.items() if not BUFFERS.search(name)})
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        counts.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in expected)
    counts = Counter({prefix: n for prefix, n in counts.items() if not _TRAINER_STATE.search(prefix)})
    most = max(counts.values(), default=0)
    prefixes = [prefix for prefix, n in counts.items() if 2 * n >= most] or [""]
    return [_candidate(path, prefix, prefixes, state, expected, averaged) for prefix in prefixes]


def _averaged(arrays: State) -> set[int]:
    """`id` of the arrays of every `torch.optim.swa_utils.AveragedModel`, which counts its updates in `n_averaged`."""
    averaged = set()
    for counter in (name for name in arrays if name.rpartition(".")[2] == "n_averaged"):
        parent = counter.removesuffix("n_averaged")
        inside = [n for n in arrays if n.startswith(f"{parent}module.")] or [n for n in arrays if n.startswith(parent)]
        averaged |= {id(arrays[name]) for name in inside}
    return averaged


def _candidate(
    path: tuple[str, ...],
    prefix: str,
    prefixes: list[str],
    state: State,
    expected: Mapping[str, Shape],
    averaged: set[int],
) -> Candidate:
    """The arrays behind `prefix`, with a classifier that stands before it, and how they differ from the network's."""
    others = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
    own = {
        n.removeprefix(prefix): a
        for n, a in state.items()
        if n.startswith(prefix) and not (others and n.startswith(others))
    }
    outside = {n for n in state if not n.startswith(tuple(prefixes))}
    parts = prefix.split(".")[:-1]
    for name in [n for n in expected if n not in own]:
        for i in range(len(parts) - 1, -1, -1):  # {"backbone.blocks...": ..., "head.weight": ...}
            above = ".".join([*parts[:i], name])
            if above in outside:
                own[name] = state[above]
                outside.discard(above)
                break
    lifts = _projectors_of_lift(prefix, state, outside)
    own |= lifts
    outside -= {prefix.removesuffix("base.") + n for n in lifts}
    extra = [n for n in own if n not in expected and n not in COLOUR_SHIFT and not HEAD.match(n)]
    is_lift = bool(lifts) or any(_LIFT.match(n) for n in expected)
    left_out = [n for n in extra if _PRETRAINING.match(n) and not (is_lift and _LIFT.match(n))]
    wrong = [
        n
        for n, shape in expected.items()
        if not HEAD.match(n) and (n not in own or (tuple(own[n].shape) != tuple(shape) and not is_resizable(n)))
    ]
    replaceable = [n for n, shape in expected.items() if n not in own or tuple(own[n].shape) != tuple(shape)]
    words = [*path, *parts]
    # Most of them, because some arrays of another format are new ones and some may be shared with the raw weights.
    is_averaged = 2 * sum(id(array) in averaged for array in own.values()) > len(own)
    return Candidate(
        label=".".join(words),
        is_ema=is_averaged or any(_EMA.search(word) for word in words),
        state={n: a for n, a in own.items() if n not in left_out},
        left_out=[*left_out, *sorted(outside)],
        misfits=len(extra) - len(left_out) + len(wrong),
        replaceable=len(set(replaceable) - set(wrong)),
    )


def _projectors_of_lift(prefix: str, state: State, outside: set[str]) -> State:
    """The projectors of a Lift whose DeiT stands behind `prefix`, which would load as a plain DeiT without them.

    A Lift whose classifier was left out is one too. Its projector has no bias, unlike one of pre-training.
    """
    if prefix.split(".")[-2:] != ["base", ""]:
        return {}
    beside = prefix.removesuffix("base.")
    found = {n.removeprefix(beside): state[n] for n in outside if _LIFT.match(n.removeprefix(beside))}
    has_bias = any(n.startswith("projector") and "norm" not in n and n.endswith(".bias") for n in found)
    is_lift = f"{beside}head.weight" in outside or any("norm" in n for n in found) or not has_bias
    return found if is_lift else {}


def require_numbers(state: State, expected: Mapping[str, Shape], subject: str) -> State:
    """`state`, whose other arrays have shapes alone where they cannot be read.

    Raises:
      WeightSourceError: an array that the network expects holds no floating-point numbers.
    """
    for name in (n for n in state if n in expected):
        value = state[name]
        reason = value.reason if isinstance(value, Unreadable) else ""
        if isinstance(value, np.ndarray) and value.dtype.kind != "f":
            reason = f"has the type {value.dtype.name}, and weights are floating-point numbers"
        if reason:
            raise WeightSourceError(
                f'{subject} cannot be used: the tensor "{name}" {reason}. Save the weights as float32, float16 or '
                "bfloat16."
            )
    unreadable = {n: np.broadcast_to(np.float32(0), a.shape) for n, a in state.items() if isinstance(a, Unreadable)}
    return state | unreadable
