"""Shannon entropy of the channels of each position, from histograms (Distillation Dynamics).

The published script calls `np.histogram` once per position. Here all positions are counted in one compiled pass: each
value becomes the number of its bin, and bins are counted by a scatter on CPU and by comparing and summing elsewhere
(`_count_by_scatter` says why). Both count integers, so they give the same bits.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError, ShapeError, check_range

# Counters per position on CPU: neighbouring channels use different ones. Most values of real features share a bin (one
# massive activation stretches the range), and an increment then waits for the previous one to reach memory: 4.7 ms
# with one counter, 2.1 ms with four, for 4704 positions of 384 channels on two cores.
_COUNTERS = 4


def _bin_numbers(x: jax.Array, lo: jax.Array, hi: jax.Array, bins: int) -> jax.Array:
    """(..., C) values -> (..., C) float bin numbers 0 ... bins - 1; `bins` for outside [lo, hi], `bins + 1` for NaN.

    As in np.histogram: bin i is [edge i, edge i + 1), the last one is closed, and the quotient alone does not decide,
    since it rounds: a value on the other side of an edge than its number says is moved by one.
    """
    # Behind the barrier, or XLA multiplies by the rounded 1 / bins, and the edges of whole numbers are not whole.
    step = (hi - lo) / jax.lax.optimization_barrier(jnp.asarray(bins, x.dtype))
    # Compilers fuse lo + i * step into one rounding where they like, and a value at an edge would change its bin with
    # the program around it. Products with half of the digits are exact, so fused or not, the edge is the same number.
    kind = jnp.finfo(x.dtype)
    coarse = jax.lax.reduce_precision(step, exponent_bits=kind.nexp, mantissa_bits=kind.nmant // 2)
    fine = step - coarse

    def edge(i: jax.Array) -> jax.Array:
        return lo + (i * coarse + i * fine)

    i = jnp.floor((x - lo) / (hi - lo) * bins)
    i = i - (x < edge(i)) + (x >= edge(i + 1))
    # Where lo = hi is too large to be widened, step is 0 and the quotient NaN: everything that is inside is one value.
    i = jnp.where(hi > lo, jnp.clip(i, 0, bins - 1), 0)
    i = jnp.where((x < lo) | (x > hi), bins, i)
    return jnp.where(jnp.isnan(x), bins + 1, i)


def _count_by_scatter(numbers: jax.Array, slots: int) -> jax.Array:
    """(P, C) bin numbers -> (P, slots) counts, one increment per value: on CPU 3 times faster than comparing."""
    positions, channels = numbers.shape
    most = -(-channels // _COUNTERS)  # values that one counter can meet
    dtype = jnp.uint8 if most <= 255 else jnp.uint16 if most <= 65535 else jnp.uint32
    counter = np.arange(channels, dtype=np.int32) % _COUNTERS * slots

    def count(part: jax.Array) -> jax.Array:
        rows = part.shape[0]
        start = np.arange(rows, dtype=np.int32)[:, None] * (_COUNTERS * slots)
        place = (part.astype(jnp.int32) + counter + start).reshape(-1)
        counts = jnp.zeros(rows * _COUNTERS * slots, dtype).at[place].add(jnp.ones((), dtype), mode="promise_in_bounds")
        counts = counts.reshape(rows, _COUNTERS, slots)
        # Added slice by slice, which XLA fuses with what follows; a reduction would first write floats of them all.
        return cast(jax.Array, sum(counts[:, k].astype(jnp.int32) for k in range(_COUNTERS)))

    # XLA runs a scatter on one core, but two that do not need one another at once.
    return jnp.concatenate([count(numbers[: positions // 2]), count(numbers[positions // 2 :])])


def _count_by_comparing(numbers: jax.Array, slots: int) -> jax.Array:
    """(P, C) bin numbers -> (P, slots) counts; one fused reduction, nothing sequential and no atomics."""
    narrow = jnp.uint8 if slots <= 256 else jnp.int32
    hits = numbers.astype(narrow)[:, :, None] == jnp.arange(slots, dtype=narrow)
    return jnp.sum(hits, axis=1, dtype=jnp.int32)


def entropy_map(features: jax.Array, lo: jax.Array | float, hi: jax.Array | float, bins: int = 100) -> jax.Array:
    """Shannon entropy of the channel values at each position, in a histogram of `bins` equal bins over [lo, hi].

    Counts are those of `np.histogram(values, bins, range=(lo, hi))` with values, lo and hi of one float type (NumPy
    rounds the edges differently for a range of another type): the last bin is closed, values outside are not counted,
    and lo = hi is widened by 0.5 to both sides, so that constant features are in one bin. The entropy is -sum p log2 p
    with p = count / all that were counted: 0 for a constant vector, log2(bins) at most.

    Args:
      features: (..., C), channels last; any real type, binned in at least fp32.
      lo: lower end, a scalar or an array that broadcasts to the positions (...), e.g. (B, 1) for one range per image.
      hi: upper end, likewise.
      bins: number of bins, at least 1.

    Returns:
      (...) bits per position. NaN at a position that has a NaN or has no value within the range, and everywhere if
      the range is not finite or lo > hi (under jit, where it cannot be refused).

    Raises:
      ConfigError: bins below 1, or lo > hi.
      ShapeError: no channels, or more positions than int32 can number (5 million with 100 bins).

    Source: Distillation Dynamics (arXiv 2511.06848), entropy of a layer; published with 100 bins.
    """
    _check(features.shape, lo, hi, bins)
    x = jnp.asarray(features, jnp.promote_types(features.dtype, jnp.float32))
    return _bits(x, jnp.asarray(lo, x.dtype), jnp.asarray(hi, x.dtype), bins)


@partial(jax.jit, static_argnames="bins")  # also for callers outside jit: operation by operation it takes far longer
def _bits(x: jax.Array, lo: jax.Array, hi: jax.Array, bins: int) -> jax.Array:
    same = lo == hi
    low, high = jnp.where(same, lo - 0.5, lo)[..., None], jnp.where(same, hi + 0.5, hi)[..., None]
    numbers = _bin_numbers(x, low, high, bins).reshape(-1, x.shape[-1])
    slots = bins + 2
    counts = jax.lax.platform_dependent(
        numbers,
        cpu=lambda n: _count_by_scatter(n, slots),
        default=lambda n: _count_by_comparing(n, slots),
    )
    inside = (np.arange(slots) < bins).astype(x.dtype)
    h = counts.astype(x.dtype) * inside
    counted = jnp.sum(h, axis=-1)
    surprise = jnp.log2(counted)[:, None] - jnp.log2(jnp.maximum(h, 1))
    surprise = jnp.where(h == counted[:, None], 0, surprise)  # all in one bin: exactly 0, however the compiler rounds
    bits = jnp.sum(h * surprise, axis=-1) / counted
    bits = jnp.where(counts[:, bins + 1] > 0, jnp.nan, bits).reshape(x.shape[:-1])
    return jnp.where(jnp.isfinite(hi - lo), bits, jnp.nan)


def channel_entropy(
    features: jax.Array, bins: int = 100, range: tuple[jax.Array | float, jax.Array | float] | None = None
) -> jax.Array:
    """Mean over positions of the Shannon entropy of their channel values.

    The range is shared by all positions, so one outlier lowers the entropy of all: values compare within one range and
    hardly across.

    Args:
      features: (..., C), channels last; any real type. Several layers of equal shape may be stacked, as published.
      bins: number of bins, at least 1.
      range: (lo, hi) of the bins; None for the minimum and maximum of `features`.

    Returns:
      Scalar, bits, between 0 and log2(bins). Constant features give 0; a NaN, and without a range an inf, gives NaN.

    Raises:
      ConfigError: bins below 1, or a range with lo > hi.
      ShapeError: no channels or no positions.

    Source: Distillation Dynamics (arXiv 2511.06848): 100 bins over the global range of all layers and images.
    """
    if 0 in features.shape:
        raise ShapeError(f"The features have shape {features.shape}. Pass at least one position and one channel.")
    lo, hi = (jnp.min(features), jnp.max(features)) if range is None else range
    return jnp.mean(entropy_map(features, lo, hi, bins))


def _check(shape: tuple[int, ...], lo: jax.Array | float, hi: jax.Array | float, bins: int) -> None:
    check_range("bins", bins, 1, whole=True, hint="the paper uses 100")
    if not any(isinstance(v, jax.core.Tracer) for v in (lo, hi)) and np.any(np.asarray(lo) > np.asarray(hi)):
        raise ConfigError(
            f"The range of the histogram is ({lo}, {hi}): its lower end is above its upper end. Give (low, high)."
        )
    if not shape or shape[-1] == 0:
        raise ShapeError(
            f"The features have shape {tuple(shape)}. Pass (..., channels) with at least one channel on the last axis."
        )
    positions = int(np.prod(shape[:-1]))
    if positions * _COUNTERS * (bins + 2) > np.iinfo(np.int32).max:
        raise ShapeError(
            f"{positions} positions with {bins} bins are too many for one call, because counters are numbered in "
            "int32. Pass the images in several parts with the same range."
        )
