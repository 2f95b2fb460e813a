"""Leaks between the parts of a split: shared texts, shared subjects, and statistics fitted outside of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from jaxkd.errors import DataError
from jaxkd.language.splits import Split
from jaxkd.language.texts import group_texts, normalize

PAIRS = (("train", "dev"), ("train", "test"), ("dev", "test"))


@dataclass(frozen=True)
class LeakReport:
    """Counts of what stands in two parts of a split; see `find_leaks`.

    Attributes:
      split: name of the split.
      readings, texts, subjects: {part: count}; texts are distinct normalised ones.
      shared_texts: {"train & test": distinct normalised texts in both, ...}.
      shared_near_duplicates: the same of groups of nearly equal texts, without those that share an equal text.
      shared_subjects: the same of subjects. A leak only between training and test of "cross_subject".
      fitted_outside: {what was fitted: readings outside of the training part that it used}.
      leaks: sentences, one of each leak; () for a clean split.
    """

    split: str
    readings: dict[str, int]
    texts: dict[str, int]
    subjects: dict[str, int]
    shared_texts: dict[str, int]
    shared_near_duplicates: dict[str, int]
    shared_subjects: dict[str, int]
    fitted_outside: dict[str, int] = field(default_factory=dict)
    leaks: tuple[str, ...] = ()

    def as_dict(self) -> dict:
        """For `leaks.json`."""
        return asdict(self)

    def require_clean(self, *, allow: bool = False) -> None:
        """Raises DataError with the leaks, unless they are allowed or there are none."""
        if self.leaks and not allow:
            raise DataError(
                f'The split "{self.split}" leaks: {"; ".join(self.leaks)}. Choose the split "text" or "cross_subject", '
                "or allow leaks (--config.eeg.allow_leaks=True, --allow-leaks) to compare with published numbers."
            )


def find_leaks(
    split: Split,
    texts: Sequence[str],
    subjects: Sequence[str],
    *,
    fitted: Mapping[str, np.ndarray] | None = None,
) -> LeakReport:
    """Counts what two parts of a split share.

    Args:
      split: the parts.
      texts: (R,) sentence of each reading.
      subjects: (R,) who read it.
      fitted: {"vocabulary": indices of the readings it was made of, "standardisation": ...}; of these only training
        readings may be used.

    Returns:
      The report; `require_clean` raises where something leaks.
    """
    who = np.asarray(subjects)
    names = np.array([normalize(t) for t in texts], object)
    near = group_texts(texts)
    parts = split.parts()
    exact = {p: set(names[i]) for p, i in parts.items()}
    joined = {p: set(near[i].tolist()) for p, i in parts.items()}
    readers = {p: set(who[i].tolist()) for p, i in parts.items()}
    group_of = dict(zip(names, near.tolist(), strict=True))
    shared, similar, people = {}, {}, {}
    for a, b in PAIRS:
        both = exact[a] & exact[b]
        shared[f"{a} & {b}"] = len(both)
        similar[f"{a} & {b}"] = len((joined[a] & joined[b]) - {group_of[name] for name in both})
        people[f"{a} & {b}"] = len(readers[a] & readers[b])
    outside = {name: len(np.setdiff1d(used, split.train)) for name, used in (fitted or {}).items()}
    leaks = [f"{n} texts are in {pair}" for pair, n in shared.items() if n]
    leaks += [f"{n} texts in {pair} differ in a word or two" for pair, n in similar.items() if n]
    if split.name == "cross_subject":
        leaks += [f"{n} subjects are in {pair}" for pair, n in people.items() if n and pair.endswith("test")]
    leaks += [f"the {name} was made of {n} readings outside of the training part" for name, n in outside.items() if n]
    return LeakReport(
        split=split.name,
        readings={p: len(i) for p, i in parts.items()},
        texts={p: len(v) for p, v in exact.items()},
        subjects={p: len(v) for p, v in readers.items()},
        shared_texts=shared,
        shared_near_duplicates=similar,
        shared_subjects=people,
        fitted_outside=outside,
        leaks=tuple(leaks),
    )
