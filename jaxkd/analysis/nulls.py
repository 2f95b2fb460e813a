"""Null models: random tokens that keep one property of the real ones, to compare every curve with.

A statistic that is the same for real tokens and for a null model shows only the property that the null model keeps.
Sizes: B images, N tokens, C channels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.analysis.layer_statistics import energy_statistics
from jaxkd.analysis.lowrank import check_tokens, image_energies
from jaxkd.errors import ShapeError, UnknownNameError, check_choice

KINDS = ("gaussian", "subspace", "one_hot", "permutation")


def _rms(tokens: jax.Array) -> jax.Array:
    """(B, 1, 1) root mean square of an image, scaled so that no square leaves fp32's range."""
    largest = jnp.max(jnp.abs(tokens), axis=(1, 2), keepdims=True)
    scaled = tokens / jnp.where(largest == 0, 1.0, largest)
    return largest * jnp.sqrt(jnp.mean(jnp.square(scaled), axis=(1, 2), keepdims=True))


def _gaussian(tokens: jax.Array, keys: jax.Array) -> jax.Array:
    return _rms(tokens) * jax.vmap(lambda key: jax.random.normal(key, tokens.shape[1:]))(keys)


def _subspace(tokens: jax.Array, keys: jax.Array, ranks: jax.Array) -> jax.Array:
    _, n, c = tokens.shape
    k = min(n, c)

    def draw(key: jax.Array, rank: jax.Array) -> jax.Array:
        directions, coefficients = jax.random.split(key)
        # The first `rank` of k directions, so that the rank may differ between images inside one compiled function.
        basis = jnp.linalg.qr(jax.random.normal(directions, (c, k)))[0]
        kept = jax.random.normal(coefficients, (n, k)) * (jnp.arange(k) < rank)
        # Expected square of an entry: rank / C.
        drawn = jnp.einsum("nk,ck->nc", kept, basis, precision=jax.lax.Precision.HIGHEST)
        return drawn * jnp.sqrt(c / jnp.maximum(rank, 1))

    return _rms(tokens) * jax.vmap(draw)(keys, ranks)


def _one_hot(tokens: jax.Array, keys: jax.Array) -> jax.Array:
    _, n, c = tokens.shape
    channels = jax.vmap(lambda key: jax.random.randint(key, (n,), 0, c))(keys)
    largest = jnp.max(jnp.abs(tokens), axis=-1, keepdims=True)
    scaled = tokens / jnp.where(largest == 0, 1.0, largest)
    norms = largest * jnp.sqrt(jnp.sum(jnp.square(scaled), axis=-1, keepdims=True))
    return norms * jax.nn.one_hot(channels, c)


def null_tokens(
    kind: str,
    tokens: jax.Array | np.ndarray,
    key: jax.Array | int = 2026,
    *,
    first: jax.Array | int = 0,
    ranks: jax.Array | np.ndarray | None = None,
) -> jax.Array:
    """Tokens of a null model, in the shape of the real ones. Traceable.

    - "gaussian", independent normal entries. Keeps of each image the shape and the root mean square; its ranks are what
      N x C noise has, its spectrum is flat.
    - "subspace", normal inside a random subspace of the image's own. Keeps the shape, the expected mean square and the
      dimension (`ranks`); not which directions, nor that some hold more energy, nor a mean. Its own 99 % rank is
      therefore a few per cent below its dimension.
    - "one_hot", one random channel per token. Keeps every token's norm; each token's SEP is the exact diagonal.
    - "permutation", the real tokens with the channels in another order, one for all images. Keeps everything but that
      order: ranks, PCA eigenvalues, norms, entropy are the real ones.

    Image i of a call draws from `fold_in(key, first + i)`: with `first` the number of images before it, blocks of any
    size give the same tokens. The order of "permutation" is drawn from `key` itself.

    Args:
      kind: one of the above.
      tokens: (B, N, C) real tokens, any float type.
      key: a JAX key, or a seed for one.
      first: index of the first image in the data set.
      ranks: (B,) integers, dimensions for "subspace"; None computes the images' 99 % energy ranks. 0 gives zero tokens.

    Returns:
      (B, N, C) fp32. An image of zeros stays zeros; a NaN in an image makes its null NaN (all of it, the token for
      "one_hot", the entry for "permutation").

    Raises:
      UnknownNameError: another kind. ShapeError: tokens not (B, N, C), ranks not (B,). DataError: an empty axis.
    """
    check_choice("kind", kind, KINDS, error=UnknownNameError)
    check_tokens(tokens)
    x = jnp.asarray(tokens).astype(jnp.float32)
    if ranks is not None and np.shape(ranks) != x.shape[:1]:
        raise ShapeError(
            f"ranks has shape {np.shape(ranks)} and the tokens {x.shape}. Pass one rank per image, "
            "energy_ranks(tokens)[:, 0]."
        )
    return _draw(kind, x, jax.random.key(key) if isinstance(key, int) else key, first, ranks)


@functools.partial(jax.jit, static_argnums=0)
def _draw(kind: str, x: jax.Array, key: jax.Array, first: jax.Array | int, ranks: jax.Array | None) -> jax.Array:
    if kind == "permutation":
        return x[..., jax.random.permutation(key, x.shape[-1])]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(x.shape[0]))
    if kind == "subspace":
        return _subspace(x, keys, energy_statistics(image_energies(x))["rank_99"] if ranks is None else ranks)
    return _gaussian(x, keys) if kind == "gaussian" else _one_hot(x, keys)
