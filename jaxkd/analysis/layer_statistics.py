"""Statistics of one layer, one number per image: the registry that data-set passes, training and reports all read.

`register_layer_statistic` adds one; summaries, tables and figures then show it like the built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.analysis import activation
from jaxkd.analysis.entropy import entropy_map
from jaxkd.analysis.lowrank import RANK_THRESHOLDS, participation_ratio, stable_rank
from jaxkd.analysis.spectrum import image_channel_spectrum
from jaxkd.errors import ConfigError

BINS = 100  # of the entropy's histogram, as published


@dataclass(frozen=True)
class LayerStatistic:
    """Words and function of a statistic.

    Attributes:
      label: for column heads and titles, such as "kurtosis".
      unit: for axes; "" for none.
      function: features (B, ..., C) -> (B,), traceable; None for what `layer_statistics`, `energy_statistics` or a
        gradient gives.
      logarithmic: whether profiles over training are drawn on a logarithmic axis.
    """

    label: str
    unit: str
    function: Callable[[jax.Array], jax.Array] | None = None
    logarithmic: bool = False


LAYER_STATISTICS: dict[str, LayerStatistic] = {
    "intensity": LayerStatistic(
        "spectral intensity", "activation units", lambda x: image_channel_spectrum(x).mean(axis=1)
    ),
    "entropy": LayerStatistic("entropy, one range for all layers", "bits"),
    "entropy_own_range": LayerStatistic("entropy, each layer's own range", "bits"),
    "activation_mean": LayerStatistic("mean |activation|", "activation units", activation.activation_mean),
    "activation_max": LayerStatistic("largest |activation|", "activation units", activation.activation_max, True),
    "kurtosis": LayerStatistic("kurtosis", "Gaussian: 3", activation.kurtosis, True),
    "massive_share": LayerStatistic("largest channel's share", "of a token's energy, 0 to 1", activation.massive_share),
    "gradient": LayerStatistic("mean |gradient|", "per activation unit", logarithmic=True),
    **{f"rank_{t * 100:.0f}": LayerStatistic(f"rank {t * 100:.0f} %", "directions per image") for t in RANK_THRESHOLDS},
    "participation_ratio": LayerStatistic("participation ratio", "directions per image"),
    "stable_rank": LayerStatistic("stable rank", "directions per image"),
}


def register_layer_statistic(name: str, statistic: LayerStatistic) -> None:
    """Adds a statistic to every analysis, to the statistics during training and to the reports.

    Args:
      name: under which results and tables hold it.
      statistic: its words and its function.

    Raises:
      ConfigError: the name is taken, or there is no function.

    Examples:
      ```python
      register_layer_statistic("spread", LayerStatistic("spread", "activation units", lambda x: x.std(axis=(1, 2, 3))))
      ```
    """
    if name in LAYER_STATISTICS or statistic.function is None:
        problem = "is taken" if name in LAYER_STATISTICS else "has no function"
        raise ConfigError(f'The layer statistic "{name}" {problem}. Give a new name and a function of the features.')
    LAYER_STATISTICS[name] = statistic


def as_tokens(x: jax.Array) -> jax.Array:
    """(B, h, w, C), (B, N, C) or (B, C) -> (B, N, C)."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def layer_ranges(features: Sequence[jax.Array], where: jax.Array) -> jax.Array:
    """(L, 2): smallest and largest finite value of each layer over the images that count.

    Args:
      features: L arrays (B, ..., C). A list, because jit would hand a dict over in the order of its names.
      where: (B,) bool.
    """
    limits = []
    for x in features:
        counts = jnp.isfinite(x) & where.reshape(-1, *[1] * (x.ndim - 1))
        limits.append(jnp.stack([jnp.where(counts, x, jnp.inf).min(), jnp.where(counts, x, -jnp.inf).max()]))
    return jnp.stack(limits)


def layer_statistics(x: jax.Array, common: jax.Array, own: jax.Array, *, bins: int = BINS) -> dict[str, jax.Array]:
    """Every statistic of a layer that needs neither gradients nor singular values.

    Returns:
      {name: (B,)} in the order of `LAYER_STATISTICS`; NaN for an image with a value that is not finite.
    """
    tokens = as_tokens(x)
    entropy = {"entropy": common, "entropy_own_range": own}
    # Explicit: on CPU, XLA's maximum may lose a NaN, and a histogram does not count infinity.
    finite = jnp.isfinite(tokens).all(axis=(1, 2))
    out = {}
    for name, statistic in LAYER_STATISTICS.items():
        if name in entropy:
            low, high = entropy[name]
            value = entropy_map(tokens, low, high, bins).mean(axis=1)
        elif statistic.function is not None:
            value = statistic.function(x)
        else:
            continue
        out[name] = jnp.where(finite, value, jnp.nan)
    return out


def energy_statistics(energies):
    """Ranks, participation ratio and stable rank from the energies of images.

    Args:
      energies: (B, K) squared singular values, descending. NumPy arrays are computed in float64, JAX arrays in fp32
        (traceable).

    Returns:
      {name: (B,)}; ranks are the fewest directions that hold the share, 0 of a zero image. NaN where an energy is.
    """
    xp = np if isinstance(energies, np.ndarray) else jnp
    total = energies.sum(axis=1, keepdims=True)
    held = energies.cumsum(axis=1)
    out = {}
    for t in RANK_THRESHOLDS:
        count = xp.where(total[:, 0] > 0, 1 + (held < t * total).sum(axis=1), 0).astype(energies.dtype)
        out[f"rank_{t * 100:.0f}"] = xp.where(xp.isfinite(total[:, 0]), count, xp.nan)
    return out | {"participation_ratio": participation_ratio(energies), "stable_rank": stable_rank(energies)}
