"""Networks as pure functions of parameters and images that also return the features named in `taps`."""

from jaxkd.models.contract import ModelSpec, depth_taps
from jaxkd.models.registry import arguments, create, list_models, register, spec, tap_names
