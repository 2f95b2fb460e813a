"""Losses between attentions, and between the similarities of tokens, of two networks whose widths may differ.

Legend: B batch, N tokens, C channels, H heads, D channels per head, R relation heads. The gradient of the teacher is
not stopped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.errors import ConfigError, ShapeError, check_choice, check_range, in_words
from jaxkd.losses.arguments import check_features, exclude, full_precision, include
from jaxkd.losses.norms import unit
from jaxkd.losses.relational import counted_examples, pair_mean

HEADS = ("each", "mean")
PROJECTIONS = ("q", "k", "v")
# fp32 matrix products also where the default rounds their factors to bf16 or TF32.
_PRECISION = jax.lax.Precision.HIGHEST


def attention_kl(
    student: jax.Array,
    teacher: jax.Array,
    *,
    heads: str = "each",
    eps: float = 1e-12,
    where: jax.Array | None = None,
) -> jax.Array:
    """KL(teacher || student) of attention probabilities: MiniLM's attention transfer.

    Mean over heads and queries of sum_j t_j (log max(t_j, eps) - log max(s_j, eps)), j over the keys. An entry that is
    0 in both, such as a masked one, adds 0 and has no slope. Where queries and keys are at hand, `relation_kl` with
    relations=("qk",) starts from logits and is the better conditioned form.

    Source: arXiv 2002.10957, eq. 3; bloomberg/minilmv2.bb, `minilmv2.py`. The paper needs equally many heads
    (`heads="each"`); `heads="mean"` compares the mean over the heads of each network and is an addition of jaxkd.
    PyTorch's reduction "batchmean" would sum over heads and queries.

    Args:
      student: (B, ..., H, N, N) probabilities, e.g. the tap `attn_i`; any float type.
      teacher: likewise; another H only for heads="mean".
      heads: "each" or "mean".
      eps: lower bound of a probability in the logarithm.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats.

    Raises:
      ConfigError: `heads` is neither, or eps is not above 0.
      ShapeError: another batch, other tokens, or, for heads="each", other heads.
    """
    check_choice("heads", heads, HEADS)
    check_range("eps", eps, above=0, hint="the golden values use 1e-12")
    _check_attention(student.shape, teacher.shape, same_heads=heads == "each")
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    if heads == "mean":
        student, teacher = jnp.mean(student, axis=-3), jnp.mean(teacher, axis=-3)
    log_s, log_t = (jnp.log(jnp.maximum(x, eps)) for x in (student, teacher))
    return exclude(where, _example_mean(jnp.sum(teacher * (log_t - log_s), axis=-1)))


def attention_cosine(
    student: jax.Array, teacher: jax.Array, *, eps: float = 1e-8, where: jax.Array | None = None
) -> jax.Array:
    """Mean over heads and queries of 1 - the cosine between the attention rows of both networks.

    Source: google/tunix, `distillation/strategies/attention.py`, which calls it attention transfer; the loss of
    Zagoruyko and Komodakis is `attention_transfer`. A row of zeros gives 1 and no slope.

    Args:
      student: (B, ..., H, N, N) probabilities, e.g. the tap `attn_i`; any float type.
      teacher: of the same shape.
      eps: lower bound of a row's length.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in [0, 1] for probabilities.

    Raises:
      ConfigError: eps is not above 0.
      ShapeError: another batch, or other heads or tokens.
    """
    check_range("eps", eps, above=0, hint="the public code uses 1e-8")
    _check_attention(student.shape, teacher.shape, same_heads=True)
    student, teacher = include(where, full_precision(student), full_precision(teacher))
    return exclude(where, _example_mean(1.0 - jnp.sum(unit(student, eps=eps) * unit(teacher, eps=eps), axis=-1)))


def relation_kl(
    student: Mapping[str, jax.Array],
    teacher: Mapping[str, jax.Array],
    *,
    relation_heads: int,
    relations: Sequence[str] = ("qq", "kk", "vv"),
    where: jax.Array | None = None,
) -> jax.Array:
    """KL(teacher || student) of self-attention relations: MiniLM and MiniLMv2.

    Sum over the relations ab of the mean over R relation heads and N queries of KL(t || s), where t and s are the
    softmax of a b' / sqrt(d_R). The H heads of a token are joined and its H D channels are divided into R relation
    heads of d_R = H D / R channels, so that the networks may differ in heads and width; d_R is each network's own.

    Source: arXiv 2002.10957 (relations=("qk", "vv") with R = H: attention and value relation of the last block),
    arXiv 2012.15828 (("qq", "kk", "vv")); bloomberg/minilmv2.bb, `minilmv2.py`. The papers weigh all relations alike.
    Memory: 2 B R N^2 values per relation.

    Args:
      student: "q", "k", "v", as far as `relations` reads them -> (B, ..., H, N, D), e.g. the taps `query_i`, `key_i`
        and `value_i`; queries before the scaling by D^-1/2. Any float type.
      teacher: likewise, with the same N.
      relation_heads: R, which divides H D of both networks; the published models use 12 to 64.
      relations: pairs of "q", "k" and "v".
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,) in nats, a sum over the relations.

    Raises:
      ConfigError: no relation, an unknown one, or relation_heads that is no positive integer.
      ShapeError: a missing projection, another batch or other tokens, or relation_heads that do not divide H D.
    """
    check_range("relation_heads", relation_heads, 1, whole=True)
    if isinstance(relations, str) or not relations or any(len(r) != 2 or set(r) - set(PROJECTIONS) for r in relations):
        raise ConfigError(
            f'relations={relations!r} is not a list of pairs of "q", "k" and "v". Give e.g. relations=("qq", "kk", '
            '"vv") or relations=("qk", "vv").'
        )
    read = sorted(set("".join(relations)))
    _check_projections(student, teacher, read, relation_heads)

    def relation_logits(projections: Mapping[str, jax.Array]) -> list[jax.Array]:
        arrays = include(where, *(full_precision(projections[name]) for name in read))
        split = {name: _relation_heads(x, relation_heads) for name, x in zip(read, arrays, strict=True)}
        scale = split[read[0]].shape[-1] ** -0.5
        return [
            jnp.einsum("...nd,...md->...nm", split[ab[0]] * scale, split[ab[1]], precision=_PRECISION)
            for ab in relations
        ]

    loss: Any = 0.0
    for logits in zip(relation_logits(student), relation_logits(teacher), strict=True):
        log_s, log_t = map(jax.nn.log_softmax, logits)
        loss = loss + _example_mean(jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1))
    return exclude(where, loss)


def manifold_intra(
    student: jax.Array, teacher: jax.Array, *, eps: float = 1e-12, where: jax.Array | None = None
) -> jax.Array:
    """Manifold distillation within an image: mean over N^2 of (C_s - C_t)^2, C the cosines between its tokens.

    Source: arXiv 2107.01378; manifold-distillation, `losses.py`, where it is called "patch". The paper writes squared
    Frobenius norms, N^2 times this value; the code takes means. The published recipe weighs intra, inter and random by
    4, 0.1 and 0.2 (the defaults of its arguments are 1) and averages over 8 pairs of layers. The code drops the first
    tokens of a student that has more than its teacher: cut them before. Memory: 2 B N^2 values.

    Args:
      student: (B, ..., C_s) tokens or map, any float type; the axes between are the N tokens.
      teacher: (B, ..., C_t).
      eps: lower bound of a token's length; shorter ones have no slope.
      where: (B,) bool; False gives exactly 0 and no gradient, even where the example holds NaN.

    Returns:
      (B,), at most 4.

    Raises:
      ConfigError: eps is not above 0.
      ShapeError: another rank, batch or grid.
    """
    student, teacher = (unit(x, eps=eps) for x in _tokens(student, teacher, eps, where))
    cosines = (jnp.einsum("bnc,bmc->bnm", x, x, precision=_PRECISION) for x in (student, teacher))
    return exclude(where, _example_mean(_squared_difference(*cosines)))


def manifold_inter(
    student: jax.Array, teacher: jax.Array, *, eps: float = 1e-12, where: jax.Array | None = None
) -> jax.Array:
    """Manifold distillation between images at one position: mean over N and B^2 of (C_s - C_t)^2. Batch-level.

    C holds the cosines between the tokens of all images at the same position. Source: as of `manifold_intra`; the
    code calls it "sample". The code compares the images of one device, jaxkd those of the global batch.
    Memory: 2 N B^2 values.

    Args:
      student: (B, ..., C_s) tokens or map, any float type; B is the global batch.
      teacher: (B, ..., C_t).
      eps: lower bound of a token's length; shorter ones have no slope.
      where: (B,) bool; the loss is that of the examples with True. Others may hold NaN.

    Returns:
      (), at most 4.

    Raises:
      ConfigError: eps is not above 0.
      ShapeError: another rank, batch or grid.
    """
    student, teacher = (unit(x, eps=eps) for x in _tokens(student, teacher, eps, where))
    cosines = (jnp.einsum("bnc,dnc->bdn", x, x, precision=_PRECISION) for x in (student, teacher))
    return pair_mean(jnp.mean(_squared_difference(*cosines), axis=-1), counted_examples(student, where))


def manifold_random(
    student: jax.Array,
    teacher: jax.Array,
    indices: jax.Array,
    *,
    eps: float = 1e-12,
    where: jax.Array | None = None,
) -> jax.Array:
    """Manifold distillation among K tokens of the whole batch: mean over K^2 of (C_s - C_t)^2. Batch-level.

    Source: as of `manifold_intra`. The code draws K = 192 tokens of one device, without replacement, anew in each step
    and for each layer; here they come from the global batch. Memory: 2 K^2 values.

    Args:
      student: (B, ..., C_s) tokens or map, any float type; N tokens each. B is the global batch.
      teacher: (B, ..., C_t).
      indices: (K,) integers, b N + n for token n of example b. One outside [0, B N) gives NaN.
      eps: lower bound of a token's length; shorter ones have no slope.
      where: (B,) bool; tokens of examples with False are left out, so that fewer than K count.

    Returns:
      (), at most 4.

    Raises:
      ConfigError: eps is not above 0.
      ShapeError: another rank, batch or grid, or indices that are not (K,) integers.
    """
    if jnp.ndim(indices) != 1 or not jnp.issubdtype(jnp.result_type(indices), jnp.integer):
        raise ShapeError(
            f"The indices are {jnp.result_type(indices)} of shape {jnp.shape(indices)}, but must be integers of shape "
            "(K,). Draw them with jax.random.choice(key, batch * tokens, (K,), replace=False)."
        )
    student, teacher = _tokens(student, teacher, eps, where)
    batch, tokens, _ = student.shape
    indices = jnp.where(indices < 0, batch * tokens, indices)  # or -1 would be the last token
    drawn = (x.reshape(batch * tokens, -1).at[indices].get(mode="fill", fill_value=jnp.nan) for x in (student, teacher))
    cosines = (jnp.einsum("kc,lc->kl", x, x, precision=_PRECISION) for x in (unit(x, eps=eps) for x in drawn))
    counted = counted_examples(student, where)[jnp.clip(indices // tokens, 0, batch - 1)]
    return pair_mean(_squared_difference(*cosines), counted)


def _squared_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.square(a - b)


def _example_mean(x: jax.Array) -> jax.Array:
    """(B, ...) -> (B,)."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def _relation_heads(x: jax.Array, relation_heads: int) -> jax.Array:
    """(..., H, N, D) -> (..., R, N, H D / R): the heads of each token are joined before they are divided anew."""
    *lead, heads, tokens, width = x.shape
    joined = x.swapaxes(-3, -2).reshape(*lead, tokens, relation_heads, heads * width // relation_heads)
    return joined.swapaxes(-3, -2)


def _tokens(student: jax.Array, teacher: jax.Array, eps: float, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Two (B, ..., C) features as (B, N, C) in at least fp32, masked examples zero."""
    check_range("eps", eps, above=0, hint="the public code uses 1e-12")
    check_features(student.shape, teacher.shape, names=("student's tokens", "teacher's tokens"))
    arrays = include(where, full_precision(student), full_precision(teacher))
    student, teacher = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in arrays)
    return student, teacher


def _check_attention(student: tuple[int, ...], teacher: tuple[int, ...], *, same_heads: bool) -> None:
    student, teacher = tuple(student), tuple(teacher)
    found = f"The student's attention has shape {student} and the teacher's {teacher}"
    square = all(len(x) > 3 and x[-1] == x[-2] for x in (student, teacher))
    if not square or student[:-3] != teacher[:-3] or student[-1] != teacher[-1]:
        raise ShapeError(
            f"{found}, but both must be (batch, heads, tokens, tokens) of the same batch and tokens. Pair networks of "
            "the same patches and prefix tokens, or use relation_kl on queries, keys and values without prefix tokens."
        )
    if same_heads and student[-3] != teacher[-3]:
        raise ShapeError(
            f'{found}: {student[-3]} and {teacher[-3]} heads. Use attention_kl with heads="mean", or relation_kl with '
            "relation_heads that divide both widths."
        )


def _check_projections(
    student: Mapping[str, jax.Array], teacher: Mapping[str, jax.Array], read: Sequence[str], relation_heads: int
) -> None:
    shapes = {}
    for owner, projections in (("student", student), ("teacher", teacher)):
        for name in read:
            if name not in projections:
                raise ShapeError(
                    f'The {owner} has no "{name}", only {in_words(projections) or "nothing"}. Pass what the relations '
                    "read, (batch, heads, tokens, channels) each: the taps query_i, key_i and value_i."
                )
        shapes[owner] = {tuple(projections[name].shape) for name in read}
    student_shape, teacher_shape = (sorted(shapes[owner])[0] for owner in ("student", "teacher"))
    same = all(len(group) == 1 for group in shapes.values()) and min(len(student_shape), len(teacher_shape)) > 3
    if not same or student_shape[:-3] != teacher_shape[:-3] or student_shape[-2] != teacher_shape[-2]:
        raise ShapeError(
            f"The student's projections have the shapes {sorted(shapes['student'])} and the teacher's "
            f"{sorted(shapes['teacher'])}, but each must be (batch, heads, tokens, channels) with the same batch and "
            "tokens. Cut the prefix tokens where only one network has them."
        )
    for owner, (*_, heads, _, width) in (("student", student_shape), ("teacher", teacher_shape)):
        if heads * width % relation_heads:
            raise ShapeError(
                f"relation_heads={relation_heads} do not divide the {heads} x {width} = {heads * width} channels of "
                f"the {owner}. Choose a common divisor of both networks' widths."
            )
