"""A config becomes a run."""

from jaxkd.experiment.build import Experiment, build
from jaxkd.experiment.components import Components
from jaxkd.experiment.registry import register_task
