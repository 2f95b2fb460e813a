"""Networks as pure functions of parameters and images that also return the features named in `taps`."""

from jaxkd.models.contract import ModelSpec
from jaxkd.models.registry import create, list_models, spec, tap_names

__all__ = ["ModelSpec", "create", "list_models", "spec", "tap_names"]
