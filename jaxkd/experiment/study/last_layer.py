"""Last layers of students beside the teacher's: agreement of the first class, debiased linear CKA, effective rank."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jaxkd import analysis, data, models, weights
from jaxkd.analysis.similarity import gram_linear, hsic1, minibatch_cka

CHUNK = 250  # images of a Gram matrix; the estimator is unbiased for any number of at least 4
LIFTED = "lifted"  # tap of a student whose retained projector makes the distilled feature


def last_tap(model: nn.Module) -> str:
    """The feature that distillation of the last layer reads: `lifted` where there is one, else the last block."""
    taps = models.tap_names(model)
    return LIFTED if LIFTED in taps else models.depth_taps(taps)[-1]


@functools.lru_cache(maxsize=16)
def _forward(model: nn.Module, mean: tuple, std: tuple) -> Any:
    """Compiled (variables, uint8 images) -> (predicted classes, tokens of the last layer, Gram matrix over images)."""
    tap = last_tap(model)

    @jax.jit
    def forward(variables: Any, images: jax.Array) -> tuple[jax.Array, tuple, jax.Array]:
        with jax.default_matmul_precision("highest"):
            logits, features = model.apply(variables, data.normalise(images, mean, std), train=False, taps=(tap,))
        tokens = features[tap].reshape(images.shape[0], -1, features[tap].shape[-1])
        return logits.argmax(axis=-1), analysis.second_moment(tokens), gram_linear(tokens)

    return forward


class TeacherLastLayer:
    """The teacher's side, computed once.

    Args:
      teacher: with its weights.
      source: validation split.
      count: images, evenly over the split; whole chunks of 250 are used (one smaller chunk if there are fewer).
      crop_pct: of the evaluation crop; 0: the teacher's own.
      interpolation: likewise.
    """

    def __init__(self, teacher: weights.Network, source: data.Source, count: int, crop_pct: float, interpolation: str):
        count = min(count, len(source))
        self._chunk = min(CHUNK, count)
        count -= count % self._chunk
        indices = np.arange(count) * len(source) // count
        preprocess = data.eval_preprocess(teacher.spec, teacher.image_size, crop_pct, interpolation)
        batches = data.EvalBatches(data.Subset(source, indices), preprocess, batch_size=self._chunk, max_broken=0.0)
        self._images = [batch["image"] for batch in batches]
        self.images = count
        chunks = list(self._pass(teacher))
        self._classes = np.concatenate([classes for classes, _, _ in chunks])
        self._grams = [gram for _, _, gram in chunks]
        self._self = np.array([float(hsic1(gram, gram)) for gram in self._grams])

    def _pass(self, network: weights.Network) -> Iterator[tuple[np.ndarray, tuple, np.ndarray]]:
        forward = _forward(network.model, tuple(network.spec.mean), tuple(network.spec.std))
        for images in self._images:
            classes, moments, gram = jax.device_get(forward(network.variables, images))
            yield classes, moments, np.asarray(gram, np.float64)

    def measure(self, student: weights.Network) -> dict[str, float]:
        """`teacher_agreement` in percent, `cka_last`, and `effective_rank_last` of a student with its weights.

        CKA is linear, of all tokens of an image as one vector, from unbiased HSICs of chunks (`minibatch_cka`). The
        effective rank is exp of the entropy of the eigenvalues of the centred covariance over all tokens.
        """
        agreed, cross, own = [], [], []
        moment, total, tokens = 0.0, 0.0, 0
        for i, (classes, (second, first, seen), gram) in enumerate(self._pass(student)):
            start = i * self._chunk
            agreed.append(np.mean(classes == self._classes[start : start + len(classes)]))
            cross.append(float(hsic1(gram, self._grams[i])))
            own.append(float(hsic1(gram, gram)))
            moment, total = moment + np.asarray(second, np.float64), total + np.asarray(first, np.float64)
            tokens += int(seen)
        pca = analysis.pca_from_moments(moment, total, tokens, centre=True)
        cka = minibatch_cka(np.array(cross)[:, None, None], np.array(own)[:, None], self._self[:, None])
        return {
            "teacher_agreement": 100.0 * float(np.mean(agreed)),
            "cka_last": float(cka[0, 0]),
            "effective_rank_last": float(analysis.effective_rank(pca.eigenvalues)),
        }
