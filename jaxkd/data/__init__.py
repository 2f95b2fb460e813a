"""Labelled images: where they come from, how they are cropped for training and evaluation, in which order they come.

For super-resolution, pairs of a large image and a small one take their place (pairs.py, patches.py). The host decodes
and crops uint8; normalising happens on the device, inside the compiled step.
"""

from jaxkd.data.crops import INTERPOLATIONS
from jaxkd.data.erasing import EraseConfig
from jaxkd.data.eval_pipeline import EvalPreprocess, eval_batches
from jaxkd.data.mixing import MixConfig
from jaxkd.data.on_device import normalise, prepare_train_images
from jaxkd.data.pairs import Pair, PairSource, open_pairs, whole_pairs
from jaxkd.data.patches import PatchConfig, PatchPipeline
from jaxkd.data.prefetch import Prefetcher
from jaxkd.data.randaugment import auto_augment, fill_from_mean
from jaxkd.data.resize import crop_to_multiple, imresize
from jaxkd.data.sources import Source, open_source
from jaxkd.data.train_pipeline import AugmentConfig, TrainPipeline, TrainTransform

__all__ = [
    "INTERPOLATIONS",
    "AugmentConfig",
    "EraseConfig",
    "EvalPreprocess",
    "MixConfig",
    "Pair",
    "PairSource",
    "PatchConfig",
    "PatchPipeline",
    "Prefetcher",
    "Source",
    "TrainPipeline",
    "TrainTransform",
    "auto_augment",
    "crop_to_multiple",
    "eval_batches",
    "fill_from_mean",
    "imresize",
    "normalise",
    "open_pairs",
    "open_source",
    "prepare_train_images",
    "whole_pairs",
]
