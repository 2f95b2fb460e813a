"""What jaxkd raises when the user can mend it, and the words for it.

Every message here is written for somebody who has never seen the code: one sentence of *what* (with the value and where
it came from), one of *why*, one of *what to do*. The command-line programs print the message of a `JaxkdError` as one
paragraph and exit with code 2; anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]


class JaxkdError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(JaxkdError):
    """A configuration says something that cannot be run.

    Fails: `--config.student.nmae=deit_tiny_patch16_224`. Works: `--config.student.name=deit_tiny_patch16_224`.
    """


class UnknownNameError(JaxkdError):
    """A model, preset or other registered name does not exist.

    Fails: `models.create("deit_tinny_patch16_224")`. Works: `models.create("deit_tiny_patch16_224")`.
    """


class TapError(JaxkdError):
    """A feature was asked for that the network does not have.

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


class TopologyError(JaxkdError):
    """The batch does not divide over the devices or hosts."""


class NonFiniteLossError(JaxkdError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


def did_you_mean(name: str, candidates: Iterable[str], *, most: int = 3) -> str:
    """' Did you mean "a" or "b"?' with the nearest of `candidates`, or '' if none is near."""
    close = difflib.get_close_matches(str(name), [str(c) for c in candidates], n=most, cutoff=0.6)
    if not close:
        return ""
    return " Did you mean " + " or ".join(f'"{c}"' for c in close) + "?"


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
