"""What a config may say. Everything wrong with it is found before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from jaxkd.config.fields import base, change, flatten
from jaxkd.errors import ConfigError, did_you_mean

CHOICES = {
    "task": ("distillation", "classification", "restoration"),
    "restoration.loss": ("l1", "charbonnier"),
    "eval.crop": ("scale", "4"),
    "data.patches.small": ("error", "skip"),
    "schedule.kind": ("cosine", "timm_epoch", "constant"),
    "precision.compute": ("float32", "bfloat16"),
    "data.augment.kind": ("random_resized_crop", "pad_crop", "none"),
    "data.augment.interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "random"),
    "data.augment.region_decode": ("auto", "on", "off"),
    "data.erase.mode": ("const", "rand", "pixel"),
    "data.mix.mode": ("batch", "pair", "elem"),
    "eval.interpolation": ("", "nearest", "bilinear", "bicubic", "lanczos"),
    "distill.spectral_method": ("", "fft", "closed"),
    "student.variant": ("", "raw", "ema"),
    "teacher.variant": ("", "raw", "ema"),
}
POSITIVE = ("train.epochs", "train.batch_size", "eval.every_epochs", "optimizer.learning_rate", "optimizer.accumulate")
POSITIVE += ("data.repeats", "data.erase.count", "log.every_steps", "checkpoint.keep_last")
NOT_NEGATIVE = ("train.steps", "eval.batch_size", "optimizer.weight_decay", "optimizer.clip_norm", "data.workers")
NOT_NEGATIVE += ("seed", "schedule.warmup_epochs", "schedule.warmup_lr", "schedule.min_lr", "checkpoint.keep_best")
NOT_NEGATIVE += ("checkpoint.keep_every_epochs",)
POSITIVE += ("data.patches.size", "data.patches.per_image", "data.patches.visits")
NOT_NEGATIVE += ("eval.every_steps", "schedule.steps", "restoration.fft_weight")
POSITIVE += ("dynamics.images", "dynamics.rank_images")
NOT_NEGATIVE += ("dynamics.every_steps",)
BELOW_ONE = ("ema.decay", "label_smoothing", "optimizer.b1", "optimizer.b2")
RANGES = ("data.augment.scale", "data.augment.ratio")
NOT_NEGATIVE += ("data.augment.color_jitter", "data.mix.mixup", "data.mix.cutmix")
NOT_NEGATIVE += ("optimizer.reference_batch", "checkpoint.every_steps", "checkpoint.every_epochs", "data.augment.pad")
FRACTIONS = ("data.erase.probability", "data.mix.prob", "data.mix.switch_prob", "data.max_broken")
FRACTIONS += ("data.augment.hflip", "eval.crop_pct")


def _no_teacher(c: ConfigDict) -> bool:
    return c.task != "distillation" or c.distill.preset == "none"


# (fields, when they are read by nothing, why). A field that differs from its default where nothing reads it is an
# error.
USELESS: tuple[tuple[tuple[str, ...], Callable[[ConfigDict], bool], str], ...] = (
    (("distill.preset",), lambda c: c.task != "distillation" and c.distill.preset != "none", 'task="classification"'),
    (("teacher.",), _no_teacher, "a run without a teacher"),
    (
        ("distill.pairs", "distill.feature_weight"),
        lambda c: _no_teacher(c) or not _has_features(c),
        "a preset without a feature term",
    ),
    (("distill.alpha",), lambda c: _no_teacher(c) or not _has_logits(c), "a preset without a logit term"),
    (("distill.temperature",), lambda c: _no_teacher(c) or "soft" not in c.distill.preset, "a preset without soft KD"),
    (
        ("distill.spectral_method",),
        lambda c: _no_teacher(c) or "spectral" not in c.distill.preset,
        "a preset without the spectral term",
    ),
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
    (("data.mix.",), lambda c: not mixes(c), "data.mix.mixup=0 and data.mix.cutmix=0, which mix nothing"),
    (
        ("data.mix.switch_prob",),
        lambda c: not (c.data.mix.mixup and (c.data.mix.cutmix or c.data.mix.cutmix_minmax)),
        "only one of mixup and cutmix",
    ),
    (
        ("student.variant", "student.resize", "student.new_head"),
        lambda c: not c.student.weights,
        "a student that starts from random weights",
    ),
    (("dynamics.",), lambda c: c.dynamics.every_steps == 0, "dynamics.every_steps=0, which computes no statistics"),
    (("dynamics.rank_images",), lambda c: not c.dynamics.ranks, "dynamics.ranks=False, which computes no ranks"),
    (
        ("restoration.", "data.patches.", "eval.sets", "eval.crop", "eval.luma"),
        lambda c: c.task != "restoration",
        'a task other than "restoration"',
    ),
    (
        ("label_smoothing", "data.augment.", "data.erase.", "data.mix.", "data.repeats", "dynamics."),
        lambda c: c.task == "restoration",
        'task="restoration"',
    ),
    (
        ("eval.crop_pct", "eval.interpolation", "student.resize", "student.new_head", "eval.batch_size"),
        lambda c: c.task == "restoration",
        'task="restoration"',
    ),
    (("train.epochs",), lambda c: c.schedule.steps > 0, "schedule.steps above 0, which is the length of the run"),
    (("eval.every_epochs",), lambda c: c.eval.every_steps > 0, "eval.every_steps above 0"),
    (("schedule.min_lr",), lambda c: c.schedule.kind == "constant", 'schedule.kind="constant"'),
)


def mixes(c: ConfigDict) -> bool:
    """Whether training images are mixed at all."""
    return bool(c.data.mix.mixup or c.data.mix.cutmix or c.data.mix.cutmix_minmax)


def _has_features(c: ConfigDict) -> bool:
    return "spectral" in c.distill.preset or "mse" in c.distill.preset


def _has_logits(c: ConfigDict) -> bool:
    return "soft" in c.distill.preset or "hard" in c.distill.preset


def forget_unread(config: ConfigDict, given: set[str]) -> ConfigDict:
    """A copy of `config` for another `distill.preset`: what the config file set for its own preset is taken back.

    Args:
      config: a config whose preset was changed on the command line.
      given: fields that were given on the command line; these stay, and `validate` refuses them if nothing reads them.
    """
    known = flatten(base())
    fields = [f for names, unread, _ in USELESS for f in names if unread(config)]
    back = {f: known[f] for f in fields if f.startswith("distill.") and f != "distill.preset" and f not in given}
    return change(config, back).lock()


def validate(config: ConfigDict) -> None:
    """Raises ConfigError for an unknown, mistyped, impossible or useless field; says which, why and what instead."""
    known, given = flatten(base()), flatten(config)
    for name in given:
        if name not in known:
            raise ConfigError(
                f'The config has a field "{name}" (={given[name]!r}) that nothing reads.{did_you_mean(name, known)} A '
                "misspelt field would leave its default in force unseen. jaxkd/config/fields.py lists every field."
            )
    for name in known:
        if name not in given:
            raise ConfigError(
                f'The config lacks the field "{name}". Configs start from fields.base(), which has them all. Build '
                "yours as configs/supervised.py does."
            )
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            raise ConfigError(
                f'{name}="{given[name]}" is not possible.{did_you_mean(given[name], [c for c in choices if c])} It '
                f"selects one of: {', '.join(repr(c) for c in choices)}. Choose one of these."
            )
    for names, fine, words in (
        (POSITIVE, lambda v: v > 0, "above 0"),
        (NOT_NEGATIVE, lambda v: v >= 0, "0 or above"),
        (FRACTIONS, lambda v: 0 <= v <= 1, "between 0 and 1"),
        (BELOW_ONE, lambda v: 0 <= v < 1, "from 0 to below 1"),
    ):
        for name in names:
            if not _number(given[name]) or not fine(given[name]):
                raise ConfigError(
                    f"{name}={given[name]!r} is out of range. It must be a number {words}. "
                    f"Its default is {known[name]!r}."
                )
    for name in RANGES:
        value = given[name]
        if not isinstance(value, tuple | list) or len(value) != 2 or not all(_number(v) for v in value):
            raise ConfigError(
                f"{name}={value!r} is not a range. A crop is drawn between its two ends. Give two numbers, for example "
                f"{known[name]!r}."
            )
    if not all(isinstance(stage, dict | ConfigDict) for stage in config.stages):
        raise ConfigError(
            f"stages={config.stages!r} is not a list of stages. Each is a dict of changed fields with a name. Leave it "
            "to the config file; recipes.embedded shows how."
        )
    _check_useless(config, known, given)
    if config.checkpoint.every_epochs == 0 and config.checkpoint.every_steps == 0:
        raise ConfigError(
            "checkpoint.every_epochs=0 and checkpoint.every_steps=0 save nothing before the end. A killed run would "
            "lose everything. Set one of them."
        )
    if not config.student.name:
        raise ConfigError(
            "student.name is empty. A run trains one network. Set --config.student.name, for example "
            '"deit_tiny_patch16_224".'
        )
    if not config.data.source:
        raise ConfigError(
            "data.source is empty. The run needs images: a folder with train/<label>/* and val/<label>/*, or embedded "
            "ones. Pass --config.data.source=/path/to/folder, or use a config's `:embedded` variant."
        )
    if not _no_teacher(config) and not (config.teacher.name and config.teacher.weights):
        raise ConfigError(
            f'distill.preset="{config.distill.preset}" needs a teacher, but teacher.name="{config.teacher.name}" and '
            f'teacher.weights="{config.teacher.weights}". An untrained teacher teaches noise. Set '
            "--config.teacher.name and --config.teacher.weights to a timm file, a Hugging Face id or a work directory "
            "of jaxkd."
        )
    if config.task == "distillation" and config.distill.preset == "none":
        raise ConfigError(
            'task="distillation" with distill.preset="none" has no teacher. It would be supervised training under '
            'another name. Set --config.task=classification, or one of the other presets, for example "soft+spectral".'
        )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_useless(config: ConfigDict, known: dict[str, Any], given: dict[str, Any]) -> None:
    for fields, unread, why in USELESS:
        if not unread(config):
            continue
        for name, value in given.items():
            ours = any(name == f or (f.endswith(".") and name.startswith(f)) for f in fields)
            if ours and value != known[name]:
                raise ConfigError(
                    f"{name}={value!r} is set, but nothing reads it: this is {why}. A setting without effect misleads "
                    f"whoever reads the results. Leave {name} at {known[name]!r}, or change what makes it useless."
                )
