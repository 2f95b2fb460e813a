"""Metrics as pairs (sum, count): computed per batch on the device, added over batches, divided once at the end.

`psnr` and `ssim` compare two images on the host.
"""

from jaxkd.metrics.aggregate import Metric, Metrics, finalise, merge, metric
from jaxkd.metrics.classification import classification_metrics, top_k_correct
from jaxkd.metrics.restoration import luma, name_of, parse_name, psnr, psnr_on_device, ssim, ssim_on_device

__all__ = [
    "Metric",
    "Metrics",
    "classification_metrics",
    "finalise",
    "luma",
    "merge",
    "metric",
    "name_of",
    "parse_name",
    "psnr",
    "psnr_on_device",
    "ssim",
    "ssim_on_device",
    "top_k_correct",
]
