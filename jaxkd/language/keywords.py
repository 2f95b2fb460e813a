"""Keyword vocabulary of the training texts: the fixed set of semantic anchors that EEG words are matched with."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.errors import DataError, check_range

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
SHORTEST = 3  # letters


@dataclass(frozen=True)
class Vocabulary:
    """Keywords of training texts, the most frequent first.

    The class of a word outside of it is `null`, one more than the last keyword's: a decoder can say that a place holds
    no keyword.

    Attributes:
      words: (K,) keywords in lower case.
      texts: (K,) number of distinct training texts that hold each.
      text_count: number of distinct training texts.
      min_texts, size: the settings it was made with.
    """

    words: tuple[str, ...]
    texts: tuple[int, ...]
    text_count: int
    min_texts: int = 3
    size: int = 0

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @property
    def null(self) -> int:
        """Class of words outside of the vocabulary."""
        return len(self.words)

    @cached_property
    def idf(self) -> np.ndarray:
        """(K,) float64, ln((1 + n) / (1 + df)) + 1, the smooth inverse document frequency of scikit-learn."""
        return np.log((1 + self.text_count) / (1 + np.asarray(self.texts, np.float64))) + 1

    @cached_property
    def hash(self) -> str:
        """SHA-256 of words and counts, kept beside trained weights."""
        return hashlib.sha256(json.dumps(self._content()).encode()).hexdigest()

    def classes(self, words: Sequence[str]) -> np.ndarray:
        """(n,) int32 class of each word as it stands in a text, such as "Company,"; `null` for other words."""
        found = np.full(len(words), self.null, np.int32)
        for i, word in enumerate(words):
            found[i] = next((self._number[t] for t in tokens(word) if t in self._number), self.null)
        return found

    def anchors(self, text: str, k: int | None = None) -> list[str]:
        """Gold anchors of a sentence: its `k` keywords of largest tf-idf (ties: earlier) in the order of the text."""
        found = tokens(text)
        counts = Counter(t for t in found if t in self._number)
        first = {t: found.index(t) for t in counts}
        best = sorted(counts, key=lambda t: (-counts[t] * self.idf[self._number[t]], first[t]))[:k]
        return sorted(best, key=first.__getitem__)

    def indices(self, words: Sequence[str]) -> np.ndarray:
        """(n,) int32 numbers of keywords, which must be in the vocabulary."""
        return np.array([self._number[word] for word in words], np.int32)

    def as_dict(self) -> dict[str, Any]:
        """Words, counts, settings and their hash, for a JSON file; `read_vocabulary` reads it."""
        return {**self._content(), "hash": self.hash}

    def _content(self) -> dict[str, Any]:
        return {
            "words": list(self.words),
            "texts": list(self.texts),
            "text_count": self.text_count,
            "min_texts": self.min_texts,
            "size": self.size,
        }


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a JSON file of `Vocabulary.as_dict`; one without a hash is of an earlier version.

    Raises:
      DataError: the file cannot be read, or its words and counts are not those that its hash was made of.
    """
    try:
        values = json.loads(path.read_text())
        lists: dict[str, Any] = {k: tuple(values[k]) for k in ("words", "texts")}
        found = Vocabulary(**lists | {k: int(values[k]) for k in ("text_count", "min_texts", "size")})
        kept = values.get("hash", found.hash)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'"{path}" cannot be read as the keywords of a run ({type(error).__name__}: {error}). Restore the file, or '
            "train again."
        ) from None
    if kept != found.hash:
        raise DataError(
            f'"{path}" was changed after it was written: its keywords do not have the hash that stands in it. Restore '
            "the file, or train again."
        )
    return found


def tokens(text: str) -> list[str]:
    """Words of letters a-z with at most one apostrophe inside, in lower case and in order."""
    return WORD.findall(text.lower())


def build_vocabulary(texts: Sequence[str], *, min_texts: int = 3, size: int = 0) -> Vocabulary:
    """Keywords of distinct training texts: no stop words (scikit-learn's 318), three letters or more. Our choice.

    Args:
      texts: one sentence of each training group; a sentence that is read by several people stands here once.
      min_texts: a keyword is in at least so many texts.
      size: number of keywords, the most frequent; 0 keeps all.

    Returns:
      The vocabulary, sorted by the number of texts, ties by alphabet.

    Raises:
      ConfigError: a number below its least value.
      DataError: no word is in so many texts.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    check_range("eeg.min_texts", min_texts, least=1, whole=True)
    check_range("eeg.keywords", size, least=0, whole=True, hint="0 keeps all")
    held = Counter(word for text in texts for word in set(tokens(text)))
    kept = [w for w, n in held.items() if n >= min_texts and len(w) >= SHORTEST and w not in ENGLISH_STOP_WORDS]
    words = sorted(kept, key=lambda w: (-held[w], w))[: size or None]
    if not words:
        raise DataError(
            f"No keyword is in {min_texts} of the {len(texts)} training texts. Lower eeg.min_texts, or give more texts."
        )
    return Vocabulary(tuple(words), tuple(held[w] for w in words), len(texts), min_texts, size)
