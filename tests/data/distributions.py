"""Comparing what we draw with what timm draws."""

from __future__ import annotations

import numpy as np
from scipy.stats import ks_2samp

DRAWS = 4000

# For jax.jit: most of the time of tests that compile much and compute little is LLVM's.
QUICK = {"compiler_options": {"xla_backend_optimization_level": 0}}


def same_distribution(a, b) -> None:
    """Two samples that a Kolmogorov-Smirnov test cannot tell apart; in fp32, where equal shares of an image are."""
    result = ks_2samp(np.asarray(a, np.float32), np.asarray(b, np.float32))
    assert result.pvalue > 1e-3, f"{result}; means {np.mean(a)} and {np.mean(b)}"


def same_share(a, b) -> None:
    """Two shares of boolean samples that are within four standard errors."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype == bool
    pooled = (a.mean() + b.mean()) / 2
    assert abs(a.mean() - b.mean()) <= 4 * np.sqrt(pooled * (1 - pooled) * (1 / len(a) + 1 / len(b)))
