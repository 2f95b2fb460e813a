"""Losses as pure array functions: at least fp32 inside, one value per example, examples left out on request."""

from jaxkd.losses.features import feature_mse, pool_channels
from jaxkd.losses.logits import cross_entropy, hard, kl
from jaxkd.losses.restoration import charbonnier, fft_l1, l1

# The function takes the name of its module here, as users type losses.spectral(...). The rest of the module is reached
# by `from jaxkd.losses.spectral import DEFAULT_METHOD`, which looks the module up by its path and not by this
# attribute.
from jaxkd.losses.spectral import spectral

__all__ = [
    "charbonnier",
    "cross_entropy",
    "feature_mse",
    "fft_l1",
    "hard",
    "kl",
    "l1",
    "pool_channels",
    "spectral",
]
