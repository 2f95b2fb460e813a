"""Distillation: a student learns from labels and from a frozen teacher inside one compiled step."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxkd import losses, models, parallel, weights
from jaxkd.distill import LogitFormat, ModelOutput, Objective, Teacher, Term, check_pairs
from jaxkd.errors import ConfigError, JaxkdError, ShapeError
from jaxkd.tasks.classification import ClassificationTask, abstract_output
from jaxkd.train.task import Batch, Inputs
from jaxkd.weights.network import Network

PyTree = Any


class DistillationTask(ClassificationTask):
    """Distils `teacher` into `student`.

    Args:
      student: the network that learns.
      teacher: the network that is read; its variables become `constants`.
      objective: what to minimise; its pairs are checked here before anything compiles.
      mesh: devices, on which the teacher may use kernels of its own, see `Teacher`, and each of which transforms the
        features of its own images.
      stored: the form in which the batches hold the teacher's logits, so that the step runs no teacher; None runs it.
      **options: frozen, erase and mix of `ClassificationTask`; the teacher sees the erased and mixed images.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network,
        objective: Objective,
        *,
        mesh: Mesh | None = None,
        stored: LogitFormat | None = None,
        **options: Any,
    ):
        super().__init__(student, objective, **options)
        self.teacher, self.stored = teacher, stored
        # A student with a distillation token learns the teacher from that token's own head, as in DeiT.
        self._two_heads = _two_heads(student)
        colours = (teacher.spec.mean, teacher.spec.std, student.spec.mean, student.spec.std)
        self._teacher = Teacher(teacher.model, *colours, mesh)
        self._transform = None if mesh is None else parallel.on_each_device(mesh)
        check_networks(student, teacher, objective, mixed=self.mix is not None)

    @cached_property
    def teacher_variables(self) -> PyTree:
        """The teacher's variables; random ones are drawn on the first use."""
        return _random_variables(self.teacher) if self.teacher.variables is None else self.teacher.variables

    @cached_property
    def constants(self) -> PyTree:
        """The teacher's variables in the types that it reads them in, where the step runs it."""
        if self.stored is not None:
            return {}
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), self.teacher_variables, self.abstract_constants)

    @cached_property
    def abstract_constants(self) -> PyTree:
        """Their shapes and types; nothing is drawn."""
        if self.stored is not None:
            return {}
        shape, taps = (1, *self.teacher.image_size, 3), tuple(self.objective.teacher_taps)
        types = models.frozen_types(self.teacher.model, shape, train=False, taps=taps)
        given = types if self.teacher.variables is None else self.teacher.variables
        # With the containers of the given variables, which may be flax's frozen ones.
        return jax.tree.unflatten(jax.tree.structure(given), jax.tree.leaves(types))

    @cached_property
    def _fingerprint(self) -> str:
        return weights.fingerprint(self.teacher_variables)

    @cached_property
    def eval_constants(self) -> PyTree:
        """The teacher's classifier, where a term predicts by it, it is one layer and has the student's classes."""
        if not self.objective.predicting_taps or _two_heads(self.teacher):
            return {}
        head = self.teacher_variables["params"].get("head", {})
        head = head.get("fc", head)  # Swin's is one level down
        if not {"kernel", "bias"} <= set(head) or self.teacher.num_classes != self.student.num_classes:
            return {}
        return {"classifier": {name: np.asarray(head[name], np.float32) for name in ("kernel", "bias")}}

    def student_options(self, train: bool) -> dict[str, Any]:
        """Both heads of a distilled student while it trains."""
        return {"distilled": True} if train and self._two_heads else {}

    def output_shapes(self) -> tuple[ModelOutput, ModelOutput]:
        """See `ClassificationTask.output_shapes`."""
        student, _ = super().output_shapes()
        return student, abstract_output(self.teacher, self.objective.teacher_taps)

    def teacher_forward(self, images: jax.Array, constants: PyTree) -> ModelOutput:
        """The teacher's (logits, features), without gradient."""
        return self._teacher(constants, images, self.objective.teacher_taps)

    def compare(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
        """See `ClassificationTask.compare`."""
        with losses.transforms_applied_by(self._transform):
            return super().compare(*args, **kwargs)

    def inputs(self, batch: Batch, key: jax.Array, constants: PyTree) -> Inputs:
        """See `train.Task.inputs`; with stored logits the teacher does not run."""
        if self.stored is None:
            return super().inputs(batch, key, constants)
        images, batch = self.augment(jax.random.fold_in(key, 0), batch)
        rest = {name: value for name, value in batch.items() if name not in self.stored.arrays}
        return Inputs(images, rest, (self.stored.unpack(batch), {}))

    def logits_to_store(self, batch: Batch, key: jax.Array, variables: PyTree) -> Batch:
        """The arrays of a batch that `inputs` with the same key reads in the place of running the teacher."""
        images, _ = self.augment(jax.random.fold_in(key, 0), batch)
        if self.stored is None:
            raise ValueError("this task stores no logits")
        return self.stored.pack(self._teacher(variables, images)[0])

    def metadata(self) -> dict[str, Any]:
        """The teacher's name and hash, so that a resume with another teacher is noticed."""
        return super().metadata() | {
            "teacher": self.teacher.spec.name,
            "teacher_fingerprint": self._fingerprint,
        }


def _random_variables(teacher: Network) -> PyTree:
    """Of a teacher without weights: it teaches noise, but its step takes as long as a real one's."""
    rng = np.random.default_rng(0)
    shapes = _abstract_variables(teacher)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.02, leaf.shape), leaf.dtype), shapes)


def _abstract_variables(teacher: Network) -> PyTree:
    return models.abstract_variables(teacher.model, (1, *teacher.image_size, 3))


def _two_heads(network: Network) -> bool:
    return bool(getattr(network.model, "distillation_token", False))


def output_shapes(
    student: Network, teacher: Network, student_taps: Sequence[str] = (), teacher_taps: Sequence[str] = ()
) -> tuple[ModelOutput, ModelOutput]:
    """Shapes of (output, features) of both networks for one image, in training; nothing is computed.

    Args:
      student: the network that learns.
      teacher: the network that is read.
      student_taps: features to return.
      teacher_taps: likewise.

    Raises:
      TapError: a tap that does not exist.
    """
    options = {"distilled": True} if _two_heads(student) else {}
    return abstract_output(student, tuple(student_taps), **options), abstract_output(teacher, tuple(teacher_taps))


def check_networks(
    student: Network,
    teacher: Network,
    objective: Objective,
    *,
    mixed: bool = False,
    outputs: tuple[ModelOutput, ModelOutput] | None = None,
) -> None:
    """Checks that `objective` can compare the two networks; needs no weights and compiles nothing.

    Args:
      student: the network that learns.
      teacher: the network that is read.
      objective: its terms are traced with the shapes of both networks' outputs.
      mixed: whether the labels are probabilities, because images are mixed.
      outputs: of `output_shapes` with the objective's taps and perhaps more; None finds them.

    Raises:
      ConfigError, ShapeError, TapError: a term that does not fit the networks.
    """
    if objective.compares_logits and student.num_classes != teacher.num_classes:
        raise ConfigError(
            f"The student has {student.num_classes} classes and the teacher {teacher.num_classes}, and their logits "
            "are compared. Set student.args.num_classes or teacher.args.num_classes (a fine-tuned head) so that both "
            "are the same, or choose an objective without logits."
        )
    if student.image_size != teacher.image_size:
        raise ConfigError(
            f"The student takes {student.image_size} images and the teacher {teacher.image_size}, but both see the "
            "same batch. Set teacher.args.img_size (with teacher.resize=True if its position embeddings must follow)."
        )
    if outputs is None:
        outputs = output_shapes(student, teacher, objective.student_taps, objective.teacher_taps)
    shape, dtype = ((1, student.num_classes), jnp.float32) if mixed else ((1,), jnp.int32)
    label = jax.ShapeDtypeStruct(shape, dtype)
    for term in objective.terms:
        _check_term(term, outputs, {"label": label})


def _check_term(term: Term, outputs: tuple[ModelOutput, ModelOutput], batch: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Traces a term with shapes; raises what is wrong with them, and which term it is."""
    objective = Objective((replace(term, weight=1.0),))

    def call(key: jax.Array, outputs: tuple[ModelOutput, ModelOutput], batch: dict[str, jax.Array]) -> jax.Array:
        params, mutable = objective.init(key, outputs)
        return objective(params, mutable, *outputs, batch, 0, key=key)[0]

    try:
        jax.eval_shape(call, jax.random.key(0), outputs, batch)
    except Exception as error:
        if isinstance(error, JaxkdError) and not isinstance(error, ShapeError | ConfigError):
            raise
        attention = [tap for pair in term.pairs for tap in pair if re.search(r"(^|\.)attn(_\d+)?$", tap)]
        if term.maps and attention and isinstance(error, ShapeError):
            raise ShapeError(
                f'The term "{term.name}" compares feature maps, but its pairs name "{attention[0]}", an attention '
                '(heads, tokens, tokens). Name blocks, such as "block_0", or use "attention_kl" or "attention_cosine".'
            ) from None
        shapes = [{name: tuple(value.shape) for name, value in features.items()} for _, features in outputs]
        if not isinstance(error, ConfigError):  # more words about two maps whose grids differ
            maps = set(models.depth_taps(tap for pair in term.pairs for tap in pair))
            check_pairs([pair for pair in term.pairs if set(pair) <= maps], *shapes)
        if isinstance(error, JaxkdError):
            raise type(error)(f'The term "{term.name}" does not fit these networks. {error}') from None
        raise ConfigError(
            f'The term "{term.name}" fails with the features of these networks{_place(error)}: {type(error).__name__}: '
            f"{str(error).rstrip('.')}. Pair layers whose features fit, or correct its function."
        ) from error


def _place(error: BaseException) -> str:
    """File and line, of the code that is neither jaxkd's nor an installed package's, where `error` was raised."""
    package = str(Path(__file__).parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(package) and "site-packages" not in Path(f.filename).parts]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
