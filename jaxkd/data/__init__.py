"""Labelled images: where they come from, how they are cropped for training and evaluation, in which order they come.

For super-resolution, pairs of a large image and a small one take their place (pairs.py, patches.py). The host decodes
and crops uint8; normalising happens on the device, inside the compiled step.
"""

from jaxkd.data.pipeline.eval import EvalPreprocess, eval_batches
from jaxkd.data.pipeline.patches import PatchConfig, PatchPipeline
from jaxkd.data.pipeline.prefetch import Prefetcher
from jaxkd.data.pipeline.train import AugmentConfig, TrainPipeline, TrainTransform
from jaxkd.data.sources.labelled import Source, open_source
from jaxkd.data.sources.pairs import Pair, PairSource, open_pairs, whole_pairs
from jaxkd.data.transforms.crops import INTERPOLATIONS
from jaxkd.data.transforms.erasing import EraseConfig
from jaxkd.data.transforms.imresize import crop_to_multiple, imresize
from jaxkd.data.transforms.mixup import MixConfig
from jaxkd.data.transforms.on_device import normalise, prepare_train_images
from jaxkd.data.transforms.randaugment import auto_augment, fill_from_mean

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
