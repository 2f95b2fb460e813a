"""Checks of a config that need nothing but the config, made before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxkd.config import presets
from jaxkd.config.fields import ARGS, base, change, flatten, kind_of
from jaxkd.errors import ConfigError, check_choice, check_range, did_you_mean

# whose unread fields are known; others may be registered
TASKS = ("distillation", "classification", "restoration", "contrastive")
CHOICES = {
    "restoration.loss": ("l1", "charbonnier"),
    "eeg.measure": ("GD", "FFD", "TRT"),
    "eeg.standardise": ("none", "train", "all"),
    "eeg.split": ("text", "cross_subject", "published"),
    "eeg.vocabulary": ("train", "all"),
    "eeg.sentence_loss": ("mean_log", "log_mean", "log_sum", "masked", "info_nce", "siglip"),
    "eval.crop": ("scale", "4"),
    "data.patches.small": ("error", "skip"),
    "checkpoint.on_damage": ("error", "previous"),
    "schedule.kind": ("cosine", "timm_epoch", "constant"),
    "precision.compute": ("float32", "bfloat16"),
    "precision.remat": (False, True, "attention", "dots"),
    "precision.scan_blocks": (False, True, "student", "teacher"),
    "data.augment.kind": ("random_resized_crop", "pad_crop", "none"),
    "data.augment.interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "random"),
    "data.augment.region_decode": ("auto", "on", "off"),
    "data.class_order": ("natural", "text"),
    "data.erase.mode": ("const", "rand", "pixel"),
    "data.mix.mode": ("batch", "pair", "elem"),
    "eval.interpolation": ("", "nearest", "bilinear", "bicubic", "lanczos"),
    "distill.spectral_method": ("", "fft", "closed"),
    "student.variant": ("", "raw", "ema"),
    "teacher.variant": ("", "raw", "ema"),
    "teacher.cache.dtype": ("float32", "float16"),
}
OBJECTIVE = {"distill.preset", "distill.terms"}  # each replaces the other
SWITCHES = ("precision.remat", "precision.scan_blocks")  # which hold True, False or a word
COUNT = 2**31 - 1  # the largest number that the step's 32-bit counters hold
# bounds of `check_range` -> the fields that they hold for
BOUNDS: tuple[tuple[dict[str, float], tuple[str, ...]], ...] = (
    (
        {"least": 1, "most": COUNT},
        (
            *("train.epochs", "train.batch_size", "eval.every_epochs", "log.every_steps", "checkpoint.keep_last"),
            *("optimizer.accumulate", "data.repeats", "data.erase.count", "mesh.fsdp", "mesh.model"),
            *("data.patches.size", "data.patches.per_image", "data.patches.visits"),
            *("dynamics.images", "dynamics.rank_images", "eeg.min_texts", "eeg.readings_per_text"),
            "eeg.max_words",
        ),
    ),
    (
        {"least": 0, "most": COUNT},
        (
            *("train.steps", "eval.batch_size", "eval.every_steps", "dynamics.every_steps"),
            *("optimizer.reference_batch", "schedule.warmup_epochs", "schedule.steps"),
            *("checkpoint.keep_best", "checkpoint.keep_every_epochs"),
            *("checkpoint.every_steps", "checkpoint.every_epochs", "data.per_class", "study.images"),
            *("data.views", "teacher.cache.top_k", "eeg.keywords"),
        ),
    ),
    ({"least": 0, "most": 2**32 - 1}, ("seed", "data.subset_seed", "eeg.split_seed")),
    ({"least": -1, "most": 2**32 - 1}, ("data.seed",)),
    ({"least": 0, "most": 1024}, ("data.workers", "data.augment.pad")),
    ({"above": 0, "most": 1e4}, ("optimizer.learning_rate",)),
    ({"above": 0, "most": 1}, ("optimizer.eps",)),
    (
        {"least": 0, "most": 1e4},
        (
            *("optimizer.weight_decay", "schedule.warmup_lr", "schedule.min_lr", "data.mix.mixup", "data.mix.cutmix"),
            *("restoration.fft_weight", "distill.projector_learning_rate", "eeg.sentence_weight"),
        ),
    ),
    ({"least": 0}, ("optimizer.clip_norm",)),
    ({"least": 0, "most": 10}, ("data.augment.color_jitter",)),
    (
        {"least": 0, "most": 1},
        (
            *("data.erase.probability", "data.mix.prob", "data.mix.switch_prob", "data.max_broken"),
            *("data.augment.hflip", "eval.crop_pct"),
        ),
    ),
    ({"least": 0, "below": 1}, ("ema.decay", "label_smoothing", "optimizer.b1", "optimizer.b2")),
)
RANGES = {"data.augment.scale": 1.0, "data.augment.ratio": 100.0}  # pairs of numbers, and the largest of each
TEXTS = ("plugins", "student.freeze", "eval.sets", "dynamics.layers", "eeg.subjects")  # tuples of text
LARGEST_GRID = 10**4
LEAST_CROP = 0.05  # the image is resized to the network's size over this share, which has to fit into memory


def _no_teacher(c: ConfigDict) -> bool:
    return c.task != "distillation" or (c.distill.preset == "none" and not c.distill.terms)


def _lacks(index: int, *names: str) -> Callable[[ConfigDict], bool]:
    """Whether the preset lacks a logit term (0) or feature term (1), or has none of these `names`."""

    def lacking(c: ConfigDict) -> bool:
        part = presets.parts(c.distill.preset)[index]
        return _no_teacher(c) or not part or bool(names and part not in names)

    return lacking


def _terms_ignore(argument: str) -> Callable[[ConfigDict], bool]:
    """Whether there are terms and each has its own `argument` or takes none; a term of a plugin may take any."""

    def reads(term: Any) -> bool:
        known = isinstance(term, Mapping | ConfigDict) and term.get("loss") in presets.READ_BY_TERM
        return not known or (argument not in term and argument in presets.READ_BY_TERM[term["loss"]])

    return lambda c: bool(c.distill.terms) and not any(map(reads, c.distill.terms))


_OF_LABELLED_IMAGES = (
    *("distill.terms", "label_smoothing", "data.class_order", "data.per_class", "data.augment.", "data.erase."),
    *(
        "data.mix.",
        "data.repeats",
        "data.views",
        "dynamics.",
        "optimizer.decay_tokens",
        "eval.crop_pct",
        "eval.interpolation",
    ),
    *("student.resize", "student.new_head"),
)
# (fields, when they are read by nothing, why). A field that differs from its default where nothing reads it is an
# error.
UNREAD: tuple[tuple[tuple[str, ...], Callable[[ConfigDict], bool], str], ...] = (
    (("distill.preset",), lambda c: c.task != "distillation", 'a task other than "distillation"'),
    (("teacher.",), _no_teacher, "a run without a teacher"),
    (("teacher.cache.",), lambda c: not c.teacher.cache.path, 'teacher.cache.path="", which keeps no logits'),
    (
        ("precision.scan_blocks",),
        lambda c: c.precision.scan_blocks == "teacher" and _no_teacher(c),
        "a run without a teacher",
    ),
    (
        ("distill.alpha", "distill.temperature", "distill.feature_weight", "distill.spectral_method"),
        lambda c: bool(c.distill.terms),
        "an objective of distill.terms, which have weights and arguments of their own",
    ),
    (
        ("distill.projector_learning_rate", "distill.projector_weight_decay"),
        lambda c: not c.distill.terms,
        "an objective without distill.terms, whose terms have no parameters",
    ),
    (("distill.pairs",), lambda c: not c.distill.terms and _lacks(1)(c), "a preset without a feature term"),
    (("distill.pairs",), _terms_ignore("pairs"), "an objective whose distill.terms compare no pairs of layers"),
    (("label_smoothing",), _terms_ignore("smoothing"), "an objective whose distill.terms do not take it"),
    (("distill.feature_weight",), _lacks(1), "a preset without a feature term"),
    (("distill.alpha",), _lacks(0), "a preset without a logit term"),
    (("distill.temperature",), _lacks(0, "kl"), "a preset without soft KD"),
    (("distill.spectral_method",), _lacks(1, "spectral"), "a preset without the spectral term"),
    (("data.augment.pad",), lambda c: c.data.augment.kind != "pad_crop", 'data.augment.kind other than "pad_crop"'),
    (
        ("data.augment.scale", "data.augment.ratio", "data.augment.region_decode", "data.augment.dct_scaling"),
        lambda c: c.data.augment.kind != "random_resized_crop",
        'data.augment.kind other than "random_resized_crop"',
    ),
    (
        ("data.erase.mode", "data.erase.count"),
        lambda c: c.data.erase.probability == 0,
        "data.erase.probability=0, which erases nothing",
    ),
    (("data.subset_seed",), lambda c: c.data.per_class == 0, "data.per_class=0, which takes all images"),
    (("data.mix.",), lambda c: not mixes(c), "data.mix.mixup=0 and data.mix.cutmix=0, which mix nothing"),
    (
        ("data.mix.switch_prob",),
        lambda c: not (c.data.mix.mixup and (c.data.mix.cutmix or c.data.mix.cutmix_minmax)),
        "only one of mixup and cutmix",
    ),
    (
        ("student.variant", "student.resize", "student.old_grid", "student.new_head"),
        lambda c: not c.student.weights,
        "a student that starts from random weights",
    ),
    (("student.old_grid",), lambda c: not c.student.resize, "student.resize=False, which keeps the grid"),
    (("teacher.old_grid",), lambda c: not c.teacher.resize, "teacher.resize=False, which keeps the grid"),
    (("ema.warmup",), lambda c: c.ema.decay == 0, "ema.decay=0, which keeps no moving average"),
    (("dynamics.",), lambda c: c.dynamics.every_steps == 0, "dynamics.every_steps=0, which computes no statistics"),
    (("dynamics.rank_images",), lambda c: not c.dynamics.ranks, "dynamics.ranks=False, which computes no ranks"),
    (
        ("restoration.", "data.patches.", "eval.sets", "eval.crop", "eval.luma"),
        lambda c: c.task != "restoration",
        'a task other than "restoration"',
    ),
    (_OF_LABELLED_IMAGES, lambda c: c.task == "restoration", 'task="restoration"'),
    (_OF_LABELLED_IMAGES, lambda c: c.task == "contrastive", 'task="contrastive"'),
    (
        ("data.workers", "data.max_broken", "precision.remat", "precision.scan_blocks", "eval.batch_size"),
        lambda c: c.task == "contrastive",
        'task="contrastive"',
    ),
    (("eval.batch_size",), lambda c: c.task == "restoration", 'task="restoration"'),
    (("eeg.",), lambda c: c.task != "contrastive", 'a task other than "contrastive"'),
    (("eeg.leave_out",), lambda c: c.eeg.split != "cross_subject", 'eeg.split other than "cross_subject"'),
    (("eeg.sentence_loss",), lambda c: c.eeg.sentence_weight == 0, "eeg.sentence_weight=0"),
    (("study.",), lambda c: not c.study.groups, "a config without study.groups"),
    (("optimizer.decay_tokens",), lambda c: c.optimizer.weight_decay == 0, "optimizer.weight_decay=0"),
    (("train.epochs",), lambda c: c.schedule.steps > 0, "schedule.steps above 0, which is the length of the run"),
    (("eval.every_epochs",), lambda c: c.eval.every_steps > 0, "eval.every_steps above 0"),
    (("schedule.warmup_lr",), lambda c: c.schedule.warmup_epochs == 0, "schedule.warmup_epochs=0"),
    (("schedule.min_lr",), lambda c: c.schedule.kind == "constant", 'schedule.kind="constant"'),
)


def mixes(c: ConfigDict) -> bool:
    """Whether training images are mixed at all."""
    return bool(c.data.mix.mixup or c.data.mix.cutmix or c.data.mix.cutmix_minmax)


def is_read(c: ConfigDict, field: str) -> bool:
    """Whether a run of this config reads `field`."""
    return not any(field in names and unread(c) for names, unread, _ in UNREAD)


def forget_unread(config: ConfigDict, given: set[str]) -> ConfigDict:
    """A copy of `config` with another objective: what the config file set for its own objective is reset.

    Args:
      config: a config whose preset or terms were changed on the command line.
      given: fields that were given on the command line; these stay, and `validate` refuses them if nothing reads them.
    """
    known = flatten(base())
    for one, other in (("distill.preset", "distill.terms"), ("distill.terms", "distill.preset")):
        if one in given and other not in given:
            config = change(config, {other: known[other]})
    fields = [f for names, unread, _ in UNREAD for f in names if unread(config)]
    back = {f: known[f] for f in fields if f.startswith("distill.") and f != "distill.preset" and f not in given}
    return change(config, back).lock()


def validate(config: ConfigDict) -> None:
    """Checks a config before anything is built."""
    known, given = flatten(base()), flatten(config)
    known |= {name: None for name in given if name.startswith(ARGS)}
    _check_fields(known, given)
    _check_types(known, given)
    for name, choices in CHOICES.items():
        check_choice(name, given[name], choices)
    for bounds, names in BOUNDS:
        for name in names:
            check_range(name, given[name], **bounds, hint=f"its default is {known[name]!r}")
    _check_values(known, given)
    check_stages(config)
    if config.study.groups:
        raise ConfigError(
            f"study.groups={tuple(config.study.groups)!r:.80} declares a study of several runs. Start it with "
            "jaxkd study and the same options, or leave study.groups out to train one run."
        )
    if config.population is not None:
        _check_population(config)
        return
    if config.distill.terms and config.distill.preset != "none":
        raise ConfigError(
            f'distill.preset="{config.distill.preset}" and distill.terms are both set. Leave one of them out: a preset '
            "is a list of terms with a name."
        )
    presets.parts(config.distill.preset)  # an unknown name
    if config.task in TASKS:
        _check_unread(config, known, given)
    _check_requirements(config)


def _check_population(config: ConfigDict) -> None:
    """Checks each member as the run that it stands for, and what the members share."""
    from jaxkd.config.population import members  # which needs this module

    if config.task not in ("classification", "distillation"):
        raise ConfigError(
            f'config.population is set with task="{config.task}", which trains one network. Leave the population out, '
            'or set --config.task to "classification" or "distillation".'
        )
    if config.dynamics.every_steps:
        raise ConfigError(
            f"dynamics.every_steps={config.dynamics.every_steps} with config.population: statistics of the layers are "
            "those of one network. Set dynamics.every_steps=0, or train that member in a run of its own."
        )
    found = members(config)
    for member in found:
        try:
            validate(member.config)
        except ConfigError as error:
            raise type(error)(f'Member "{member.name}" of config.population: {error}') from None
    subsets = {(member.config.data.per_class, member.config.data.subset_seed) for member in found}
    if len(subsets) > 1 and (mixes(config) or config.optimizer.accumulate > 1):
        raise ConfigError(
            "The members of config.population learn from different images (data.per_class, data.subset_seed), which "
            "neither mixing (data.mix) nor optimizer.accumulate above 1 keeps apart. Switch these off, or train the "
            "members in separate runs."
        )
    shared, given = flatten(config), [flatten(member.config) for member in found]
    for name, default in flatten(base()).items():
        ignored = shared[name] != default and all(
            g[name] == default and name not in m.changes for m, g in zip(found, given, strict=True)
        )
        if ignored and name.startswith(("distill.", "teacher.")) and not name.startswith(ARGS):
            raise ConfigError(
                f"{name}={shared[name]!r} is set, but no member of config.population reads it. Leave {name} at "
                f"{default!r}, or add a member whose objective reads it."
            )


def check_stages(config: ConfigDict) -> None:
    """Raises ConfigError unless `stages` is a tuple of dicts, each with a name."""
    stages = config.stages
    proper = isinstance(stages, tuple | list)
    if not proper or not all(isinstance(stage, dict | ConfigDict) and stage.get("name") for stage in stages):
        raise ConfigError(
            f"stages={tuple(stages) if proper else stages!r} is not a list of stages. Write dicts of changed fields "
            "with a name, as recipes.embedded does, or () for one run without stages."
        )


def has_type_of(value: Any, default: Any, name: str) -> bool:
    """Whether the field `name` with this default may hold `value`, by its type."""
    if name in SWITCHES:
        return isinstance(value, bool | str)
    if isinstance(default, tuple):
        return isinstance(value, tuple | list)
    if isinstance(default, float):
        return _is_number(value)
    return default is None or type(value) is type(default)


def _check_types(known: dict[str, Any], given: dict[str, Any]) -> None:
    """Checks that each value is of its field's kind; the changes of a stage and files of a run have no types."""
    for name, default in known.items():
        value = given[name]
        # check_choice has better words on a switch.
        if not name.startswith(ARGS) and name not in SWITCHES and not has_type_of(value, default, name):
            raise ConfigError(
                f"{name}={value!r} is of the wrong type. Give a value of type {kind_of(name)}, such as the default "
                f"{default!r}."
            )


def _check_values(known: dict[str, Any], given: dict[str, Any]) -> None:
    """Checks fields that hold neither one of a few words nor a number."""
    for name, most in RANGES.items():
        value = given[name]
        if not (_is_pair(value) and 0 < value[0] <= value[1] <= most):
            raise ConfigError(
                f"{name}={value!r} is not a range. Give two numbers above 0 and at most {most:g}, the smaller one "
                f"first, for example {known[name]!r}."
            )
    sides = given["data.mix.cutmix_minmax"]
    if len(sides) and not (_is_pair(sides) and 0 <= sides[0] <= sides[1] <= 1):
        raise ConfigError(
            f"data.mix.cutmix_minmax={tuple(sides)!r} is not a range of sides. Give () or two numbers from 0 to 1, the "
            "smaller one first, for example (0.2, 0.8)."
        )
    for name in ("student.old_grid", "teacher.old_grid"):
        grid = given[name]
        if len(grid) and not (_is_pair(grid) and all(isinstance(n, int) and 1 <= n <= LARGEST_GRID for n in grid)):
            raise ConfigError(
                f"{name}={tuple(grid)!r} is not a grid. Give () or rows and columns of patches, for example (2, 8)."
            )
    if given["distill.projector_weight_decay"] is not None:
        check_range("distill.projector_weight_decay", given["distill.projector_weight_decay"], 0, 1e4)
    if 0 < given["eval.crop_pct"] < LEAST_CROP:
        raise ConfigError(
            f"eval.crop_pct={given['eval.crop_pct']!r} is out of range. Give a number from {LEAST_CROP} to 1, or 0 for "
            "the student's own."
        )
    if not 1 <= given["mesh.data"] <= COUNT and given["mesh.data"] != -1:
        raise ConfigError(
            f"mesh.data={given['mesh.data']!r} is out of range. Give a number of devices, at least 1, or -1 for the "
            "rest."
        )
    for name in TEXTS:
        if not all(isinstance(text, str) and text for text in given[name]):
            raise ConfigError(
                f"{name}={tuple(given[name])!r} is not a list of texts. Write it with quotation marks, for example "
                f"--config.{name}=\"('first','second')\"."
            )
    if not all(isinstance(term, Mapping | ConfigDict) and term.get("loss") for term in given["distill.terms"]):
        raise ConfigError(
            f"distill.terms={tuple(given['distill.terms'])!r} is not a list of terms. Write dicts such as "
            '{"loss": "kl", "weight": 0.9}; docs/objectives.md lists the losses.'
        )
    for name, value in given.items():
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{name}={value!r} holds a zero byte, which no name can. Remove it.")


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_is_number(v) and v == v for v in value)


def _check_fields(known: dict[str, Any], given: dict[str, Any]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(
                f'The config has a field "{name}" (={given[name]!r}) that nothing reads.{did_you_mean(name, known)} '
                "jaxkd/config/fields.py lists every field."
            )
    for name in known:
        if name not in given:
            raise ConfigError(
                f'The config lacks the field "{name}". Start from fields.base(), as configs/supervised.py does.'
            )


def _check_requirements(config: ConfigDict) -> None:
    """Checks for what every run needs: a student, data, checkpoints, and a teacher where one is read."""
    if config.checkpoint.every_epochs == 0 and config.checkpoint.every_steps == 0:
        raise ConfigError(
            "checkpoint.every_epochs=0 and checkpoint.every_steps=0 save nothing before the end, so a killed run would "
            "lose everything. Set one of them."
        )
    if not config.student.name:
        raise ConfigError('student.name is empty. Set --config.student.name, for example "deit_tiny_patch16_224".')
    if not config.data.source:
        holds = "train/<label>/* and val/<label>/*"
        if config.task == "contrastive":
            holds = "results<SUBJECT>_<TASK>.mat of ZuCo"
        raise ConfigError(
            f"data.source is empty. Pass --config.data.source=/path/to/folder with {holds}, or use a config's "
            "`:embedded` variant."
        )
    if config.task == "distillation" and _no_teacher(config):
        raise ConfigError(
            'task="distillation" with distill.preset="none" has no teacher. Set --config.task=classification, or '
            'another preset, for example "soft+spectral".'
        )
    if not _no_teacher(config) and presets.parts(config.distill.preset)[1] and not config.distill.pairs:
        raise ConfigError(
            f'distill.preset="{config.distill.preset}" compares features, but no layers are paired. Give '
            'distill.pairs, e.g. "last" or ((0, 0), (11, 23)), or choose a preset without features.'
        )
    if not _no_teacher(config) and not (config.teacher.name and config.teacher.weights):
        objective = "distill.terms" if config.distill.terms else f'distill.preset="{config.distill.preset}"'
        raise ConfigError(
            f'{objective} with task="distillation" needs a teacher, but teacher.name="{config.teacher.name}" and '
            f'teacher.weights="{config.teacher.weights}". Set --config.teacher.name and --config.teacher.weights to a '
            "timm file, a Hugging Face id or a work directory of jaxkd."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_unread(config: ConfigDict, known: dict[str, Any], given: dict[str, Any]) -> None:
    for fields, unread, why in UNREAD:
        if not unread(config):
            continue
        for name, value in given.items():
            concerned = any(name == f or (f.endswith(".") and name.startswith(f)) for f in fields)
            if concerned and value != known[name]:
                raise ConfigError(
                    f"{name}={value!r} is set, but nothing reads it: this is {why}. Leave {name} at {known[name]!r}, "
                    "or change what makes it useless."
                )
