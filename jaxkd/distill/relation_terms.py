"""Terms on relations: attention, relations of the tokens of an image, and relations of the examples of a batch.

A term that compares examples gives one number for a batch; see `Objective` for batches on several devices and in
micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.distill.objective import Batch, ModelOutput
from jaxkd.distill.pair_features import features_of
from jaxkd.distill.pair_terms import register_pair_loss, register_parametric_loss
from jaxkd.distill.pairing import Pair
from jaxkd.distill.projectors import apply_linear, init_linear
from jaxkd.distill.terms import register_term
from jaxkd.errors import ConfigError, ShapeError, check_choice, check_range
from jaxkd.losses.arguments import full_precision, include

_PROJECTIONS = ("query", "key", "value")


def _check_surplus(*, surplus: str = "error", **_: Any) -> None:
    check_choice("surplus", surplus, ("error", "drop"), hint='"drop" leaves out the first tokens of the longer network')


def _shared_tokens(student: int, teacher: int, surplus: str) -> int:
    """Number of the last tokens that both networks have."""
    if student != teacher and surplus == "error":
        raise ShapeError(
            f"The student attends over {student} tokens and the teacher over {teacher}: one has more prefix tokens. "
            'Add "surplus": "drop" to the term, which leaves out the first tokens of the longer network.'
        )
    return min(student, teacher)


def _same_attention(student: jax.Array, teacher: jax.Array, surplus: str) -> tuple[jax.Array, jax.Array]:
    """Two attentions (B, ..., H, N, N); with "drop", both of the last tokens that they share, rows sum to 1 again."""
    tokens = _shared_tokens(student.shape[-1], teacher.shape[-1], surplus)

    def last(x: jax.Array) -> jax.Array:
        if x.shape[-1] == tokens:
            return x
        x = full_precision(x)[..., -tokens:, -tokens:]
        return x / jnp.maximum(jnp.sum(x, axis=-1, keepdims=True), 1e-12)

    return last(student), last(teacher)


def _attention_kl(
    student: jax.Array, teacher: jax.Array, *, heads: str = "each", surplus: str = "error", where: jax.Array | None
) -> jax.Array:
    """MiniLM's KL between attentions (arXiv 2002.10957)."""
    return losses.attention_kl(*_same_attention(student, teacher, surplus), heads=heads, where=where)


def _attention_cosine(
    student: jax.Array, teacher: jax.Array, *, surplus: str = "error", where: jax.Array | None
) -> jax.Array:
    """Cosine distance between the rows of two attentions."""
    return losses.attention_cosine(*_same_attention(student, teacher, surplus), where=where)


register_pair_loss("attention_kl", _attention_kl, taps=("attn",), maps=False, check=_check_surplus)
register_pair_loss("attention_cosine", _attention_cosine, taps=("attn",), maps=False, check=_check_surplus)


def _check_relations(*, relations: Any = (), surplus: str = "error", **_: Any) -> None:
    _check_surplus(surplus=surplus)
    if not isinstance(relations, tuple | list) or not all(isinstance(r, str) for r in relations):
        raise ConfigError(f'relations={relations!r} is not a list of pairs. Write e.g. ("qq", "kk", "vv").')


@register_term("relation_kl", taps=_PROJECTIONS, maps=False, check=_check_relations)
def relation_kl(
    student: ModelOutput,
    teacher: ModelOutput,
    batch: Batch,
    *,
    pairs: tuple[Pair, ...],
    relation_heads: int,
    relations: tuple[str, ...] = ("qq", "kk", "vv"),
    surplus: str = "error",
) -> jax.Array:
    """MiniLM's and MiniLMv2's relations of queries, keys and values (arXiv 2002.10957, 2012.15828)."""
    features, values = features_of(student, teacher, pairs), []
    for start in range(0, len(features), len(_PROJECTIONS)):
        sides: list[dict[str, jax.Array]] = [{}, {}]
        for name, (s, t) in zip(_PROJECTIONS, features[start:], strict=False):
            tokens = _shared_tokens(s.shape[-2], t.shape[-2], surplus)
            sides[0][name[0]], sides[1][name[0]] = s[..., -tokens:, :], t[..., -tokens:, :]
        options: dict[str, Any] = {
            "relation_heads": relation_heads,
            "relations": tuple(relations),
            "where": batch.get("mask"),
        }
        values.append(losses.relation_kl(sides[0], sides[1], **options))
    return sum(values[1:], start=values[0]) / len(values)


def _manifold_random(
    student: jax.Array, teacher: jax.Array, *, samples: int = 192, key: jax.Array, where: jax.Array | None
) -> jax.Array:
    count = student.size // student.shape[-1]
    indices = jax.random.choice(key, count, (min(samples, count),), replace=False)
    return losses.manifold_random(student, teacher, indices, where=where)


def _check_samples(*, samples: int = 192, **_: Any) -> None:
    check_range("samples", samples, 1, whole=True, hint="the published recipe uses 192")


@register_term("manifold_random", needs_key=True, check=_check_samples)
def manifold_random(
    student: ModelOutput,
    teacher: ModelOutput,
    batch: Batch,
    *,
    pairs: tuple[Pair, ...],
    samples: int = 192,
    key: jax.Array,
) -> jax.Array:
    """Manifold distillation among random tokens of the batch (arXiv 2107.01378), drawn anew in every step."""
    values = [
        _manifold_random(s, t, samples=samples, key=jax.random.fold_in(key, index), where=batch.get("mask"))
        for index, (s, t) in enumerate(features_of(student, teacher, pairs))
    ]
    return sum(values[1:], start=values[0]) / len(values)


register_pair_loss("manifold_intra", losses.manifold_intra)
register_pair_loss("manifold_inter", losses.manifold_inter)


def pooled(x: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """(B, ..., C) -> (B, C), the mean over positions in at least fp32."""
    (x,) = include(where, full_precision(x))
    return x.mean(axis=tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x


def _rkd_distance(student: jax.Array, teacher: jax.Array, *, pool: bool = True, where: jax.Array | None) -> jax.Array:
    """Relational KD by distances (arXiv 1904.05068)."""
    return _vectors(losses.rkd_distance, student, teacher, pool, where)


def _rkd_angle(student: jax.Array, teacher: jax.Array, *, pool: bool = True, where: jax.Array | None) -> jax.Array:
    """Relational KD by angles (arXiv 1904.05068)."""
    return _vectors(losses.rkd_angle, student, teacher, pool, where)


def _similarity(student: jax.Array, teacher: jax.Array, *, pool: bool = False, where: jax.Array | None) -> jax.Array:
    """Similarity-preserving KD (arXiv 1907.09682)."""
    return _vectors(losses.similarity_preserving, student, teacher, pool, where)


def _pkt(
    student: jax.Array, teacher: jax.Array, *, pool: bool = True, diagonal: bool = True, where: jax.Array | None
) -> jax.Array:
    """Probabilistic knowledge transfer (arXiv 1803.10837)."""
    return _vectors(losses.pkt, student, teacher, pool, where, diagonal=diagonal)


def _congruence(
    student: jax.Array,
    teacher: jax.Array,
    *,
    pool: bool = True,
    gamma: float = 0.4,
    order: int = 2,
    where: jax.Array | None,
) -> jax.Array:
    """Correlation congruence (arXiv 1904.01802)."""
    return _vectors(losses.correlation_congruence, student, teacher, pool, where, gamma=gamma, order=order)


def _linear_cka(student: jax.Array, teacher: jax.Array, *, pool: bool = False, where: jax.Array | None) -> jax.Array:
    """1 - linear CKA (arXiv 1905.00414)."""
    return _vectors(losses.linear_cka, student, teacher, pool, where)


def _vectors(
    loss: Callable[..., jax.Array],
    student: jax.Array,
    teacher: jax.Array,
    pool: bool,
    where: jax.Array | None,
    **arguments: Any,
) -> jax.Array:
    """A loss between the vectors of examples: features averaged over positions (`pool`), or flattened by the loss."""
    if pool:
        student, teacher = pooled(student, where), pooled(teacher, where)
    return loss(student, teacher, where=where, **arguments)


for _name, _loss in (
    ("rkd_distance", _rkd_distance),
    ("rkd_angle", _rkd_angle),
    ("similarity_preserving", _similarity),
    ("pkt", _pkt),
    ("correlation_congruence", _congruence),
    ("linear_cka", _linear_cka),
):
    register_pair_loss(_name, _loss)


def _init_contrastive(
    key: jax.Array, student: tuple[int, ...], teacher: tuple[int, ...], *, width: int = 128, **_: Any
) -> dict[str, dict[str, jax.Array]]:
    keys = jax.random.split(key)
    return {"student": init_linear(keys[0], student[-1], width), "teacher": init_linear(keys[1], teacher[-1], width)}


def _contrastive(
    params: dict[str, dict[str, jax.Array]],
    student: jax.Array,
    teacher: jax.Array,
    *,
    width: int = 128,
    temperature: float = 0.07,
    where: jax.Array | None,
) -> jax.Array:
    """In-batch contrastive loss between projections of pooled features (arXiv 2103.00020); `width` of both."""
    vectors = (pooled(student, where), pooled(teacher, where))
    projected = [apply_linear(params[side], x) for side, x in zip(("student", "teacher"), vectors, strict=True)]
    return losses.contrastive(*projected, temperature=temperature, where=where)


def _check_contrastive(*, width: int = 128, temperature: float = 0.07, **_: Any) -> None:
    check_range("width", width, 1, 2**20, whole=True)
    check_range("temperature", temperature, above=0)


register_parametric_loss("contrastive", _contrastive, _init_contrastive, check=_check_contrastive)
