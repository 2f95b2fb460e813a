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
            "name": name,  # timm's, or one of jaxkd.models.list_models(); of a teacher "" is none
            # A file, a Hugging Face id ("timm/cait_s24_224.fb_dist_in1k"), a work directory of jaxkd; "" is random.
            "weights": "",
            "variant": "",  # "ema" or "raw" of weights that hold both; "": raw
            "resize": False,  # resize position embeddings and relative-bias tables to this network's grid
            "old_grid": (),  # with resize: grid (rows, columns) of a file that does not say them; () is a square
            "new_head": False,  # drop a head of another size and start a new one
        }
    )
    # Any argument of the constructor, such as args.depth=6; one left out, or None, is the network's own default.
    config.args = ConfigDict()
    return config


def _distill() -> ConfigDict:
    """Objective of distillation: a preset or terms, and the layers that correspond."""
    config = ConfigDict()
    config.preset = "none"  # objective: none soft hard spectral mse soft+spectral soft+mse hard+spectral hard+mse
    # Instead of a preset, its terms one by one: ({"loss": "kl", "weight": 0.9, "temperature": 1.0}, ...). A weight is a
    # number or a schedule; docs/objectives.md has the losses and their arguments.
    config.terms = ()
    # Layers that correspond: ((student, teacher), ...), "last", "first", "first+last", "stages", or
    # "auto": from the teacher's spectrum
    config.pairs = placeholder(object)
    config.alpha = placeholder(object)  # weight of the logit term, 1 - alpha of cross-entropy, or a schedule; None: 0.9
    config.temperature = placeholder(object)  # of the softmax in "soft"; None: 1
    # of the feature term; or a schedule, {"schedule": "linear", "from": ..., "to": ..., "end_step": ...}; None: 0.2
    config.feature_weight = placeholder(object)
    config.spectral_method = ""  # form of the spectral loss: "fft" or "closed"; "": the faster
    # Of the terms' parameters, such as projectors: the peak rate, for optimizer.reference_batch and in the shape of the
    # student's schedule; 0: as the student.
    config.projector_learning_rate = 0.0
    config.projector_weight_decay = placeholder(float)  # of the same; None: optimizer.weight_decay
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
    config.augment.kind = "random_resized_crop"  # crop of a training image; or "pad_crop", "none"
    config.augment.scale = (0.08, 1.0)  # area of the crop, as a share of the image
    config.augment.ratio = (3 / 4, 4 / 3)  # width over height of the crop
    config.augment.interpolation = "bicubic"  # of the resize; another of Pillow's, or "random": bilinear or bicubic
    config.augment.pad = 0  # pixels on each side, pad_crop only
    config.augment.hflip = 0.5  # probability of a mirror image
    config.augment.auto_augment = ""  # timm's words: "rand-m9-mstd0.5-inc1", "original", "v0", "3a", "augmix-m5"
    config.augment.color_jitter = 0.0  # its strength; as in timm only without auto_augment, or with "3a"
    config.augment.region_decode = "auto"  # decode only the crop of a JPEG, same pixels ("on", "off")
    config.augment.dct_scaling = False  # shrink while decoding where a crop is large; changes pixels a little
    config.patches = ConfigDict()  # super-resolution
    config.patches.size = 256  # side of a patch of the large image, pixels
    config.patches.flips = True  # mirror half of the patches
    config.patches.rotations = True  # turn by 0, 90, 180 or 270 degrees
    config.patches.small = "error"  # images smaller than a patch fail the run; "skip" leaves them out
    config.patches.per_image = 1  # patches of an image once it is decoded
    config.patches.visits = 1  # times that an epoch decodes each image
    config.erase = ConfigDict()
    config.erase.probability = 0.0  # share of images that random erasing changes; 0: off
    config.erase.mode = "pixel"  # filling: "pixel", noise of each pixel; "rand", of each channel; "const", zeros
    config.erase.count = 1  # rectangles of an image
    config.mix = ConfigDict()
    config.mix.mixup = 0.0  # alpha of mixup; 0: off
    config.mix.cutmix = 0.0  # alpha of CutMix; 0: off
    config.mix.cutmix_minmax = ()  # instead of alpha: smallest and largest side of the box
    config.mix.prob = 1.0  # share of batches (pairs, images) that are mixed
    config.mix.switch_prob = 0.5  # share of CutMix where both are on
    config.mix.mode = "batch"  # one draw for the batch; "pair": for each pair; "elem": for each image
    return config


def _eval() -> ConfigDict:
    """Scoring while a run trains and at its end."""
    config = ConfigDict()
    config.every_epochs = 1  # score the validation images after so many epochs
    config.batch_size = 0  # of scoring; 0: train.batch_size
    config.crop_pct = 0.0  # side of the scored crop over that of the image; 0: the student's own
    config.interpolation = ""  # of the resize before scoring; "": the student's own
    config.every_steps = 0  # score after so many steps, instead of every_epochs; 0: off
    config.sets = ()  # super-resolution: scored sets, "Set5=/data/Set5", ...; none: the validation split of data.source
    config.crop = "scale"  # border left out of PSNR and SSIM; "4": as the published MDBN files, at every scale
    config.luma = True  # PSNR and SSIM of BT.601 luma instead of RGB
    return config


def _dynamics() -> ConfigDict:
    """Statistics of the student's layers while it trains."""
    config = ConfigDict()
    config.every_steps = 0  # statistics at the first step and every so many; 0: off
    config.images = 32  # how many, the first of the batch (of its first micro-batch); a smaller batch gives all
    config.layers = ()  # taps of the student; (): all blocks or stages
    config.gradients = True  # magnitude of the training loss's gradient at each layer too
    config.ranks = True  # ranks of each layer too: energy ranks, participation ratio, stable rank
    config.rank_images = 8  # images that the ranks are of: the decompositions are the expensive part
    return config


def _optimizer() -> ConfigDict:
    """AdamW."""
    config = ConfigDict()
    config.learning_rate = 5e-4  # at its peak, after warm-up
    config.reference_batch = 512  # the rate is for this batch and scales linearly; 0: taken as it is
    config.weight_decay = 0.05  # of matrices and kernels; biases, norms and tokens have none
    config.decay_tokens = False  # decay class token and position embedding too: the authors' Lift and WideLast
    config.b1 = 0.9  # decay of AdamW's first moment
    config.b2 = 0.999  # decay of its second moment
    config.eps = 1e-8  # added to the root of the second moment
    config.clip_norm = 0.0  # largest L2 norm of the gradient; 0: off
    config.accumulate = 1  # micro-batches that a step divides its batch into
    return config


def _schedule() -> ConfigDict:
    """Learning rate over the run."""
    config = ConfigDict()
    config.kind = "cosine"  # of the rate, per step; "timm_epoch": what the published runs used; "constant"
    config.warmup_epochs = 5  # in which the rate rises to its peak
    config.warmup_lr = 1e-6  # rate at the first step of the warm-up
    config.min_lr = 1e-5  # rate at the end of the cosine
    config.steps = 0  # length of the schedule, and of the run; 0: train.epochs
    return config


def _eeg() -> ConfigDict:
    """Task "contrastive": readings of sentences with word-level EEG, keywords and texts."""
    config = ConfigDict()
    config.measure = "GD"  # fixations of a word that its EEG is averaged over; "FFD" or "TRT"
    config.subjects = ()  # codes of readers; (): all
    config.strict_nan = False  # leave out a sentence with NaN in a word, as public code does; else mask the word
    config.cache = ""  # folder that keeps what was read of the files; "": none
    config.standardise = "none"  # of each feature, beside the z-score of each word: "train", "all" (which leaks)
    # Parts by "text"; "cross_subject": also by reader; "published": by place in the file, which leaks
    config.split = "text"
    config.leave_out = ""  # the test reader of "cross_subject"; "": the first
    config.split_seed = 0  # of the random choice of texts for each part
    config.allow_leaks = False  # train although parts of the split share texts or statistics
    config.vocabulary = "train"  # texts that keywords are taken from; "all" leaks
    config.min_texts = 3  # a keyword is in at least so many of them
    config.keywords = 0  # number of keywords, the most frequent; 0: all
    config.vectors = "random"  # vectors of words; "wordllama", "glove" or an .npz file; docs/eeg.md
    config.learned = False  # the keywords' vectors train too
    config.sentence_weight = 0.5  # weight of the sentences' loss beside the words'
    # Form of the sentences' loss, all readings of a text being right answers: "mean_log" (SupCon), "log_mean",
    # "log_sum", "masked" or "siglip"; "info_nce", of one right answer each, has the value of "mean_log" here
    config.sentence_loss = "mean_log"
    config.max_words = 56  # fixated words of a sentence that a batch has room for; further ones are left out
    config.readings_per_text = 2  # readings of each text in a batch, by different readers
    return config


def _study() -> ConfigDict:
    """Grid of runs that `jaxkd study` trains and compares; docs/studies/README.md describes it."""
    config = ConfigDict()
    # Groups of runs: ({"name", "members": ({"name", <dotted changes>}, ...), and perhaps "part",
    # "changes": {...}, "seeds"}, ...)
    config.groups = ()
    config.seeds = (0, 1, 2)  # seeds of groups that do not name their own
    # Paired comparisons: ({"name", "a": "group/member", "b": "group/member"}, ...); those of one
    # "family" share Holm's correction
    config.comparisons = ()
    config.shared_batches = False  # all seeds of a group see the same batches, so that they can share one program
    config.images = 2000  # validation images for the similarity of last layers; 0: not measured
    config.scale = ""  # words for a reduced scale, repeated in tables and figures
    return config


def _precision() -> ConfigDict:
    """Arithmetic of the step, and what it recomputes or loops over."""
    config = ConfigDict()
    config.compute = "float32"  # type of the networks' arithmetic; or "bfloat16"
    # What the student's backward pass recomputes instead of storing it: True, each block; "attention", the attention
    # matrices (on a TPU also with False); "dots", all but the results of linear layers.
    config.remat = FieldReference(False, field_type=object)
    # Compute equal blocks as one loop, whose body is compiled once: True, of both networks; "student"; "teacher".
    config.scan_blocks = FieldReference(False, field_type=object)
    return config


def _mesh() -> ConfigDict:
    """Division of the devices; the product of the three is their number."""
    config = ConfigDict()
    config.data = -1  # devices along the batch, each with the whole train state; -1: the rest
    config.fsdp = 1  # devices along the batch that share one train state
    config.model = 1  # devices along wide matrices
    return config


def _checkpoint() -> ConfigDict:
    """Checkpoints of a run: how often, and which stay."""
    config = ConfigDict()
    config.every_epochs = 1  # save after so many; every evaluation saves too, so that the best can be kept
    config.every_steps = 0  # save after so many steps, besides every_epochs; 0: off
    config.keep_last = 2  # newest checkpoints that stay
    config.keep_best = 1  # checkpoints of the best scores that stay
    config.keep_every_epochs = 0  # checkpoints of every so many epochs stay too; 0: off
    config.on_damage = "error"  # stop where the newest is damaged; "previous": use the last good one
    return config


def base() -> ConfigDict:
    """Every field of a training config; leaf files change values and lock it, they never add fields."""
    config = ConfigDict()
    # "classification": labels only; "distillation": with a teacher; "restoration": super-resolution; "contrastive": EEG
    # to keywords
    config.task = "classification"
    config.seed = 0  # of initial weights, dropout and, unless data.seed is set, of everything about the images
    # Modules of your own that register networks, terms and data sources; imported from the current folder, the config
    # file's folder or PYTHONPATH.
    config.plugins = ()
    config.student = network("deit_tiny_patch16_224")
    config.student.freeze = ()  # patterns over parameter paths, such as ("patch_embed", "blocks_0")
    config.teacher = network("")  # task "distillation" only
    # A folder that keeps the teacher's logits of every training image as it is augmented: written before the first
    # step, read by this run and by later students, whose steps run no teacher; docs/speed.md. "": run the teacher.
    config.teacher.cache = ConfigDict({"path": ""})
    config.teacher.cache.top_k = 0  # likeliest classes that it keeps, the others as one mean; 0: all, which is exact
    config.teacher.cache.dtype = "float32"  # of the stored log-probabilities; or "float16"

    config.distill = _distill()
    config.label_smoothing = 0.1  # share of a label's weight that is spread over all classes
    config.data = _data()
    config.eval = _eval()
    config.restoration = ConfigDict()
    config.restoration.loss = "l1"  # of super-resolution; or "charbonnier"
    config.restoration.fft_weight = 0.0  # weight of the L1 distance of the images' Fourier transforms; 0: off
    config.eeg = _eeg()

    config.optimizer = _optimizer()
    config.schedule = _schedule()
    config.ema = ConfigDict()
    config.ema.decay = 0.99996  # of the moving average of the weights, at each step; 0: off
    config.ema.warmup = False  # take min(decay, (1 + t) / (10 + t)) after t steps, for short runs

    config.train = ConfigDict()
    config.train.epochs = 300  # length of the run, unless schedule.steps or train.steps is set
    config.train.steps = 0  # stop after so many optimiser steps; 0: all epochs
    config.train.batch_size = 512  # images of an optimiser step, on all devices together

    config.precision = _precision()
    config.mesh = _mesh()
    config.checkpoint = _checkpoint()
    config.log = ConfigDict()
    config.log.every_steps = 50  # steps between two lines of metrics
    config.log.tensorboard = True  # write event files for TensorBoard beside metrics.jsonl
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
