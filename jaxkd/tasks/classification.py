"""Supervised training: a network, labels, label-smoothed cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import data, metrics, models
from jaxkd.distill import ModelOutput, Objective
from jaxkd.train.task import Batch, Inputs, Metrics, Task
from jaxkd.weights.network import Network

PyTree = Any


class ClassificationTask(Task):
    """Trains `student` on labels; `DistillationTask` adds a teacher.

    Args:
      student: the network; its variables, if any, are the start.
      objective: what to minimise (here: cross-entropy).
      frozen: tree of bool like the student's parameters, or None.
      erase: random erasing of training images, or None.
      mix: mixup and cutmix of training images, or None; its labels stay unsmoothed, since the objective smooths.
    """

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
        self.objective, self.student_taps = objective, objective.student_taps
        self._frozen_student = frozen

    @cached_property
    def constants(self) -> PyTree:
        """See `train.Task`; nothing here."""
        return {}

    @cached_property
    def frozen(self) -> PyTree | None:
        """Tree of bool like the parameters; those of the objective train unless their term is frozen."""
        student = self._frozen_student
        if student is None and not self.objective.has_frozen:
            return None
        if student is None:
            shapes = models.abstract_variables(self.student.model, (1, *self.student.image_size, 3))
            student = jax.tree.map(lambda _: False, shapes["params"])
        projectors, _ = jax.eval_shape(self._init_objective, jax.random.key(0))
        return {"student": student, "projectors": self.objective.frozen(projectors)}

    def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """Random student parameters, or the given ones, and parameters and state of the objective."""
        return self.init_member(key, self.student.variables)

    def init_member(self, key: jax.Array, variables: PyTree | None, **member: int) -> tuple[PyTree, PyTree]:
        """`init` with `variables` of the student, random ones for None; `member` of a population."""
        if variables is not None:
            params = variables["params"]
        else:
            params = models.init_variables(self.student.model, key, (1, *self.student.image_size, 3))["params"]
        projectors, state = self._init_objective(jax.random.fold_in(key, 1), **member)
        return {"student": params, "projectors": projectors}, {"projectors": state} if state else {}

    def _init_objective(self, key: jax.Array, **member: int) -> tuple[PyTree, PyTree]:
        if not self.objective.has_variables:
            return {}, {}
        return self.objective.init(key, self.output_shapes(), **member)

    @property
    def eval_constants(self) -> PyTree:
        """Arrays that `evaluate` reads as `constants`; nothing here."""
        return {}

    def output_shapes(self) -> tuple[ModelOutput, ModelOutput | None]:
        """Shapes of (output, features) of student and teacher for one image; nothing is computed."""
        return abstract_output(self.student, self.student_taps, **self.student_options(train=True)), None

    def preprocess(self, batch: Batch) -> jax.Array:
        """(B, H, W, 3) uint8 -> fp32, normalised with the student's constants."""
        return data.normalise(batch["image"], self.student.spec.mean, self.student.spec.std)

    def augment(self, key: jax.Array, batch: Batch) -> tuple[jax.Array, Batch]:
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

    def teacher_forward(self, images: jax.Array, constants: PyTree) -> ModelOutput | None:
        """The teacher's (output, features) for the student's images; None without a teacher."""
        return None

    def inputs(self, batch: Batch, key: jax.Array, constants: PyTree) -> Inputs:
        """See `train.Task.inputs`."""
        images, batch = self.augment(jax.random.fold_in(key, 0), batch)
        return Inputs(images, batch, self.teacher_forward(images, constants))

    def compare(
        self,
        params: PyTree,
        mutable: PyTree,
        inputs: Inputs,
        output: ModelOutput,
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        """The objective of student and teacher."""
        state = mutable.get("projectors", {})
        options = {"key": jax.random.fold_in(key, 2)} if self.objective.needs_key else {}
        loss, terms, state = self.objective(
            params["projectors"], state, output, inputs.teacher, inputs.batch, step, **options
        )
        return loss, terms, {**mutable, "projectors": state} if state else mutable

    def evaluate(self, params: PyTree, mutable: PyTree, batch: Batch, constants: PyTree) -> Metrics:
        """Top-1, top-5 (percent) and plain cross-entropy of the student.

        With `eval_constants` that hold the teacher's classifier, also the top-1 by it of the student's projected
        feature, `top1_teacher_head`; NaN for a member of a population without such a term.
        """
        images, options = self.preprocess(batch), self.student_options(train=False)
        classifier = constants.get("classifier") if isinstance(constants, Mapping) else None
        taps = () if classifier is None else self.objective.predicting_taps
        output: Any = self.student.model.apply({"params": params["student"]}, images, train=False, taps=taps, **options)
        scores = dict(metrics.classification_metrics(output[0], batch["label"], batch["mask"]))
        if classifier is not None:
            logits, found = self.objective.predict(params["projectors"], output, classifier, batch)
            own = metrics.classification_metrics(logits, batch["label"], batch["mask"])["top1"]
            scores["top1_teacher_head"] = own.replace(total=jnp.where(found, own.total, jnp.nan))
        return {k: v.replace(total=100.0 * v.total) if k.startswith("top") else v for k, v in scores.items()}


def abstract_output(network: Network, taps: tuple[str, ...], **options: Any) -> ModelOutput:
    """Shapes of (output, features) of a network for one image, by abstract evaluation."""
    shape = (1, *network.image_size, 3)
    return models.abstract_call(network.model, shape, train=False, taps=tuple(taps), **options)[1]
