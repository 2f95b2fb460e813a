"""Sentences as keys: normalised texts, groups of equal and nearly equal ones, and how many two sets share."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from jaxkd.errors import check_range

SIMILARITY = 0.8  # share of common words from which two sentences count as one; our choice


def normalize(text: str) -> str:
    """Runs of letters a-z and digits in lower case, joined by blanks, after Unicode's NFKC; what makes texts equal."""
    return " ".join(re.findall("[a-z0-9]+", unicodedata.normalize("NFKC", text).lower()))


def group_texts(texts: Sequence[str], *, similarity: float | None = SIMILARITY) -> np.ndarray:
    """Numbers equal sentences alike.

    The 1,888 sentences of ZuCo 1.0 and 2.0 are 1,563 distinct ones, and 9 pairs of these differ in a letter or two.

    Args:
      texts: R sentences.
      similarity: groups are joined, also in a chain, where the sets of words share at least this part of their union
        (Jaccard); None joins only equal normalised texts.

    Returns:
      (R,) int32 group numbers from 0, in the order in which groups first appear.

    Raises:
      ConfigError: a similarity that is not in (0, 1].
    """
    names = [normalize(text) for text in texts]
    distinct = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(distinct)}
    root = {name: name for name in distinct}
    if similarity is not None:
        check_range("similarity", similarity, above=0, most=1)
        for a, b in _similar(distinct, similarity):
            first, second = sorted((_find(root, a), _find(root, b)), key=place.__getitem__)
            root[second] = first
    number: dict[str, int] = {}
    return np.array([number.setdefault(_find(root, name), len(number)) for name in names], np.int32)


def shared_texts(texts: Sequence[str], sources: Sequence[str]) -> dict[tuple[str, str], int]:
    """Number of distinct normalised texts that each pair of sources has in common.

    Args:
      texts: R sentences.
      sources: R names, such as corpus and task.

    Returns:
      {(source, source): count} for all pairs of sources in alphabetical order.
    """
    held = defaultdict(set)
    for text, source in zip(texts, sources, strict=True):
        held[source].add(normalize(text))
    return {(a, b): len(held[a] & held[b]) for a, b in itertools.combinations(sorted(held), 2)}


def _find(root: dict[str, str], name: str) -> str:
    while root[name] != name:
        name = root[name]
    return name


def _similar(names: Sequence[str], similarity: float) -> list[tuple[str, str]]:
    """Pairs of normalised texts whose sets of words share `similarity` of their union."""
    words = [set(name.split()) for name in names]
    count = Counter(word for own in words for word in own)
    holders: dict[str, list[int]] = defaultdict(list)
    pairs = []
    for i, own in enumerate(words):
        rare_first = sorted(own, key=lambda word: (count[word], word))
        # Sets that share so much have a word in common among as many of their rarest.
        rare = rare_first[: len(own) - math.ceil(similarity * len(own)) + 1]
        for j in sorted({j for word in rare for j in holders[word]}):
            if len(own & words[j]) >= similarity * len(own | words[j]):
                pairs.append((names[j], names[i]))
        for word in rare:
            holders[word].append(i)
    return pairs
