"""Grids of the studies in configs/studies/: recipes, groups of students and comparisons. Imports no JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxkd.config.fields import change
from jaxkd.errors import check_choice

PARTS = ("first", "a", "b", "c", "e")
# SpectralKD over MSE of the same difference on an even grid: 1/2 where the difference has no correlation in space (its
# energy is equal at all frequencies), whatever the grid; 0.4 to 0.8 for 8x8 positions, 0.4375 to 0.875 for 14x14.
WHITE = 0.5
LARGEST = {
    4: 0.8,
    8: 2 / 3,
    16: 0.5,
}  # patch size -> the largest ratio on 32x32 images, for a difference constant in space
FEATURE_WEIGHT = 0.2  # of the published runs
SHARES = (10, 20, 50)  # percent of the labelled images
LAST = {"distill.pairs": "last"}
SOFT = {"distill.preset": "soft", "distill.alpha": 0.9}
SPECTRAL = {"distill.preset": "spectral", "distill.feature_weight": FEATURE_WEIGHT}
MSE = {"distill.preset": "mse", "distill.feature_weight": WHITE * FEATURE_WEIGHT}
SCALES = {
    "gpu": "Reduced scale: 4 of 12 student blocks, 6 of 24 teacher blocks, 6 epochs instead of 300, three seeds",
    "cpu": "Reduced scale: a quarter of the width, 4 of 12 student blocks, 6 of 24 teacher blocks, patch 8, "
    "10,000 training images, 6 epochs, three seeds",
    "tiny": "A trial of a few steps, whose numbers mean nothing",
}


def with_soft(member: Mapping[str, Any]) -> dict[str, Any]:
    """A preset of a feature term with SoftKD added, as published: 0.1 CE + 0.9 KL + the feature term."""
    return {**member, "distill.preset": f"soft+{member['distill.preset']}", "distill.alpha": 0.9}


def cifar_students(config: ConfigDict, sizes: Mapping[str, Any], scale: str) -> ConfigDict:
    """The recipe of all students, and their teacher as a first stage.

    Args:
      config: with the published recipe.
      sizes: scale -> sizes, as configs/studies/encoding_mismatch.py has them.
      scale: "" for 300 epochs at full depth, "gpu", "cpu" or "tiny" for a reduced one.
    """
    check_choice("scale", scale, sorted(sizes))
    width, heads, depth = sizes[scale]["student"]
    teacher_width, teacher_heads, teacher_depth = sizes[scale]["teacher"]
    teacher_epochs, epochs = sizes[scale]["epochs"]
    common = {"img_size": 32, "patch_size": sizes[scale]["patch"]}
    student = {**common, "embed_dim": width, "depth": depth, "num_heads": heads}
    teacher = {**common, "embed_dim": teacher_width, "depth": teacher_depth, "num_heads": teacher_heads}
    if scale:
        teacher["init_values"] = 0.1  # LayerScale of the CaiTs with up to 18 blocks; 1e-5 needs a long training
    changes: dict[str, Any] = {
        "task": "distillation",
        "student.name": "deit_tiny_patch16_224",
        "student.args": student,
        "teacher.name": "cait_s24_224",
        "teacher.args": teacher,
        "teacher.weights": "stage:teacher",
        "train.epochs": epochs,
        "eval.crop_pct": 1.0,
        "ema.decay": 0.0,  # the papers score raw weights
        "optimizer.reference_batch": 0,
        "optimizer.learning_rate": 1e-3,
        "schedule.kind": "cosine",
        "data.repeats": 1,
        "log.tensorboard": False,
        "study.scale": SCALES.get(scale, ""),
        "study.seeds": (0, 1, 2, 3, 4),
        "study.images": 10_000,
    }
    if scale:
        changes |= {
            "data.augment.kind": "pad_crop",
            "data.augment.pad": 4,
            "data.augment.auto_augment": "",
            "data.erase.probability": 0.0,
            "schedule.warmup_epochs": 1,
            "eval.every_epochs": epochs // 2 or 1,
            "checkpoint.every_epochs": epochs // 2 or 1,
            "checkpoint.keep_best": 0,  # the last weights are scored; the best score is in results.csv
            "train.batch_size": 256 if scale == "gpu" else 64,
            "eval.batch_size": 1000 if scale == "gpu" else 250,
            "log.every_steps": 100,
            "study.seeds": (0, 1, 2),
            "study.shared_batches": True,
            "study.images": 2_500 if scale == "gpu" else 1_000,
        }
    changes |= {
        "gpu": {"precision.compute": "bfloat16", "data.workers": 14},
        "cpu": {"data.workers": 0, "data.per_class": 1_000},
        "tiny": {"data.workers": 0, "data.per_class": 20, "study.seeds": (0, 1), "study.images": 50}
        | {"schedule.warmup_epochs": 0},
    }.get(scale, {})
    alone = {"task": "classification", "teacher.name": "", "teacher.weights": "", "teacher.args": {}}
    stage = {"name": "teacher", **alone, "student.name": "cait_s24_224", "student.args": teacher}
    stage |= {"train.epochs": teacher_epochs, "optimizer.learning_rate": 5e-4}
    if scale:  # scoring takes as long as an epoch of these sizes
        stage["eval.every_epochs"] = teacher_epochs
    changes["stages"] = (stage,)
    return change(config, changes)


def encoding_mismatch(config: ConfigDict, sizes: Mapping[str, Any], *, parts: str = "") -> ConfigDict:
    """`config` with the groups and comparisons of the study.

    Args:
      config: of `cifar_students`.
      sizes: of its scale.
      parts: some of `PARTS`, joined by "+"; "" for all.
    """
    wanted = parts.split("+") if parts else PARTS
    for part in wanted:
        check_choice("parts", part, PARTS)
    builders = {
        "first": lambda: _first(sizes),
        "a": lambda: ({"name": "layers", "members": tuple(_layer_members(sizes))},),
        "b": _projectors,
        "c": lambda: _architectures(sizes),
        "e": lambda: _less_data(config, sizes),
    }
    groups = [{**group, "part": part} for part in PARTS if part in wanted for group in builders[part]()]
    declared = {f"{group['name']}/{member['name']}" for group in groups for member in group["members"]}
    comparisons = tuple(c for c in _comparisons(sizes) if {c["a"], c["b"]} <= declared)
    return change(config, {"study.groups": tuple(groups), "study.comparisons": comparisons})


def _deit_members() -> tuple[dict[str, Any], ...]:
    return (
        {"name": "none"},
        {"name": "soft", **SOFT},
        {"name": "spectral_last", **SPECTRAL, **LAST},
        {"name": "mse_last", **MSE, **LAST},
        {"name": "soft+spectral_last", **with_soft(SPECTRAL), **LAST},
        {"name": "soft+mse_last", **with_soft(MSE), **LAST},
    )


def projected(student: str, teacher: str = "", *, frozen: bool = False, soft: bool = True) -> dict[str, Any]:
    """Terms with MSE between projected last layers; published are a linear map with BatchNorm, BatchNorm, frozen."""
    term = {"loss": "mse", "weight": FEATURE_WEIGHT, "projector": {"student": student, "teacher": teacher}}
    if frozen:
        term["frozen"] = True
    logits = ({"loss": "ce", "weight": 0.1}, {"loss": "kl", "weight": 0.9}) if soft else ({"loss": "ce"},)
    return {"distill.terms": (*logits, term), **LAST}


def _first(sizes: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """Groups that the three questions need, the cheapest first."""
    both = ({"name": "none"}, {"name": "soft", **SOFT})
    heads = ("linear_batchnorm", "batchnorm")
    frozen = {"name": "soft+frozen_bn", **projected(*heads, frozen=True)}
    trained = {"name": "soft+trained_bn", **projected(*heads)}
    return (
        {"name": "deit", "members": _deit_members()},
        {"name": "projector", "members": (frozen, trained)},
        {"name": "lift", "changes": _student("lift", {"target_dim": sizes["teacher"][0]}), "members": both},
        {"name": "widelast", "changes": _student("widelast", {"wide_dim": sizes["teacher"][0]}), "members": both},
    )


def _student(kind: str, args: Mapping[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {"student.name": f"{kind}_deit_tiny_patch16_224"}
    return changes | {f"student.args.{k}": v for k, v in args.items()}


def _layer_members(sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Other layers than the last, and both ends of MSE's weight, without and with SoftKD."""
    depth, teacher_depth = sizes["student"][2], sizes["teacher"][2]
    eight = ((0, 0), (1, 1), (6, 18), (7, 19), (8, 20), (9, 21), (10, 22), (11, 23))  # as published
    every = eight if depth == 12 else tuple((i, round(i * (teacher_depth - 1) / (depth - 1))) for i in range(depth))
    layers = {"first": "first", "first+last": "first+last", "eight" if depth == 12 else "all": every}
    most = LARGEST[sizes["patch"]]
    members = [{"name": f"spectral_{n}", **SPECTRAL, "distill.pairs": pairs} for n, pairs in layers.items()]
    for end, ratio in (("high", most), ("low", most / 2)):
        members.append({"name": f"mse_last_{end}", **MSE, **LAST, "distill.feature_weight": ratio * FEATURE_WEIGHT})
    return members + [{**with_soft(m), "name": f"soft+{m['name']}"} for m in members]


def _projectors() -> Sequence[dict[str, Any]]:
    kinds = {"bn": ("linear_batchnorm", "batchnorm"), "linear": ("linear", "")}
    members = [
        {"name": f"{'frozen' if frozen else 'trained'}_{kind}", **projected(*heads, frozen=frozen, soft=False)}
        for kind, heads in kinds.items()
        for frozen in (True, False)
    ]
    members += [
        {"name": f"soft+{'frozen' if frozen else 'trained'}_linear", **projected("linear", frozen=frozen)}
        for frozen in (True, False)
    ]
    return ({"name": "projectors", "members": tuple(members)},)


def _architectures(sizes: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """Every student with every objective, without the runs of `first`."""
    lifted = {"distill.pairs": (("lifted", f"block_{sizes['teacher'][2] - 1}"),)}
    groups = []
    width = sizes["uniform"]
    for name, kind, args, pairs in (
        ("lift_features", "lift", {"target_dim": sizes["teacher"][0]}, lifted),
        ("widelast_features", "widelast", {"wide_dim": sizes["teacher"][0]}, LAST),
        ("lift_cls", "lift", {"target_dim": sizes["teacher"][0], "readout": "cls"}, lifted),
        ("uniformwide", "uniformwide", {"embed_dim": width}, LAST),
    ):
        members = [
            {"name": "mse", **MSE, **pairs},
            {"name": "spectral", **SPECTRAL, **pairs},
            {"name": "soft+mse", **with_soft(MSE), **pairs},
            {"name": "soft+spectral", **with_soft(SPECTRAL), **pairs},
        ]
        if not name.endswith("features"):
            members = [{"name": "none"}, {"name": "soft", **SOFT}, *members]
        groups.append({"name": name, "changes": _student(kind, args), "members": tuple(members)})
    return groups


def _less_data(config: ConfigDict, sizes: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """The members of "deit" and "layers" with a share of the images, at as many epochs."""
    whole = config.data.per_class or 5_000  # images of each class of CIFAR-10
    members = {"deit": _deit_members(), "layers": tuple(_layer_members(sizes))}
    return [
        {"name": f"{name}_{share}", "changes": {"data.per_class": whole * share // 100}, "members": of_group}
        for name, of_group in members.items()
        for share in SHARES
    ]


def _comparisons(sizes: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every paired test; those of a family share Holm's correction."""
    rows = [*_first_comparisons(), *_layer_comparisons(sizes), *_projector_comparisons(), *_student_comparisons()]
    for share in SHARES:
        family, group = f"labels {share} %", f"deit_{share}"
        rows += [(family, f"{group}/{m['name']}", f"{group}/none", "") for m in _deit_members()[1:]]
        rows += [(family, *(_with_share(run, share) for run in (a, b)), "") for _, a, b, _ in _layer_comparisons(sizes)]
    return [{"family": f, "a": a, "b": b, "question": question} for f, a, b, question in rows]


def _with_share(run: str, share: int) -> str:
    """ "deit/soft" -> "deit_10/soft"."""
    group, name = run.split("/")
    return f"{group}_{share}/{name}"


def _first_comparisons() -> list[tuple[str, str, str, str]]:
    late, wide = "Does late alignment harm?", "How much of the gain is logit distillation?"
    rows = [
        ("late", "deit/soft+spectral_last", "deit/soft", late),
        ("late", "deit/soft+mse_last", "deit/soft", late),
        ("late", "projector/soft+frozen_bn", "deit/soft", f"{late} With the projector as published."),
        ("late", "projector/soft+trained_bn", "deit/soft", f"{late} With a projector that trains."),
        ("late", "projector/soft+trained_bn", "projector/soft+frozen_bn", "Does training the projector help?"),
        ("spectral", "deit/spectral_last", "deit/mse_last", "Is spectral better than MSE at matched weight?"),
        ("spectral", "deit/soft+spectral_last", "deit/soft+mse_last", "The same beside SoftKD."),
        ("spectral", "layers/mse_last_high", "deit/mse_last", "Does the weight of MSE within the range matter?"),
        ("logits", "deit/soft", "deit/none", "How much does SoftKD give the narrow student?"),
    ]
    for kind in ("lift", "widelast"):
        rows += [
            ("wide", f"{kind}/none", "deit/none", "How much of the gain is the architecture?"),
            ("wide", f"{kind}/soft", "deit/soft", "Does the architecture gain with SoftKD alone?"),
            ("wide", f"{kind}/soft", f"{kind}/none", wide),
            ("wide", f"{kind}_features/soft+mse", f"{kind}/soft", "What do features add to logits?"),
            ("wide", f"{kind}_features/soft+spectral", f"{kind}/soft", "What do features add to logits?"),
        ]
    return [
        *rows,
        ("wide", "uniformwide/none", "widelast/none", "The same number of parameters, evenly wide."),
        ("wide", "lift_cls/none", "lift/none", "The class token or the mean of the patches in Lift?"),
    ]


def _layer_comparisons(sizes: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for member in _layer_members(sizes):
        name, soft = member["name"], "soft+" if member["name"].startswith("soft+") else ""
        if "spectral" in name:
            rows.append(("layers", f"layers/{name}", f"deit/{soft}spectral_last", "Earlier layers, or the last?"))
        elif name != "mse_last_high":
            rows.append(("layers", f"layers/{name}", f"deit/{soft}mse_last", "Another weight of MSE within the range."))
    return rows


def _projector_comparisons() -> list[tuple[str, str, str, str]]:
    trained, batchnorm = "Does training the projector help?", "Does BatchNorm in the projectors help?"
    return [
        ("projectors", "projectors/trained_bn", "projectors/frozen_bn", trained),
        ("projectors", "projectors/trained_linear", "projectors/frozen_linear", trained),
        ("projectors", "projectors/soft+trained_linear", "projectors/soft+frozen_linear", trained),
        ("projectors", "projectors/trained_bn", "projectors/trained_linear", batchnorm),
        ("projectors", "projector/soft+trained_bn", "projectors/soft+trained_linear", batchnorm),
        ("projectors", "projectors/trained_linear", "deit/mse_last", "Does a trained map help MSE?"),
    ]


def _student_comparisons() -> list[tuple[str, str, str, str]]:
    same, logits = "Is spectral better than MSE at matched weight?", "How much of the gain is logit distillation?"
    rows = [
        ("uniform", "uniformwide/none", "deit/none", "How much of the gain is the number of parameters?"),
        ("uniform", "uniformwide/soft", "deit/soft", "The same with SoftKD."),
        ("uniform", "uniformwide/soft", "widelast/soft", "The same number of parameters, evenly wide, with SoftKD."),
        ("uniform", "uniformwide/soft", "uniformwide/none", logits),
        ("uniform", "uniformwide/soft+mse", "uniformwide/soft", "What do features add to logits?"),
        ("uniform", "uniformwide/soft+spectral", "uniformwide/soft", "What do features add to logits?"),
        ("readout", "lift_cls/soft", "lift/soft", "The class token or the mean of the patches in Lift, with SoftKD?"),
        ("readout", "lift_cls/soft", "lift_cls/none", logits),
    ]
    for group in ("lift_features", "widelast_features", "lift_cls", "uniformwide"):
        rows += [
            ("students", f"{group}/spectral", f"{group}/mse", same),
            ("students", f"{group}/soft+spectral", f"{group}/soft+mse", f"{same} Beside SoftKD."),
        ]
    return rows
