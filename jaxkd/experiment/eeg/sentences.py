"""Sentences for the test readings in several modes, and text metrics of each beside those of no signal."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd import metrics
from jaxkd.data.files import write_atomic
from jaxkd.experiment.eeg import controls, retrieval
from jaxkd.experiment.eeg.decode import Decoding, Opened
from jaxkd.experiment.eeg.scoring import Decoded
from jaxkd.language.anchors import Anchor, CandidateScorer
from jaxkd.language.models import LanguageModel
from jaxkd.language.sentences import LOCAL_MODES, MODEL_MODES, Written, generate_sentences, rerank_candidates
from jaxkd.train.progress import Progress

SENTENCES = "sentences.jsonl"
NOISE = "noise, trained and tested"
SOURCES = ("EEG", "prior anchors", "oracle anchors", "no anchors")
EXEMPLARS = 3  # training sentences in a prompt
RERANKED = 25  # candidates in a prompt
CANDIDATES = 5  # that a line of sentences.jsonl names


@dataclass(frozen=True)
class AnchorSource:
    """Anchors of each test reading, with the candidates' scores for them.

    Attributes:
      name: of `SOURCES`, or `NOISE`.
      anchors: Q lists in reading order.
      scores: (Q, C).
    """

    name: str
    anchors: list[list[Anchor]]
    scores: np.ndarray


def anchor_sources(opened: Opened, decoding: Decoding, noise: Decoded | None = None) -> list[AnchorSource]:
    """The run's anchors, those of a network of noise, anchors drawn from the training words, the right ones, and none.

    Args:
      opened, decoding: of `decode`.
      noise: outputs of a network that was trained and tested on noise; None leaves its anchors out.
    """
    context = controls.Context(opened.eeg_data, decoding.queries, decoding.scorer, decoding.k, opened.config.seed)
    sources = [[decoding.decoded.anchors(i, decoding.k) for i in range(len(decoding.scores))]]
    sources += [controls.drawn_anchors(context), controls.right_anchors(context), [[] for _ in sources[0]]]
    scores = [decoding.scores, *(np.stack([decoding.scorer(a) for a in found]) for found in sources[1:])]
    found = [AnchorSource(*parts) for parts in zip(SOURCES, sources, scores, strict=True)]
    if noise is not None:
        own = [noise.anchors(i, decoding.k) for i in range(len(decoding.scores))]
        found.insert(1, AnchorSource(NOISE, own, context.anchor_scores(noise)))
    return found


def local_sentences(opened: Opened, decoding: Decoding, source: AnchorSource, mode: str) -> list[str]:
    """Sentences without a language model.

    Args:
      opened, decoding: of `decode`.
      source: anchors and scores.
      mode: "template": the anchors, joined; "retrieve": the best candidate.
    """
    if mode == "template":
        words = opened.eeg_data.vocabulary.words
        return [" ".join(words[a.word] for a in anchors) for anchors in source.anchors]
    texts = [opened.eeg_data.texts[c] for c in decoding.queries.candidates]
    return [texts[best] for best in source.scores.argmax(axis=1)]


def first_candidates(source: AnchorSource) -> np.ndarray:
    """(Q, RERANKED) numbers of the best candidates of each reading, or all where there are fewer: those of a prompt."""
    return np.argsort(-source.scores, axis=1, kind="stable")[:, :RERANKED]


def reranked_scores(source: AnchorSource, made: Sequence[Written]) -> np.ndarray:
    """(Q, C) scores in the order of a language model; candidates that were not in the prompt follow in their own order.

    Where the answer failed, those of the prompt are equal, so that they count as ordered at random: a failure neither
    keeps the order of the retrieval nor misses all of its hits.
    """
    shown = first_candidates(source)
    scores = source.scores - source.scores.max(axis=1, keepdims=True) - 1.0  # below 0
    for row, own, written in zip(scores, shown, made, strict=True):
        row[own] = 0.0
        row[own[list(written.order)]] = np.arange(len(written.order), 0.0, -1.0)
    return scores


class ModelWriter:
    """Sentences from a language model, which is given anchors and texts of the corpus, never what was read.

    Args:
      opened, decoding: of `decode`.
      model: that answers.
      concurrency: requests at once.
    """

    def __init__(self, opened: Opened, decoding: Decoding, model: LanguageModel, *, concurrency: int):
        self._opened, self._decoding, self._model, self._concurrency = opened, decoding, model, concurrency
        eeg_data = opened.eeg_data
        train = sorted(set(eeg_data.split.group[eeg_data.split.train].tolist()))
        self._train = [eeg_data.texts[t] for t in train]
        self._train_scorer = CandidateScorer(eeg_data.vocabulary, eeg_data.vectors, self._train)

    def write(
        self, source: AnchorSource, mode: str, *, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Written]:
        """One answer for each reading; `mode` is "generate" or "rerank".

        Raises:
          LanguageModelError: the model does not answer the first request.
        """
        words = self._opened.eeg_data.vocabulary.words
        anchors = [[(words[a.word], math.exp(a.certainty)) for a in found] for found in source.anchors]
        options = {"concurrency": self._concurrency, "seed": self._opened.config.seed, "on_progress": on_progress}
        if mode == "generate":
            exemplars = [self._nearest(found) for found in source.anchors]
            return generate_sentences(self._model, anchors, exemplars, **options)
        texts = [self._opened.eeg_data.texts[c] for c in self._decoding.queries.candidates]
        orders = first_candidates(source)
        return rerank_candidates(self._model, anchors, [[texts[c] for c in order] for order in orders], **options)

    def _nearest(self, anchors: list[Anchor]) -> list[str]:
        """Training sentences that agree best with the anchors."""
        order = np.argsort(-self._train_scorer(anchors), kind="stable")
        return [self._train[i] for i in order[:EXEMPLARS]]


def sentence_rows(
    opened: Opened, decoding: Decoding, source: AnchorSource, mode: str, sentences: Sequence[str | Written]
) -> list[dict[str, Any]]:
    """Lines of sentences.jsonl; a sentence that failed is null, with the reason."""
    words, texts, rows = opened.eeg_data.vocabulary.words, opened.eeg_data.texts, []
    for i, made in enumerate(sentences):
        written = Written(made) if isinstance(made, str) else made
        best = np.argsort(-source.scores[i], kind="stable")[:CANDIDATES]
        rows.append(
            {
                "reading": int(decoding.queries.readings[i]),
                "source": source.name,
                "mode": mode,
                "anchors": [[words[a.word], round(math.exp(a.certainty), 4)] for a in source.anchors[i]],
                "sentence": written.sentence,
                "failed": written.sentence is None,
                **({"reason": written.reason} if written.reason else {}),
                **({"model": written.model, "tokens": written.tokens} if written.model else {}),
                "candidates": [
                    [texts[decoding.queries.candidates[c]], round(float(source.scores[i, c]), 4)] for c in best
                ],
            }
        )
    return rows


def text_scores(opened: Opened, decoding: Decoding, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Text metrics of one source and mode against the texts that were read, in percent; failures count as empty.

    `readings`, `failures` and `reason`, the most frequent one of the failures, say how many sentences there are.
    """
    right = [opened.eeg_data.texts[decoding.queries.candidates[t]] for t in decoding.queries.truth]
    found = [row["sentence"] or "" for row in rows]
    bleu, rouge = metrics.corpus_bleu(found, right), metrics.mean_rouge(found, right)
    vectors = opened.eeg_data.vectors
    match = [
        metrics.match_prf(vectors.words(h.lower().split()), vectors.words(r.lower().split()))[2]
        for h, r in zip(found, right, strict=True)
    ]
    return {
        "mode": f"{rows[0]['source']}, {rows[0]['mode']}",
        **{f"bleu{n}": 100.0 * float(bleu[n - 1]) for n in (1, 2, 3, 4)},
        "content_bleu1": 100.0 * metrics.content_bleu1(found, right),
        "rouge1_f": 100.0 * rouge["rouge1"][2],
        "rougeL_f": 100.0 * rouge["rougeL"][2],
        "rouge1_sets_f": 100.0 * rouge["rouge1_sets"][2],
        "wer": 100.0 * metrics.word_error_rate(found, right),
        "cer": 100.0 * metrics.character_error_rate(found, right),
        "match_f": 100.0 * float(np.mean(match)),
        "distinct1": 100.0 * metrics.distinct(found, 1),
        "distinct2": 100.0 * metrics.distinct(found, 2),
        "identical": 100.0 * metrics.identical_share(found),
        "empty": 100.0 * metrics.empty_share(found),
        "failed": 100.0 * float(np.mean([row["failed"] for row in rows])),
        "readings": len(rows),
        "failures": sum(row["failed"] for row in rows),
        "reason": _most_frequent([row["reason"] for row in rows if row["failed"]]),
    }


def _most_frequent(reasons: Sequence[str]) -> str:
    """The most frequent beginning of reasons, whose details differ; "" without one."""
    begins = Counter(reason.partition(": ")[0].partition(". ")[0].rstrip(".") for reason in reasons)
    return begins.most_common(1)[0][0] if begins else ""


def reranked_rows(
    decoding: Decoding, source: AnchorSource, made: Sequence[Written], model: str, *, seed: int
) -> list[dict[str, Any]]:
    """Rows of the retrieval table among all candidates: reranked, and, of other anchors than the run's, before it."""
    queries, count = decoding.queries, first_candidates(source).shape[1]
    start = decoding.retrieval[0]["method"] if source.name == SOURCES[0] else source.name
    scores = reranked_scores(source, made)
    reranked = {
        "method": f"{start}, best {count} reranked by {model}",
        **retrieval.retrieval_row(queries, scores, "all"),
        "failed": 100.0 * float(np.mean([written.sentence is None for written in made])),
    }
    if source.name == SOURCES[0]:
        return [reranked | retrieval.certainty_of(queries, scores, "all", seed=seed)]
    return [{"method": start, **retrieval.retrieval_row(queries, source.scores, "all")}, reranked]


def make_sentences(
    opened: Opened,
    decoding: Decoding,
    modes: Sequence[str],
    model: LanguageModel | None,
    *,
    concurrency: int,
    progress: Progress,
    noise: Decoded | None = None,
) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Sentences of each source of anchors in each mode, those of the EEG in the best mode first.

    Text metrics of each follow, and rows of the retrieval table where a language model ordered candidates.

    Args:
      opened, decoding: of `decode`.
      modes: of `LOCAL_MODES` and, with a model, `MODEL_MODES`; () for all of them.
      model: None leaves out the modes that need one.
      concurrency: requests at once.
      progress: shows the answers that came.
      noise: see `anchor_sources`.
    """
    asked = modes or [*LOCAL_MODES, *(MODEL_MODES if model is not None else ())]
    order = [mode for mode in (*MODEL_MODES, *reversed(LOCAL_MODES)) if mode in asked]
    writer = None
    if model is not None and set(order) & set(MODEL_MODES):
        writer = ModelWriter(opened, decoding, model, concurrency=concurrency)
    rows, scores, reranked = [], [], []
    for source in anchor_sources(opened, decoding, noise):
        for mode in order:
            if source.name == SOURCES[-1] and mode != "generate":  # all candidates are equal, the template is empty
                continue
            if mode in LOCAL_MODES:
                made = local_sentences(opened, decoding, source, mode)
            else:
                show = partial(progress.show, f"{mode}, {source.name}")
                made = writer.write(source, mode, on_progress=show)
            if mode == "rerank":
                reranked += reranked_rows(decoding, source, made, model.name, seed=opened.config.seed)
            rows.append(sentence_rows(opened, decoding, source, mode, made))
            scores.append(text_scores(opened, decoding, rows[-1]))
    return rows, scores, reranked


def write_sentences(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Writes a JSON line for each sentence."""
    path = folder / SENTENCES
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
