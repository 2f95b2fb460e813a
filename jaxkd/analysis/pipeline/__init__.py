"""Analysis of whole data sets: features, streamed statistics, summaries and comparisons of networks."""

from jaxkd.analysis.pipeline.features import FeatureSource, callable_features, check_gradient_labels, network_features
from jaxkd.analysis.pipeline.run import AnalysisOptions, analyse, open_report, write_analysis
from jaxkd.analysis.pipeline.training_statistics import Dynamics, resolve_layers

__all__ = [
    "AnalysisOptions",
    "Dynamics",
    "FeatureSource",
    "analyse",
    "callable_features",
    "check_gradient_labels",
    "network_features",
    "open_report",
    "resolve_layers",
    "write_analysis",
]
