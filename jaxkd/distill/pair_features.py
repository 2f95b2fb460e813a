"""Features of layer pairs: selection from the networks' outputs, grids of one size, projector heads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.distill.objective import Batch, ModelOutput
from jaxkd.distill.pairing import Pair
from jaxkd.distill.projectors import Projector
from jaxkd.errors import ConfigError, ShapeError, TapError, check_choice
from jaxkd.losses.arguments import full_precision
from jaxkd.losses.features import averaging_matrix

PyTree = Any
RESIZE = ("", "bilinear", "pool")


def as_pairs(pairs: Any) -> tuple[Pair, ...]:
    """`pairs` as a tuple of (student tap, teacher tap)."""
    pairs = tuple(pairs) if isinstance(pairs, Iterable) else (pairs,)
    if not all(isinstance(p, tuple | list) and len(p) == 2 and all(isinstance(tap, str) for tap in p) for p in pairs):
        raise ConfigError(
            f"pairs={pairs!r} are not pairs of taps. Pass what distill.resolve_pairs(pairs, student_taps, "
            "teacher_taps) returns."
        )
    return tuple((student, teacher) for student, teacher in pairs)


def pairs_of_taps(pairs: tuple[Pair, ...], names: tuple[str, ...]) -> tuple[Pair, ...]:
    """`pairs` of blocks as pairs of other taps of the same blocks; taps that are no block stay.

    Args:
      pairs: of taps.
      names: such as ("attn",), which turns `block_3` into `attn_3` and `stage_1.block_0` into `stage_1.block_0.attn`;
        each pair becomes one per name, next to one another. () for the pairs as they are.

    Raises:
      ConfigError: a tap that is the map of a stage or of a projector, which has no such taps.
    """
    if not names:
        return pairs

    def other(tap: str, name: str) -> str:
        if re.fullmatch(r"stage_\d+|lifted(_\d+)?", tap):
            kind, example = ("stage", f"{tap}.block_1") if tap.startswith("stage") else ("projector", "block_11")
            raise ConfigError(
                f'A term reads "{name}" of the paired blocks, but the pair names "{tap}", the map of a {kind}. Give '
                f'the term "pairs" that name blocks, such as "{example}".'
            )
        if re.fullmatch(r"stage_\d+\.block_\d+", tap):
            return f"{tap}.{name}"
        return re.sub(r"^block_(\d+)$", rf"{name}_\1", tap)

    return tuple((other(student, name), other(teacher, name)) for student, teacher in pairs for name in names)


def features_of(student: ModelOutput, teacher: ModelOutput, pairs: tuple[Pair, ...]) -> list[tuple[Any, Any]]:
    """(student feature, teacher feature) of each pair.

    Raises:
      TapError: a tap that a network was not asked for.
    """
    for side, output, taps in (
        ("student", student, [p[0] for p in pairs]),
        ("teacher", teacher, [p[1] for p in pairs]),
    ):
        for tap in taps:
            if tap not in output[1]:
                raise TapError(
                    f'The objective reads "{tap}" of the {side}, which returned {sorted(output[1]) or "no features"}. '
                    f"Call apply with taps=objective.{side}_taps."
                )
    return [(student[1][s], teacher[1][t]) for s, t in pairs]


def feature_mean(
    student: ModelOutput,
    teacher: ModelOutput,
    batch: Batch,
    *,
    loss: Callable[..., jax.Array],
    pairs: tuple[Pair, ...],
) -> jax.Array:
    """Mean over `pairs` of a loss on features: (B,), or a scalar for a loss of the batch."""
    values = [loss(s, t, where=batch.get("mask")) for s, t in features_of(student, teacher, pairs)]
    return sum(values[1:], start=values[0]) / len(values)


def resize_map(x: jax.Array, grid: tuple[int, int], method: str) -> jax.Array:
    """(B, H, W, C) -> (B, *grid, C) in at least fp32.

    Args:
      x: any float type.
      grid: rows and columns of the result.
      method: "bilinear" (antialiased where it shrinks) or "pool" (PyTorch's adaptive average pooling).
    """
    x = full_precision(x)
    if method == "bilinear":
        return jax.image.resize(x, (x.shape[0], *grid, x.shape[3]), "bilinear")
    rows, columns = (jnp.asarray(averaging_matrix(n, m), x.dtype) for n, m in zip(x.shape[1:3], grid, strict=True))
    return jnp.einsum("bhwc,hi,wj->bijc", x, rows, columns, precision=jax.lax.Precision.HIGHEST)


def same_grid(student: jax.Array, teacher: jax.Array, method: str) -> tuple[jax.Array, jax.Array]:
    """Two maps on one grid: the map with more positions is resized to the grid of the other.

    Raises:
      ShapeError: features that are not maps (B, H, W, C).
    """
    if student.ndim != 4 or teacher.ndim != 4:
        raise ShapeError(
            f'resize="{method}" needs two maps (batch, height, width, channels), but the features have shapes '
            f"{tuple(student.shape)} and {tuple(teacher.shape)}. Pair taps such as block_11 or stage_3, or leave "
            "resize out."
        )
    grids = (student.shape[1], student.shape[2]), (teacher.shape[1], teacher.shape[2])
    if grids[0] == grids[1]:
        return student, teacher
    if grids[0][0] * grids[0][1] > grids[1][0] * grids[1][1]:
        return resize_map(student, grids[1], method), teacher
    return student, resize_map(teacher, grids[0], method)


def check_resize(resize: Any) -> None:
    """Raises ConfigError unless `resize` is one of `RESIZE`."""
    check_choice("resize", resize, RESIZE)


@dataclass(frozen=True, eq=False)
class PreparedPairs:
    """A term whose features are resized and projected before its function sees them.

    The function gets the features under names of their own, `pair_0`, `pair_1`, ..., because two pairs may share a tap.

    Attributes:
      fn: of the term, with its arguments but without `pairs`.
      pairs: (student tap, teacher tap).
      resize: of `RESIZE`.
      projector: heads, each pair with parameters of its own, or None. Only for an `fn` without parameters.
      own_init: of the term, without `pairs`, or None.
    """

    fn: Callable[..., Any]
    pairs: tuple[Pair, ...]
    resize: str = ""
    projector: Projector | None = None
    own_init: Callable[..., tuple[PyTree, PyTree]] | None = None

    @property
    def _names(self) -> tuple[Pair, ...]:
        return tuple((f"pair_{i}", f"pair_{i}") for i in range(len(self.pairs)))

    def _outputs(self, student: ModelOutput, teacher: ModelOutput, features: list) -> tuple[ModelOutput, ModelOutput]:
        names = [name for name, _ in self._names]
        sides = [dict(zip(names, side, strict=True)) for side in zip(*features, strict=True)]
        return (student[0], sides[0]), (teacher[0], sides[1])

    def _on_one_grid(self, student: ModelOutput, teacher: ModelOutput) -> list[tuple[jax.Array, jax.Array]]:
        features = features_of(student, teacher, self.pairs)
        return [same_grid(s, t, self.resize) for s, t in features] if self.resize else features

    def init(self, key: jax.Array, student: ModelOutput, teacher: ModelOutput) -> tuple[PyTree, PyTree]:
        """See `Term.init`."""
        features = jax.eval_shape(self._on_one_grid, student, teacher)
        if self.projector is None:
            assert self.own_init is not None  # without a projector the parameters are the term's
            return self.own_init(key, *self._outputs(student, teacher, features), pairs=self._names)
        params, state = {}, {}
        for index, ((name, _), (s, t)) in enumerate(zip(self._names, features, strict=True)):
            key_of = jax.random.fold_in(key, index)
            params[name], state[name] = self.projector.init(key_of, s.shape[-1], t.shape[-1])
        return params, state

    def stateless(self, student: ModelOutput, teacher: ModelOutput, batch: Batch, **options: Any) -> jax.Array:
        """`Term.fn` of a term without parameters."""
        outputs = self._outputs(student, teacher, self._on_one_grid(student, teacher))
        return self.fn(*outputs, batch, pairs=self._names, **options)

    def stateful(
        self, params: PyTree, mutable: PyTree, student: ModelOutput, teacher: ModelOutput, batch: Batch, **options: Any
    ) -> tuple[jax.Array, PyTree]:
        """`Term.fn` of a term with parameters of its own or with a projector."""
        features = self._on_one_grid(student, teacher)
        if self.projector is None:
            outputs = self._outputs(student, teacher, features)
            return self.fn(params, mutable, *outputs, batch, pairs=self._names, **options)
        changed = {}
        for index, (name, _) in enumerate(self._names):
            s, t, changed[name] = self.projector(params[name], mutable[name], *features[index], batch.get("mask"))
            features[index] = (s, t)
        values = self.fn(*self._outputs(student, teacher, features), batch, pairs=self._names, **options)
        return values, changed
