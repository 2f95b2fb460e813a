"""Metrics: averages of classifiers, computed per batch on the device and then added up; PSNR and SSIM of images."""

from jaxkd.metrics.aggregate import Average, Metrics, average
from jaxkd.metrics.classification import classification_metrics, top_k_correct
from jaxkd.metrics.restoration import luma, name_of, psnr, ssim
