"""Which networks and which losses: the pure functions that the loop trains."""

from jaxkd.tasks.classification import ClassificationTask
from jaxkd.tasks.distillation import DistillationTask, check_networks
from jaxkd.tasks.networks import Network, build_network, load_weights, network_from_run

__all__ = [
    "ClassificationTask",
    "DistillationTask",
    "Network",
    "build_network",
    "check_networks",
    "load_weights",
    "network_from_run",
]
