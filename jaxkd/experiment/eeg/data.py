"""Readings, split, keywords and word vectors of a run, as its config names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ml_collections import ConfigDict

from jaxkd import data
from jaxkd.language.keywords import Vocabulary, build_vocabulary
from jaxkd.language.leaks import LeakReport, find_leaks
from jaxkd.language.splits import Split, split_readings
from jaxkd.language.texts import group_texts
from jaxkd.language.vectors import WordVectors, open_vectors


@dataclass(frozen=True)
class EegData:
    """Readings with their parts, keywords and texts.

    Attributes:
      corpus: R readings with V fixated words.
      split: parts of the readings; its groups are the texts.
      leaks: what the parts share.
      vocabulary: K keywords.
      vectors: of words.
      texts: (T,) one sentence of each group.
      text_words: (T,) number of its words.
      word_class: (V,) int32 keyword of each fixated word, K where it is none.
      features: (V, F) float32 that the network takes in the place of the normalised EEG, NaN for words that are left
        out; None for the EEG.
    """

    corpus: data.EegCorpus
    split: Split
    leaks: LeakReport
    vocabulary: Vocabulary
    vectors: WordVectors
    texts: tuple[str, ...]
    text_words: np.ndarray
    word_class: np.ndarray
    features: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Number of features of a word."""
        return (self.corpus.eeg if self.features is None else self.features).shape[1]

    @cached_property
    def labels(self) -> data.EegLabels:
        """Texts of the readings and classes of the words, for batches."""
        group = self.split.group
        return data.EegLabels.of(self.corpus, group=group, sentence=group, word_class=self.word_class)

    @cached_property
    def keyword_vectors(self) -> np.ndarray:
        """(K, d) float32."""
        return self.vectors.words(self.vocabulary.words)

    @cached_property
    def sentence_vectors(self) -> np.ndarray:
        """(T, d) float32."""
        return self.vectors.sentences(self.texts)

    @cached_property
    def class_counts(self) -> np.ndarray:
        """(K + 1,) fixated training words of each class."""
        own = np.isin(self.corpus.reading_of_word, self.split.train)
        return np.bincount(self.word_class[own], minlength=self.vocabulary.null + 1)

    def with_features(self, features: np.ndarray) -> EegData:
        """The same with other features of the words."""
        return dataclasses.replace(self, features=np.asarray(features, np.float32))

    def with_training_labels(self, order: np.ndarray) -> EegData:
        """The same, but each training reading has the text of another one; its words take that text's classes in turn.

        Args:
          order: (n,) for each of the n training readings, which of them its text comes from.
        """
        train, start = self.split.train, self.corpus.start
        group, word_class = self.split.group.copy(), self.word_class.copy()
        group[train] = self.split.group[train[order]]
        for reading, other in zip(train, train[order], strict=True):
            own, given = self.corpus.words_of(reading), self.word_class[start[other] : start[other + 1]]
            word_class[own] = np.resize(given, own.stop - own.start)
        return dataclasses.replace(self, split=dataclasses.replace(self.split, group=group), word_class=word_class)


def open_eeg_data(
    config: ConfigDict,
    *,
    corpus: data.EegCorpus | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> EegData:
    """Reads and divides the corpus of a run, and makes its vocabulary.

    Args:
      config: of task "contrastive".
      corpus: instead of `config.data.source`.
      on_progress: `(bytes read, bytes, what)`.

    Raises:
      DataError: the corpus cannot be read, a part is empty, or something leaks.
      ConfigError, WeightSourceError: another setting is wrong, or a package of word vectors is absent.
    """
    settings = config.eeg
    if corpus is None:
        corpus = data.open_eeg(
            config.data.source,
            measure=settings.measure,
            subjects=tuple(settings.subjects) or None,
            strict_nan=settings.strict_nan,
            cache=settings.cache or None,
            **({} if on_progress is None else {"on_progress": on_progress}),
        )
    group = group_texts(corpus.text)
    split = split_readings(
        settings.split,
        group=group,
        stratum=[f"{c} {t}" for c, t in zip(corpus.corpus, corpus.task, strict=True)],
        subject=corpus.subject,
        index=corpus.index,
        seed=settings.split_seed,
        leave_out=settings.leave_out,
    )
    used = split.train if settings.vocabulary == "train" else np.arange(len(corpus))
    fitted, features = {"vocabulary": used}, None
    if settings.standardise != "none":
        fitted["standardisation"] = split.train if settings.standardise == "train" else np.arange(len(corpus))
        features = standardise(corpus, fitted["standardisation"])
    report = find_leaks(split, corpus.text, corpus.subject, fitted=fitted)
    report.require_clean(allow=settings.allow_leaks)
    first = np.unique(group, return_index=True)[1]
    held = sorted(set(group[used].tolist()))
    vocabulary = build_vocabulary(
        [corpus.text[first[g]] for g in held], min_texts=settings.min_texts, size=settings.keywords
    )
    return EegData(
        corpus=corpus,
        split=split,
        leaks=report,
        vocabulary=vocabulary,
        vectors=open_vectors(settings.vectors),
        texts=tuple(corpus.text[i] for i in first),
        text_words=corpus.word_count[first],
        word_class=vocabulary.classes(corpus.word),
        features=features,
    )


def standardise(corpus: data.EegCorpus, readings: np.ndarray) -> np.ndarray:
    """(V, F) normalised words whose features have mean 0 and deviation 1 over the words of some readings.

    Args:
      corpus: whose words are normalised first, each over its own values.
      readings: numbers of the readings that mean and deviation are of.
    """
    eeg = data.normalise_words(corpus.eeg)
    own = np.isin(corpus.reading_of_word, readings)
    mean, deviation = np.nanmean(eeg[own], axis=0), np.nanstd(eeg[own], axis=0)
    return (eeg - mean) / np.where(deviation > 0, deviation, 1.0)
