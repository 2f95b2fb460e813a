"""Losses between the relations of the examples of a batch: distances, angles, similarities.

All are batch-level: () for the whole batch, which under jit is the global one on any mesh; accumulation of gradients
computes them for each micro-batch. Inputs are (B, ...) and are flattened to (B, F); networks may differ in F. Pooled
features are the usual choice. The gradient of the teacher is not stopped here.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxkd.errors import ShapeError, check_range
from jaxkd.losses.arguments import full_precision, include
from jaxkd.losses.norms import safe_norm, unit

# fp32 matrix products also where the default rounds their factors to bf16 or TF32.
_PRECISION = jax.lax.Precision.HIGHEST


def counted_examples(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """(B,) of ones, and zeros where `where` is False, in the dtype of `x` (B, ...)."""
    return jnp.ones(x.shape[0], x.dtype) if where is None else jnp.asarray(where, x.dtype)


def pair_mean(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Mean of finite (K, K) `values` over the pairs whose two `counted` (K,) are 1; 0 without any."""
    pairs = counted[:, None] * counted[None, :]
    return jnp.sum(values * pairs) / jnp.maximum(jnp.sum(pairs), 1.0)


def _vectors(
    student: jax.Array, teacher: jax.Array, where: jax.Array | None, eps: float | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two (B, ...) as (B, F) in at least fp32 with masked rows zero, and (B,) ones where they are not masked."""
    if eps is not None:
        check_range("eps", eps, above=0, hint="the golden values use 1e-12, those of pkt 1e-7")
    shapes = tuple(student.shape), tuple(teacher.shape)
    if min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][0]:
        raise ShapeError(
            f"The student's feature has shape {shapes[0]} and the teacher's {shapes[1]}, but both must be (batch, ...) "
            "of the same batch. Pass features of the same images, such as pre_logits or a pooled map."
        )
    arrays = include(where, full_precision(student), full_precision(teacher))
    student, teacher = (x.reshape(x.shape[0], -1) for x in arrays)
    return student, teacher, counted_examples(student, where)


def _gram(x: jax.Array) -> jax.Array:
    """(B, F) -> (B, B) inner products."""
    return jnp.einsum("if,jf->ij", x, x, precision=_PRECISION)


@jax.checkpoint
def _squared_distances(x: jax.Array) -> jax.Array:
    """(B, F) -> (B, B), from differences."""
    return jnp.sum(jnp.square(x[:, None] - x[None, :]), axis=-1)


def _huber(x: jax.Array) -> jax.Array:
    """x^2 / 2 up to |x| = 1, |x| - 1/2 beyond."""
    size = jnp.abs(x)
    small = jnp.minimum(size, 1.0)
    return 0.5 * jnp.square(small) + (size - small)


def rkd_distance(
    student: jax.Array, teacher: jax.Array, *, eps: float = 1e-12, where: jax.Array | None = None
) -> jax.Array:
    """Relational KD by distance: mean over B^2 of Huber_1(d_s / m_s - d_t / m_t). Batch-level.

    d_ij = sqrt(max(|x_i - x_j|^2, eps)), 0 on the diagonal; m is the mean of d off the diagonal and has a gradient.
    Equal rows give no slope. Source: arXiv 1904.05068; lenscloth/RKD, `metric/loss.py`, weight 25. The paper sums over
    the pairs, B^2 times this value; the code takes the mean and counts the zeros of the diagonal. mmrazor normalises
    the features to unit length before: pass such features for its variant. Distances are computed from differences, as
    a Gram matrix loses digits of small ones in fp32. They are not kept for the gradient but computed again, so that XLA
    on a CPU holds no array of B^2 F values (measured at B = 256, F = 9408; such an array would take 2.3 GiB).

    Args:
      student: (B, ...), flattened; any float type. B is the global batch.
      teacher: (B, ...), flattened; another width is fine.
      eps: lower bound of a squared distance.
      where: (B,) bool; the loss is that of the examples with True. Others may hold NaN.

    Returns:
      (), without unit; 0 for fewer than two examples.

    Raises:
      ConfigError: eps is not above 0.
      ShapeError: another batch, or features of one axis.
    """
    student, teacher, counted = _vectors(student, teacher, where, eps)
    others = counted[:, None] * counted[None, :] * (1.0 - jnp.eye(len(counted), dtype=counted.dtype))

    def relative_distances(x: jax.Array) -> jax.Array:
        distance = jnp.sqrt(jnp.maximum(_squared_distances(x), eps)) * others
        mean = jnp.sum(distance) / jnp.maximum(jnp.sum(others), 1.0)
        return distance / jnp.where(mean > 0, mean, 1.0)

    return pair_mean(_huber(relative_distances(student) - relative_distances(teacher)), counted)


def rkd_angle(
    student: jax.Array, teacher: jax.Array, *, eps: float = 1e-12, where: jax.Array | None = None
) -> jax.Array:
    """Relational KD by angle: mean over B^3 of Huber_1(<e_ij, e_ik>_s - <e_ij, e_ik>_t). Batch-level.

    e_ij = (x_j - x_i) / max(|x_j - x_i|, eps), so that the vertex i is the first index. The mean counts the triples
    with equal indices, which are 0. Equal rows give no slope; the formula's is 1 / eps there. Source: arXiv
    1904.05068; lenscloth/RKD, `metric/loss.py`, weight 50. The paper sums over the triples, B^3 times this value.
    Memory: 2 (B^2 F + B^3) values and more for gradients, 0.28 GiB on a CPU for F = 192 and B = 256: pool maps first.

    Args:
      student: (B, ...), flattened; any float type. B is the global batch.
      teacher: (B, ...), flattened; another width is fine.
      eps: lower bound of a distance.
      where: (B,) bool; the loss is that of the examples with True. Others may hold NaN.

    Returns:
      (), at most 1.5.

    Raises:
      ConfigError: eps is not above 0.
      ShapeError: another batch, or features of one axis.
    """
    student, teacher, counted = _vectors(student, teacher, where, eps)

    def cosines(x: jax.Array) -> jax.Array:
        edges = unit(x[None, :] - x[:, None], eps=eps)
        return jnp.einsum("ijf,ikf->ijk", edges, edges, precision=_PRECISION)

    values = _huber(cosines(student) - cosines(teacher))
    total = jnp.einsum("ijk,i,j,k->", values, counted, counted, counted, precision=_PRECISION)
    return total / jnp.maximum(jnp.sum(counted), 1.0) ** 3


def similarity_preserving(
    student: jax.Array, teacher: jax.Array, *, eps: float = 1e-12, where: jax.Array | None = None
) -> jax.Array:
    """Similarity-preserving KD: mean over B^2 of (G_s - G_t)^2, G = X X' with rows of unit L2 norm. Batch-level.

    Source: arXiv 1907.09682; RepDistiller, `SP.py`. torchdistill's `SPKDLoss` calls `normalize(x, 1)` and so divides
    the rows by their L1 norm, which is another loss. Memory: 2 B^2 values.

    Args:
      student: (B, ...), flattened; any float type. B is the global batch.
      teacher: (B, ...), flattened; another width is fine.
      eps: lower bound of a row's norm; shorter rows have no slope.
      where: (B,) bool; the loss is that of the examples with True. Others may hold NaN.

    Returns:
      (), at most 4 / B.

    Raises:
      ConfigError: eps is not above 0.
      ShapeError: another batch, or features of one axis.
    """
    student, teacher, counted = _vectors(student, teacher, where, eps)
    rows = (unit(_gram(x), eps=eps) for x in (student, teacher))
    return pair_mean(jnp.square(next(rows) - next(rows)), counted)


def pkt(
    student: jax.Array,
    teacher: jax.Array,
    *,
    eps: float = 1e-7,
    diagonal: bool = True,
    where: jax.Array | None = None,
) -> jax.Array:
    """Probabilistic knowledge transfer: mean over B^2 of p_t log((p_t + eps) / (p_s + eps)). Batch-level.

    p is k over its row sum, k = (1 + cos) / 2, cos of x / (|x| + eps). The value is 1 / B of the mean over rows of a
    KL divergence. Source: arXiv 1803.10837; passalis/probabilistic_kt, `nn/pkt.py`, RepDistiller `PKT.py`; mdistiller
    weighs it by 30000. The code counts each example's similarity to itself (`diagonal=True`); the paper's sums leave
    it out (`diagonal=False`). Memory: 2 B^2 values.

    Args:
      student: (B, ...), flattened; any float type. B is the global batch.
      teacher: (B, ...), flattened; another width is fine.
      eps: added to lengths and probabilities.
      diagonal: whether the row sums and the loss contain k_ii; the mean is over B^2 in both cases.
      where: (B,) bool; the loss is that of the examples with True. Others may hold NaN.

    Returns:
      () in nats over B.

    Raises:
      ConfigError: eps is not above 0.
      ShapeError: another batch, or features of one axis.
    """
    student, teacher, counted = _vectors(student, teacher, where, eps)
    pairs = counted[:, None] * counted[None, :]
    if not diagonal:
        pairs = pairs * (1.0 - jnp.eye(len(counted), dtype=counted.dtype))

    def probabilities(x: jax.Array) -> jax.Array:
        kernel = (1.0 + _gram(x / (safe_norm(x, keepdims=True) + eps))) / 2.0 * pairs
        total = jnp.sum(kernel, axis=1, keepdims=True)
        return kernel / jnp.where(total > 0, total, 1.0)

    p_s, p_t = probabilities(student), probabilities(teacher)
    return pair_mean(p_t * jnp.log((p_t + eps) / (p_s + eps)), counted)


def correlation_congruence(
    student: jax.Array,
    teacher: jax.Array,
    *,
    gamma: float = 0.4,
    order: int = 2,
    eps: float = 1e-12,
    where: jax.Array | None = None,
) -> jax.Array:
    """Correlation congruence: mean over B^2 of (k_s - k_t)^2 of a Taylor-expanded RBF kernel. Batch-level.

    k = exp(-2 gamma) sum_{p=0}^{order} (2 gamma)^p / p! cos^p approximates exp(-gamma |x_i - x_j|^2) of the unit
    vectors. Source: arXiv 1904.01802, eq. 9; AberHu/Knowledge-Distillation-Zoo, `cc.py`. Two other public losses of
    this name differ: RepDistiller's compares products of neighbouring absolute differences, and torchdistill's takes
    features of any length and the norm, not its square, over B^2. Memory: 2 B^2 values.

    Args:
      student: (B, ...), flattened; any float type. B is the global batch.
      teacher: (B, ...), flattened; another width is fine.
      gamma: of the RBF, above 0.
      order: of the Taylor polynomial, from 1 to 100.
      eps: lower bound of a vector's length; shorter ones have no slope.
      where: (B,) bool; the loss is that of the examples with True. Others may hold NaN.

    Returns:
      (), without unit.

    Raises:
      ConfigError: eps or gamma not above 0, or an order that is no integer from 1 to 100.
      ShapeError: another batch, or features of one axis.
    """
    check_range("gamma", gamma, above=0, hint="the public code uses 0.4")
    check_range("order", order, 1, 100, whole=True, hint="the public code uses 2")
    student, teacher, counted = _vectors(student, teacher, where, eps)
    factors = [math.exp(-2.0 * gamma) * (2.0 * gamma) ** p / math.factorial(p) for p in range(order + 1)]

    def kernel(x: jax.Array) -> jax.Array:
        cosine = _gram(unit(x, eps=eps))
        value = jnp.full_like(cosine, factors[-1])
        for factor in reversed(factors[:-1]):
            value = value * cosine + factor
        return value

    return pair_mean(jnp.square(kernel(student) - kernel(teacher)), counted)


def linear_cka(student: jax.Array, teacher: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """1 - linear CKA: 1 - |X'Y|_F^2 / (|X'X|_F |Y'Y|_F), columns centred over the batch. Batch-level.

    Computed from the B x B Gram matrices, which gives the same number for any width. A constant batch, one example
    among them, has no similarity: it gives 1 and no slope, where the formula is 0 / 0. Source: arXiv 1905.00414, eq. 4;
    patrickmineault/codebook_examples, `cka_step3.py`. The estimate is biased: it is near 1 whatever the features are
    where B < F. Some public versions do not centre, which is another loss. Memory: 2 B^2 values.

    Args:
      student: (B, ...), flattened; any float type. B is the global batch.
      teacher: (B, ...), flattened; another width is fine.
      where: (B,) bool; the loss is that of the examples with True. Others may hold NaN.

    Returns:
      () in [0, 1].

    Raises:
      ShapeError: another batch, or features of one axis.
    """
    student, teacher, counted = _vectors(student, teacher, where)
    count = jnp.maximum(jnp.sum(counted), 1.0)
    first = jnp.argmax(counted)

    def centred_gram(x: jax.Array) -> jax.Array:
        # Relative to one example before the mean is taken: rows that are equal stay exactly so.
        x = (x - jax.lax.stop_gradient(x[first])) * counted[:, None]
        x = (x - jnp.sum(x, axis=0) / count) * counted[:, None]
        # The smallest eps whose square is a normal number in fp32.
        return unit(_gram(x), axis=(0, 1), eps=1e-18)

    return 1.0 - jnp.sum(centred_gram(student) * centred_gram(teacher))
