"""Data sets, image transforms and batches.

`sources` gives records with random access (labelled images; pairs for super-resolution) and corpora of word-level EEG,
`transforms` are functions on one image or, on the device, on a batch, and `pipeline` makes batches of them. The host
decodes and crops uint8; normalising of images happens on the device, inside the compiled step.
"""

from jaxkd.data.pipeline.eeg import EegEvalBatches, EegLabels, EegPipeline, normalise_words
from jaxkd.data.pipeline.eval import EvalBatches, EvalPreprocess, eval_preprocess
from jaxkd.data.pipeline.patches import PatchConfig, PatchPipeline
from jaxkd.data.pipeline.prefetch import Prefetcher
from jaxkd.data.pipeline.stored import IMAGES, BatchStore, Part, StoredBatches, image_checksums
from jaxkd.data.pipeline.train import AugmentConfig, TrainPipeline, TrainTransform
from jaxkd.data.sources.eeg_corpus import EegCorpus
from jaxkd.data.sources.labels import check_same_classes, order_classes
from jaxkd.data.sources.pairs import Pair, PairSource, open_pairs
from jaxkd.data.sources.registry import Source, keep_sources, open_source, register_source
from jaxkd.data.sources.subset import (
    MemberSubsets,
    Subset,
    check_per_class,
    member_images,
    member_source,
    save_subset,
    subset_facts,
    subset_membership,
    take_member_subsets,
    take_subset,
)
from jaxkd.data.sources.synthetic_zuco import SyntheticZuco, synthetic_corpus, synthetic_templates
from jaxkd.data.sources.zuco import open_eeg
from jaxkd.data.transforms.crops import INTERPOLATIONS
from jaxkd.data.transforms.erasing import EraseConfig
from jaxkd.data.transforms.imresize import imresize
from jaxkd.data.transforms.mixup import MixConfig
from jaxkd.data.transforms.on_device import normalise, prepare_train_images
from jaxkd.data.transforms.randaugment import auto_augment, fill_from_mean
