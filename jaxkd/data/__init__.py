"""Labelled images: where they come from, how they are cropped for training and evaluation, in which order they come.

The host decodes and crops uint8; normalising happens on the device, inside the compiled step.
"""

from jaxkd.data.crops import INTERPOLATIONS
from jaxkd.data.eval_pipeline import EvalPreprocess, eval_batches
from jaxkd.data.on_device import normalise
from jaxkd.data.prefetch import Prefetcher
from jaxkd.data.sources import Source, open_source
from jaxkd.data.train_pipeline import AugmentConfig, TrainPipeline

__all__ = [
    "INTERPOLATIONS",
    "AugmentConfig",
    "EvalPreprocess",
    "Prefetcher",
    "Source",
    "TrainPipeline",
    "eval_batches",
    "normalise",
    "open_source",
]
