"""Recipes that several configs share: the published one, super-resolution, and the embedded variants.

Imports no JAX.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxkd.config.fields import base, change
from jaxkd.errors import ConfigError, check_choice, check_range, did_you_mean

# SpectralKD's eight layers, student <-> teacher, for 12 against 24 blocks (papers: SpectralKD, recipe).
DEIT_CAIT_PAIRS = ((0, 0), (1, 1), (6, 18), (7, 19), (8, 20), (9, 21), (10, 22), (11, 23))
# Stages of the super-resolution control -> arguments in which the network differs from its published form.
CONTROL: dict[str, dict[str, Any]] = {
    "mdbn": {},
    "mdbn_range": {"img_range": 255.0, "rgb_mean": (0.4488, 0.4371, 0.4040)},  # EDSR's
    "mdbn_skip": {"global_skip": "bicubic"},
    "edsr": {},
}


def published(config: ConfigDict) -> ConfigDict:
    """The common part of the recipes of SpectralKD, Distillation Dynamics and encoding mismatch, as their code has it.

    DeiT's recipe without mixup and cutmix (the published code turns both off, whatever its flags say), without
    stochastic depth, scored on a 224 crop of 256 pixels.
    """
    changes = {
        "data.augment.auto_augment": "rand-m9-mstd0.5-inc1",
        "data.erase.probability": 0.25,
        "data.repeats": 3,
        "eval.crop_pct": 0.875,
        "schedule.kind": "timm_epoch",
        "student.args.drop_path_rate": 0.0,  # timm's Swin would have 0.1
        "train.batch_size": 512,  # 2 GPUs x 256
    }
    return change(config, changes)


# What follows the colon of lift_cait.py and widelast_cait.py.
MISMATCH_WORDS = {
    "alpha": "the share of soft KD, 0.9 in the paper's best runs; 0 leaves it out",
    "feature": "spectral, mse or none",
    "small": "DeiT-Small",
    "embedded": "the digits in scikit-learn",
}


def encoding_mismatch(config: ConfigDict, words: dict[str, str], *, kind: str, feature: str) -> ConfigDict:
    """The recipe of the encoding-mismatch paper's code for the student `kind`, "lift" or "widelast".

    300 epochs at batch 2048, drop path 0, the student's last feature against CaiT-S24's last self-attention block, soft
    KD at temperature 1, no mixup; weight decay acts on class token and position embedding, as in the authors' wrappers.

    Args:
      config: `base()`.
      words: some of `MISMATCH_WORDS`, as `parse_arg` gives them.
      kind: prefix of the network's name.
      feature: the feature term where `words` has none.
    """
    feature = words.get("feature") or feature
    check_choice(":feature", feature, ("spectral", "mse", "none"))
    try:
        alpha = float(words.get("alpha") or 0.9)
    except ValueError:
        raise ConfigError(f'":alpha={words["alpha"]}" is not a number. Give one from 0 to 1.') from None
    if alpha == 0 and feature == "none":
        raise ConfigError(
            '":alpha=0,feature=none" leaves no teacher. For a student alone use configs/supervised.py with the name of '
            "the network."
        )
    size = "small" if "small" in words else "tiny"
    changes: dict[str, Any] = {
        "task": "distillation",
        "student.name": f"{kind}_deit_{size}_patch16_224",
        "teacher.name": "cait_s24_224",
        "teacher.weights": "hf-hub:timm/cait_s24_224.fb_dist_in1k",
        "distill.preset": "+".join(n for n in ("soft" if alpha else "", feature if feature != "none" else "") if n),
        "optimizer.decay_tokens": True,
        "train.epochs": 300,
        "train.batch_size": 2048,  # 4 GPUs x 512
    }
    if alpha:
        changes |= {"distill.alpha": alpha, "distill.temperature": 1.0}
    if feature != "none":
        changes |= {"distill.pairs": "last", "distill.feature_weight": 0.2}
    return change(published(config), changes)


def contrastive(
    config: ConfigDict,
    network: str = "",
    *,
    embedded: bool = False,
    split: str = "text",
    leave_out: str = "",
) -> ConfigDict:
    """EEG words to keywords (arXiv 2604.16370); sizes and rates are ours, as the paper states none.

    Args:
      config: `base()`.
      network: "linear", "tiny", "base" or "context"; "": linear where embedded, else base.
      embedded: a synthetic corpus with known answers, a minute on a CPU.
      split: of `eeg.split`.
      leave_out: test reader of "cross_subject".
    """
    network = network or ("linear" if embedded else "base")
    check_choice(":network", network, ("linear", "tiny", "base", "context"))
    changes = {
        "task": "contrastive",
        "student.name": f"eeg_words_{network}",
        "eeg.split": "cross_subject" if leave_out else split,
        "eeg.leave_out": leave_out,
        "optimizer.learning_rate": 5e-4,
        "optimizer.reference_batch": 0,
        "optimizer.weight_decay": 0.05,
        "schedule.warmup_epochs": 2,
        "train.epochs": 50,
        "train.batch_size": 256,
        "ema.decay": 0.0,
        "log.every_steps": 20,
        "eval.every_epochs": 5,
    }
    if embedded:
        changes |= {
            "data.source": "embedded:synthetic_zuco?snr=16&subjects=4&sentences=600&words=7-10&vocabulary=120",
            "eeg.max_words": 10,
            "optimizer.learning_rate": 1e-2,
            "train.epochs": 15,
            "train.batch_size": 64,
        }
    return change(config, changes)


def super_resolution(
    config: ConfigDict, name: str, *, embedded: bool = False, control: str | None = None
) -> ConfigDict:
    """MDBN's protocol (its options/train files) for the network `name`; `embedded` shrinks it to minutes on a CPU.

    Args:
      config: `base()`.
      name: "mdbn_x4" and so on.
      embedded: photographs inside scikit-image and a small network.
      control: stages of `CONTROL` to train in the same way after one another, "mdbn_range+edsr"; "": all four. At full
        size EDSR has 16 blocks as published, 9 % fewer parameters than MDBN x4; embedded as many blocks as give equally
        many parameters.
    """
    changes = {
        "task": "restoration",
        "student.name": name,
        "data.patches.size": 255 if name.endswith("x3") else 256,
        "optimizer.learning_rate": 2e-4,
        "optimizer.reference_batch": 0,
        "optimizer.weight_decay": 0.0,
        "optimizer.b2": 0.99,
        "schedule.warmup_epochs": 0,
        "schedule.min_lr": 1e-7,
        "schedule.steps": 2_000_000,
        "ema.decay": 0.999,
        "train.batch_size": 16,
        "eval.every_steps": 5_000,
        "checkpoint.every_epochs": 0,
        "checkpoint.every_steps": 5_000,
        "log.every_steps": 100,
    }
    if embedded:
        changes |= {
            "data.source": "embedded:photos",
            "data.workers": 0,
            "data.patches.size": 96,
            "data.patches.visits": 64,
            "student.args.num_feat": 32,
            "student.args.num_block": 3,
            "optimizer.learning_rate": 1e-3,
            "schedule.steps": 1_000,
            "ema.decay": 0.99,
            "train.batch_size": 8,
            "eval.every_steps": 250,
            "checkpoint.every_steps": 250,
        }
    if control is not None:
        changes["stages"] = _control_stages(control, name, changes.get("student.args.num_block"))
    return change(config, changes)


def _control_stages(wanted: str, name: str, blocks: int | None) -> tuple[dict[str, Any], ...]:
    """The stages of the control for the MDBN `name`; `blocks` of it where that is not the published number."""
    kind, _, scale = name.partition("_")
    if kind != "mdbn" or scale == "x8":
        raise ConfigError(
            f'":control" was given for {name}. It compares MDBN with EDSR-baseline, which is built for x2, x3 and '
            "x4. Leave network= out, and choose one of these scales."
        )
    chosen = wanted.split("+") if wanted else list(CONTROL)
    stages = []
    for stage in chosen:
        if stage not in CONTROL or chosen.count(stage) > 1:
            raise ConfigError(
                f'":control={wanted}" names "{stage}" twice or as no stage of it.{did_you_mean(stage, CONTROL)} Join '
                f"some of these with +: {', '.join(CONTROL)}."
            )
        changes = {"name": stage, "student.name": f"{stage.partition('_')[0]}_{scale}"}
        changes |= {f"student.args.{k}": v for k, v in CONTROL[stage].items()}
        if stage == "edsr" and blocks:  # a block of MDBN has six 3x3 convolutions, one of EDSR two
            changes["student.args.num_block"] = 3 * blocks
        stages.append(changes)
    return tuple(stages)


def digits(config: ConfigDict, student: dict[str, Any]) -> ConfigDict:
    """The same recipe, shrunk to scikit-learn's 1,797 handwritten digits and a small student.

    Smoothing, decay, schedule kind, kind of crop and the objective stay as they are; batch, rate, warm-up, moving
    average and range of the crop fit the size. The 8x8 pixels are enlarged to 16x16, so that a crop can move by half of
    one.
    """
    changes = {
        "data.source": "embedded:digits",
        "data.workers": 0,
        "data.augment.scale": (0.6, 1.0),  # less would cut strokes off
        "data.augment.hflip": 0.0,  # a mirrored digit is another sign
        "data.augment.auto_augment": "",  # made for photographs
        "data.erase.probability": 0.0,
        "data.repeats": 1,
        "eval.crop_pct": 1.0,
        "eval.every_epochs": 2,
        "train.epochs": 30,
        "train.batch_size": 32,
        "optimizer.reference_batch": 0,
        "optimizer.learning_rate": 2e-3,
        "schedule.warmup_epochs": 2,
        "ema.decay": 0.99,
        "log.every_steps": 44,
    }
    return change(config, changes | {f"student.args.{k}": v for k, v in student.items()})


def embedded(config: ConfigDict, *, student: dict[str, Any], teacher: dict[str, Any], pairs: Any) -> ConfigDict:
    """A distillation config on the digits: its own teacher is trained first, then the student without and with it."""
    alone = {"task": "classification", "teacher.name": "", "teacher.weights": "", "distill.preset": "none"}
    alone["distill.terms"] = ()
    alone |= {f"distill.{k}": None for k in ("pairs", "alpha", "temperature", "feature_weight")}
    alone["teacher.args"] = {}
    alone |= {f"teacher.cache.{k}": v for k, v in base().teacher.cache.items()}
    first = {"name": "teacher", **alone, "student.name": config.teacher.name}
    # What a command line says of the student is not meant for its teacher.
    first |= {"student.weights": "", "student.variant": "", "student.resize": False, "student.new_head": False}
    first |= {"student.old_grid": (), "student.freeze": (), "optimizer.decay_tokens": False}
    first["student.args"] = teacher
    changes = {f"teacher.args.{k}": v for k, v in teacher.items()}
    changes |= {"distill.pairs": pairs, "teacher.weights": "stage:teacher"}
    changes["stages"] = (first, {"name": "student_alone", **alone}, {"name": "student_distilled"})
    return change(digits(config, student), changes)


def embedded_study(config: ConfigDict, steps: str = "1200") -> ConfigDict:
    """A distillation config on the digits with few labels: a teacher, then 5 seeds x 4 objectives in one program.

    The teacher learns from all 1,438 labelled training images, the students from 20 of each class. Its LayerScale is
    the one of CaiTs with up to 18 blocks. docs/first_run.md has the scores by the number of steps.

    Args:
      config: published recipe with its networks and objective.
      steps: of the students, in digits as on the command line.

    Raises:
      ConfigError: `steps` is no whole number from 1.
    """
    check_range("steps", int(steps) if steps.isdecimal() else steps, 1, whole=True)
    student = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
    teacher = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4, "init_values": 0.1}
    config = embedded(config, student=student, teacher=teacher, pairs=((0, 0), (1, 1), (2, 4), (3, 5)))
    students = {
        "name": "students",
        "data.per_class": 20,
        "optimizer.learning_rate": 3e-3,
        "schedule.steps": int(steps),
        "train.epochs": base().train.epochs,  # not read, as schedule.steps is the length
        "eval.every_epochs": base().eval.every_epochs,
        "eval.every_steps": 200,
        "checkpoint.every_epochs": 0,
        "checkpoint.every_steps": 200,
        "log.every_steps": 50,
        "population": {
            "distill.preset": ("none", "soft", "spectral", "soft+spectral"),
            "seed": (0, 1, 2, 3, 4),
        },
    }
    return change(config, {"stages": (config.stages[0], students)})
