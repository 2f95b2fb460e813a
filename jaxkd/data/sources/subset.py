"""A fixed number of training images of each class, drawn by a seed: studies with few labels need no copied folders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.files import write_atomic
from jaxkd.data.sources.registry import Source, fetch_records
from jaxkd.errors import ConfigError, first_few

_SUBSET = 2  # stream of random numbers; the sampler has 0 and 1


@dataclass(frozen=True)
class Subset:
    """Some records of a source, as a `Source` of its own; record i is `records[i]` of the whole.

    Attributes:
      source: the whole.
      records: (n,) int64, ascending.
    """

    source: Source
    records: np.ndarray

    @property
    def class_counts(self) -> np.ndarray:
        """See `Source`."""
        labels = [self.source.label(int(record)) for record in self.records]
        return np.bincount(labels, minlength=len(self.source.class_names)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.records)

    def __getattr__(self, name: str) -> Any:  # class_names, class_words, exif
        return getattr(object.__getattribute__(self, "source"), name)

    def label(self, index: int) -> int:
        """See `Source`."""
        return self.source.label(int(self.records[index]))

    def name(self, index: int) -> str:
        """See `Source`: the name in the whole."""
        return self.source.name(int(self.records[index]))

    def bytes(self, index: int) -> bytes | None:
        """See `Source`."""
        return self.source.bytes(int(self.records[index]))

    def image(self, index: int) -> Any:
        """See `Source`."""
        return self.source.image(int(self.records[index]))

    def fetch(self, records: Sequence[int]) -> None:
        """See `fetch_records`."""
        fetch_records(self.source, self.records[list(records)].tolist())


def subset_membership(source: Source, per_class: int, seed: int, *, where: str = "the data") -> np.ndarray:
    """Mask of the records of `source` that belong to the subset of `per_class` images of each class.

    Each class has a permutation of its own, which depends on (seed, label, images of the class), and its first
    `per_class` images are taken: with the same seed a smaller subset lies inside a larger one, and the subset depends
    neither on the seed of the run nor on the other classes.

    Args:
      source: the whole training split.
      per_class: images of each class; 0 takes all.
      seed: of the choice.
      where: the data set's name, for the error.

    Returns:
      (records,) bool.

    Raises:
      ConfigError: a class has fewer images.
    """
    if per_class == 0:
        return np.ones(len(source), bool)
    labels = np.fromiter((source.label(i) for i in range(len(source))), np.int64, len(source))
    counts = np.bincount(labels, minlength=len(source.class_names))
    _refuse_short(source, counts, per_class, where)
    member = np.zeros(len(source), bool)
    for label in range(len(counts)):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, _SUBSET, label))))
        member[np.flatnonzero(labels == label)[rng.permutation(counts[label])[:per_class]]] = True
    return member


def check_per_class(source: Source, per_class: int, *, where: str = "the data") -> None:
    """Raises ConfigError where a class of `source` has fewer than `per_class` images; draws no subset."""
    if per_class:
        _refuse_short(source, np.asarray(source.class_counts), per_class, where)


def _refuse_short(source: Source, counts: np.ndarray, per_class: int, where: str) -> None:
    short = np.flatnonzero(counts < per_class)
    if len(short):
        some = first_few([f'"{source.class_names[label]}" {counts[label]}' for label in short], 4)
        most = f"{counts.min()} or less, or to 0" if counts.min() else "0"
        raise ConfigError(
            f"data.per_class={per_class} asks for {per_class} training images of each class, but {where} has fewer in "
            f"{len(short)} of its {len(counts)} classes: {some}. Set data.per_class to {most} for all images."
        )


def take_subset(source: Source, per_class: int, seed: int, *, where: str = "the data") -> Source:
    """`per_class` images of each class of `source`, or `source` itself for 0; see `subset_membership`."""
    if per_class == 0:
        return source
    return Subset(source, np.flatnonzero(subset_membership(source, per_class, seed, where=where)))


@dataclass(frozen=True)
class MemberSubsets(Subset):
    """The images that any member of a population learns from.

    Attributes:
      membership: (n, S) bool, whether a member learns from a record.
    """

    membership: np.ndarray


def take_member_subsets(source: Source, choices: Sequence[tuple[int, int]], *, where: str = "the data") -> Source:
    """The images that members of a population learn from; a plain subset where all have the same.

    Args:
      source: the whole training split.
      choices: (per_class, seed) of each member, see `subset_membership`.
      where: the data set's name, for errors.
    """
    if len(set(choices)) == 1:
        return take_subset(source, *choices[0], where=where)
    masks = {choice: subset_membership(source, *choice, where=where) for choice in set(choices)}
    table = np.stack([masks[choice] for choice in choices], axis=1)
    records = np.flatnonzero(table.any(axis=1))
    return MemberSubsets(source, records, table[records])


def member_images(source: Source) -> tuple[int, ...]:
    """Number of images of each member of a population; () where all have the same."""
    return tuple(source.membership.sum(axis=0).tolist()) if isinstance(source, MemberSubsets) else ()


def member_source(source: Source, index: int) -> Source:
    """The images that one member of a population learns from, as its single run has them.

    Args:
      source: of the population, as `take_member_subsets` returns it.
      index: of the member.
    """
    if not isinstance(source, MemberSubsets):
        return source
    own = source.membership[:, index]
    return source.source if own.sum() == len(source.source) else Subset(source.source, source.records[own])


def subset_facts(source: Source) -> dict[str, Any] | None:
    """Facts that a checkpoint keeps of a subset: its size and a hash of its records; None for a whole data set.

    The hash is of each record's number, label and file name without folders, so that a data set may be moved.
    """
    if not isinstance(source, Subset):
        return None
    digest = hashlib.sha256()
    for index, record in enumerate(source.records.tolist()):
        line = f"{record} {source.label(index)} {os.path.basename(source.name(index))}\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    if isinstance(source, MemberSubsets):
        digest.update(np.packbits(source.membership).tobytes())
    return {"images": len(source), "of": len(source.source), "sha256": digest.hexdigest()}


def save_subset(source: Source, path: Path) -> None:
    """Writes the facts of a subset, and the number, label and name of each of its records, as JSON."""
    rows = [[int(r), source.label(i), source.name(i)] for i, r in enumerate(source.records)]
    write_atomic(path, json.dumps({**subset_facts(source), "records": rows}))
