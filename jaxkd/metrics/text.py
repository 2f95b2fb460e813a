"""Scores of generated sentences: BLEU, ROUGE, error rates, word-vector matching, and signs of collapsed output.

The usual packages disagree with one another (sets or counts, punctuation, smoothing), and each score takes some twenty
lines: they are written out here, so that what is computed can be read, and tested against nltk, sacrebleu, rouge,
rouge-score and jiwer. All texts but those of ROUGE are read by one tokeniser, `tokens`.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from jaxkd.errors import DataError, ShapeError, check_range

Prf = tuple[float, float, float]

_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:'\w+)*|[^\w\s]")
_ROUGE_SCORE_WORD = re.compile(r"[a-z0-9]+")
ORDERS = 4  # of BLEU


def tokens(text: str) -> list[str]:
    """Words, numbers and single punctuation marks of `text` in lower case, after Unicode normalisation (NFKC).

    "It's 1,250.5 km -- far." gives it's 1,250.5 km - - far . (seven tokens); texts in lower case whose tokens are
    separated by blanks stay as they are.
    """
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).replace("’", "'").lower())


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str], *, epsilon: float = 0.0) -> np.ndarray:
    """BLEU-1 to BLEU-4 of a corpus with uniform weights (Papineni et al. 2002), as nltk's `corpus_bleu`.

    Clipped n-gram matches and lengths are summed over the corpus before they are divided. sacrebleu's score without
    smoothing and tokenisation is BLEU-4 times 100. BLEU-n is 0 where no n-gram matches; nltk then gives about 1e-78.

    Args:
      hypotheses: one text for each reference.
      references: one text each.
      epsilon: count of matches in the place of 0, as nltk's smoothing method1 with 0.1; 0: no smoothing.

    Returns:
      (4,) float64 in [0, 1].

    Raises:
      DataError: no texts, or other numbers of texts.
    """
    check_range("epsilon", epsilon, 0, below=1)
    _check_texts(hypotheses, references)
    return _bleu([tokens(h) for h in hypotheses], [tokens(r) for r in references], epsilon)


def content_bleu1(
    hypotheses: Sequence[str], references: Sequence[str], *, stop_words: Collection[str] | None = None
) -> float:
    """BLEU-1 of the content words alone: without stop words and punctuation, which any fluent text gets right.

    Args:
      hypotheses: one text for each reference.
      references: one text each.
      stop_words: in lower case; None for scikit-learn's 318 English ones.

    Returns:
      In [0, 1].

    Raises:
      DataError: no texts, or other numbers of texts.
    """
    _check_texts(hypotheses, references)
    left_out = _english_stop_words() if stop_words is None else frozenset(stop_words)

    def content(text: str) -> list[str]:
        return [t for t in tokens(text) if t not in left_out and any(c.isalnum() for c in t)]

    return float(_bleu([content(h) for h in hypotheses], [content(r) for r in references], 0.0)[0])


def rouge(
    hypothesis: str, reference: str, *, tokenizer: Callable[[str], Sequence[str]] | None = None
) -> dict[str, Prf]:
    """ROUGE-1 and ROUGE-L of one text (Lin 2004): precision, recall and F.

    Args:
      hypothesis: may be empty, which scores 0.
      reference: likewise.
      tokenizer: of "rouge1" and "rougeL"; None for that of the package rouge-score without stemming: runs of a-z and
        0-9 in lower case.

    Returns:
      "rouge1" (clipped counts of words) and "rougeL" (longest common subsequence), as rouge-score computes them, and
      "rouge1_sets", the ROUGE-1 of the package rouge that EEG-to-text papers print: sets of blank-separated words,
      case kept, full stops dropped.
    """
    split = tokenizer or (lambda text: _ROUGE_SCORE_WORD.findall(text.lower()))
    h, r = list(split(hypothesis)), list(split(reference))
    shared = sum((Counter(h) & Counter(r)).values())
    sets = [{word for part in text.split(".") if part for word in part.split()} for text in (hypothesis, reference)]
    return {
        "rouge1": _prf(shared, len(h), len(r)),
        "rougeL": _prf(_common_subsequence(h, r), len(h), len(r)),
        "rouge1_sets": _prf(len(sets[0] & sets[1]), len(sets[0]), len(sets[1]), eps=1e-8),  # as the package has it
    }


def mean_rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, Prf]:
    """Mean over the texts of `rouge`, each number by itself.

    Args:
      hypotheses: one text for each reference.
      references: one text each.

    Returns:
      Name of the measure, as in `rouge` -> precision, recall and F, in [0, 1].

    Raises:
      DataError: no texts, or other numbers of texts.
    """
    _check_texts(hypotheses, references)
    each = [rouge(h, r) for h, r in zip(hypotheses, references, strict=True)]
    means = {name: np.mean([one[name] for one in each], axis=0).tolist() for name in each[0]}
    return {name: (values[0], values[1], values[2]) for name, values in means.items()}


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Edits (substitutions, deletions, insertions of tokens) over tokens of the references, both of the whole corpus.

    It may exceed 1, and is not the mean of the rates of the texts.

    Args:
      hypotheses: one text for each reference.
      references: one text each.

    Returns:
      From 0.

    Raises:
      DataError: no texts, other numbers of texts, or references without any token.
    """
    return _error_rate([tokens(h) for h in hypotheses], [tokens(r) for r in references], "word")


def character_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """As `word_error_rate`, of the characters of the tokens joined by blanks, blanks included.

    Args:
      hypotheses: one text for each reference.
      references: one text each.

    Returns:
      From 0; may exceed 1.

    Raises:
      DataError: see `word_error_rate`.
    """
    given, wanted = ([" ".join(tokens(text)) for text in texts] for texts in (hypotheses, references))
    return _error_rate(given, wanted, "character")


def match_prf(hyp_vectors: np.ndarray, ref_vectors: np.ndarray) -> Prf:
    """Greedy matching of word vectors by cosine: precision, recall and F.

    The formula of BERTScore (arXiv 1904.09675, eq. 1) without idf and rescaling. With static vectors it is no
    BERTScore, whose vectors depend on the context.

    Args:
      hyp_vectors: (n, D) vectors of the hypothesis's words; zero vectors have cosine 0.
      ref_vectors: (m, D) of the reference's.

    Returns:
      Mean over the hypothesis of the largest cosine with the reference, the same the other way round, and their
      harmonic mean; all 0 where one side has no words.

    Raises:
      ShapeError: arrays of other shapes.
    """
    h, r = np.asarray(hyp_vectors, np.float64), np.asarray(ref_vectors, np.float64)
    if h.ndim != 2 or r.ndim != 2 or h.shape[1] != r.shape[1]:
        raise ShapeError(f"The vectors have shapes {h.shape} and {r.shape}. Pass (words, channels) of one width.")
    if not len(h) or not len(r):
        return 0.0, 0.0, 0.0
    h, r = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (h, r))
    cosines = h @ r.T
    precision, recall = float(cosines.max(axis=1).mean()), float(cosines.max(axis=0).mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0


def distinct(hypotheses: Sequence[str], n: int) -> float:
    """Different n-grams of tokens over all n-grams of the corpus (arXiv 1510.03055); 0 where there are none.

    Args:
      hypotheses: texts.
      n: tokens of an n-gram, from 1.

    Returns:
      In [0, 1].

    Raises:
      ConfigError: another n.
    """
    check_range("n", n, 1, whole=True)
    counts: Counter = Counter()
    for text in hypotheses:
        counts.update(_ngrams(tokens(text), n))
    return len(counts) / counts.total() if counts else 0.0


def identical_share(hypotheses: Sequence[str]) -> float:
    """Share of the texts whose tokens at least one other text has too; 1 where the output has collapsed.

    Args:
      hypotheses: texts.

    Returns:
      In [0, 1].
    """
    keys = [tuple(tokens(text)) for text in hypotheses]
    counts = Counter(keys)
    return sum(counts[key] > 1 for key in keys) / len(keys) if keys else 0.0


def empty_share(hypotheses: Sequence[str]) -> float:
    """Share of the texts without any token.

    Args:
      hypotheses: texts.

    Returns:
      In [0, 1].
    """
    return sum(not tokens(text) for text in hypotheses) / len(hypotheses) if hypotheses else 0.0


def _check_texts(hypotheses: Sequence[Any], references: Sequence[Any]) -> None:
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise DataError("A single text was given, where a list of texts is read. Pass [hypothesis] and [reference].")
    if len(hypotheses) != len(references) or not len(references):
        raise DataError(
            f"There are {len(hypotheses)} hypotheses and {len(references)} references. Pass one hypothesis for each "
            'reference, "" where there is none, and at least one.'
        )


@functools.cache
def _english_stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _bleu(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]], epsilon: float) -> np.ndarray:
    matched, total, lengths = np.zeros(ORDERS), np.zeros(ORDERS), np.zeros(2)
    for h, r in zip(hypotheses, references, strict=True):
        lengths += len(h), len(r)
        for n in range(1, ORDERS + 1):
            found = Counter(_ngrams(h, n))
            matched[n - 1] += (found & Counter(_ngrams(r, n))).total()
            # nltk counts one n-gram of a text that is shorter than n.
            total[n - 1] += max(1, found.total())
    if not matched[0]:  # nltk's smoothing does not rescue these either
        return np.zeros(ORDERS)
    brevity = 1.0 if lengths[0] > lengths[1] else math.exp(1.0 - lengths[1] / lengths[0])
    precisions = np.where(matched > 0, matched, epsilon) / total
    with np.errstate(divide="ignore"):
        logs = np.cumsum(np.log(precisions)) / np.arange(1, ORDERS + 1)
    return brevity * np.exp(logs)


def _prf(shared: int, hypothesis: int, reference: int, eps: float = 0.0) -> Prf:
    """Precision, recall and F of `shared` of so many words."""
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / hypothesis, shared / reference
    return precision, recall, 2 * precision * recall / (precision + recall + eps)


def _codes(a: Sequence[str], b: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Both sequences as integers, equal where the items are."""
    known: dict[str, int] = {}
    first, second = (np.array([known.setdefault(item, len(known)) for item in items], np.int64) for items in (a, b))
    return first, second


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    first, second = _codes(a, b)
    row = np.zeros(len(second) + 1, np.int64)
    for item in first:
        # Each entry is the largest of: above, diagonal plus a match, left; "left" is a running maximum.
        row[1:] = np.maximum.accumulate(np.maximum(row[1:], row[:-1] + (second == item)))
    return int(row[-1])


def _edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance."""
    first, second = _codes(a, b)
    steps = np.arange(len(second) + 1)
    row = steps.copy()
    for i, item in enumerate(first, 1):
        row[1:] = np.minimum(row[1:] + 1, row[:-1] + (second != item))
        row[0] = i
        # An insertion adds 1 to the entry at the left: a running minimum of what is left when the steps are taken off.
        row = np.minimum.accumulate(row - steps) + steps
    return int(row[-1])


def _error_rate(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]], unit: str) -> float:
    _check_texts(hypotheses, references)
    total = sum(map(len, references))
    if not total:
        raise DataError(f"The references hold no {unit}, so that there is no {unit} error rate. Give their texts.")
    return sum(_edits(h, r) for h, r in zip(hypotheses, references, strict=True)) / total
