"""EEG words in the place of images: passages of words without padding, and the features of an encoder for them.

An analysis takes items of equal size, and sentences have different numbers of words. A passage is N consecutive usable
words of one reader, across the borders of sentences, so that no token is padding; what is left over at the end of a
reader's words is left out. The network still reads whole sentences, with their masks and places, and its features are
picked out afterwards: a network with attention sees what it saw in training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkd import data, models, parallel
from jaxkd.analysis.pipeline.features import FeatureSource, matching_taps
from jaxkd.errors import DataError, check_range
from jaxkd.weights.network import Network

SENTENCES = 64  # that go through a network at once, or a few more so that they split over the devices


@dataclass(frozen=True)
class Passages:
    """M passages of N words; a source of items for `analyse`.

    Attributes:
      corpus: whose words they are.
      words: (M, N) int32 numbers of fixated words in the corpus.
      left_over: usable words that fill no passage.
      readings: which readings the words are of, for people: "test".
    """

    corpus: data.EegCorpus
    words: np.ndarray
    left_over: int
    readings: str

    def __len__(self) -> int:
        return len(self.words)

    def name(self, i: int) -> str:
        """Reader and number of the first word."""
        return f"{self._reader(i)}, words from {self.words[i, 0]}"

    def _reader(self, i: int) -> str:
        return str(self.corpus.subject[self.corpus.reading_of_word[self.words[i, 0]]])

    def batches(self, size: int) -> list[dict[str, np.ndarray]]:
        """Batches of `size` passages or fewer, in the form of `data.EvalBatches`."""
        parts = [self.words[begin : begin + size] for begin in range(0, len(self), size)]
        return [{"image": p, "label": np.zeros(len(p), np.int32), "mask": np.ones(len(p), bool)} for p in parts]

    def about(self) -> dict[str, Any]:
        """Settings of a report: the word for an item, sentences on how items were made, and what does not exist."""
        count, length = self.words.shape
        readers = len({self._reader(i) for i in range(count)})
        why = "It is of networks for images, and an encoder of EEG words has neither pixels nor classes."
        return {
            "unit": "passage",
            "words_per_passage": length,
            "notes": [
                f"A passage is {length} consecutive usable words of one reader, from the {self.readings} readings in "
                "their order and across the borders of sentences. No token is padding. The network read whole "
                f"sentences. {count} passages of {readers} reader{'s'[: readers > 1]}; {self.left_over} words fill no "
                "passage and are left out.",
                "Gradients need class scores and a spatial spectrum needs a grid of tokens. An encoder of EEG words "
                "has neither.",
                "CKA compares word with word, over the words of chunks of passages. Words of one reader share what is "
                "the reader's, and that counts in CKA like what is the word's.",
            ],
            "left_out": [["Saliency maps", why]],
        }


def cut_passages(
    corpus: data.EegCorpus,
    readings: np.ndarray,
    *,
    length: int,
    usable: np.ndarray | None = None,
    most: int = 0,
    called: str = "chosen",
) -> Passages:
    """Cuts the words of readings into passages, reader by reader.

    Args:
      corpus: whose words they are.
      readings: (n,) numbers of the readings.
      length: N, words of a passage.
      usable: (V,) bool, words that may be taken; by default those whose EEG is finite and not constant.
      most: the first so many passages, taken from all readers in turn; 0 is all.
      called: what the readings are, for people.

    Raises:
      ConfigError: a length below 2.
      DataError: no reader has that many usable words.
    """
    check_range("--words", length, 2, whole=True)
    usable = corpus.usable if usable is None else usable
    chosen = np.zeros(len(corpus), bool)
    chosen[readings] = True
    words = np.flatnonzero(chosen[corpus.reading_of_word] & usable)
    reader = corpus.subject_index[corpus.reading_of_word[words]]
    own = [words[reader == s] for s in np.unique(reader)]
    cut = [w[: len(w) // length * length].reshape(-1, length) for w in own]
    if not any(map(len, cut)):
        longest = max(map(len, own), default=0)
        raise DataError(
            f"No reader has {length} usable words in the {called} readings; the most are {longest}. Give fewer with "
            "--words."
        )
    if most:
        # Passages in the order of their place, so that the first ones are of all readers.
        place = np.concatenate([np.arange(len(c)) for c in cut])
        cut = [np.concatenate(cut)[np.argsort(place, kind="stable")[:most]]]
    found = np.concatenate(cut).astype(np.int32)
    left_over = len(words) - sum(len(w) // length * length for w in own)
    return Passages(corpus, found, left_over, called)


def passage_features(
    network: Network,
    corpus: data.EegCorpus,
    mesh: Mesh,
    *,
    label: str = "",
    layers: tuple[str, ...] = (),
    features: np.ndarray | None = None,
    max_words: int = 56,
    seed: int = 0,
) -> FeatureSource:
    """Features of an encoder of EEG words for passages, compiled at highest matmul precision.

    Args:
      network: an `eeg_words_*` network; initial weights are drawn where it has none.
      corpus: with the words that the passages of the analysis name.
      mesh: where sentences are split.
      label: for tables; the network's name by default.
      layers: taps or patterns; () for all taps.
      features: (V, F) in the place of the normalised EEG, see `data.EegPipeline`.
      max_words: words of a sentence that the network reads.
      seed: of random weights.
    """
    model, every = network.model, models.tap_names(network.model)
    taps = matching_taps(model, layers) or every
    variables = network.variables
    if variables is None:
        variables = models.init_variables(model, jax.random.key(seed), model.example_shape)
    constants = parallel.put_on_mesh(variables, mesh)

    def apply(constants: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        position = batch["position"].clip(0, model.max_words - 1)
        with jax.default_matmul_precision("highest"):
            answer: Any = model.apply(
                constants, batch["eeg"], train=False, taps=taps, where=batch["where"], position=position
            )
            return answer[1]

    sentence = (1, 2, model.in_features)
    shapes = {"eeg": (sentence, np.float32), "where": (sentence[:2], bool), "position": (sentence[:2], np.int32)}
    # Raises the TapError of an unknown layer before anything is compiled.
    jax.eval_shape(apply, constants, {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()})
    compiled, labels = jax.jit(apply), data.EegLabels.of(corpus)
    devices = parallel.batch_devices(mesh)
    at_once = -(-SENTENCES // devices) * devices

    def forward(items: Any) -> dict[str, np.ndarray]:
        words = np.asarray(items)  # (B, N)
        reading = corpus.reading_of_word[words]
        readings, row = np.unique(reading, return_inverse=True)
        row, column = row.reshape(words.shape), words - corpus.start[reading]
        batches: Iterable = data.EegEvalBatches(
            corpus, labels, readings=readings, batch_size=at_once, features=features, max_words=max_words
        )
        parts = []
        for batch in batches:
            arrays = parallel.put_batch({k: batch[k] for k in shapes}, mesh)
            parts.append(jax.device_get(compiled(constants, arrays)))
        return {t: np.concatenate([p[t] for p in parts])[row, column].astype(np.float32) for t in taps}

    return FeatureSource(
        label=label or network.spec.name,
        name=network.spec.name,
        origin=network.origin,
        parameters=int(sum(np.prod(p.shape) for p in jax.tree.leaves(variables["params"]))),
        image_size=(),
        crop_pct=1.0,
        interpolation="",
        layers=tuple(t for t in every if t in taps),
        num_classes=0,
        forward=forward,
    )
