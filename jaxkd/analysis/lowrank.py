"""Energy ranks of single images and PCA of a data set (arXiv 2511.15572).

"Energy" is squared norm. Tokens are not centred unless stated: a common mean direction counts as a direction, and if it
holds most of the energy it decides the rank. Sizes: B, M images, N tokens, C channels, D directions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import DataError, ShapeError, UnknownNameError, check_choice

RANK_THRESHOLDS = (0.99, 0.95, 0.90, 0.80)
PCA_THRESHOLDS = (0.80, 0.90, 0.95, 0.99)
METHODS = ("gram", "svd")
BLOCK = 32  # images per compiled call of the functions that take a whole data set

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def check_tokens(tokens: jax.Array | np.ndarray, name: str = "tokens") -> None:
    """Raises ShapeError unless `tokens` is (images, tokens, channels), DataError if one of the axes is empty."""
    shape = np.shape(tokens)
    if len(shape) != 3:
        raise ShapeError(
            f"{name} has shape {shape}, not (images, tokens, channels). Reshape a map (B, h, w, C) to (B, h * w, C)."
        )
    if 0 in shape:
        raise DataError(f"{name} has shape {shape} and is empty. Give at least one image, token and channel.")


def blocks(tokens: jax.Array | np.ndarray, size: int = BLOCK) -> Iterator[jax.Array]:
    """(M, N, C), an array or a memory map -> arrays (<= size, N, C), one at a time on the device."""
    for start in range(0, np.shape(tokens)[0], size):
        yield jnp.asarray(tokens[start : start + size])


def small_gram(tokens: jax.Array) -> jax.Array:
    """(B, N, C) -> the smaller of X X^T and X^T X, (B, K, K)."""
    axes = "bnc,bmc->bnm" if tokens.shape[1] <= tokens.shape[2] else "bnc,bnd->bcd"
    return _einsum(axes, tokens, tokens)


def image_energies(tokens: jax.Array | np.ndarray, *, method: str = "gram") -> jax.Array:
    """Squared singular values of each image's token matrix, uncentred (arXiv 2511.15572, per-image rank). Traceable.

    Which method is right: in fp32 an eigenvalue of the Gram matrix is off by a few 1e-8 of the *largest* one, whatever
    its own size, so the smallest ones are noise; a share of the energy is not. Against a float64 SVD of 196 x 384
    matrices on CPU: over 1,000 random spectra (power laws, mean direction 0.1 to 200 times the spread) the cumulative
    share differs by at most 5e-6 with "gram" and 5e-7 with "svd", and both give all ranks up to 99 % right. Beyond
    99.9 % the Gram is not safe: one direction 100 times the spread leaves 1e-4 of the energy to all others, and a rank
    of 28 at 99.995 % comes out up to 3 off, where "svd", which `energy_ranks` takes there, is right.

    Which is faster: 24 matrices of 196 x 384 take 35 ms with "gram" on two cores and 69 ms with "svd".

    Args:
      tokens: (B, N, C), any float type, computed in fp32.
      method: "gram", eigenvalues of the smaller Gram matrix (N x N or C x C); or "svd".

    Returns:
      (B, min(N, C)) fp32, descending, >= 0; squared units of the tokens, which fp32 holds for features
      of size 1e-15 to 1e15. An image that holds a NaN or infinity is NaN
      throughout, and leaves its neighbours alone.

    Raises:
      ShapeError: tokens not (B, N, C). DataError: an empty axis. UnknownNameError: another method.
    """
    check_tokens(tokens)
    check_choice("method", method, METHODS, error=UnknownNameError)
    x = jnp.asarray(tokens).astype(jnp.float32)
    # LAPACK's SVD reports an infinity on standard error; NaN in, NaN out for both.
    x = jnp.where(jnp.all(jnp.isfinite(x), axis=(1, 2), keepdims=True), x, jnp.nan)
    if method == "svd":
        return jnp.square(jnp.linalg.svd(x, compute_uv=False))
    # Rounding may leave a zero eigenvalue slightly negative.
    return jnp.maximum(jnp.linalg.eigvalsh(small_gram(x))[:, ::-1], 0.0)


def ranks_from_energies(energies: np.ndarray, thresholds: Sequence[float] = RANK_THRESHOLDS) -> np.ndarray:
    """The smallest k whose k first energies hold a share p of the sum, for each p. On the host, in float64.

    Args:
      energies: (..., K), descending, >= 0.
      thresholds: P shares in (0, 1].

    Returns:
      (..., P) int64 in 1..K; 0 where no rank is defined: no energy at all (an image of zeros), or NaN or infinity among
      the energies. Constant features have rank 1.
    """
    energies = np.asarray(energies, np.float64)
    cumulative = np.cumsum(energies, axis=-1)
    total = cumulative[..., -1:]
    defined = np.isfinite(total) & (total > 0)
    share = cumulative / np.where(defined, total, 1.0)
    ranks = np.stack([np.sum(share < p, axis=-1) + 1 for p in thresholds], axis=-1)
    return np.where(defined, ranks, 0).astype(np.int64)


_energies = jax.jit(image_energies, static_argnames="method")


def energy_ranks(
    tokens: jax.Array | np.ndarray, thresholds: Sequence[float] = RANK_THRESHOLDS, *, method: str | None = None
) -> np.ndarray:
    """Per-image energy ranks (arXiv 2511.15572; the published figure is their 99th percentile over images).

    Args:
      tokens: (M, N, C), an array or a NumPy memory map; 32 images at a time are on the device.
      thresholds: P shares of the energy in (0, 1].
      method: as in `image_energies`; None takes "gram" up to a share of 0.999 and "svd" beyond.

    Returns:
      (M, P) int64; 0 for an image of zeros or with a value that is not finite, see `ranks_from_energies`.

    Raises:
      ShapeError: tokens not (M, N, C). DataError: an empty axis. UnknownNameError: another method.
    """
    check_tokens(tokens)
    method = method or ("gram" if max(thresholds) <= 0.999 else "svd")
    return ranks_from_energies(
        np.concatenate([np.asarray(_energies(b, method=method)) for b in blocks(tokens)]), thresholds
    )


def _relative(energies: jax.Array | np.ndarray):
    """Energies divided by the largest; zeros where there is none. NumPy in, NumPy float64 out; otherwise traceable."""
    xp = np if isinstance(energies, np.ndarray) else jnp
    energies = energies.astype(np.float64) if xp is np else jnp.asarray(energies).astype(jnp.float32)
    largest = xp.max(energies, axis=-1, keepdims=True)
    return xp, energies / xp.where(largest == 0, 1.0, largest)


def participation_ratio(energies: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """(sum e)^2 / sum e^2: the number of directions if the energy were spread evenly over them.

    Args:
      energies: (..., K) >= 0 in any order. NumPy arrays are computed in float64, JAX arrays in fp32 (traceable).

    Returns:
      (...), between 1 and K; 0 where there is no energy, NaN where an energy is NaN.
    """
    xp, share = _relative(energies)
    squares = xp.sum(share**2, axis=-1)
    return xp.sum(share, axis=-1) ** 2 / xp.where(squares == 0, 1.0, squares)


def stable_rank(energies: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """sum e / max e, the squared Frobenius norm over the squared spectral norm.

    Args:
      energies: (..., K) squared singular values, as `image_energies` gives them.

    Returns:
      (...), between 1 and K; 0 where there is no energy, NaN where an energy is NaN.
    """
    xp, share = _relative(energies)
    return xp.sum(share, axis=-1)


def effective_rank(energies: np.ndarray) -> np.ndarray:
    """exp of the Shannon entropy of the shares of energy (Roy and Vetterli 2007, of energies as in the other ranks).

    Args:
      energies: (..., K) >= 0 in any order, such as the eigenvalues of a covariance; computed in float64.

    Returns:
      (...), between 1 and K: K for equal energies; 0 where there is no energy, NaN where an energy is NaN.
    """
    energies = np.asarray(energies, np.float64)
    total = energies.sum(axis=-1, keepdims=True)
    share = energies / np.where(total == 0, 1.0, total)
    entropy = -np.sum(share * np.log(np.where(share == 0, 1.0, share)), axis=-1)
    return np.where(total[..., 0] == 0, 0.0, np.exp(entropy))


# ------------------------------------------------------------------------------------------- PCA of a data set


def second_moment(tokens: jax.Array, shift: jax.Array | None = None) -> tuple[jax.Array, jax.Array, int]:
    """Sums for a PCA over all tokens of a batch. Traceable.

    fp32 sums of one batch are to be added up in float64 on the host. For sums that do not depend on the batch size at
    all, take them image by image (`jax.vmap(lambda x: second_moment(x[None]))`).

    Args:
      tokens: (B, N, C), any float type.
      shift: (C,) subtracted from every token first; None for nothing. A rough mean (of the first batch, say) keeps the
        spread exact where the mean is far larger than it; `unshift` takes it back out in float64.

    Returns:
      (C, C) fp32 sum of x x^T, (C,) fp32 sum of x, and the number of tokens, a Python int.

    Raises:
      ShapeError: tokens not (B, N, C). DataError: an empty axis.
    """
    check_tokens(tokens)
    x = jnp.asarray(tokens).astype(jnp.float32)
    if shift is not None:
        x = x - jnp.asarray(shift, jnp.float32)
    return _einsum("bnc,bnd->cd", x, x), jnp.sum(x, axis=(0, 1)), x.shape[0] * x.shape[1]


def unshift(
    moment: np.ndarray, total: np.ndarray, count: int, shift: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Float64 (moment, total) of tokens from those of tokens minus `shift`. Shapes as in `second_moment`."""
    moment, total = np.asarray(moment, np.float64), np.asarray(total, np.float64)
    if shift is None:
        return moment, total
    # fp32, as it was subtracted.
    shift = np.asarray(shift, np.float32).astype(np.float64)
    cross = np.outer(total, shift)
    return moment + cross + cross.T + count * np.outer(shift, shift), total + count * shift


@dataclass(frozen=True)
class PCA:
    """Directions of a data set's tokens, by falling energy."""

    eigenvalues: np.ndarray  # (C,) float64 >= 0, mean squared component of a token along each direction
    eigenvectors: np.ndarray  # (C, C) float64, one direction a column; the sign makes its largest entry positive
    mean: np.ndarray | None  # (C,) float64 that was subtracted, or None for the uncentred PCA of the paper
    tokens: int  # how many tokens went in


def pca_from_moments(moment: np.ndarray, total: np.ndarray, count: int, centre: bool = False) -> PCA:
    """PCA from the sums of `second_moment` over a data set, on the host in float64 (arXiv 2511.15572: uncentred).

    Args:
      moment: (C, C) sum of x x^T.
      total: (C,) sum of x.
      count: number of tokens.
      centre: subtract the mean token. With a mean far larger than the spread, fp32 sums need the `shift` of
        `second_moment`.

    Returns:
      PCA. Round-off below zero is cut off at 0. NaN or infinite sums give NaN throughout.

    Raises:
      ShapeError: shapes that do not fit. DataError: no tokens.
    """
    moment, total = np.asarray(moment, np.float64), np.asarray(total, np.float64)
    if moment.shape != (*total.shape, *total.shape) or total.ndim != 1:
        raise ShapeError(
            f"The second moment has shape {moment.shape} and the sum of tokens {total.shape}. Pass (C, C) and (C,), "
            "the results of second_moment."
        )
    if count < 1:
        raise DataError(f"The count of tokens is {count}. Accumulate at least one image first.")
    mean = total / count
    covariance = moment / count - (np.outer(mean, mean) if centre else 0.0)
    if np.all(np.isfinite(covariance)):
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        largest = np.take_along_axis(vectors, np.argmax(np.abs(vectors), axis=0)[None], axis=0)
        vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    else:  # LAPACK would raise
        values, vectors = np.full(total.shape, np.nan), np.full(moment.shape, np.nan)
    return PCA(values, vectors, mean if centre else None, int(count))


_moments = jax.jit(second_moment)


def dataset_pca(tokens: jax.Array | np.ndarray, *, centre: bool = False) -> PCA:
    """PCA over all tokens of all images (arXiv 2511.15572: uncentred).

    Args:
      tokens: (M, N, C), an array or a NumPy memory map; 32 images at a time are on the device.
      centre: subtract the mean token first.

    Returns:
      PCA; fp32 sums of 32 images, added up in float64.

    Raises:
      ShapeError: tokens not (M, N, C). DataError: an empty axis.
    """
    check_tokens(tokens)
    c = np.shape(tokens)[2]
    moment, total, count = np.zeros((c, c)), np.zeros(c), 0
    shift = None
    for block in blocks(tokens):
        if shift is None:
            shift = jnp.mean(block.astype(jnp.float32), axis=(0, 1))
        m, t, n = _moments(block, shift)
        moment, total, count = moment + np.asarray(m), total + np.asarray(t), count + int(n)
    moment, total = unshift(moment, total, count, np.asarray(shift))
    return pca_from_moments(moment, total, count, centre)


def captured_energy(
    tokens: jax.Array | np.ndarray, basis: jax.Array | np.ndarray, mean: jax.Array | np.ndarray | None = None
) -> jax.Array:
    """Share of each image's energy that the d first directions of a fixed basis hold (arXiv 2511.15572). Traceable.

    The order of the directions is the basis's own, not sorted again for the image.

    Args:
      tokens: (M, N, C), any float type, computed in fp32.
      basis: (C, D) orthonormal columns, `PCA.eigenvectors` or its first D columns.
      mean: (C,) subtracted from every token, `PCA.mean`; None for nothing.

    Returns:
      (M, D) fp32 in [0, 1], rising; of the image's whole energy, so that a basis with D < C ends below 1. Zeros for an
      image without energy; NaN stays.

    Raises:
      ShapeError: tokens not (M, N, C), or a basis for other channels. DataError: an empty axis.
    """
    check_tokens(tokens)
    if len(np.shape(basis)) != 2 or np.shape(basis)[0] != np.shape(tokens)[2]:
        raise ShapeError(
            f"The basis has shape {np.shape(basis)} and the tokens {np.shape(tokens)}. Pass a basis (channels, "
            "directions) made from tokens of this width."
        )
    x = jnp.asarray(tokens).astype(jnp.float32)
    if mean is not None:
        x = x - jnp.asarray(mean, jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
    x = x / jnp.where(scale == 0, 1.0, scale)
    energies = jnp.sum(jnp.square(_einsum("mnc,cd->mnd", x, jnp.asarray(basis, jnp.float32))), axis=1)
    total = jnp.sum(jnp.square(x), axis=(1, 2))[:, None]
    return jnp.minimum(jnp.cumsum(energies, axis=1) / jnp.where(total == 0, 1.0, total), 1.0)


def required_d(curves: np.ndarray, thresholds: Sequence[float] = PCA_THRESHOLDS) -> np.ndarray:
    """The first d at which a cumulative curve reaches each threshold.

    Args:
      curves: (..., D) rising, such as `captured_energy`.
      thresholds: P shares.

    Returns:
      (..., P) int64 in 1..D; D where the curve stays below, 0 where it has no energy (all zeros) or is NaN.
    """
    curves = np.asarray(curves, np.float64)
    d = np.stack([np.minimum(np.sum(curves < t, axis=-1) + 1, curves.shape[-1]) for t in thresholds], axis=-1)
    return np.where(curves[..., -1:] > 0, d, 0).astype(np.int64)
