"""Networks as pure functions of parameters and images that also return the features named in `taps`."""

from jaxkd.models.contract import ModelSpec
from jaxkd.models.registry import arguments, create, list_models, register, spec, tap_names

__all__ = ["ModelSpec", "arguments", "create", "list_models", "register", "spec", "tap_names"]
