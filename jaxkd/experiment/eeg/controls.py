"""Controls of a decoder: what remains without EEG, without labels, without meaning, and with the right answers.

Every row scores the same candidates for the same readings. The table stands in docs/eeg.md; the rows follow what
public EEG-to-text and MEG work found to retrieve sentences without any meaning.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxkd import analysis, data
from jaxkd.experiment.eeg.data import EegData
from jaxkd.experiment.eeg.fit import Fitted, Trainer
from jaxkd.experiment.eeg.retrieval import Queries, anchor_scores, certainty_of, retrieval_row
from jaxkd.experiment.eeg.scoring import Decoded
from jaxkd.language.anchors import Anchor, CandidateScorer
from jaxkd.language.keywords import tokens

SHUFFLES = 5  # trainings on permuted pairs
POOLS = ("all", "matched")
FIRES = 0.01  # p below which a detector fires
ANY_SUBJECT = "subject only"  # its scores are the same for all readings of a subject


@dataclass(frozen=True)
class Context:
    """Data, queries and scorer that the controls of one network share.

    Attributes:
      eeg_data: of the run.
      queries: test readings and candidates.
      scorer: of candidates for anchors.
      k: number of anchors, None for all.
      seed: of everything random.
      trained: outputs for the test readings of networks that controls trained, by what was changed, such as "noise".
    """

    eeg_data: EegData
    queries: Queries
    scorer: CandidateScorer
    k: int | None
    seed: int = 0
    trained: dict[str, Decoded] = field(default_factory=dict)

    def rng(self, stream: int) -> np.random.Generator:
        """A stream of random numbers of its own for each control."""
        return np.random.default_rng((self.seed, stream))

    def inputs(self) -> np.ndarray:
        """(V, F) what the network sees of each word; NaN for words that are left out."""
        own = self.eeg_data.features
        return data.normalise_words(self.eeg_data.corpus.eeg) if own is None else own

    def words_of(self, readings: np.ndarray) -> np.ndarray:
        """(V,) bool: words of some readings."""
        return np.isin(self.eeg_data.corpus.reading_of_word, readings)

    def anchor_scores(self, decoded: Decoded) -> np.ndarray:
        """(Q, C) scores by anchors."""
        return anchor_scores(decoded, self.scorer, self.k)


@dataclass(frozen=True)
class Control:
    """A row of the table.

    Attributes:
      name: of the row.
      expected: what a right answer would be if there were no signal.
      score: context -> (Q, C) scores; None where it trains networks.
      train: (context, trainer) -> list of (Q, C) scores, one of each network that was trained.
    """

    name: str
    expected: str
    score: Callable[[Context, Fitted], np.ndarray] | None = None
    train: Callable[[Context, Trainer], list[np.ndarray]] | None = None


def score_row(context: Context, control: str, scores: list[np.ndarray]) -> dict[str, Any]:
    """Accuracies of a row in both pools, as means over networks where several were trained.

    Returns:
      `row`; for both pools `<pool>_top1`, `<pool>_top5`, `<pool>_chance1`, `<pool>_chance5`, `<pool>_candidates`; of
      top-5 `<pool>_low`, `<pool>_high` (95 % over subjects, of several networks the lowest and highest mean) and
      `<pool>_p` (of the first network).
    """
    row: dict[str, Any] = {"row": control, "networks": len(scores)}
    queries = context.queries
    for pool in POOLS:
        found = [retrieval_row(queries, one, pool) for one in scores]
        for name in ("top1", "top5", "chance1", "chance5", "candidates", "mrr"):
            row[f"{pool}_{name}"] = float(np.mean([f[name] for f in found]))
        anywhere = control == ANY_SUBJECT
        sure = certainty_of(queries, scores[0], pool, seed=context.seed, across_subjects=anywhere)
        row |= {f"{pool}_{name}": sure[name] for name in ("low", "high", "p")}
        if len(scores) > 1:
            row |= {f"{pool}_low": min(f["top5"] for f in found), f"{pool}_high": max(f["top5"] for f in found)}
    return row


def _noise(context: Context, readings: np.ndarray, stream: int) -> EegData:
    """Data whose words of some readings are Gaussian, with the training words' mean and deviation of each feature."""
    inputs = context.inputs().copy()
    train = inputs[context.words_of(context.eeg_data.split.train)]
    mean, deviation = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    own = np.flatnonzero(context.words_of(readings) & np.isfinite(inputs[:, 0]))
    drawn = context.rng(stream).standard_normal((len(own), inputs.shape[1]), np.float32)
    inputs[own] = mean + deviation * drawn
    return context.eeg_data.with_features(inputs)


def noise_in_test(context: Context, fitted: Fitted) -> np.ndarray:
    """The trained network on noise."""
    test = context.queries.readings
    return context.anchor_scores(fitted.decode(_noise(context, test, 1), test))


def permuted_pairs(context: Context, fitted: Fitted) -> np.ndarray:
    """The network's scores of another reading of the same subject."""
    scores = context.anchor_scores(fitted.decode(context.eeg_data, context.queries.readings))
    rng, order = context.rng(4), np.arange(len(scores))
    for name in np.unique(context.queries.subject):
        own = np.flatnonzero(context.queries.subject == name)
        order[own] = rng.permutation(own)
    return scores[order]


def noise_everywhere(context: Context, trainer: Trainer) -> list[np.ndarray]:
    """A network that was trained and tested on noise."""
    return [_retrained(context, trainer, _noise(context, np.arange(len(context.eeg_data.corpus)), 2), "noise")]


def shuffled_training(context: Context, trainer: Trainer) -> list[np.ndarray]:
    """Networks whose training readings have texts of other readings of the same subject."""
    found, split = [], context.eeg_data.split
    subject = context.eeg_data.corpus.subject[split.train]
    for i in range(SHUFFLES):
        rng, order = context.rng(10 + i), np.arange(len(split.train))
        for name in np.unique(subject):
            own = np.flatnonzero(subject == name)
            order[own] = rng.permutation(own)
        changed = context.eeg_data.with_training_labels(order)
        found.append(_retrained(context, trainer, changed, f"shuffled {i + 1} of {SHUFFLES}"))
    return found


def _retrained(context: Context, trainer: Trainer, changed: EegData, name: str) -> np.ndarray:
    decoded = trainer.fit(changed, name).decode(changed, context.queries.readings)
    context.trained[name] = decoded
    return context.anchor_scores(decoded)


def gaze_only(context: Context, trainer: Trainer) -> list[np.ndarray]:
    """A network on the six gaze measures of each word instead of its EEG."""
    gaze = _gaze(context)
    gaze[~np.isfinite(context.inputs()[:, 0])] = np.nan  # the same words
    return [_retrained(context, trainer, context.eeg_data.with_features(gaze), "gaze")]


def _gaze(context: Context) -> np.ndarray:
    """(V, 6) gaze measures with mean 0 and deviation 1 over the training words; 0 where there is none."""
    gaze = np.array(context.eeg_data.corpus.gaze, np.float64)
    train = gaze[context.words_of(context.eeg_data.split.train)]
    there = np.isfinite(train).any(axis=0)
    mean = np.where(there, np.nanmean(np.where(there, train, 0.0), axis=0), 0.0)
    deviation = np.nanstd(np.where(there, train, 0.0), axis=0)
    return np.nan_to_num((gaze - mean) / np.where(deviation > 0, deviation, 1.0), nan=0.0)


def subject_only(context: Context, trainer: Trainer) -> list[np.ndarray]:
    """A network that is told who reads, and nothing else; candidates that the subject has not read come last.

    Texts of the test part are new to the network, so that it cannot know who has read them. Where subjects have
    sentences of their own, the list of candidates tells it nevertheless.
    """
    corpus, queries = context.eeg_data.corpus, context.queries
    who = corpus.subject_index[corpus.reading_of_word]
    features = np.eye(max(len(corpus.subjects), 2))[who]
    features[~np.isfinite(context.inputs()[:, 0])] = np.nan
    scores = _retrained(context, trainer, context.eeg_data.with_features(features), "subject")
    group = context.eeg_data.split.group
    for name in np.unique(queries.subject):
        own, read = queries.subject == name, np.unique(group[corpus.subject == name])
        scores[np.ix_(own, ~np.isin(queries.candidates, read))] = scores.min() - 1.0
    return [scores]


def without_length(context: Context, trainer: Trainer) -> list[np.ndarray]:
    """A network on EEG from which letters, frequency, place and gaze were regressed out, by the training words."""
    inputs = context.inputs()
    there = np.isfinite(inputs[:, 0])
    train = context.words_of(context.eeg_data.split.train) & there
    corpus, rest = context.eeg_data.corpus, np.full(inputs.shape, np.nan, np.float32)
    nuisances = np.column_stack([_letters(corpus.word), _log_counts(context), corpus.position, _gaze(context)])
    rest[there] = analysis.regress_out(inputs[there], nuisances[there], train[there])
    return [_retrained(context, trainer, context.eeg_data.with_features(rest), "without length")]


def _letters(words: tuple[str, ...]) -> np.ndarray:
    return np.array([sum(c.isalnum() for c in word) for word in words], np.float64)


def _log_counts(context: Context) -> np.ndarray:
    """(V,) log of how often each word stands in the training texts, plus one."""
    used = sorted(set(context.eeg_data.split.group[context.eeg_data.split.train].tolist()))
    count = Counter(word for text in used for word in tokens(context.eeg_data.texts[text]))
    return np.array([math.log1p(max((count[t] for t in tokens(w)), default=0)) for w in context.eeg_data.corpus.word])


def drawn_anchors(context: Context) -> list[list[Anchor]]:
    """For each reading, keywords that are drawn by their frequency among the training words."""
    counts = context.eeg_data.class_counts[:-1].astype(np.float64)
    k, rng = min(context.k or 5, int((counts > 0).sum())), context.rng(3)
    draws = [rng.choice(len(counts), size=k, replace=False, p=counts / counts.sum()) for _ in context.queries.readings]
    return [[Anchor(i, int(word), 0.0) for i, word in enumerate(drawn)] for drawn in draws]


def prior_anchors(context: Context, fitted: Fitted) -> np.ndarray:
    """Keywords without any signal."""
    return np.stack([context.scorer(anchors) for anchors in drawn_anchors(context)])


def no_anchors(context: Context, fitted: Fitted) -> np.ndarray:
    """All candidates equal."""
    return np.zeros((len(context.queries.readings), len(context.queries.candidates)))


def count_only(context: Context, fitted: Fitted) -> np.ndarray:
    """Candidates whose number of words is nearest to the fixated words over the training readings' rate of fixation."""
    corpus, split = context.eeg_data.corpus, context.eeg_data.split
    fixated = np.diff(corpus.start)
    rate = fixated[split.train].sum() / max(corpus.word_count[split.train].sum(), 1)
    return -np.abs(context.queries.words[None, :] - (fixated[context.queries.readings] / rate)[:, None])


def length_only(context: Context, fitted: Fitted) -> np.ndarray:
    """Candidates whose word lengths correlate best with the letters that ridge regression reads from the EEG."""
    return length_scores(context, _read_letters(context, context.inputs()))


def gaze_length(context: Context, fitted: Fitted) -> np.ndarray:
    """The same from the six gaze measures: a network needs far more readings to find lengths in them."""
    return length_scores(context, _read_letters(context, _gaze(context)))


def _read_letters(context: Context, features: np.ndarray) -> np.ndarray:
    """(V,) letters of the test words, by ridge regression on the training words; NaN elsewhere."""
    there = np.isfinite(context.inputs()[:, 0])
    train = context.words_of(context.eeg_data.split.train) & there
    letters = _letters(context.eeg_data.corpus.word)
    model = analysis.fit_ridge(features[train], letters[train])
    predicted = np.full(len(letters), np.nan)
    test = context.words_of(context.queries.readings) & there
    predicted[test] = model.predict(features[test])
    return predicted


def length_scores(context: Context, predicted: np.ndarray) -> np.ndarray:
    """(Q, C) correlations of predicted word lengths (V,) with those of the candidates at the same places."""
    corpus, queries = context.eeg_data.corpus, context.queries
    texts = [context.eeg_data.texts[c].split() for c in queries.candidates]
    longest = max(int(corpus.position.max()) + 1, *map(len, texts))
    lengths = np.full((len(texts), longest), np.nan)
    for row, words in zip(lengths, texts, strict=True):
        row[: len(words)] = _letters(tuple(words))
    scores = np.zeros((len(queries.readings), len(texts)))
    for i, reading in enumerate(queries.readings):
        own = corpus.words_of(reading)
        there = np.isfinite(predicted[own])
        found, places = predicted[own][there], corpus.position[own][there]
        if len(found) < 2:
            continue
        held = lengths[:, places]
        held = np.where(np.isnan(held), np.nanmean(np.where(np.isnan(held), np.nan, held)), held)
        a, b = found - found.mean(), held - held.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(a) * np.linalg.norm(b, axis=1)
        scores[i] = np.where(norm > 0, b @ a / np.where(norm > 0, norm, 1.0), 0.0)
    return scores


def memoriser(context: Context, fitted: Fitted) -> np.ndarray:
    """Candidates whose training readings are nearest to the mean EEG of a reading; others are equal and last."""
    inputs, corpus, split = context.inputs(), context.eeg_data.corpus, context.eeg_data.split
    used = np.concatenate([split.train, context.queries.readings])
    means = np.zeros((len(corpus), inputs.shape[1]))
    for reading in used:
        own = inputs[corpus.words_of(reading)]
        own = own[np.isfinite(own[:, 0])]
        if len(own):
            means[reading] = own.mean(axis=0)
    means -= means[split.train].mean(axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    scores = np.full((len(context.queries.readings), len(context.queries.candidates)), -2.0)
    similarity = means[context.queries.readings] @ means[split.train].T
    for column, text in enumerate(context.queries.candidates):
        own = split.group[split.train] == text
        if own.any():
            scores[:, column] = similarity[:, own].max(axis=1)
    return scores


def right_anchors(context: Context) -> list[list[Anchor]]:
    """For each reading, the keywords of the text that was read."""
    vocabulary, found = context.eeg_data.vocabulary, []
    for place in context.queries.truth:
        words = vocabulary.anchors(context.eeg_data.texts[context.queries.candidates[place]], context.k)
        found.append([Anchor(i, int(w), 0.0) for i, w in enumerate(vocabulary.indices(words))])
    return found


def oracle_anchors(context: Context, fitted: Fitted) -> np.ndarray:
    """The right keywords of the text that was read."""
    return np.stack([context.scorer(anchors) for anchors in right_anchors(context)])


CHANCE = "chance"
CONTROLS: tuple[Control, ...] = (
    Control("noise in test", CHANCE, score=noise_in_test),
    Control("noise, trained and tested", CHANCE, train=noise_everywhere),
    Control("pairs permuted in test", CHANCE, score=permuted_pairs),
    Control("pairs permuted in training", CHANCE, train=shuffled_training),
    Control("prior anchors", CHANCE, score=prior_anchors),
    Control("no anchors", CHANCE, score=no_anchors),
    Control("gaze only", "above chance in real data", train=gaze_only),
    Control(ANY_SUBJECT, CHANCE, train=subject_only),
    Control("count only", "above chance among all, by construction", score=count_only),
    Control("word length only", "above chance in real data", score=length_only),
    Control("word length from gaze", "above chance in real data", score=gaze_length),
    Control("EEG without length and gaze", "what is left is the claim", train=without_length),
    Control("memoriser", "chance in a clean split", score=memoriser),
    Control("oracle anchors", "the ceiling", score=oracle_anchors),
)
