"""Training tasks: networks and losses as the pure functions that the loop trains."""

from jaxkd.tasks.classification import ClassificationTask
from jaxkd.tasks.contrastive import ContrastiveTask
from jaxkd.tasks.distillation import DistillationTask, check_networks
from jaxkd.tasks.population import PopulationTask
from jaxkd.tasks.restoration import RestorationTask
