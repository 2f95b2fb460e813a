"""What every loss does to its arguments first: precision, excluded examples, and whether two features fit together."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError


def full_precision(x: jax.Array) -> jax.Array:
    """`x` in at least fp32: half precisions and integers are raised to it, float64 stays what it is."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def include(where: jax.Array | None, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """`arrays` with the examples that do not count set to zero, before anything is computed from them.

    Zeroing the result alone would not do: 0 times the infinite slope of a NaN or inf is a NaN gradient. So a loss
    selects twice, here and in `exclude`.

    Args:
      where: (B,) bool, False for the examples to leave out; None for all of them.
      *arrays: (B, ...) each.

    Raises:
      ShapeError: `where` is not (B,) bool.
    """
    if where is None:
        return arrays
    for x in arrays:
        if jnp.shape(where) != x.shape[:1] or jnp.result_type(where) != jnp.bool_:
            raise ShapeError(
                f"where is {jnp.result_type(where)} of shape {jnp.shape(where)}, but the batch has {x.shape[0]} "
                f"examples. It says of each example whether it counts. Pass a bool array of shape ({x.shape[0]},)."
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
      names: what the error calls the two.
      rank: number of axes both must have; None for any, of at least 2.

    Raises:
      ShapeError: another rank, batch or grid.
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
            f"{what} The batches are of {student[0]} and {teacher[0]} examples; student and teacher must see the same "
            "images. Pass both the same batch."
        )
    if student[1:-1] != teacher[1:-1]:
        raise ShapeError(
            f"{what} The grids {student[1:-1]} and {teacher[1:-1]} differ, and features are compared position by "
            "position (only channels are pooled). Pair layers of equal grids: networks with the same stride at that "
            "depth and the same img_size / patch_size, or another Swin stage."
        )


def check_logits(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """Checks two (B, K) logits.

    Raises:
      ShapeError: another rank, batch or number of classes.
    """
    student, teacher = tuple(student), tuple(teacher)
    if len(student) != 2 or student != teacher:
        raise ShapeError(
            f"The student's logits have shape {student} and the teacher's {teacher}. They are compared class by "
            "class, so both must be (batch, classes). Give both networks the same num_classes and the same images."
        )
