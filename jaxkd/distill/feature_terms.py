"""Terms on the features of layer pairs, one value per example."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from jaxkd import losses
from jaxkd.distill.objective import Batch, ModelOutput
from jaxkd.distill.pair_features import feature_mean
from jaxkd.distill.pairing import Pair
from jaxkd.distill.terms import register_term
from jaxkd.losses.spectral import DEFAULT_METHOD, check_method


def _check_spectral(*, method: str = DEFAULT_METHOD, **_: Any) -> None:
    check_method(method)


@register_term("spectral", check=_check_spectral)
def spectral(
    student: ModelOutput, teacher: ModelOutput, batch: Batch, *, pairs: tuple[Pair, ...], method: str = DEFAULT_METHOD
) -> jax.Array:
    """Mean over pairs of the SpectralKD loss; `method` is "closed" or "fft"."""
    return feature_mean(student, teacher, batch, loss=partial(losses.spectral, method=method), pairs=pairs)


@register_term("mse")
def mse(student: ModelOutput, teacher: ModelOutput, batch: Batch, *, pairs: tuple[Pair, ...]) -> jax.Array:
    """Mean over pairs of the MSE between features."""
    return feature_mean(student, teacher, batch, loss=losses.feature_mse, pairs=pairs)
