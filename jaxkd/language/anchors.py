"""Ordered semantic anchors from per-word class probabilities, and how well candidate sentences agree with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxkd.errors import ShapeError, check_choice
from jaxkd.language.keywords import Vocabulary, tokens
from jaxkd.language.vectors import WordVectors

WEIGHTINGS = ("equal", "certainty")
POWER = 4.0  # of the cosine between an anchor and a word: near 1 only for nearly the same word


class Anchor(NamedTuple):
    """A keyword that was decoded at a place of a sentence.

    Attributes:
      place: of the EEG word, from 0.
      word: number of the keyword.
      certainty: its log-probability, at most 0.
    """

    place: int
    word: int
    certainty: float


def decode_anchors(
    logits: np.ndarray, where: np.ndarray | None = None, *, k: int | None = None, null: bool = True
) -> list[Anchor]:
    """The `k` most certain keywords of a sentence, each once, in reading order. Our reading of arXiv 2604.16370.

    At each place the best keyword, never the null class, stands with its log-probability; places are taken in order of
    certainty (ties: earlier), and a keyword that was taken already is skipped.

    Args:
      logits: (W, K + 1) of the words' classes, the null class last; (W, K) with null=False.
      where: (W,) bool, False for padding; None for all.
      k: number of anchors; None for all.
      null: whether the last class is the null class.

    Raises:
      ShapeError: logits that are no matrix.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2:
        raise ShapeError(f"The logits have shape {logits.shape}, but must be (words, classes).")
    highest = logits.max(axis=1, keepdims=True)
    log_probability = logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
    if null:
        log_probability = log_probability[:, :-1]
    word = log_probability.argmax(axis=1)
    certainty = log_probability.max(axis=1)
    places = np.arange(len(word)) if where is None else np.flatnonzero(where)
    taken: dict[int, Anchor] = {}
    for place in places[np.argsort(-certainty[places], kind="stable")].tolist():
        taken.setdefault(int(word[place]), Anchor(place, int(word[place]), float(certainty[place])))
    return sorted(list(taken.values())[:k])


class CandidateScorer:
    """Scores of candidate sentences for anchors: sum over anchors of idf x max over words of max(0, cosine)^power.

    Args:
      vocabulary: whose keywords the anchors are.
      vectors: of keywords and words; cosine 1 is the same word.
      texts: C candidate sentences.
      power: of the cosine; 1 is soft, large is nearly exact. Our choice is 4.
    """

    def __init__(self, vocabulary: Vocabulary, vectors: WordVectors, texts: Sequence[str], *, power: float = POWER):
        words = [list(dict.fromkeys(tokens(text))) for text in texts]
        distinct = list(dict.fromkeys(word for own in words for word in own))
        number = {word: i for i, word in enumerate(distinct)}
        keys = _unit(vectors.words(vocabulary.words))
        cosine = keys @ _unit(vectors.words(distinct)).T  # (K, D)
        agreement = np.maximum(cosine, 0.0) ** power
        columns = [agreement[:, [number[w] for w in own]].max(axis=1) if own else np.zeros(len(keys)) for own in words]
        self._agreement = np.stack(columns, axis=1) * vocabulary.idf[:, None]  # (K, C)

    def __call__(self, anchors: Sequence[Anchor], *, weight: str = "equal") -> np.ndarray:
        """(C,) float64 scores; zeros without anchors.

        Args:
          anchors: of one EEG sentence.
          weight: "equal", or "certainty": each anchor counts with its probability.

        Raises:
          ConfigError: another weighting.
        """
        check_choice("weight", weight, WEIGHTINGS)
        if not anchors:
            return np.zeros(self._agreement.shape[1])
        rows = self._agreement[[a.word for a in anchors]]
        return rows.sum(axis=0) if weight == "equal" else np.exp([a.certainty for a in anchors]) @ rows


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero row stays zero."""
    vectors = np.asarray(vectors, np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)
