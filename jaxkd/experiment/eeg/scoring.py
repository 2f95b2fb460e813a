"""A trained network on the readings of a part: classes of words, embeddings of sentences, and accuracies of words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkd import data, parallel
from jaxkd.experiment.eeg.data import EegData
from jaxkd.language.anchors import Anchor, decode_anchors
from jaxkd.tasks import ContrastiveTask

PyTree = Any
Embed = Callable[[PyTree, dict[str, jax.Array], PyTree], tuple[jax.Array, jax.Array]]


class Decoded(NamedTuple):
    """Outputs of a network for n readings with w usable words in all.

    Attributes:
      readings: (n,) numbers of the readings in the corpus.
      start: (n + 1,) where the words of a reading begin and end.
      logits: (w, K + 1) float32 of the words' classes, the null class last.
      word_class: (w,) the right classes.
      sentence: (n, E) float32 unit embeddings.
    """

    readings: np.ndarray
    start: np.ndarray
    logits: np.ndarray
    word_class: np.ndarray
    sentence: np.ndarray

    def anchors(self, i: int, k: int | None) -> list[Anchor]:
        """The `k` most certain anchors of the i-th reading."""
        return decode_anchors(self.logits[self.start[i] : self.start[i + 1]], k=k)


def compile_embed(task: ContrastiveTask) -> Embed:
    """`task.embed`, jitted."""
    return jax.jit(task.embed)


def decode_readings(
    embed: Embed,
    params: PyTree,
    constants: PyTree,
    eeg_data: EegData,
    readings: np.ndarray,
    mesh: Mesh,
    *,
    batch_size: int,
    max_words: int,
) -> Decoded:
    """Runs the network over readings; their texts are not looked at, but for the right classes that are handed on.

    Args:
      embed: of `compile_embed`.
      params, constants: of the task.
      eeg_data: whose corpus is read.
      readings: (n,) numbers of the readings.
      mesh: where batches are split.
      batch_size: sentences at once, divisible by the devices.
      max_words: that a sentence has room for.
    """
    batches = data.EegEvalBatches(
        eeg_data.corpus,
        eeg_data.labels,
        readings=readings,
        batch_size=batch_size,
        features=eeg_data.features,
        max_words=max_words,
    )
    logits, classes, sentences, counts = [], [], [], []
    for batch in batches:
        arrays = parallel.put_batch(batch, mesh)
        found, sentence = jax.device_get(embed(params, arrays, constants))
        there = batch["mask"]
        where = batch["where"] & there[:, None]
        logits.append(found[where])
        classes.append(batch["word_class"][where])
        counts.append(where.sum(axis=1)[there])
        sentences.append(sentence[there])
    return Decoded(
        readings=np.asarray(readings),
        start=np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64),
        logits=np.concatenate(logits),
        word_class=np.concatenate(classes),
        sentence=np.concatenate(sentences),
    )


def word_scores(decoded: Decoded, train_counts: np.ndarray) -> dict[str, float]:
    """Accuracies of the keywords among the words, in percent, and what they are by chance.

    Args:
      decoded: of a part.
      train_counts: (K + 1,) training words of each class.

    Returns:
      `word_top1`, `word_top5`, `word_top10` over all words that are keywords; `balanced_top1`, ... as the mean over
      keywords; `word_chance_top1`, ...: of always naming the 1, 5 or 10 most frequent keywords of training; and
      `balanced_chance_top1`, ...: k / K.
    """
    null = decoded.logits.shape[1] - 1
    own = decoded.word_class < null
    right, logits = decoded.word_class[own], decoded.logits[own, :null]
    if not len(right):
        return {}
    above = (logits > logits[np.arange(len(right)), right][:, None]).sum(axis=1)
    frequent = np.argsort(-train_counts[:null], kind="stable")
    scores = {}
    for k in (1, 5, 10):
        hit = above < k
        kinds = np.unique(right)
        scores[f"word_top{k}"] = 100.0 * float(hit.mean())
        scores[f"word_chance_top{k}"] = 100.0 * float(np.isin(right, frequent[:k]).mean())
        scores[f"balanced_top{k}"] = 100.0 * float(np.mean([hit[right == c].mean() for c in kinds]))
        scores[f"balanced_chance_top{k}"] = 100.0 * min(1.0, k / null)
    return scores
