"""A config becomes a run."""

from jaxkd.experiment.build import Experiment, build, register_task
from jaxkd.experiment.components import Components

__all__ = ["Components", "Experiment", "build", "register_task"]
