"""Preparation of the arguments of all losses: precision, masked examples, and checks of shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.errors import ShapeError


def full_precision(x: ArrayLike) -> jax.Array:
    """`x` in at least fp32: half precision and integers become fp32, float64 stays float64."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def include(where: jax.Array | None, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """`arrays` with masked examples set to zero, before anything is computed from them.

    Masking the result is not enough, because 0 times the infinite slope at a NaN or inf is a NaN gradient. A loss
    therefore masks twice, here and in `exclude`.
    """
    if where is None:
        return arrays
    for x in arrays:
        if jnp.shape(where) != x.shape[:1] or jnp.result_type(where) != jnp.bool_:
            raise ShapeError(
                f"where is {jnp.result_type(where)} of shape {jnp.shape(where)}, but the batch has {x.shape[0]} "
                f"examples. Pass a bool array of shape ({x.shape[0]},)."
            )
    return tuple(jnp.where(jnp.reshape(where, (-1,) + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x)) for x in arrays)


def exclude(where: jax.Array | None, loss: jax.Array) -> jax.Array:
    """(B,) `loss` with exactly 0 where `where` is False; the counterpart of `include`."""
    return loss if where is None else jnp.where(where, loss, jnp.zeros_like(loss))


def check_features(
    student: tuple[int, ...],
    teacher: tuple[int, ...],
    *,
    names: tuple[str, str] = ("student map", "teacher map"),
    rank: int | None = None,
) -> None:
    """Checks that two features can be compared position by position: all axes equal but the last, the channels.

    Args:
      student: shape, (B, ..., C_s).
      teacher: shape, (B, ..., C_t).
      names: of the two features in the error message.
      rank: number of axes that both must have; None for any number from 2.
    """
    student, teacher = tuple(student), tuple(teacher)
    what = f"The {names[0]} has shape {student} and the {names[1]} {teacher}."
    wanted = f"{rank} axes, (batch, height, width, channels)" if rank == 4 else "a batch and a channel axis at least"
    if len(student) != len(teacher) or (len(student) != rank if rank else len(student) < 2):
        raise ShapeError(
            f"{what} Both must have the same axes, here {wanted}. Compare two maps, taps such as block_11 or stage_3, "
            "with each other."
        )
    if student[0] != teacher[0]:
        raise ShapeError(
            f"{what} The batches are of {student[0]} and {teacher[0]} examples. Pass the same images to both networks."
        )
    if student[1:-1] != teacher[1:-1]:
        raise ShapeError(
            f"{what} The grids {student[1:-1]} and {teacher[1:-1]} differ, and only channels are pooled. Pair layers "
            "of equal grids: networks with the same stride at that depth and the same img_size / patch_size, or "
            "another Swin stage."
        )


def check_logits(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """Checks two (B, K) logits."""
    student, teacher = tuple(student), tuple(teacher)
    if len(student) != 2 or student != teacher:
        raise ShapeError(
            f"The student's logits have shape {student} and the teacher's {teacher}, but both must be the same (batch, "
            "classes). Give both networks the same num_classes and the same images."
        )


def check_parameters(owner: str, params: Mapping[str, jax.Array], shapes: Mapping[str, Sequence[int | None]]) -> None:
    """Checks trained parameters of a loss.

    Args:
      owner: of the parameters, in the error message, e.g. "mgd".
      params: name -> array.
      shapes: name -> shape; None is a free size.

    Raises:
      ShapeError: a missing name or another shape.
    """
    for name, wanted in shapes.items():
        if name not in params:
            raise ShapeError(f"{owner} has no parameter {name}; given are {sorted(params)}. Pass {sorted(shapes)}.")
        given = tuple(jnp.shape(params[name]))
        if len(given) != len(wanted) or any(w not in (None, g) for w, g in zip(wanted, given, strict=True)):
            sizes = ", ".join("any" if w is None else str(w) for w in wanted)
            raise ShapeError(
                f"{name} of {owner} has shape {given}, but these features need ({sizes}). Kernels are (..., in, out); "
                "make them for the channels of this student and this teacher."
            )


def check_same_width(loss: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """Checks two features with all axes equal, the channels too."""
    check_features(student, teacher, names=("student feature", "teacher feature"))
    if student[-1] != teacher[-1]:
        raise ShapeError(
            f"{loss} compares channel by channel, but the student has {student[-1]} channels and the teacher "
            f"{teacher[-1]}. Project the student's feature to {teacher[-1]} channels first; in a config, give the term "
            '"projector": "linear".'
        )
