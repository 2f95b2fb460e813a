"""Similarity of the features of two networks: minibatch linear CKA and canonical correlations.

Sizes: n images of a chunk, A and B layers of the two networks, C channels.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.analysis.lowrank import ranks_from_energies
from jaxkd.errors import DataError, ShapeError, check_range

Moments = tuple[np.ndarray, np.ndarray, int]  # sum of x x^T, sum of x, count

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def gram_linear(features: jax.Array, *, where: jax.Array | None = None, centre: bool = True) -> jax.Array:
    """Inner products between images. Traceable.

    Args:
      features: (n, ...), any float type; everything behind the first axis is one vector, so that token counts and
        widths may differ between the two networks that are compared.
      where: (n,) bool, False for padding and for images that are left out, whose rows and columns become zero and are
        to be cut out; None for all.
      centre: subtract the mean image first. The unbiased HSIC is the same number either way; in fp32 a mean image far
        larger than the differences would drown them.

    Returns:
      (n, n) fp32, squared units of the features; NaN features give NaN.
    """
    x = jnp.asarray(features).astype(jnp.float32)
    x = x.reshape(x.shape[0], -1)
    kept = jnp.ones((x.shape[0], 1), bool) if where is None else jnp.asarray(where, bool)[:, None]
    x = jnp.where(kept, x, 0.0)
    if centre:
        x = jnp.where(kept, x - jnp.sum(x, axis=0) / jnp.maximum(jnp.sum(kept), 1), 0.0)
    return _einsum("nc,mc->nm", x, x)


def _u_centred(gram: Any, xp: Any) -> Any:
    """(..., n, n) with an empty diagonal and rows and columns that sum to zero without it; n >= 3."""
    n = gram.shape[-1]
    diagonal = np.eye(n, dtype=bool)
    k = xp.where(diagonal, 0.0, gram)
    rows = xp.sum(k, axis=-1) / (n - 2)
    whole = xp.sum(k, axis=(-2, -1))[..., None, None] / ((n - 1) * (n - 2))
    return xp.where(diagonal, 0.0, k - rows[..., :, None] - rows[..., None, :] + whole)


def hsic1(gram_a: jax.Array | np.ndarray, gram_b: jax.Array | np.ndarray) -> Any:
    """Unbiased HSIC of every layer of one network with every layer of another (Song et al. 2012, HSIC_1). Traceable.

    The published three-term formula is the mean product of U-centred Gram matrices, sum / (n (n - 3)), which is what is
    computed: it subtracts before it multiplies and keeps digits in fp32. Unbiased means that it may be negative.

    Args:
      gram_a: (n, n) or (A, n, n), symmetric; the diagonals do not enter.
      gram_b: (n, n) or (B, n, n) of the same images.

    Returns:
      A scalar, (A,), (B,) or (A, B): float64 NumPy if both are NumPy arrays, else fp32. NaN if n < 4, where the
      estimator is undefined (it divides by n - 3).
    """
    shape_a, shape_b = np.shape(gram_a), np.shape(gram_b)
    if not all(len(s) in (2, 3) and s[-1] == s[-2] for s in (shape_a, shape_b)) or shape_a[-1] != shape_b[-1]:
        raise ShapeError(
            f"The Gram matrices have shapes {shape_a} and {shape_b}. Pass (n, n) or (layers, n, n) for one chunk of n "
            "images."
        )
    host = isinstance(gram_a, np.ndarray) and isinstance(gram_b, np.ndarray)
    xp, kind = (np, np.float64) if host else (jnp, np.float32)
    n = shape_a[-1]
    if n < 4:
        return xp.full((*shape_a[:-2], *shape_b[:-2]), np.nan, kind)
    a, b = (_u_centred(xp.asarray(g).astype(kind), xp) for g in (gram_a, gram_b))
    # Flattened, so that it is one matrix product.
    a, b = (g.reshape(*g.shape[:-2], n * n) for g in (a, b))
    if host:
        return np.tensordot(a, b, axes=(-1, -1)) / (n * (n - 3))
    return jnp.tensordot(a, b, axes=(-1, -1), precision=jax.lax.Precision.HIGHEST) / (n * (n - 3))


def minibatch_cka(cross: np.ndarray, self_a: np.ndarray, self_b: np.ndarray) -> np.ndarray:
    """Linear CKA from the unbiased HSICs of chunks (Nguyen, Raghu, Kornblith 2021). On the host, in float64.

    Averaging numerator and denominators over chunks first makes the result converge to the one of the whole data set,
    whatever the chunk's size; the chunks should be equally large.

    Args:
      cross: (chunks, A, B) `hsic1` between the two networks.
      self_a: (chunks, A) `hsic1` of each layer with itself.  self_b: (chunks, B).

    Returns:
      (A, B): 1 for layers that are equal up to a rotation and a scale, around 0 (also below) for unrelated ones. NaN
      where a denominator is not positive: features that do not differ between images, chunks of fewer than 4 images.
    """
    cross, self_a, self_b = (np.asarray(v, np.float64) for v in (cross, self_a, self_b))
    if cross.ndim != 3 or self_a.shape != cross.shape[:2] or self_b.shape != (cross.shape[0], cross.shape[2]):
        raise ShapeError(
            f"The HSICs have shapes {cross.shape}, {self_a.shape} and {self_b.shape}. Pass (chunks, A, B), (chunks, A) "
            "and (chunks, B)."
        )
    if not len(cross):
        raise DataError("There is no chunk of images. Give at least 4 images.")
    a, b = self_a.mean(axis=0), self_b.mean(axis=0)
    square = np.where(a > 0, a, np.nan)[:, None] * np.where(b > 0, b, np.nan)
    return cross.mean(axis=0) / np.sqrt(square)


def linear_cka(features_a: jax.Array, features_b: jax.Array) -> float:
    """Unbiased linear CKA of one chunk: (n, ...) and (n, ...) of the same images -> a number, see `minibatch_cka`.

    Args:
      features_a: (n, ...), n images; at least 4.
      features_b: (n, ...), of the same images in the same order.

    Returns:
      1 for features that are equal up to a rotation and a scale, around 0 (also below) for unrelated ones.
    """
    a, b = gram_linear(features_a), gram_linear(features_b)
    values = (hsic1(a[None], b[None])[None], hsic1(a, a)[None, None], hsic1(b, b)[None, None])
    return float(minibatch_cka(*values)[0, 0])


# ------------------------------------------------------------------------------------------- canonical correlations


def _centred(moment: np.ndarray, total_a: np.ndarray, total_b: np.ndarray, count: int) -> np.ndarray:
    """(C_a, C_b) covariance in float64."""
    if count < 1:
        raise DataError(f"The count of tokens is {count}. Accumulate at least one image first.")
    moment, total_a, total_b = (np.asarray(v, np.float64) for v in (moment, total_a, total_b))
    return moment / count - np.outer(total_a / count, total_b / count)


class PrincipalAngles(NamedTuple):
    """cosines (min(dims),) descending in [0, 1]; dims: directions kept of the two networks."""

    cosines: np.ndarray
    dims: tuple[int, int]


def _whitener(covariance: np.ndarray, energy: float, floor: float) -> np.ndarray:
    """(C, C) -> (C, k): leading eigenvectors over the root of their eigenvalue, which is above `floor`."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    k = int(ranks_from_energies(values, (energy,))[0])
    # Sums in fp32 know nothing of directions that vary less than this.
    k = min(k, int(np.sum(values > floor)))
    return vectors[:, :k] / np.sqrt(values[:k])


def principal_angles(moment_a: Moments, moment_b: Moments, cross: np.ndarray, energy: float = 0.99) -> PrincipalAngles:
    """Canonical correlations between the leading directions of two networks (SVCCA, Raghu et al. 2017), in float64.

    They are the cosines of the principal angles between what the two sets of directions say of the tokens: 1 for
    something that both hold, linearly. With fewer tokens than directions they are 1 for any two networks; take several
    times as many.

    Args:
      moment_a: sums over the first network's tokens, as of `lowrank.second_moment`: ((C_a, C_a), (C_a,), count).
      moment_b: the same of the second network, ((C_b, C_b), (C_b,), the same count).
      cross: (C_a, C_b) sum of a b^T. Everything is centred here; a shift drops out if all sums had it.
      energy: share of the variance that the directions kept of each network hold, in (0, 1].

    Returns:
      PrincipalAngles; no cosines if a network does not vary; one NaN and dims (0, 0) if a sum is not finite.

    Raises:
      ShapeError: shapes that do not fit. ConfigError: energy outside (0, 1]. DataError: no tokens, or other counts.
    """
    check_range("energy", energy, above=0, most=1)
    (square_a, total_a, count), (square_b, total_b, count_b) = moment_a, moment_b
    shapes = np.shape(square_a), np.shape(square_b), np.shape(cross)
    c_a, c_b = np.shape(total_a)[-1], np.shape(total_b)[-1]
    if shapes != ((c_a, c_a), (c_b, c_b), (c_a, c_b)):
        raise ShapeError(
            f"The moments have shapes {shapes[0]}, {shapes[1]} and {shapes[2]} for {c_a} and {c_b} channels. Pass "
            "(C_a, C_a), (C_b, C_b) and (C_a, C_b)."
        )
    if count != count_b:
        raise DataError(
            f"The moments are over {count} and {count_b} tokens, which are not the same images and positions. Pool "
            "both networks' features to one grid."
        )
    pairs = (square_a, total_a, total_a), (square_b, total_b, total_b), (cross, total_a, total_b)
    moments = [_centred(*pair, count) for pair in pairs]
    if not all(np.all(np.isfinite(m)) for m in moments):
        return PrincipalAngles(np.full(1, np.nan), (0, 0))
    floors = [1e-7 * np.max(np.diagonal(np.asarray(s, np.float64))) / count for s in (square_a, square_b)]
    white_a, white_b = (_whitener(m, energy, floor) for m, floor in zip(moments, floors, strict=False))
    dims = white_a.shape[1], white_b.shape[1]
    if 0 in dims:
        return PrincipalAngles(np.zeros(0), dims)
    cosines = np.linalg.svd(white_a.T @ moments[2] @ white_b, compute_uv=False)
    return PrincipalAngles(np.clip(cosines, 0.0, 1.0), dims)
