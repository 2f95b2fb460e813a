"""Training, development and test readings of an EEG corpus, divided by text, by subject and text, or as published."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxkd.errors import ConfigError, DataError, check_choice, did_you_mean

SPLITS = ("text", "cross_subject", "published")
SHARES = (0.8, 0.1, 0.1)  # of training, development and test


@dataclass(frozen=True)
class Split:
    """Numbers of the readings of each part, in increasing order, and the group of each reading's text.

    Attributes:
      name: of `SPLITS`.
      train, dev, test: (n,) indices of readings.
      group: (R,) group of the text of each reading; `language.texts.group_texts`.
      leave_out: the test subject of "cross_subject", else "".
    """

    name: str
    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray
    group: np.ndarray
    leave_out: str = ""

    def parts(self) -> dict[str, np.ndarray]:
        """{"train": indices, "dev": ..., "test": ...}."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


def split_readings(
    name: str,
    *,
    group: np.ndarray,
    stratum: Sequence[str],
    subject: Sequence[str],
    index: np.ndarray,
    seed: int = 0,
    leave_out: str = "",
) -> Split:
    """Divides readings into training, development and test.

    "text": every subject's reading of a text goes with the text; groups 80 / 10 / 10 within each stratum. Our choice.
    "cross_subject": as "text", and the test readings are those of one subject, who reads nothing of the other parts.
    That is the criterion of arXiv 2312.10987: neither the test subject nor the test texts are seen in training.
    "published": the first 80 %, next 10 % and last 10 % of the places in each stratum's file, as the public code of
    EEG-To-Text (Wang & Ji, 2022) divides them. Repeated sentences then stand in several parts; see `find_leaks`.

    Args:
      name: of `SPLITS`.
      group: (R,) number of the text of each reading.
      stratum: (R,) corpus and task of each reading; a group that stands in several belongs to its first reading's.
      subject: (R,) who read.
      index: (R,) place of the sentence in its file.
      seed: of the order of groups.
      leave_out: test subject of "cross_subject"; "" is the alphabetically first.

    Raises:
      ConfigError: an unknown split or subject, or a subject with another split than "cross_subject".
      DataError: a part would be empty.
    """
    check_choice("eeg.split", name, SPLITS)
    group, reader = np.asarray(group), np.asarray(subject)
    if leave_out and name != "cross_subject":
        raise ConfigError(
            f'The subject "{leave_out}" is to be left out, but the split is "{name}". Choose the split "cross_subject".'
        )
    part = _published_parts(stratum, index) if name == "published" else _group_parts(group, stratum, seed)[group]
    if name == "cross_subject":
        names = sorted(set(reader.tolist()))
        leave_out = leave_out or names[0]
        if leave_out not in names:
            raise ConfigError(
                f'Nobody called "{leave_out}" is among the subjects.{did_you_mean(leave_out, names)} '
                f"Choose one of {', '.join(names)}."
            )
        own = reader == leave_out
        part = np.where((part == 2) == own, part, -1)
    train, dev, test = (np.flatnonzero(part == p) for p in range(3))
    for label, chosen in (("training", train), ("development", dev), ("test", test)):
        if not len(chosen):
            raise DataError(
                f'The split "{name}" of {len(group)} readings of {len(set(group.tolist()))} texts leaves no {label} '
                "readings. Give more sentences or subjects, or choose another split."
            )
    return Split(name, train, dev, test, group, leave_out)


def _published_parts(stratum: Sequence[str], index: np.ndarray) -> np.ndarray:
    """(R,) 0 training, 1 development, 2 test, by the place in the file."""
    index, strata = np.asarray(index), np.asarray(stratum)
    part = np.zeros(len(index), np.int32)
    for name in set(strata.tolist()):
        own = strata == name
        count = int(index[own].max()) + 1
        bounds = [int(SHARES[0] * count), int(SHARES[0] * count) + int(SHARES[1] * count)]
        part[own] = np.searchsorted(bounds, index[own], side="right")
    return part


def _group_parts(group: np.ndarray, stratum: Sequence[str], seed: int) -> np.ndarray:
    """(G,) the same of each group, drawn within its stratum."""
    first: dict[int, str] = {}
    for number, name in zip(group.tolist(), stratum, strict=True):
        first.setdefault(number, str(name))
    members = defaultdict(list)
    for number in sorted(first):
        members[first[number]].append(number)
    part = np.zeros(int(group.max()) + 1, np.int32)
    rng = np.random.default_rng(seed)
    for name in sorted(members):
        order = rng.permutation(members[name])
        held_out = round(SHARES[1] * len(order)), round(SHARES[2] * len(order))
        part[order[: held_out[0]]] = 1
        part[order[held_out[0] : sum(held_out)]] = 2
    return part
