"""Retrieval of the sentence that was read: candidates, pools, accuracies beside chance, intervals and p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxkd import analysis, metrics
from jaxkd.errors import DataError
from jaxkd.experiment.eeg.data import EegData
from jaxkd.experiment.eeg.scoring import Decoded
from jaxkd.language.anchors import CandidateScorer

SIZES = (24, 50, 100)  # of the random pools; beside them all candidates, and those of as many words as the right one
TOP = (1, 5, 25)
PERMUTATIONS = 999
DRAWS = 2000


@dataclass(frozen=True)
class Queries:
    """Readings of a part, and the distinct texts of the part as candidates.

    Attributes:
      readings: (Q,) numbers in the corpus.
      candidates: (C,) numbers of texts.
      truth: (Q,) place of the right one among `candidates`.
      subject: (Q,) who read.
      words: (C,) words of each candidate.
      seed: of the random pools.
    """

    readings: np.ndarray
    candidates: np.ndarray
    truth: np.ndarray
    subject: np.ndarray
    words: np.ndarray
    seed: int = 0

    @cached_property
    def right(self) -> np.ndarray:
        """(Q, C) bool, one True in each row."""
        return self.truth[:, None] == np.arange(len(self.candidates))[None, :]

    def pool(self, name: str) -> np.ndarray:
        """(Q, C) bool, the candidates: "all", "matched" (as many words as the right one) or so many as a number says.

        The right one is always in it; the others of a numbered pool are drawn for each query from the seed. Where there
        are fewer, all are taken.
        """
        count = len(self.candidates)
        if name == "all" or (name.isdigit() and int(name) >= count):
            return np.ones((len(self.readings), count), bool)
        if name == "matched":
            return self.words[self.truth][:, None] == self.words[None, :]
        rng = np.random.default_rng((self.seed, int(name)))
        order = np.where(self.right, -1.0, rng.random(self.right.shape))
        return order.argsort(axis=1).argsort(axis=1) < int(name)


def make_queries(eeg_data: EegData, readings: np.ndarray, *, seed: int = 0) -> Queries:
    """All readings of a part against its distinct texts."""
    candidates, truth = np.unique(eeg_data.split.group[readings], return_inverse=True)
    return Queries(
        readings=np.asarray(readings),
        candidates=candidates,
        truth=truth,
        subject=eeg_data.corpus.subject[readings],
        words=eeg_data.text_words[candidates],
        seed=seed,
    )


def make_scorer(eeg_data: EegData, queries: Queries) -> CandidateScorer:
    """Scores of the candidates for anchors."""
    return CandidateScorer(eeg_data.vocabulary, eeg_data.vectors, [eeg_data.texts[c] for c in queries.candidates])


def anchor_scores(decoded: Decoded, scorer: CandidateScorer, k: int | None, *, weight: str = "equal") -> np.ndarray:
    """(Q, C) scores of the candidates for the `k` most certain anchors of each reading."""
    return np.stack([scorer(decoded.anchors(i, k), weight=weight) for i in range(len(decoded.readings))])


def retrieval_row(queries: Queries, scores: np.ndarray, pool: str) -> dict[str, Any]:
    """Accuracies of one method in one pool beside chance.

    Returns:
      `pool`, `candidates` (mean number), `queries`, `texts`, `subjects`, `top1`, `top5`, `top25`, `chance1`, ... in
      percent, `mrr`, `median_rank`.
    """
    where = queries.pool(pool)
    sizes = where.sum(axis=1)
    row: dict[str, Any] = {
        "pool": pool,
        "candidates": float(sizes.mean()),
        "queries": len(queries.readings),
        "texts": len(queries.candidates),
        "subjects": len(set(queries.subject.tolist())),
    }
    for k in TOP:
        row[f"top{k}"] = 100.0 * metrics.top_k(scores, queries.right, k, where=where)
        row[f"chance{k}"] = 100.0 * metrics.mean_chance(queries.right, k, where=where)
    row["mrr"] = metrics.mean_reciprocal_rank(scores, queries.right, where=where)
    row["median_rank"] = metrics.median_rank(scores, queries.right, where=where)
    return row


def certainty_of(
    queries: Queries, scores: np.ndarray, pool: str, k: int = 5, *, seed: int = 0, across_subjects: bool = False
) -> dict[str, Any]:
    """Intervals and the permutation test of a top-k accuracy.

    Labels are exchanged within each subject (not with `across_subjects`, for scores that depend on the subject alone);
    in the pool "matched" also within each number of words, as the candidates then stay the same.

    Returns:
      `low`, `high`: 95 % interval of the bootstrap over subjects, over texts where there is one subject, in percent;
      `text_low`, `text_high`: over texts; `p`: of the permutation test; `tied`: share of its exchanged labels that give
      the same accuracy.
    """
    found = metrics.candidate_hits(scores, k, where=queries.pool(pool))
    rows = np.arange(len(queries.readings))
    own = 100.0 * found[rows, queries.truth]
    blocks = np.zeros(len(rows), int) if across_subjects else queries.subject
    if pool == "matched":
        words = queries.words[queries.truth]
        blocks = np.array([f"{s} {w}" for s, w in zip(blocks, words, strict=True)])
    try:
        test = analysis.permutation_test(
            lambda truth: float(found[rows, truth].mean()), queries.truth, blocks, PERMUTATIONS, seed=seed
        )
        p, tied = test.p, test.tied
    except DataError:  # nothing can be exchanged, so nothing can be shown
        p = tied = 1.0
    by_text = analysis.bootstrap_interval(own, queries.truth, DRAWS, seed=seed)
    many = len(set(queries.subject.tolist())) > 1
    by_subject = analysis.bootstrap_interval(own, queries.subject, DRAWS, seed=seed) if many else by_text
    return {
        "low": by_subject.low,
        "high": by_subject.high,
        "text_low": by_text.low,
        "text_high": by_text.high,
        "p": p,
        "tied": tied,
    }


def choose_k(
    decoded: Decoded, queries: Queries, scorer: CandidateScorer, choices: Sequence[int | None]
) -> tuple[int | None, list[dict[str, Any]]]:
    """The number of anchors with the best top-5 accuracy among all candidates of the development part, and the curve.

    Of equals the smallest. The rows have `k` (0 for all), and what `retrieval_row` returns.
    """
    rows = [{"k": k or 0, **retrieval_row(queries, anchor_scores(decoded, scorer, k), "all")} for k in choices]
    best = max(range(len(rows)), key=lambda i: (rows[i]["top5"], -i))
    return choices[best], rows
