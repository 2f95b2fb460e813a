"""Supervised training: a network, labels, label-smoothed cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import data, metrics
from jaxkd.distill import Objective
from jaxkd.train.task import Batch, Metrics
from jaxkd.weights.network import Network

PyTree = Any


class ClassificationTask:
    """Trains `student` on labels; `DistillationTask` adds a teacher.

    Args:
      student: the network; its variables, if any, are the start.
      objective: what to minimise (here: cross-entropy).
      frozen: tree of bool like the parameters, or None.
      erase: random erasing of training images, or None.
      mix: mixup and cutmix of training images, or None; its labels stay unsmoothed, since the objective smooths.
    """

    constants: PyTree

    def __init__(
        self,
        student: Network,
        objective: Objective,
        *,
        frozen: PyTree | None = None,
        erase: data.EraseConfig | None = None,
        mix: data.MixConfig | None = None,
    ):
        self.student = student
        self.erase = erase
        self.mix = None if mix is None else replace(mix, smoothing=0.0)
        self.objective = objective
        self.frozen = frozen
        self.constants = {}

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Random parameters, or the given ones; no mutable collections (these networks have none)."""
        if self.student.variables is not None:
            params = self.student.variables["params"]
        else:
            images = jnp.zeros((1, *self.student.image_size, 3), jnp.float32)
            params = self.student.model.init(key, images)["params"]
        return {"student": params, "projectors": {}}, {}

    def images(self, batch: Batch) -> jax.Array:
        """(B, H, W, 3) uint8 -> fp32, normalised with the student's constants."""
        return data.normalise(batch["image"], self.student.spec.mean, self.student.spec.std)

    def train_images(self, key: jax.Array, batch: Batch) -> tuple[jax.Array, Batch]:
        """Normalised, erased and mixed images, and the batch with the labels that belong to them."""
        pixels, labels = batch["image"], batch["label"]
        if self.mix is not None and "mask" in batch:
            # An image that could not be read must not show in its partner: the partner is mixed with itself instead.
            there = batch["mask"]
            pixels = jnp.where(there[:, None, None, None], pixels, pixels[::-1])
            labels = jnp.where(there, labels, labels[::-1])
        spec = self.student.spec
        images, labels = data.prepare_train_images(
            key,
            pixels,
            labels,
            mean=spec.mean,
            std=spec.std,
            erase=self.erase,
            mix=self.mix,
            num_classes=self.student.num_classes,
        )
        return images, {**batch, "label": labels}

    def forward(
        self,
        params: PyTree,
        images: jax.Array,
        *,
        train: bool,
        key: jax.Array | None = None,
        taps: tuple[str, ...] = (),
        offsets: Mapping[str, jax.Array] | None = None,
    ) -> tuple:
        """The student's (output, features): the features that the objective reads while it trains, and `taps`.

        `offsets` are added at their taps, see `models.contract`.
        """
        return self.student.model.apply(
            {"params": params["student"]},
            images,
            train=train,
            taps=(*self.objective.student_taps, *taps) if train else taps,
            offsets=offsets,
            rngs=None if key is None else {"dropout": key},
            **self.options(train),
        )

    def options(self, train: bool) -> dict[str, Any]:
        """Further arguments of the student; a task whose student answers differently while it trains says so here."""
        return {}

    def teach(self, images: jax.Array, constants: PyTree) -> tuple | None:
        """What a teacher says of `images`; here nobody does."""
        return None

    @staticmethod
    def keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The keys that a step with `key` prepares its images with, and that its student drops with."""
        images_key, dropout_key = (jax.random.fold_in(key, purpose) for purpose in (0, 1))
        return images_key, dropout_key

    def loss(
        self, params: PyTree, mutable: PyTree, batch: Batch, key: jax.Array, step: jax.Array, constants: PyTree
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        """See `train.Task.loss`."""
        images_key, dropout_key = self.keys(key)
        images, batch = self.train_images(images_key, batch)
        teacher_out = self.teach(images, constants)
        student_out = self.forward(params, images, train=True, key=dropout_key)
        loss, terms = self.objective(student_out, teacher_out, batch, step)
        return loss, (terms, mutable)

    def evaluate(self, params: PyTree, mutable: PyTree, batch: Batch, constants: PyTree) -> Metrics:
        """Top-1, top-5 (percent) and plain cross-entropy of the student."""
        logits, _ = self.forward(params, self.images(batch), train=False)
        scores = metrics.classification_metrics(logits, batch["label"], batch["mask"])
        return {k: (100.0 * v if k.startswith("top") else v, count) for k, (v, count) in scores.items()}

    def metadata(self) -> dict[str, Any]:
        """See `train.Task.metadata`."""
        return {"student": self.student.spec.name}
