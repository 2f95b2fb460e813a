"""The record type of word-level EEG: which subject read which sentence, and one vector for each fixated word.

    corpus = open_eeg("embedded:synthetic_zuco?snr=16&subjects=12&seed=0")       # zuco.py
    corpus.eeg[corpus.words_of(3)]                                               # (words, 840) of the fourth reading
    corpus.select(corpus.subject != "ZAB")                                       # without a subject

`EegCorpus` holds columns; `CorpusBuilder` makes one of the sentences that a reader finds in files (`RawSentence`). The
layout is that of ZuCo (Hollenstein et al. 2018, 2020): 8 frequency bands times 105 electrodes for a word and a measure
of its fixations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxkd.errors import DataError, ShapeError

BANDS = ("t1", "t2", "a1", "a2", "b1", "b2", "g1", "g2")  # theta, alpha, beta and gamma, each lower and upper half
ELECTRODES = 105
FEATURES = len(BANDS) * ELECTRODES
TASKS = ("SR", "NR", "TSR")  # sentiment reading, normal reading, task-specific reading
MEASURES = ("GD", "FFD", "TRT")  # over which fixations of a word its EEG is averaged; those that the pickles hold
GAZE = ("nFixations", "FFD", "SFD", "GD", "GPT", "TRT")
MAX_WORDS = 56  # fixated words of a sentence that the published pipelines have room for

# Typing errors of ZuCo's stimuli that the published pipelines mend.
_TEXT_FIXES = (("emp11111ty", "empty"), ("film.1", "film."))
# Counted for the whole source and for each subject.
COUNTS = {
    "readings": "sentences read by a subject that are in the corpus",
    "words": "fixated words of them",
    "missing_sentences": "sentences without a recording",
    "no_fixation_sentences": "sentences without a fixated word, left out",
    "strict_nan_sentences": "sentences left out by strict_nan",
    "nan_words": "fixated words with NaN or infinity in their EEG, kept and masked in batches",
    "short_words": "fixated words with fewer than 840 values; their EEG is NaN",
    "long_readings": f"readings of more than {MAX_WORDS} fixated words",
    "cut_words": f"fixated words after the first {MAX_WORDS} of their reading, which batches leave out",
    "dropped_tokens": "words without a letter or digit, left out of ZuCo 2.0 as the published reader does",
    "unplaced_words": "fixated words of a pickle that its list of words does not hold; placed after the word before",
}


@dataclass(frozen=True)
class EegCorpus:
    """Readings of sentences with the EEG of their fixated words: R readings, V fixated words.

    Attributes:
      subject: (R,) text, code of the reader.
      corpus: (R,) text, "zuco1", "zuco2" or "synthetic".
      task: (R,) text, "SR", "NR" or "TSR".
      index: (R,) int, place of the sentence in its file.
      text: R sentences as in the file, typing errors of ZuCo mended.
      word_count: (R,) int, words of the sentence, fixated or not.
      start: (R + 1,) int, where the fixated words of a reading begin and end.
      word: V words, as they stand in the sentence.
      position: (V,) int, place of the word in its sentence.
      eeg: (V, 840) float32, not normalised; the 105 electrodes of t1, then t2, a1, a2, b1, b2, g1, g2. NaN is kept.
      gaze: (V, 6) float32, the columns of `GAZE`: number of fixations, then durations in milliseconds; NaN where the
        file has none.
      facts: JSON-able; how the corpus was read, the counts of `COUNTS` for all of it and under "subjects" for each
        subject. It describes the whole source also after `select`.

    Raises:
      DataError: columns that do not fit one another.
    """

    subject: np.ndarray
    corpus: np.ndarray
    task: np.ndarray
    index: np.ndarray
    text: tuple[str, ...]
    word_count: np.ndarray
    start: np.ndarray
    word: tuple[str, ...]
    position: np.ndarray
    eeg: np.ndarray
    gaze: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        readings, words = len(self.subject), len(self.word)
        expected = {name: (readings,) for name in ("subject", "corpus", "task", "index", "word_count")}
        expected |= {"start": (readings + 1,), "position": (words,), "eeg": (words, FEATURES)}
        expected |= {"gaze": (words, len(GAZE))}
        wrong = [
            f"{name} has the shape {np.shape(getattr(self, name))} and not {shape}"
            for name, shape in expected.items()
            if np.shape(getattr(self, name)) != shape
        ]
        if len(self.text) != readings:
            wrong.append(f"text has {len(self.text)} sentences and not {readings}")
        if not wrong and (self.start[0] != 0 or self.start[-1] != words or (np.diff(self.start) < 0).any()):
            wrong.append(f"start does not rise from 0 to {words}")
        if wrong:
            raise DataError(f"The columns of an EegCorpus do not fit: {'; '.join(wrong)}. Give columns of one length.")

    def __len__(self) -> int:
        """Number of readings."""
        return len(self.subject)

    def words_of(self, reading: int) -> slice:
        """The fixated words of a reading, as a slice of the columns of words."""
        return slice(int(self.start[reading]), int(self.start[reading + 1]))

    def numbers_of(self, readings: np.ndarray | Sequence[int] | Sequence[bool] | None) -> np.ndarray:
        """(n,) int64 numbers of `readings`: a mask (R,) of bool, numbers, or None for all.

        Raises:
          ShapeError: a mask of another length, or a number that no reading has.
        """
        chosen = np.arange(len(self)) if readings is None else np.asarray(readings)
        if chosen.dtype == bool and chosen.shape != (len(self),):
            raise ShapeError(
                f"The mask of readings has the shape {chosen.shape}, and the corpus has {len(self)} readings. Give one "
                "truth value for each."
            )
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise ShapeError(
                f"The readings {chosen.min()} to {chosen.max()} were asked for, and the corpus has {len(self)}, "
                "counted from 0. Give numbers below that."
            )
        return chosen

    @cached_property
    def reading_of_word(self) -> np.ndarray:
        """(V,) int: the reading that each fixated word belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Codes of the subjects, in alphabetical order."""
        return tuple(np.unique(self.subject).tolist())

    @cached_property
    def subject_index(self) -> np.ndarray:
        """(R,) int32: place of each reading's subject in `subjects`."""
        return np.searchsorted(np.array(self.subjects), self.subject).astype(np.int32)

    @cached_property
    def text_index(self) -> np.ndarray:
        """(R,) int32: number of each reading's text; the same for equal texts, in the order of first occurrence."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(text, len(numbers)) for text in self.text], np.int32)

    @cached_property
    def usable(self) -> np.ndarray:
        """(V,) bool: words whose EEG is finite and not constant, so that it can be normalised."""
        usable = np.zeros(len(self.word), bool)
        for begin in range(0, len(usable), 8192):  # bounded memory where `eeg` is a file
            part = np.asarray(self.eeg[begin : begin + 8192])
            usable[begin : begin + 8192] = np.isfinite(part).all(1) & (part != part[:, :1]).any(1)
        return usable

    def select(self, readings: np.ndarray | Sequence[int] | Sequence[bool]) -> EegCorpus:
        """The corpus of some readings, in the given order.

        Args:
          readings: (R,) bool, or the numbers of readings. Neighbours in a row are not copied.
        """
        chosen = self.numbers_of(readings)
        lengths = np.diff(self.start)[chosen]
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if len(chosen) and (np.diff(chosen) == 1).all():
            rows: Any = slice(int(self.start[chosen[0]]), int(self.start[chosen[-1] + 1]))
            word = self.word[rows]
        else:
            rows = np.repeat(self.start[chosen] - start[:-1], lengths) + np.arange(start[-1])
            word = tuple(self.word[i] for i in rows.tolist())
        columns = {name: getattr(self, name)[chosen] for name in ("subject", "corpus", "task", "index", "word_count")}
        words = {name: getattr(self, name)[rows] for name in ("position", "eeg", "gaze")}
        text = tuple(self.text[i] for i in chosen.tolist())
        return replace(self, **columns, **words, text=text, start=start, word=word)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of what was read by whom (not of the EEG): equal corpora have equal ones."""
        digest = hashlib.sha256()
        for column in (self.subject, self.task, self.text, self.word):
            digest.update("\n".join(column).encode("utf-8", "surrogatepass") + b"\0")
        digest.update(np.concatenate([self.index, self.start, self.position]).astype(np.int64).tobytes())
        return digest.hexdigest()[:16]


@dataclass
class RawSentence:
    """A sentence as a file holds it, for one subject.

    Attributes:
      text: the sentence.
      word_count: its words, fixated or not.
      word: the fixated words.
      position: their places in the sentence.
      eeg: of each fixated word (840,), or None where the file has fewer values.
      gaze: of each fixated word, the 6 numbers of `GAZE`.
      mean_is_nan: whether the EEG of the whole sentence has NaN, for which the published reader drops it.
      counts: further counts of `COUNTS`.
    """

    text: str
    word_count: int
    word: list[str] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    eeg: list[np.ndarray | None] = field(default_factory=list)
    gaze: list[Sequence[float]] = field(default_factory=list)
    mean_is_nan: bool = False
    counts: dict[str, int] = field(default_factory=dict)


def mend_text(text: str) -> str:
    """`text` without the typing errors of ZuCo's files that the published pipelines mend."""
    for wrong, right in _TEXT_FIXES:
        text = text.replace(wrong, right)
    return text


def join_bands(bands: Sequence[Any]) -> np.ndarray | None:
    """(840,) float32 of the values of 8 bands, or None if one of them does not have 105 numbers."""
    arrays = [np.asarray(() if band is None else band).ravel() for band in bands]
    if any(array.shape != (ELECTRODES,) or array.dtype.kind not in "biuf" for array in arrays):
        return None
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is masked as NaN is
        return np.concatenate(arrays).astype(np.float32)


def first_number(value: Any) -> float:
    """A number of a file; NaN where it holds None, a text or an empty array."""
    array = np.asarray(np.nan if value is None else value)
    return float(array.flat[0]) if array.size and array.dtype.kind in "biuf" else float("nan")


class CorpusBuilder:
    """Collects sentences into an `EegCorpus` and counts what is left out.

    Args:
      strict_nan: leave out a sentence with NaN in a word or in its mean, or with a word of fewer than 840 values, as
        the published reader does. Otherwise the sentence stays and such words are masked in batches.
    """

    def __init__(self, *, strict_nan: bool = False):
        self._strict = strict_nan
        self._readings: list[tuple[str, str, str, int]] = []
        self._sentences: list[RawSentence] = []
        self._eeg: list[np.ndarray] = []
        self._counts: dict[str, dict[str, int]] = {}

    def add(self, subject: str, corpus: str, task: str, index: int, sentence: RawSentence | None) -> None:
        """Adds a sentence of a file; None is a sentence without a recording."""
        counts = self._counts.setdefault(subject, dict.fromkeys(COUNTS, 0))
        if sentence is None:
            counts["missing_sentences"] += 1
            return
        for name, number in sentence.counts.items():
            counts[name] += number
        if not sentence.word:
            counts["no_fixation_sentences"] += 1
            return
        eeg = np.stack([np.full(FEATURES, np.nan, np.float32) if e is None else e for e in sentence.eeg])
        eeg = eeg.astype(np.float32, copy=False)
        nan_words = int((~np.isfinite(eeg)).any(1).sum())
        if self._strict and (nan_words or sentence.mean_is_nan):
            counts["strict_nan_sentences"] += 1
            return
        words = len(sentence.word)
        counts["readings"] += 1
        counts["words"] += words
        counts["nan_words"] += nan_words
        counts["short_words"] += sum(e is None for e in sentence.eeg)
        counts["long_readings"] += words > MAX_WORDS
        counts["cut_words"] += max(0, words - MAX_WORDS)
        self._readings.append((subject, corpus, task, index))
        sentence.eeg = []  # the stacked copy is enough
        self._sentences.append(sentence)
        self._eeg.append(eeg)

    def build(self, facts: dict[str, Any]) -> EegCorpus:
        """The corpus, by subject, task and place in the file, with `facts` before the counts."""

        def place(i: int) -> tuple[str, int, str, int]:
            subject, corpus, task, index = self._readings[i]
            return subject, TASKS.index(task), corpus, index

        order = sorted(range(len(self._readings)), key=place)
        readings, sentences = [self._readings[i] for i in order], [self._sentences[i] for i in order]
        eeg, self._eeg = [self._eeg[i] for i in order], []
        subject, corpus, task, index = zip(*readings, strict=True) if readings else ((),) * 4
        gaze = [row for s in sentences for row in s.gaze]
        return EegCorpus(
            subject=np.array(subject, str),
            corpus=np.array(corpus, str),
            task=np.array(task, str),
            index=np.array(index, np.int64),
            text=tuple(mend_text(s.text) for s in sentences),
            word_count=np.array([s.word_count for s in sentences], np.int64),
            start=np.concatenate([[0], np.cumsum([len(s.word) for s in sentences], dtype=np.int64)]),
            word=tuple(mend_text(word) for s in sentences for word in s.word),
            position=np.array([p for s in sentences for p in s.position], np.int32),
            eeg=np.concatenate(eeg) if eeg else np.zeros((0, FEATURES), np.float32),
            gaze=np.array(gaze, np.float32).reshape(-1, len(GAZE)),
            facts=facts | total_counts(self._counts),
        )


def total_counts(counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The counts of all subjects together, and under "subjects" those of each."""
    total = {name: sum(of_subject.get(name, 0) for of_subject in counts.values()) for name in COUNTS}
    return total | {"subjects": {subject: dict.fromkeys(COUNTS, 0) | counts[subject] for subject in sorted(counts)}}
