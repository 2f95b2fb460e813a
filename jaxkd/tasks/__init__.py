"""Which networks and which losses: the pure functions that the loop trains, and what an analysis reads."""

from jaxkd.tasks.analysis import AnalysisOptions, analyse
from jaxkd.tasks.classification import ClassificationTask
from jaxkd.tasks.distillation import DistillationTask, check_networks
from jaxkd.tasks.dynamics import Dynamics, resolve_layers
from jaxkd.tasks.features import FeatureSource, callable_features, check_gradient_labels, network_features
from jaxkd.tasks.networks import Network, build_network, load_weights, network_from_run
from jaxkd.tasks.restoration import RestorationTask

__all__ = [
    "AnalysisOptions",
    "ClassificationTask",
    "DistillationTask",
    "Dynamics",
    "FeatureSource",
    "Network",
    "RestorationTask",
    "analyse",
    "build_network",
    "callable_features",
    "check_gradient_labels",
    "check_networks",
    "load_weights",
    "network_features",
    "network_from_run",
    "resolve_layers",
]
