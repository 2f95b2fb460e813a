"""Networks: pure functions of parameters and an image that also hand back the features that are asked for."""

from jaxkd.models.contract import ModelSpec
from jaxkd.models.registry import create, list_models, spec, tap_names

__all__ = ["ModelSpec", "create", "list_models", "spec", "tap_names"]
