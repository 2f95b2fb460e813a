"""Fourier analysis of parallel branches: the spectrum of each branch, and the difference between two.

The MDBN paper (arXiv 2309.17334) shows by Fourier analysis that its deep branches carry fine structure and its shallow
ones smooth content, but does not publish its definitions. The definitions here are:

- Each channel of a branch output loses its mean over space, is multiplied by a Hann window and transformed in two
  dimensions. The mean is left out because the network does not define it: adding a constant to one branch and taking it
  off the other, two biases that are summed, changes nothing. The window keeps what happens at the edges, zero padding
  and the jump from one edge to the opposite one, from looking like high frequencies.
- Energy is the squared modulus, mean over channels. Frequencies are in cycles per pixel of the feature grid, which for
  these networks is the small image's; 0.5 is the Nyquist frequency along an axis, 0.707 in the corners, which count.
- The high/low ratio is the energy at and above a cut (0.25: waves of four pixels) over the energy below it.
- Branch differentiation is the total variation distance between the two branches' distributions of energy over rings of
  equal frequency: the share of one branch's energy that would have to move to other rings to match the other's. 0: the
  same spectrum up to scale, 1: no frequency in common. It is chosen because it is a share that can be read as such,
  and has no parameter but the rings; like any distance it has no sign, so the mean frequency of each branch stands
  beside it.

A number means little alone: two convolutions differ from one by their reach even before training. Compare with the same
network untrained, and with the outputs of a network of one branch (EDSR).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.analysis.spectrum import frequency_grid, radial_frequencies, radial_profile, rings, spatial_spectrum
from jaxkd.errors import ShapeError, check_range

Statistics = dict[str, jax.Array]
CUT = 0.25  # cycles per pixel
SMALLEST_GRID = 4  # below, there are no frequencies on either side of the cut
BRANCHES = ("deep", "shallow")
_CONSTANT = 1e-6  # standard deviation over RMS, below which a branch is constant but for rounding


def branch_rings(h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """The rings over which energy is distributed: those of `radial_profile`, and more of them out to the corners.

    Returns:
      Ring of each place of a centred spectrum, (h, w) int, and the frequency in the middle of each ring, (R,) in cycles
      per pixel.
    """
    ring = rings(h, w)
    return ring, np.arange(ring.max() + 1) / min(h, w)


@partial(jax.jit, static_argnames=("cut", "window"))
def branch_statistics(maps: jax.Array, *, cut: float = CUT, window: bool = True) -> Statistics:
    """Spectrum and distribution of energy of one branch, image by image; see the head of the file.

    A branch that is constant over space has no spectrum: its energy is then all at frequency zero, its ratio 0, and
    its amplitudes are 0.

    Args:
      maps: (B, h, w, C), any real type; h and w from `SMALLEST_GRID`.
      cut: in cycles per pixel, below it is low, from it on high; inside (0, 0.5].
      window: False multiplies by no window.

    Returns:
      amplitude: (B, h, w) mean modulus over channels, orthonormal, zero frequency at [h // 2, w // 2], in the unit of
        the features.
      profile: (B, R) the same over the rings of `radial_frequencies`.
      distribution: (B, R') share of the energy in each ring of `branch_rings`, sum 1.
      high_low: (B,) energy from the cut on over the energy below.
      mean_frequency: (B,) cycles per pixel, weighted by energy.
      mean_share: (B,) share of the energy of the maps in their channels' means, which all else leaves out, 0 to 1.
      A non-finite feature makes the numbers of its image non-finite.
    """
    if maps.ndim != 4 or 0 in maps.shape or min(maps.shape[1:3]) < SMALLEST_GRID:
        raise ShapeError(
            f"The branch output has shape {maps.shape}. Pass (batch, height, width, channels) with at least "
            f"{SMALLEST_GRID} x {SMALLEST_GRID} positions."
        )
    check_range("cut", cut, above=0, most=0.5, hint="it is in cycles per pixel")
    _, h, w, _ = maps.shape
    x = jnp.asarray(maps, jnp.promote_types(maps.dtype, jnp.float32))
    # The size is taken out first, so that squares of tiny or huge features neither vanish nor overflow.
    size = jnp.max(jnp.abs(x), axis=(1, 2, 3), keepdims=True)
    unit = x / jnp.where(size > 0, size, 1)
    centred = unit - jnp.mean(unit, axis=(1, 2), keepdims=True)
    total, varying = (jnp.mean(jnp.square(v), axis=(1, 2, 3)) for v in (unit, centred))
    constant = varying <= _CONSTANT**2 * total
    weights = jnp.asarray(_hann(h, w) if window else np.ones((h, w, 1)), x.dtype)
    # The mean under the window, so that nothing is left at frequency zero.
    shaped = (centred - jnp.mean(centred * weights, axis=(1, 2), keepdims=True) / jnp.mean(weights)) * weights
    shaped = jnp.where(constant[:, None, None, None], 0, shaped) / jnp.sqrt(jnp.mean(jnp.square(weights)))
    energy = _energy(shaped)
    ring, middles = branch_rings(h, w)
    member = jnp.asarray(ring.reshape(-1, 1) == np.arange(len(middles)), x.dtype)
    by_ring = jnp.matmul(energy.reshape(-1, h * w), member, precision=jax.lax.Precision.HIGHEST)
    whole = jnp.sum(by_ring, axis=-1, keepdims=True)
    # A constant branch: all at zero. NaN is neither constant nor positive and stays NaN.
    nothing = whole == 0
    distribution = jnp.where(nothing, jnp.arange(len(middles)) == 0, by_ring / jnp.where(nothing, 1, whole))
    frequency = frequency_grid(h, w)
    high = jnp.sum(jnp.where(frequency >= cut, energy, 0), axis=(1, 2))
    low = jnp.sum(jnp.where((frequency < cut) & (frequency > 0), energy, 0), axis=(1, 2))
    amplitude = spatial_spectrum(shaped) * size[..., 0]
    amplitude = amplitude.at[:, h // 2, w // 2].set(jnp.where(jnp.isnan(amplitude[:, 0, 0]), jnp.nan, 0))
    return {
        "amplitude": amplitude,
        "profile": radial_profile(amplitude),
        "distribution": distribution,
        "high_low": jnp.where(nothing[:, 0], 0, high / jnp.where(nothing[:, 0], 1, low)),
        "mean_frequency": distribution @ jnp.asarray(middles, x.dtype),
        "mean_share": jnp.where(total > 0, 1 - varying / jnp.where(total > 0, total, 1), total),
    }


def _hann(h: int, w: int) -> np.ndarray:
    """(h, w, 1), one period of sine squared along both sides."""
    rows, columns = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (h, w))
    return (rows[:, None] * columns[None])[..., None]


def _energy(x: jax.Array) -> jax.Array:
    """(B, h, w, C) -> (B, h, w) mean over channels of the squared modulus of the orthonormal FFT, zero in the middle.

    The mean of moduli that `spatial_spectrum` gives cannot be squared instead: it would favour what few channels carry.
    """
    full = jnp.fft.fft2(x.transpose(0, 3, 1, 2), norm="ortho")
    return jnp.fft.fftshift(jnp.mean(jnp.square(full.real) + jnp.square(full.imag), axis=1), axes=(1, 2))


def differentiation(one: jax.Array | np.ndarray, other: jax.Array | np.ndarray) -> jax.Array:
    """Total variation distance of two distributions of energy, sum |p - q| / 2.

    Returns:
      (...,) 0 where they are equal, 1 where they have no ring in common.
    """
    if one.shape != other.shape:
        raise ShapeError(
            f"The distributions have shapes {one.shape} and {other.shape}. Take both branches from images of one size."
        )
    return jnp.sum(jnp.abs(one - other), axis=-1) / 2


def summarise_branches(batches: Iterable[Mapping[str, Statistics]]) -> dict[str, Any]:
    """Means and spreads over images of `branch_statistics`, so that features need not wait in memory for one another.

    Returns:
      images, grid, frequency (of a profile), ring_frequency (of a distribution), and blocks: of each block
      its name, "differentiation" (mean and sd over images; of an image it is the mean over the block's pairs; None
      without branches), "pairs" of deep and shallow outputs with their own differentiation, and "output", the block's.
      A branch has log_amplitude (h, w) (log10, None at zero), profile, distribution, high_low, mean_frequency and
      mean_share, the latter three with mean and sd. None: undefined.
    """
    batches = list(batches)
    names = list(batches[0]) if batches else []
    shapes = {s["amplitude"].shape[1:] for batch in batches for s in batch.values()}
    if len(shapes) != 1 or any(list(batch) != names for batch in batches):
        raise ShapeError(
            f"The branches have the sizes {sorted(shapes)}, but only spectra of one size can be averaged. Crop the "
            "images to a common size first."
        )
    stacked = {
        name: {k: np.concatenate([np.asarray(b[name][k], np.float64) for b in batches]) for k in batches[0][name]}
        for name in names
    }
    h, w = shapes.pop()
    return {
        "images": len(next(iter(stacked.values()))["high_low"]),
        "grid": [h, w],
        "frequency": radial_frequencies(h, w).tolist(),
        "ring_frequency": branch_rings(h, w)[1].tolist(),
        "blocks": [_block(prefix, stacked) for prefix in dict.fromkeys(n.split(".")[0] for n in names)],
    }


def _block(name: str, stacked: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    pairs, distances = [], []
    numbers = sorted(
        {int(m[1]) for m in (re.fullmatch(rf"{re.escape(name)}\.(?:deep|shallow)_(\d+)", n) for n in stacked) if m}
    )
    for j in numbers:
        both = [f"{name}.{branch}_{j}" for branch in BRANCHES]
        missing = [n for n in both if n not in stacked]
        if missing:
            raise ShapeError(f"The features of {missing[0]} are missing. Request both taps, {both[0]} and {both[1]}.")
        distance = np.asarray(differentiation(stacked[both[0]]["distribution"], stacked[both[1]]["distribution"]))
        distances.append(distance)
        pairs.append(
            {"pair": j, "differentiation": _spread(distance)}
            | {branch: _branch(stacked[n]) for branch, n in zip(BRANCHES, both, strict=True)}
        )
    return {
        "block": name,
        "differentiation": _spread(np.mean(distances, axis=0)) if distances else None,
        "pairs": pairs,
        "output": _branch(stacked[name]) if name in stacked else None,
    }


def _branch(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    amplitude = values["amplitude"].mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_amplitude = np.log10(amplitude)
    return {
        "log_amplitude": [[_number(v, 4) for v in row] for row in log_amplitude],
        **{k: [_number(v) for v in values[k].mean(axis=0)] for k in ("profile", "distribution")},
        **{k: _spread(values[k]) for k in ("high_low", "mean_frequency", "mean_share")},
    }


def _spread(values: np.ndarray) -> dict[str, float | None]:
    """Mean and standard deviation over images."""
    return {"mean": _number(values.mean()), "sd": _number(values.std())}


def _number(value: float, digits: int | None = None) -> float | None:
    value = float(value)
    if not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


Network = Mapping[str, Any]  # an entry of a branch analysis' results: label, control, ..., and a summary


def branched(network: Network) -> bool:
    """Whether its blocks have branches that can be compared."""
    return any(b["pairs"] for b in network["blocks"])


def subjects(results: Mapping[str, Any]) -> list[tuple[Network, Network | None]]:
    """Each network with the untrained one that it is read against, which is then no subject itself."""
    by_label = {n["label"]: n for n in results["networks"]}
    controls = {n.get("control") for n in results["networks"]}
    return [(n, by_label.get(n.get("control"))) for n in results["networks"] if n["label"] not in controls]


def over_pairs(block: Mapping[str, Any], branch: str, statistic: str = "high_low") -> tuple[float, float]:
    """Mean and standard deviation over images of "high_low", "mean_frequency" or "mean_share", averaged over pairs.

    Returns:
      NaN where there is no such branch, or its numbers are not finite.
    """
    of = [block["output"]] if branch == "output" else [pair[branch] for pair in block["pairs"]]
    values = np.array([[b[statistic][k] for k in ("mean", "sd")] for b in of if b], float)  # None becomes NaN
    mean, sd = values.mean(axis=0).tolist() if len(values) else (math.nan, math.nan)
    return mean, sd


def mean_of(network: Network, branch: str, statistic: str) -> float:
    """Mean over blocks of what `over_pairs` gives; NaN if no block has any."""
    return _finite_mean(over_pairs(b, branch, statistic)[0] for b in network["blocks"])


def mean_differentiation(network: Network) -> float:
    """Mean over blocks; NaN where it is undefined in all."""
    return _finite_mean(b["differentiation"]["mean"] for b in network["blocks"] if b["differentiation"])


def higher_in_deep(network: Network) -> tuple[int, int]:
    """In how many blocks the deep branch has the higher high/low ratio, and of how many that can be said."""
    both = np.array([[over_pairs(b, branch)[0] for branch in BRANCHES] for b in network["blocks"]]).reshape(-1, 2)
    both = both[np.isfinite(both).all(axis=1)]
    return int((both[:, 0] > both[:, 1]).sum()), len(both)


def _finite_mean(values: Iterable[float | None]) -> float:
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan
