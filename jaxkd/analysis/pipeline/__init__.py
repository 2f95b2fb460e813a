"""Analysis of whole data sets: features, streamed statistics, summaries and comparisons of networks."""

from jaxkd.analysis.pipeline.dataset_pass import StreamOptions, parse_entropy_range
from jaxkd.analysis.pipeline.features import FeatureSource, callable_features, check_gradient_labels, network_features
from jaxkd.analysis.pipeline.run import AnalysisOptions, analyse, open_report, write_analysis
from jaxkd.analysis.pipeline.summary import SummaryOptions
from jaxkd.analysis.pipeline.training_statistics import Dynamics, resolve_layers
