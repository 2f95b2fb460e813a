"""Metrics as pairs (sum, count): made per batch on the device, added up, divided once at the end."""

from jaxkd.metrics.aggregate import Metric, Metrics, finalise, merge, metric
from jaxkd.metrics.classification import classification_metrics, top_k_correct

__all__ = ["Metric", "Metrics", "classification_metrics", "finalise", "merge", "metric", "top_k_correct"]
