"""Contrastive alignment of word-level EEG with a fixed keyword vocabulary and with sentence vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import losses, metrics, models
from jaxkd.errors import ConfigError, ShapeError, check_choice
from jaxkd.losses.contrastive import INITIAL_LOG_SCALE, MULTI_KINDS
from jaxkd.losses.norms import unit
from jaxkd.train.task import Batch, Inputs, Metrics, Task
from jaxkd.weights.network import Network

PyTree = Any
SENTENCE_LOSSES = (*MULTI_KINDS, "info_nce", "siglip")
SIGLIP_LOG_SCALE, SIGLIP_BIAS = math.log(10.0), -10.0  # where arXiv 2303.15343 starts


class TextSide(NamedTuple):
    """Fixed vectors that EEG is compared with; in the place of a teacher in `Inputs`.

    Attributes:
      keywords: (K, d) word vectors of the vocabulary.
      class_weight: (K + 1,) of the words' cross-entropy, the null class last.
      sentences: (B, d) sentence vectors of the batch's texts.
    """

    keywords: jax.Array
    class_weight: jax.Array
    sentences: jax.Array


class ContrastiveTask(Task):
    """Trains `student`, a network from EEG words to embeddings.

    The loss is L_words + sentence_weight x L_sentences. L_words is the class-weighted cross-entropy of each EEG word
    over K keywords and a learned null column; L_sentences aligns the mean over a sentence's words with the vector of
    its text, positives being all readings of the same text by any subject: `losses.info_nce_multi` of a kind;
    "siglip", in which each text of a batch is one candidate; or "info_nce", in which a reading's own row is its only
    positive. As readings of a text share its vector, the mean of "info_nce" over a batch is that of "mean_log". All of
    it is our reading of arXiv 2604.16370, which states two stages and no losses.

    Args:
      student: an `eeg_words_*` network.
      keywords: (K, d) word vectors of the vocabulary.
      sentences: (T, d) vectors of the texts that batches refer to.
      class_weight: (K + 1,), see `class_weights`.
      sentence_weight: of the second term; 0 leaves it out.
      sentence_loss: of `SENTENCE_LOSSES`.
      learned: whether the keyword vectors train too, from `keywords`.
      frozen: tree of bool like the network's parameters, or None; projections and temperatures train.
    """

    def __init__(
        self,
        student: Network,
        keywords: jax.Array,
        sentences: jax.Array,
        class_weight: jax.Array,
        *,
        sentence_weight: float = 0.5,
        sentence_loss: str = "mean_log",
        learned: bool = False,
        frozen: PyTree | None = None,
    ):
        if student.spec.task != "eeg_words":
            raise ConfigError(
                f'student.name="{student.spec.name}" takes images, and task="contrastive" trains a network from EEG '
                'words to embeddings. Choose one such as "eeg_words_base".'
            )
        if keywords.shape[0] + 1 != class_weight.shape[0]:
            raise ShapeError(f"{keywords.shape[0]} keywords need {keywords.shape[0] + 1} class weights.")
        check_choice("eeg.sentence_loss", sentence_loss, SENTENCE_LOSSES)
        self.student, self._frozen_student = student, frozen
        self.constants = {"keywords": keywords, "sentences": sentences, "class_weight": class_weight}
        self.sentence_weight, self.sentence_loss, self.learned = sentence_weight, sentence_loss, learned
        self.features = int(student.model.in_features)
        self.width = int(student.model.out_features)

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Random parameters of network and projections, or the given network; no mutable collections."""
        if self.student.variables is not None:
            params = self.student.variables["params"]
        else:
            shape = (1, 2, self.features)
            params = models.init_variables(self.student.model, key, shape)["params"]
        draw = jax.nn.initializers.lecun_normal()
        keys = jax.random.split(jax.random.fold_in(key, 1), 4)
        vectors = self.constants["keywords"].shape[1]
        projectors = {
            "keyword_projection": {"kernel": draw(keys[0], (vectors, self.width))},
            "text_projection": {"kernel": draw(keys[1], (vectors, self.width))},
            "sentence_projection": {"kernel": draw(keys[2], (self.width, self.width)), "bias": jnp.zeros(self.width)},
            "null": draw(keys[3], (1, self.width))[0],
            "log_scale_words": jnp.asarray(INITIAL_LOG_SCALE, jnp.float32),
            "log_scale_sentences": jnp.asarray(INITIAL_LOG_SCALE, jnp.float32),
        }
        if self.sentence_loss == "siglip":
            projectors["log_scale_sentences"] = jnp.asarray(SIGLIP_LOG_SCALE, jnp.float32)
            projectors["bias_sentences"] = jnp.asarray(SIGLIP_BIAS, jnp.float32)
        if self.learned:
            projectors["keywords"] = jnp.asarray(self.constants["keywords"], jnp.float32)
        return {"student": params, "projectors": projectors}, {}

    @property
    def frozen(self) -> PyTree | None:
        """See `train.Task`."""
        if self._frozen_student is None:
            return None
        projectors = jax.eval_shape(lambda key: self.init(key)[0]["projectors"], jax.random.key(0))
        return {"student": self._frozen_student, "projectors": jax.tree.map(lambda _: False, projectors)}

    def constrain(self, params: PyTree) -> PyTree:
        """Clips both temperatures after an optimiser step, as CLIP does."""
        projectors = dict(params["projectors"])
        for name in ("log_scale_words", "log_scale_sentences"):
            projectors[name] = losses.clip_log_scale(projectors[name])
        return {**params, "projectors": projectors}

    def inputs(self, batch: Batch, key: jax.Array, constants: PyTree) -> Inputs:
        """EEG words and the vectors of their texts; nothing is random."""
        text = TextSide(constants["keywords"], constants["class_weight"], constants["sentences"][batch["sentence"]])
        return Inputs(batch["eeg"], batch, text)

    def student_loss(
        self,
        params: PyTree,
        mutable: PyTree,
        inputs: Inputs,
        key: jax.Array,
        step: jax.Array,
        *,
        taps: tuple[str, ...] = (),
        offsets: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree, dict[str, jax.Array]]]:
        """See `train.Task.student_loss`; the network also takes masks and places."""
        output: Any = self.student.model.apply(
            {"params": params["student"]},
            inputs.x,
            where=inputs.batch["where"],
            position=_places(inputs.batch, self.student.model.max_words),
            train=True,
            taps=taps,
            offsets=offsets,
            rngs={"dropout": jax.random.fold_in(key, 1)},
        )
        loss, terms, mutable = self.compare(params, mutable, inputs, output, step, key)
        return loss, (terms, mutable, {name: output[1][name] for name in taps})

    def compare(
        self,
        params: PyTree,
        mutable: PyTree,
        inputs: Inputs,
        output: tuple[jax.Array, dict[str, jax.Array]],
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        """The weighted loss and its terms; examples whose `mask` is False count nowhere."""
        batch, text, projectors = inputs.batch, inputs.teacher, params["projectors"]
        words = output[0].astype(jnp.float32)
        counts = batch["where"] & batch["mask"][:, None] & (batch["word_class"] >= 0)
        flat, flat_class, flat_where = words.reshape(-1, self.width), batch["word_class"].ravel(), counts.ravel()
        flat_class = jnp.where(flat_where, flat_class, 0)
        each = losses.info_nce_vocabulary(
            flat, self.columns(projectors, text.keywords), flat_class, projectors["log_scale_words"], where=flat_where
        )
        weight = jnp.where(flat_where, text.class_weight[flat_class], 0.0)
        terms = {"words": jnp.sum(weight * each) / jnp.maximum(jnp.sum(weight), 1e-9)}
        loss = terms["words"]
        if self.sentence_weight:
            read = batch["mask"] & jnp.any(batch["where"], axis=1)
            eeg = self.sentence(projectors, words, batch["where"])
            each = self._compare_sentences(
                projectors, eeg, self.text(projectors, text.sentences), batch["group"], where=read
            )
            terms["sentences"] = jnp.sum(each) / jnp.maximum(jnp.sum(read), 1)
            loss = loss + self.sentence_weight * terms["sentences"]
        return loss, terms, mutable

    def _compare_sentences(
        self, projectors: PyTree, eeg: jax.Array, text: jax.Array, group: jax.Array, *, where: jax.Array
    ) -> jax.Array:
        """(B,) losses of sentences (B, E) and the texts of their rows; equal numbers in `group` (B,) are one text."""
        scale, same = projectors["log_scale_sentences"], group[:, None] == group[None, :]
        if self.sentence_loss == "info_nce":
            return losses.info_nce(eeg, text, scale, where=where)
        if self.sentence_loss == "siglip":
            first = where & (jnp.argmax(same & where[None, :], axis=1) == jnp.arange(len(group)))
            return losses.siglip(eeg, text, same, scale, projectors["bias_sentences"], where=where, text_where=first)
        return losses.info_nce_multi(eeg, text, same, scale, self.sentence_loss, where=where)

    def columns(self, projectors: PyTree, keywords: jax.Array) -> jax.Array:
        """(K + 1, E) embeddings of the keywords and, last, of the null class."""
        vectors = projectors.get("keywords", keywords)
        return jnp.concatenate([vectors @ projectors["keyword_projection"]["kernel"], projectors["null"][None]])

    def sentence(self, projectors: PyTree, words: jax.Array, where: jax.Array) -> jax.Array:
        """(B, E) projected means over the words (B, W, E) of each sentence; the mean does not know their number."""
        total = jnp.sum(jnp.where(where[..., None], words, 0.0), axis=1)
        mean = total / jnp.maximum(jnp.sum(where, axis=1, keepdims=True), 1)
        return mean @ projectors["sentence_projection"]["kernel"] + projectors["sentence_projection"]["bias"]

    def text(self, projectors: PyTree, vectors: jax.Array) -> jax.Array:
        """(T, E) embeddings of sentence vectors (T, d)."""
        return vectors @ projectors["text_projection"]["kernel"]

    def embed(self, params: PyTree, batch: Batch, constants: PyTree) -> tuple[jax.Array, jax.Array]:
        """Logits of the words' classes (B, W, K + 1), and unit embeddings (B, E) of the sentences; fp32."""
        projectors = params["projectors"]
        words, _ = self.student.model.apply(
            {"params": params["student"]},
            batch["eeg"],
            where=batch["where"],
            position=_places(batch, self.student.model.max_words),
            train=False,
        )
        words = words.astype(jnp.float32)
        columns = unit(self.columns(projectors, constants["keywords"]))
        cosine = jnp.einsum("bwe,ke->bwk", unit(words), columns, precision=jax.lax.Precision.HIGHEST)
        logits = jnp.exp(projectors["log_scale_words"]) * cosine
        return logits, unit(self.sentence(projectors, words, batch["where"]))

    def evaluate(self, params: PyTree, mutable: PyTree, batch: Batch, constants: PyTree) -> Metrics:
        """Share of the keywords, in percent, that are the best or among the best 5 of the vocabulary."""
        logits, _ = self.embed(params, batch, constants)
        null = logits.shape[-1] - 1
        right = batch["word_class"]
        keyword = batch["where"] & batch["mask"][:, None] & (right >= 0) & (right < null)
        logits = logits[..., :null]
        own = jnp.take_along_axis(logits, jnp.where(keyword, right, 0)[..., None], axis=-1)
        above = jnp.sum(logits > own, axis=-1)
        count = jnp.sum(keyword)
        return {
            f"word_top{k}": metrics.Average(total=100.0 * jnp.sum(keyword & (above < k)), count=count) for k in (1, 5)
        }

    def metadata(self) -> dict[str, Any]:
        """Name of the network and number of keywords."""
        return {"student": self.student.spec.name, "keywords": int(self.constants["keywords"].shape[0])}


def _places(batch: Batch, count: int) -> jax.Array:
    """(B, W) places of the words in their sentences, within those that a network can learn."""
    return jnp.clip(batch["position"], 0, count - 1)


def class_weights(counts: jax.Array) -> jax.Array:
    """(K + 1,) weights count^-1/2 of the keywords, and of the null class, last, that it has half of the mass. Ours.

    Args:
      counts: (K + 1,) training words of each class.
    """
    counts = jnp.maximum(jnp.asarray(counts, jnp.float32), 1.0)
    weight = counts**-0.5
    keywords = jnp.sum(counts[:-1] * weight[:-1])
    return weight.at[-1].set(keywords / counts[-1])
