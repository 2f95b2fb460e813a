"""The best accuracy that any decoder can reach where the signal-to-noise ratio is known."""

from __future__ import annotations

import numpy as np

from jaxkd.errors import check_range


def oracle_topk(advantage: float, candidates: int, k: int) -> float:
    """Probability that the right one of several candidates is among the k best, for Gaussian scores.

    The right candidate scores N(advantage, 1), each other N(0, 1), all independent:
    integral of phi(z) P(Binomial(candidates - 1, 1 - Phi(advantage + z)) <= k - 1) over z. For orthogonal templates of
    energy snr in unit noise that is the best possible decoder, with advantage sqrt(snr) for one word, and sqrt(n snr)
    for n words that all differ between the candidates.

    Args:
      advantage: mean score of the right candidate, in standard deviations.
      candidates: how many there are, the right one included.
      k: how many of the best count; with `candidates` or more the probability is 1.

    Returns:
      The probability, exact to about 1e-12; k / candidates for an advantage of 0.

    Raises:
      ConfigError: no candidate, k below 1, or an advantage that is not a number of 0 or more.
    """
    from scipy.stats import binom, norm  # a dependency of JAX

    check_range("advantage", advantage, 0)
    check_range("candidates", candidates, 1, whole=True)
    check_range("k", k, 1, whole=True)
    # The trapezoidal rule converges exponentially for smooth functions that vanish at both ends.
    z, step = np.linspace(-12.0, 12.0, 4801, retstep=True)
    inside = binom.cdf(k - 1, candidates - 1, norm.sf(advantage + z))
    return float(min(np.sum(norm.pdf(z) * inside) * step, 1.0))
