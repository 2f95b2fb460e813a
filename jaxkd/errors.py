"""Exceptions for user errors, and functions that write their messages.

A message has one sentence on what is wrong, with the value and where it came from, and one on what to do; the reason
only where it is not obvious. The commands print the message of a `JaxkdError` as one paragraph and exit with code 2;
any other exception is a bug in jaxkd and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

Shape = tuple[int, ...]


class JaxkdError(Exception):
    """Base class of all user errors."""


class ConfigError(JaxkdError):
    """A configuration says something that cannot be run.

    Fails: `--config.student.nmae=deit_tiny_patch16_224`. Works: `--config.student.name=deit_tiny_patch16_224`.
    """


class MemberFieldError(ConfigError):
    """Members of a population differ in a field in which they cannot; the message lists those in which they may.

    Fails: `--config.population="{'student.args.depth': (4, 6)}"`. Works: `--config.population="{'seed': (0, 1)}"`.
    """


class UnknownNameError(JaxkdError):
    """A model, preset or other registered name does not exist.

    Fails: `models.create("deit_tinny_patch16_224")`. Works: `models.create("deit_tiny_patch16_224")`.
    """


class TapError(JaxkdError):
    """The network does not have the requested feature.

    Fails: `model.apply(v, x, taps=("block_12",))` of a network with 12 blocks. Works: `taps=("block_11",)`.
    """


class ShapeError(JaxkdError):
    """Arrays or images do not have the sizes that the computation needs.

    Fails: `losses.spectral(jnp.zeros((1, 7, 7, 8)), jnp.zeros((1, 14, 14, 8)))`. Works: equal grids.
    """


class WeightMismatchError(JaxkdError):
    """A checkpoint does not fit the network; the message holds a two-sided diff of keys and shapes.

    Fails: CaiT weights into a DeiT. Works: `weights.from_timm(models.create(name), state_dict_of_that_name)`.
    """


class WeightSourceError(JaxkdError):
    """A weight file could not be found, fetched or read."""


class DataError(JaxkdError):
    """A data set is missing, empty or holds something that is not an image."""


class CheckpointError(JaxkdError):
    """A work directory or checkpoint does not belong to this run, or cannot be read."""


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint is missing or is not as it was written.

    Attributes:
      finding: the first sentence of the message: which checkpoint, and what is wrong with it.
    """

    def __init__(self, finding: str, advice: str = ""):
        super().__init__(f"{finding} {advice}".strip())
        self.finding = finding


class StorageError(JaxkdError):
    """A file or folder cannot be read or written: a full disk, a quota, no permission, a name that is not possible."""


class TopologyError(JaxkdError):
    """The batch does not divide over the devices or hosts."""


class PeerLostError(JaxkdError):
    """Another process of a distributed run ended or cannot be reached."""


class LanguageModelError(JaxkdError):
    """A language model gave no answer: it cannot be reached, refuses the request, or the prompt is too long.

    Args:
      message: for the user.
      fails: what else fails alike: "request", this request alone; "all", every further one; "perhaps", not known.
    """

    def __init__(self, message: str, *, fails: str = "perhaps"):
        super().__init__(message)
        self.fails = fails


class NonFiniteLossError(JaxkdError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


# What a file system refuses, and what to do. Other numbers, such as those of sockets and pipes, are no user errors.
_ROOM = "Free space"
_RIGHTS = "Get the permission to write there"
_NAME = "Choose another name"
STORAGE_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "Move the file or folder out of the way"),
    errno.ENAMETOOLONG: _NAME,
    errno.ELOOP: "Remove the circle of links",
    errno.ENOENT: "Put it back",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV), "Repair the disk or its connection"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Raise the limit of open files (ulimit -n)"),
}
# Errors that only a file system has; the others also come from sockets, devices and programs that do not exist.
_ONLY_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
_ONLY_STORAGE += (errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG)
# Libraries in C++ raise their own exceptions around the words of the operating system.
_STORAGE_WORDS = {
    os.strerror(number): number for number in STORAGE_ADVICE if number not in (errno.ENOENT, errno.EEXIST)
}
_OUT_OF_MEMORY = ("resource_exhausted", "out of memory", "out_of_memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or what it was raised from, says that a device or the machine has no memory left."""
    return any(
        isinstance(one, MemoryError) or any(words in str(one).lower() for words in _OUT_OF_MEMORY)
        for one in _causes(error)
    )


def storage_error(
    error: BaseException, *, path: str = "", kept: str = "What is finished stays", continues: bool = False
) -> StorageError | None:
    """The user error for what a file system refused, or None if `error` is something else.

    Args:
      error: any exception; its causes count too, and so do the words of libraries that raise no OSError.
      path: named where the error names none.
      kept: what is safe, in words.
      continues: whether the same command continues after it.
    """
    for one in _causes(error):
        text = str(one)
        if isinstance(one, OSError) and one.errno in STORAGE_ADVICE:
            number, reason, found = one.errno, os.strerror(one.errno), one.filename2 or one.filename
            named = isinstance(found, str | bytes) and (number != errno.ENOENT or os.sep in os.fsdecode(found))
            if number not in _ONLY_STORAGE and not named:
                continue  # of a socket, or a program such as nvcc
        elif isinstance(one, ValueError) and "embedded null" in text:
            number, reason, found = errno.ENAMETOOLONG, "the name holds a NUL character", None
        else:
            reason = next((words for words in _STORAGE_WORDS if words in text), "")
            if not reason:
                continue
            number, paths = _STORAGE_WORDS[reason], re.findall(r"""(?:"(/[^"]+)"|'(/[^']+)')""", text)
            found = max(paths[0]) if paths else None
            if number not in _ONLY_STORAGE and not found:
                continue
        found = os.fsdecode(found) if isinstance(found, bytes | str) else path
        where = f'"{found}"'.replace("\0", "\\0") if found else "A file"
        return StorageError(
            f"{where} cannot be read or written ({reason}). {kept}. {STORAGE_ADVICE[number]}, then run the same "
            f"command again{'; it continues' if continues else ''}."
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, what it was raised from, and so on."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__


@contextlib.contextmanager
def error_prefix(who: str) -> Iterator[None]:
    """Context in which the message of a user error begins with `who`, such as 'Stage "students": '."""
    try:
        yield
    except JaxkdError as error:
        raise type(error)(f"{who}{error}") from None


def did_you_mean(name: str, candidates: Iterable[str], *, most: int = 3) -> str:
    """Returns ' Did you mean "a" or "b"?' with the closest of `candidates`, or '' if none is close."""
    close = difflib.get_close_matches(str(name), [str(c) for c in candidates], n=most, cutoff=0.6)
    if not close:
        return ""
    return " Did you mean " + " or ".join(f'"{c}"' for c in close) + "?"


def check_range(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
    meaning: str = "",
    hint: str = "",
    error: type[JaxkdError] = ConfigError,
) -> None:
    """Raises an error unless `value` is a finite number (not a bool) within all bounds that are given.

    Args:
      name, value: as the user writes it, e.g. "data.mix.prob" or "--batch-size", and the number.
      least, most, above, below: inclusive and exclusive bounds; None for none.
      whole: whether it must be an integer.
      meaning: of the number, where its name does not say it.
      hint: added to the advice, e.g. "published recipes use 0.1".
      error: the type of the exception.
    """
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    number = number and (isinstance(value, Integral) or math.isfinite(value))  # whole numbers may be too large to float
    bounds = [
        (words, bound, fits)
        for words, bound, fits in (
            ("at least", least, operator.ge),
            ("above", above, operator.gt),
            ("at most", most, operator.le),
            ("below", below, operator.lt),
        )
        if bound is not None
    ]
    if not number or not all(fits(value, bound) for _, bound, fits in bounds):
        span = " and ".join(f"{words} {bound:g}" for words, bound, _ in bounds)
        raise error(
            f"{name}={value!r} is out of range. {f'It is {meaning}. ' if meaning else ''}Give a "
            f"{'whole ' if whole else ''}number{', ' if span else ''}{span}{'; ' if hint else ''}{hint}."
        )


def check_choice(
    name: str, value: Any, choices: Iterable[Any], *, hint: str = "", error: type[JaxkdError] = ConfigError
) -> None:
    """Raises an error that lists `choices` unless `value` is one of them.

    Args:
      name, value: as the user writes it, e.g. "data.mix.mode" or "--format", and what was given.
      choices: all that is possible; an empty text is possible, but is not listed.
      hint, error: as in `check_range`.
    """
    choices = tuple(choices)
    if not any(type(value) is type(c) and value == c for c in choices):
        listed = [c for c in choices if c != ""]
        raise error(
            f"{name}={_quoted(value)} is not possible.{did_you_mean(value, listed)} Use one of: "
            f"{', '.join(map(_quoted, listed))}{'; ' if hint else ''}{hint}."
        )


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def printable(value: Any) -> Any:
    """Texts as UTF-8 can hold them: bytes of file names that are no UTF-8, which Python keeps as surrogates, become
    "\ufffd". Of dicts, lists and tuples, those inside.
    """
    if isinstance(value, dict):
        return {printable(k): printable(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(printable, value))
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(value, str) else value


def first_few(names: Sequence[str], most: int) -> str:
    """'a, b, ...': the first `most` of `names`, and dots for the others."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def in_words(names: Iterable[str]) -> str:
    """'block_0 ... block_11, prefix_0 ... prefix_11, pre_logits': numbered names in few words; 'nothing' for none."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    return ", ".join(g[0] if len(g) == 1 else f"{g[0]} ... {g[-1]}" for g in groups.values()) or "nothing"


def key_diff(expected: Mapping[str, Shape], given: Mapping[str, Shape], *, most: int = 40) -> str:
    """Two-sided diff of named shapes; '' when both sides agree.

    Args:
      expected: name -> shape that the network has.
      given: name -> shape that the file holds.
      most: how many lines of each kind are written out before they are only counted.

    Returns:
      Lines `- name shape` (the network has it, the file has not), `+ name shape` (the file has it, the network has not)
      and `! name: network shape, file shape`.
    """
    groups = {
        "missing from the file": [f"  - {k} {tuple(expected[k])}" for k in expected if k not in given],
        "unused by the network": [f"  + {k} {tuple(given[k])}" for k in given if k not in expected],
        "of another shape": [
            f"  ! {k}: network {tuple(expected[k])}, file {tuple(given[k])}"
            for k in expected
            if k in given and tuple(expected[k]) != tuple(given[k])
        ],
    }
    lines: list[str] = []
    for title, rows in groups.items():
        if rows:
            lines.append(f"{len(rows)} {title}:")
            lines.extend(rows[:most])
            if len(rows) > most:
                lines.append(f"  ... and {len(rows) - most} more")
    return "\n".join(lines)
