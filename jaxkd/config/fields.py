"""Every field of a config with its meaning and default, and functions on configs.

Imports no JAX, so that a config can be read, checked and printed anywhere.
"""

from __future__ import annotations

import copy
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from jaxkd.errors import ConfigError, did_you_mean

ARGS = ("student.args.", "teacher.args.")  # free-form below: the constructor of the network says what it takes


def network(name: str) -> ConfigDict:
    """A network: its name, constructor arguments and weights."""
    config = ConfigDict(
        {
            "name": name,
            # A file, a Hugging Face id ("timm/cait_s24_224.fb_dist_in1k"), a work directory of jaxkd; "" is random.
            "weights": "",
            "variant": "",  # "ema" or "raw", where the weights hold both
            "resize": False,  # resize position embeddings and relative-bias tables to this network's grid
            "old_grid": (),  # with resize: (rows, columns) of a file that does not say them; () is a square
            "new_head": False,  # drop a head of another size and start a new one
        }
    )
    # Any argument of the constructor, such as args.depth=6; one left out, or None, is the network's own default.
    config.args = ConfigDict()
    return config


def _distill() -> ConfigDict:
    """Objective of distillation: a preset or terms, and the layers that correspond."""
    config = ConfigDict()
    config.preset = "none"  # soft hard spectral mse soft+spectral soft+mse hard+spectral hard+mse
    # Instead of a preset, its terms one by one: ({"loss": "kl", "weight": 0.9, "temperature": 1.0}, ...). A weight is a
    # number or a schedule; docs/objectives.md has the losses and their arguments.
    config.terms = ()
    # ((student, teacher), ...), "last", "first", "first+last", "stages", or "auto": from the teacher's spectrum
    config.pairs = placeholder(object)
    config.alpha = placeholder(object)  # weight of the logit term, 1 - alpha of the cross-entropy; or a schedule
    config.temperature = placeholder(object)  # a number
    config.feature_weight = placeholder(object)  # or a schedule: {"schedule": "linear", "from": ..., "to": ...}
    config.spectral_method = ""  # "fft" or "closed"; "" is the faster
    # Of the terms' parameters, such as projectors: the peak rate, for optimizer.reference_batch and in the shape of the
    # student's schedule; 0: as the student.
    config.projector_learning_rate = 0.0
    config.projector_weight_decay = placeholder(float)  # None: optimizer.weight_decay
    return config


def _data() -> ConfigDict:
    """Data source, and what becomes of an image on its way into a batch."""
    config = ConfigDict()
    # A folder with train/<label>/* and val/<label>/*, a folder of shards, "tfds:NAME" or "embedded:digits".
    config.source = ""
    config.class_order = "natural"  # of class folders: 1, 2, 10 as in timm; "text": 1, 10, 2 as in torchvision
    config.per_class = 0  # training images of each class, drawn by subset_seed; 0: all
    config.subset_seed = 0  # of that choice alone; a smaller subset lies inside a larger one of the same seed
    config.workers = 8  # processes that decode; 0 decodes in this one
    config.repeats = 1  # copies of an image in an epoch, each augmented differently; 3: repeated augmentation
    # After so many epochs images, order and mixing repeat: epoch e shows what epoch e mod views did; 0: they never do.
    config.views = 0
    # Of the order, augmentation and mixing of images; -1: as `seed`, which also draws initial weights and dropout.
    config.seed = -1
    config.max_broken = 0.01  # share of unreadable images above which a run fails; fewer are skipped and named
    config.augment = ConfigDict()
    config.augment.kind = "random_resized_crop"  # or "pad_crop", "none"
    config.augment.scale = (0.08, 1.0)  # area of the crop
    config.augment.ratio = (3 / 4, 4 / 3)  # width over height of the crop
    config.augment.interpolation = "bicubic"  # or another of Pillow's; "random": bilinear or bicubic
    config.augment.pad = 0  # pixels on each side, pad_crop only
    config.augment.hflip = 0.5
    config.augment.auto_augment = ""  # timm's words: "rand-m9-mstd0.5-inc1", "original", "v0", "3a", "augmix-m5"
    config.augment.color_jitter = 0.0  # strength; as in timm only without auto_augment, or with "3a"
    config.augment.region_decode = "auto"  # decode only the crop of a JPEG, same pixels ("on", "off")
    config.augment.dct_scaling = False  # shrink while decoding where a crop is large; changes pixels a little
    # Super-resolution: patches of the large image, and what becomes of them.
    config.patches = ConfigDict({"size": 256, "flips": True, "rotations": True, "small": "error"})
    config.patches.per_image = 1  # patches of an image once it is decoded
    config.patches.visits = 1  # of each image in an epoch
    config.erase = ConfigDict({"probability": 0.0, "mode": "pixel", "count": 1})  # random erasing; 0: off
    config.mix = ConfigDict()
    config.mix.mixup = 0.0  # alpha; 0: off
    config.mix.cutmix = 0.0  # alpha; 0: off
    config.mix.cutmix_minmax = ()  # instead of alpha: smallest and largest side of the box
    config.mix.prob = 1.0
    config.mix.switch_prob = 0.5  # of cutmix where both are on
    config.mix.mode = "batch"  # or "pair", "elem"
    return config


def _eval() -> ConfigDict:
    """Scoring while a run trains and at its end."""
    config = ConfigDict()
    config.every_epochs = 1
    config.batch_size = 0  # 0: train.batch_size
    config.crop_pct = 0.0  # 0: the student's own
    config.interpolation = ""  # "": the student's own
    config.every_steps = 0  # instead of every_epochs
    config.sets = ()  # super-resolution: "Set5=/data/Set5", ...; none: the validation split of data.source
    config.crop = "scale"  # border left out of PSNR and SSIM; "4": as the published MDBN files, at every scale
    config.luma = True  # BT.601 luma instead of RGB
    return config


def _dynamics() -> ConfigDict:
    """Statistics of the student's layers while it trains."""
    config = ConfigDict()
    config.every_steps = 0  # at the first step and every so many; 0: off
    config.images = 32  # the first of the batch (of its first micro-batch); a smaller batch gives all
    config.layers = ()  # taps of the student; (): all blocks or stages
    config.gradients = True  # of the training loss
    config.ranks = True  # energy ranks, participation ratio, stable rank
    config.rank_images = 8  # how many of the images these are of: the decompositions are the expensive part
    return config


def _optimizer() -> ConfigDict:
    """AdamW."""
    config = ConfigDict()
    config.learning_rate = 5e-4
    config.reference_batch = 512  # the rate is for this batch and scales linearly; 0: taken as it is
    config.weight_decay = 0.05
    config.decay_tokens = False  # class token and position embedding too: the authors' Lift and WideLast
    config.b1 = 0.9
    config.b2 = 0.999
    config.eps = 1e-8
    config.clip_norm = 0.0  # 0: off
    config.accumulate = 1  # micro-batches a step
    return config


def _schedule() -> ConfigDict:
    """Learning rate over the run."""
    config = ConfigDict()
    config.kind = "cosine"  # per step; "timm_epoch": what the published runs used; "constant"
    config.warmup_epochs = 5
    config.warmup_lr = 1e-6
    config.min_lr = 1e-5
    config.steps = 0  # length of the schedule, and of the run; 0: train.epochs
    return config


def _eeg() -> ConfigDict:
    """Task "contrastive": readings of sentences with word-level EEG, keywords and texts."""
    config = ConfigDict()
    config.measure = "GD"  # fixations of a word that its EEG is averaged over; "FFD" or "TRT"
    config.subjects = ()  # codes of readers; (): all
    config.strict_nan = False  # leave out a sentence with NaN in a word, as public code does; else mask the word
    config.cache = ""  # folder for what was read of the files; "": none
    config.standardise = "none"  # of each feature, beside the z-score of each word: "train", "all" (which leaks)
    config.split = "text"  # "cross_subject": also by reader; "published": by place in the file, which leaks
    config.leave_out = ""  # the test reader of "cross_subject"; "": the first
    config.split_seed = 0
    config.allow_leaks = False  # train although parts of the split share texts or statistics
    config.vocabulary = "train"  # texts that keywords are taken from; "all" leaks
    config.min_texts = 3  # a keyword is in at least so many of them
    config.keywords = 0  # number of keywords, the most frequent; 0: all
    config.vectors = "random"  # of words: "wordllama", "glove" or an .npz file; docs/eeg.md
    config.learned = False  # the keywords' vectors train too
    config.sentence_weight = 0.5  # of the sentences' loss beside the words'
    config.max_words = 56  # fixated words of a sentence that a batch has room for; further ones are left out
    config.readings_per_text = 2  # of each text in a batch, by different readers
    return config


def _study() -> ConfigDict:
    """Grid of runs that `python -m jaxkd.study` trains and compares; docs/studies/README.md describes it."""
    config = ConfigDict()
    # ({"name", "members": ({"name", <dotted changes>}, ...), and perhaps "part", "changes": {...}, "seeds"}, ...)
    config.groups = ()
    config.seeds = (0, 1, 2)  # of groups that do not name their own
    # ({"name", "a": "group/member", "b": "group/member"}, ...); those of one "family" share Holm's correction
    config.comparisons = ()
    config.shared_batches = False  # all seeds of a group see the same batches, so that they can share one program
    config.images = 2000  # validation images for the similarity of last layers; 0: not measured
    config.scale = ""  # words for a reduced scale, repeated in tables and figures
    return config


def base() -> ConfigDict:
    """Every field of a training config; leaf files change values and lock it, they never add fields."""
    config = ConfigDict()
    # "distillation": with a teacher; "restoration": super-resolution; "contrastive": EEG to keywords
    config.task = "classification"
    config.seed = 0
    # Modules of your own that register networks, terms and data sources; imported from the current folder, the config
    # file's folder or PYTHONPATH.
    config.plugins = ()
    config.student = network("deit_tiny_patch16_224")
    config.student.freeze = ()  # patterns over parameter paths, such as ("patch_embed", "blocks_0")
    config.teacher = network("")  # task "distillation" only
    # A folder that keeps the teacher's logits of every training image as it is augmented: written before the first
    # step, read by this run and by later students, whose steps run no teacher; docs/speed.md. "": run the teacher.
    config.teacher.cache = ConfigDict({"path": ""})
    config.teacher.cache.top_k = 0  # likeliest classes that are kept, the others as one mean; 0: all, which is exact
    config.teacher.cache.dtype = "float32"  # or "float16"

    config.distill = _distill()
    config.label_smoothing = 0.1
    config.data = _data()
    config.eval = _eval()
    config.restoration = ConfigDict({"loss": "l1", "fft_weight": 0.0})  # loss: or "charbonnier"
    config.eeg = _eeg()

    config.optimizer = _optimizer()
    config.schedule = _schedule()
    # decay 0: off; warmup: min(decay, (1 + t) / (10 + t)) after t optimiser steps, for short runs
    config.ema = ConfigDict({"decay": 0.99996, "warmup": False})

    config.train = ConfigDict()
    config.train.epochs = 300
    config.train.steps = 0  # stop after so many optimiser steps; 0: all epochs
    config.train.batch_size = 512  # global, an optimiser step

    config.precision = ConfigDict({"compute": "float32"})  # or "bfloat16"
    # What the student's backward pass recomputes instead of storing it: True, each block; "attention", the attention
    # matrices (on a TPU also with False); "dots", all but the results of linear layers.
    config.precision.remat = FieldReference(False, field_type=object)
    # Compute equal blocks as one loop, whose body is compiled once: True, of both networks; "student"; "teacher".
    config.precision.scan_blocks = FieldReference(False, field_type=object)
    # Devices along the batch, each with the whole train state (-1: the rest); along the batch, sharing one train state;
    # and along wide matrices.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "model": 1})

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1  # every evaluation saves too, so that the best can be kept
    config.checkpoint.every_steps = 0  # besides every_epochs; 0: off
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_best = 1
    config.checkpoint.keep_every_epochs = 0
    config.checkpoint.on_damage = "error"  # where the newest checkpoint is damaged; "previous": use the last good one

    config.log = ConfigDict({"every_steps": 50, "tensorboard": True})
    config.dynamics = _dynamics()

    config.study = _study()
    # Many students in one program, which share batches and the teacher's forward pass: {"seed": (0, 1, 2)} or another
    # dict of fields with the values that each takes (all combinations), or a tuple of dicts of changes, perhaps with a
    # "name". jaxkd/config/population.py lists the fields that may differ.
    config.population = placeholder(object)

    # Runs after one another, each a dict of dotted changes with a "name"; a later one may take "stage:<name>" as
    # weights.
    config.stages = ()
    return config


def parse_arg(arg: str | None, known: dict[str, str]) -> dict[str, str]:
    """`"embedded,student=deit_small_patch16_224"` -> `{"embedded": "", "student": "deit_small_patch16_224"}`."""
    words = {}
    for part in filter(None, (p.strip() for p in (arg or "").split(","))):
        name, _, value = part.partition("=")
        if name not in known:
            meaning = "; ".join(f"{k}: {v}" for k, v in known.items())
            raise ConfigError(
                f'The config does not understand ":{part}".{did_you_mean(name, known)} '
                f"Known after the colon: {meaning}."
            )
        words[name] = value
    return words


def change(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A copy of `config` with dotted fields changed: `{"train.epochs": 10}`."""
    config = _copy(config)
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        node = config
        for name in parents:
            node = node.get(name) if isinstance(node, ConfigDict) else None
        if not isinstance(node, ConfigDict) or (leaf not in node and not dotted.startswith(ARGS)):
            raise ConfigError(
                f'"{dotted}" is not a field of a config.{did_you_mean(dotted, flatten(config))} '
                "jaxkd/config/fields.py lists them all."
            )
        with node.ignore_type():
            node[leaf] = ConfigDict(value) if f"{dotted}." in ARGS else value
    return config


def _copy(config: ConfigDict) -> ConfigDict:
    """A deep copy, unlocked; a shallow one would forget the types of fields that are still None."""
    grid = config.get("population")
    if not isinstance(grid, dict):
        return copy.deepcopy(config).unlock()
    # ml_collections would make a ConfigDict of the copied dict, and refuse its dotted names.
    with config.unlocked():
        config.population = None
    try:
        copied = copy.deepcopy(config).unlock()
    finally:
        with config.unlocked():
            config.population = grid
    copied.population = dict(grid)
    return copied


def data_seed(config: ConfigDict) -> int:
    """The seed of data order, augmentation and mixing."""
    return config.seed if config.data.seed < 0 else config.data.seed


def plain(value: Any) -> Any:
    """A dict for a ConfigDict; anything else as it is."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def kind_of(dotted: str) -> str:
    """The type that a field holds, in a word, also where its default is None."""
    *parents, leaf = dotted.split(".")
    node = base()
    for name in parents:
        node = node[name]
    return node.get_type(leaf).__name__


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """`{"train.epochs": 300, ...}`: every leaf field by its dotted name."""
    out: dict[str, Any] = {}
    for name in config:
        value = config.get(name)
        if isinstance(value, ConfigDict):
            out |= flatten(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
