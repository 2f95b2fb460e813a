"""Networks as pure functions of parameters and images that also return the features named in `taps`."""

from jaxkd.models.contract import (
    ATTENTION_TAPS,
    ModelSpec,
    abstract_call,
    abstract_variables,
    depth_taps,
    init_variables,
)
from jaxkd.models.frozen import frozen_types
from jaxkd.models.registry import arguments, create, list_models, register, spec, tap_names
from jaxkd.models.target import target_platform, traced_for
