"""Batches of sentences with the EEG of their fixated words.

`EegPipeline` gives training batches for ever and from any position, `EegEvalBatches` gives each reading once. Both make
dicts of arrays, B readings of this host with room for W = `max_words` words each:

| key        | shape and type   | content
| ---------- | ---------------- | -------
| eeg        | (B, W, 840) f32  | z-scored over each word's own 840 values; 0 where there is no usable word
| where      | (B, W) bool      | usable fixated words: not padding, no NaN, not constant
| position   | (B, W) int32     | place of the word in its sentence; -1 in the padding
| word_class | (B, W) int32     | `labels.word_class` of the word; -1 where `where` is False
| group      | (B,) int32       | `labels.group`: readings of the same text
| sentence   | (B,) int32       | `labels.sentence`: row of the text in a table of sentence vectors
| subject    | (B,) int32       | place in `corpus.subjects`
| reading    | (B,) int32       | number of the reading in the corpus
| mask       | (B,) bool        | False where a last batch is filled up; all else is 0 or -1 there
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxkd.data.pipeline.broken import MAX_BROKEN, BrokenImages
from jaxkd.data.pipeline.resumable import Batch, ResumableBatches
from jaxkd.data.sources.eeg_corpus import FEATURES, MAX_WORDS, EegCorpus
from jaxkd.errors import ConfigError, DataError, ShapeError, check_range

_ORDER = 2  # a stream of random numbers that no other sampler uses


def normalise_words(eeg: np.ndarray) -> np.ndarray:
    """Z-score of each word over its own values, with N - 1 in the variance, computed in float64.

    Args:
      eeg: (V, 840).

    Returns:
      (V, 840) float32. A word with NaN or infinity, and a constant word, is all NaN.
    """
    wide = np.asarray(eeg, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = wide.mean(1, keepdims=True)
        centred = wide - mean
        scale = np.sqrt(np.einsum("wf,wf->w", centred, centred) / (wide.shape[1] - 1))[:, None]
        normalised = np.divide(centred, scale, out=np.empty(wide.shape, np.float32), casting="same_kind")
        # Rounding leaves a constant word a little off its mean, so that constancy shows in the values themselves.
        suspect = np.flatnonzero(~(scale > 1e-9 * np.abs(mean)))
    unusable = ~np.isfinite(scale[:, 0])
    unusable[suspect] |= (wide[suspect] == wide[suspect, :1]).all(1)
    normalised[unusable] = np.nan
    return normalised


@dataclass(frozen=True)
class EegLabels:
    """Numbers that belong to the readings and fixated words of a corpus of R readings and V words.

    Attributes:
      group: (R,) int, the same for readings of the same text.
      sentence: (R,) int, row of a table of sentences.
      word_class: (V,) int, class of each fixated word; -1 for none.
    """

    group: np.ndarray
    sentence: np.ndarray
    word_class: np.ndarray

    @classmethod
    def of(
        cls,
        corpus: EegCorpus,
        *,
        group: np.ndarray | None = None,
        sentence: np.ndarray | None = None,
        word_class: np.ndarray | None = None,
    ) -> EegLabels:
        """Labels for `corpus`; by default equal texts are a group and a sentence, and words have no class.

        Raises:
          ShapeError: an array that does not fit the corpus.
        """
        columns = {}
        for name, given, default in (
            ("group", group, corpus.text_index),
            ("sentence", sentence, corpus.text_index),
            ("word_class", word_class, np.full(len(corpus.word), -1)),
        ):
            array = np.asarray(default if given is None else given)
            if array.shape != default.shape or array.dtype.kind not in "iu":
                raise ShapeError(
                    f"{name} has the shape {array.shape} and the type {array.dtype}. Give {len(default)} integers, one "
                    f"for each {'fixated word' if name == 'word_class' else 'reading'} of the corpus."
                )
            columns[name] = array.astype(np.int32)
        return cls(**columns)


def batch_of_readings(
    corpus: EegCorpus,
    labels: EegLabels,
    readings: np.ndarray,
    max_words: int = MAX_WORDS,
    features: np.ndarray | None = None,
) -> Batch:
    """The batch of `readings` (B,); -1 is an empty place. See the module for its arrays, `EegPipeline` for the rest."""
    size, real = len(readings), readings >= 0
    shape = (size, max_words)
    width = FEATURES if features is None else features.shape[1]
    batch = {
        "eeg": np.zeros((*shape, width), np.float32),
        "where": np.zeros(shape, bool),
        "position": np.full(shape, -1, np.int32),
        "word_class": np.full(shape, -1, np.int32),
        **{name: np.full(size, -1, np.int32) for name in ("group", "sentence", "subject", "reading")},
        "mask": real,
    }
    chosen = readings[real]
    first = corpus.start[chosen]
    lengths = np.minimum(corpus.start[chosen + 1] - first, max_words)
    column = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    words = np.repeat(first, lengths) + column
    place = np.repeat(np.flatnonzero(real) * max_words, lengths) + column
    eeg = normalise_words(corpus.eeg[words]) if features is None else features[words].astype(np.float32)
    usable = np.isfinite(eeg).all(axis=1)
    eeg[~usable] = 0
    batch["eeg"].reshape(-1, width)[place] = eeg
    batch["where"].reshape(-1)[place] = usable
    batch["position"].reshape(-1)[place] = corpus.position[words]
    batch["word_class"].reshape(-1)[place] = np.where(usable, labels.word_class[words], -1)
    for name, column_of_readings in (
        ("group", labels.group),
        ("sentence", labels.sentence),
        ("subject", corpus.subject_index),
    ):
        batch[name][real] = column_of_readings[chosen]
    batch["reading"][real] = chosen
    return batch


class GroupSampler:
    """Order of the readings in which neighbours are readings of one text by different subjects.

    An epoch shows every reading once, less those of the incomplete last batch. In each group of n readings, a random
    choice of n mod k stays single, the others form units of k = `per_group` readings, of different subjects unless one
    subject has more than 1/k of them. Singles of different groups form units too, so that all batches are full; of
    those, fewer than k are left out of an epoch. The units of a group lie far apart, so that a batch holds a
    group twice only where there are few groups. The order is a function of (seed, epoch); each host takes a contiguous
    share of the global batch.
    """

    def __init__(
        self,
        readings: np.ndarray,
        group: np.ndarray,
        subject: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        per_group: int = 2,
        host_index: int = 0,
        host_count: int = 1,
    ):
        check_range("eeg.readings_per_text", per_group, 1, whole=True)
        if batch_size % per_group:
            raise ConfigError(
                f"train.batch_size={batch_size} does not divide by eeg.readings_per_text={per_group}. Set "
                f"train.batch_size to {batch_size // per_group * per_group or per_group}."
            )
        self._readings, self._per_group, self._batch, self._seed = readings, per_group, batch_size, seed
        self._group = np.unique(group, return_inverse=True)[1].reshape(-1)
        self._subject = np.unique(subject, return_inverse=True)[1].reshape(-1)
        self._share = batch_size // host_count
        self._offset = host_index * self._share
        sizes = np.bincount(self._group) if len(readings) else np.zeros(0, int)
        units = int((sizes // per_group).sum() + (sizes % per_group).sum() // per_group)
        self.steps_per_epoch = units * per_group // batch_size
        if not self.steps_per_epoch:
            raise DataError(
                f"The training part has {len(readings)} readings, which is less than train.batch_size={batch_size}. "
                f"Set --config.train.batch_size to {units * per_group or per_group} or less."
            )
        self._cache: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def batch(self, position: int) -> np.ndarray:
        """(b,) readings of this host in batch number `position`, counted from 0 over all epochs."""
        epoch, step = divmod(position, self.steps_per_epoch)
        if self._cache[0] != epoch:
            self._cache = (epoch, self._epoch(epoch))
        begin = step * self._batch + self._offset
        return self._readings[self._cache[1][begin : begin + self._share]]

    def _epoch(self, epoch: int) -> np.ndarray:
        """Places in `readings`, k neighbours a unit."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self._seed, _ORDER, epoch))))
        k, count = self._per_group, len(self._readings)
        order = np.lexsort((rng.random(count), self._group))
        sizes = np.bincount(self._group)
        rank, size = _rank_in_runs(self._group[order]), sizes[self._group[order]]
        singles, order, size = order[rank < size % k], order[rank >= size % k], (size // k)[rank >= size % k]
        singles = rng.permutation(singles)[: len(singles) // k * k].reshape(-1, k)
        # Sorted by subject, members of a unit are a k-th of the group apart, so that they differ in their subjects. The
        # order of the subjects is another one for each group, or the same subjects would always meet.
        subject_order = rng.random((len(sizes), self._subject.max() + 1))[self._group[order], self._subject[order]]
        again = np.lexsort((rng.random(len(order)), subject_order, self._group[order]))
        order, size = order[again], size[again]
        slot, unit = np.divmod(_rank_in_runs(self._group[order]), size)
        by_unit = np.lexsort((slot, unit, self._group[order]))
        units = order[by_unit].reshape(-1, k)
        # Round r shows the r-th unit of every group; groups of few units begin at a random round.
        rounds = max(int(sizes.max()) // k, 1)
        first = rng.integers(rounds, size=len(sizes))
        round_of = (unit[by_unit][::k] + first[self._group[units[:, 0]]]) % rounds
        units, round_of = (
            np.concatenate([units, singles]),
            np.concatenate([round_of, rng.integers(rounds, size=len(singles))]),
        )
        return units[np.lexsort((rng.random(len(units)), round_of))].reshape(-1)


def _rank_in_runs(values: np.ndarray) -> np.ndarray:
    """Place of each value among its equal neighbours, for sorted `values`."""
    begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.zeros(0, int)
    return np.arange(len(values)) - np.repeat(begins, np.diff(np.append(begins, len(values))))


class _Batches:
    """Random access to this host's batches, counted from 0 over all epochs."""

    def __init__(
        self,
        corpus: EegCorpus,
        labels: EegLabels,
        sampler: GroupSampler,
        max_words: int,
        features: np.ndarray | None,
    ):
        self._corpus, self._labels, self._sampler = corpus, labels, sampler
        self._max_words, self._features = max_words, features

    def __getitem__(self, position: int) -> Batch:
        readings = self._sampler.batch(position)
        batch = batch_of_readings(self._corpus, self._labels, readings, self._max_words, self._features)
        return {**batch, "broken": np.array(json.dumps({}))}


class EegPipeline(ResumableBatches):
    """An infinite, resumable iterator over this host's training batches; see the module for their arrays.

    Args:
      corpus: of all parts; its EEG may be a file in memory (`open_eeg` with a cache).
      labels: see `EegLabels.of`.
      readings: the readings to train on, a mask (R,) or numbers; None is all.
      batch_size: readings, over all hosts.
      seed: of the run.
      readings_per_group: readings of each text in a batch, of different subjects where possible; 1 ignores texts.
      max_words: words of a reading that a batch has room for; further ones are left out.
      features: (V, F) float32 in the place of the normalised EEG, not finite for words that are left out; None is the
        EEG.
      host_index: which host this is.
      host_count: how many there are.

    Raises:
      ConfigError: `batch_size` does not divide by `readings_per_group`.
      DataError: fewer readings than a batch.
    """

    def __init__(
        self,
        corpus: EegCorpus,
        labels: EegLabels,
        *,
        batch_size: int,
        seed: int,
        readings: np.ndarray | Sequence[int] | None = None,
        readings_per_group: int = 2,
        max_words: int = MAX_WORDS,
        features: np.ndarray | None = None,
        host_index: int = 0,
        host_count: int = 1,
    ):
        check_range("eeg.max_words", max_words, 1, whole=True)
        chosen = corpus.numbers_of(readings)
        sampler = GroupSampler(
            chosen,
            labels.group[chosen],
            corpus.subject_index[chosen],
            batch_size=batch_size,
            seed=seed,
            per_group=readings_per_group,
            host_index=host_index,
            host_count=host_count,
        )
        super().__init__(
            _Batches(corpus, labels, sampler, max_words, features),
            steps_per_epoch=sampler.steps_per_epoch,
            identity={
                "records": len(chosen),
                "batch_size": batch_size,
                "seed": seed,
                "readings_per_group": readings_per_group,
                "max_words": max_words,
                "corpus": corpus.fingerprint,
            },
            broken=BrokenImages(len(chosen), MAX_BROKEN),
        )


class EegEvalBatches:
    """Batches with each reading exactly once, in order; see the module for their arrays.

    Args:
      corpus, labels, readings, max_words, features, host_index, host_count: as for `EegPipeline`.
      batch_size: over all hosts; the last batch is filled up with empty places whose mask is False.
    """

    def __init__(
        self,
        corpus: EegCorpus,
        labels: EegLabels,
        *,
        batch_size: int,
        readings: np.ndarray | Sequence[int] | None = None,
        max_words: int = MAX_WORDS,
        features: np.ndarray | None = None,
        host_index: int = 0,
        host_count: int = 1,
    ):
        self._corpus, self._labels, self._max_words, self._features = corpus, labels, max_words, features
        self._readings = corpus.numbers_of(readings)
        self._batch, self._share = batch_size, batch_size // host_count
        self._offset = host_index * self._share

    def __len__(self) -> int:
        return -(-len(self._readings) // self._batch)

    def __iter__(self) -> Iterator[Batch]:
        padded = np.full(len(self) * self._batch, -1, np.int64)
        padded[: len(self._readings)] = self._readings
        for begin in range(self._offset, len(padded), self._batch):
            mine = padded[begin : begin + self._share]
            yield batch_of_readings(self._corpus, self._labels, mine, self._max_words, self._features)
