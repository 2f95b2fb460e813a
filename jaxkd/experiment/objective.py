"""The objective that a config describes, from its terms or its preset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxkd import distill, models, tasks, weights
from jaxkd.config import population
from jaxkd.config.fields import flatten, plain
from jaxkd.config.validate import mixes
from jaxkd.errors import ConfigError, TapError, error_prefix
from jaxkd.tasks.distillation import output_shapes

SIDES = ("student", "teacher")


def build_objective(
    config: ConfigDict, student_taps: tuple[str, ...], teacher_taps: tuple[str, ...] | None = None
) -> distill.Objective:
    """`config.distill.terms`, or the terms of `config.distill.preset`, with layers resolved to taps.

    Args:
      config: validated.
      student_taps: all taps of the student in depth order.
      teacher_taps: likewise; None without a teacher.

    Raises:
      ConfigError: terms that read a teacher where there is none, or no term that reads the teacher there is.
      Anything that `distill.resolve_pairs` and `distill.build_objective` raise.
    """
    settings = config.distill
    given = {"pairs": _resolve(settings.pairs, student_taps, teacher_taps), "smoothing": config.label_smoothing}
    if not settings.terms:
        values = {k: plain(settings[k]) for k in ("alpha", "temperature", "feature_weight", "spectral_method")}
        return distill.preset(settings.preset, **given, **{k: v for k, v in values.items() if v not in (None, "")})
    entries = [
        entry | {"pairs": _resolve(entry["pairs"], student_taps, teacher_taps, f"distill.terms[{i}].pairs")}
        if isinstance(entry, dict) and "pairs" in entry
        else entry
        for i, entry in enumerate(map(plain, settings.terms))
    ]
    objective = distill.build_objective(entries, **given)
    if objective.needs_teacher and teacher_taps is None:
        names = ", ".join(term.name for term in objective.terms if term.needs_teacher)
        raise ConfigError(
            f'distill.terms has terms that read a teacher ({names}), but task="{config.task}" has none. Set '
            "--config.task=distillation and teacher.name, or remove these terms."
        )
    if not objective.needs_teacher and teacher_taps is not None:
        raise ConfigError(
            'task="distillation" is set, but no term of distill.terms reads the teacher. Set '
            '--config.task=classification, or add a term such as {"loss": "kl"}.'
        )
    defaults = {"projector_learning_rate": 0.0, "projector_weight_decay": None}
    own = [name for name, default in defaults.items() if settings[name] != default]
    if own and not objective.has_variables:
        raise ConfigError(
            f"distill.{own[0]}={settings[own[0]]!r} is set, but no term of distill.terms has parameters. Leave it out, "
            'or give a term a projector, e.g. {"loss": "mse", "projector": "linear"}.'
        )
    return objective


def fitting_objectives(
    student: weights.Network, teacher: weights.Network | None, configs: Mapping[str, ConfigDict]
) -> list[distill.Objective]:
    """Objectives of runs that share their networks, each checked against both of them; nothing compiles.

    Args:
      student: of all runs.
      teacher: of those of task "distillation"; None where no run reads one.
      configs: who -> validated config; an error begins with who, such as 'Member "a": '.

    Returns:
      One objective for each config.

    Raises:
      ConfigError, ShapeError, TapError: see `build_objective` and `tasks.check_networks`.
    """
    taps = [() if network is None else models.tap_names(network.model) for network in (student, teacher)]
    objectives, first_of = {}, {}  # who -> objective; settings that decide one -> the first who has them
    for who, config in configs.items():
        distils = teacher is not None and config.task == "distillation"
        with error_prefix(who):
            objectives[who] = build_objective(config, taps[0], taps[1] if distils else None)
        if distils:
            key = json.dumps([flatten(config.distill), config.label_smoothing, mixes(config)], default=str)
            first_of.setdefault(key, who)
    if teacher is None or not first_of:
        return list(objectives.values())
    to_check = [objectives[who] for who in first_of.values()]
    taps_read = [dict.fromkeys(tap for one in to_check for tap in getattr(one, f"{side}_taps")) for side in SIDES]
    try:
        outputs = output_shapes(student, teacher, *map(tuple, taps_read))  # one trace for all
    except TapError:  # of one of them, which its own check finds
        outputs = None
    for who in first_of.values():
        with error_prefix(who):
            tasks.check_networks(student, teacher, objectives[who], mixed=mixes(configs[who]), outputs=outputs)
    return list(objectives.values())


def simkd_note(config: ConfigDict, scored: bool) -> str:
    """A sentence on whose classifier scores and exports have, for a run (or a member) with the term `simkd`; or "".

    Args:
      config: of the run.
      scored: whether evaluations of its task have `top1_teacher_head`.
    """
    configs = [member.config for member in population.members(config)] or [config]
    entries = [plain(entry) for one in configs for entry in one.distill.terms]
    if not any(isinstance(entry, dict) and entry.get("loss") == "simkd" for entry in entries):
        return ""
    of_paper = (
        "top1_teacher_head is of the paper's student, with the projector and the teacher's classifier"
        if scored
        else "The paper's student, with the projector and the teacher's classifier, is scored only with "
        '{"loss": "simkd", "pairs": (("pre_logits", "pre_logits"),), "pooled": True} and a teacher with one classifier '
        "and the student's classes"
    )
    return (
        "simkd: top1 and exported weights are those of the student with its own classifier, which only other terms "
        f'train, such as {{"loss": "ce"}}. {of_paper}; it is not exported, and the projector is in the checkpoints.'
    )


def _resolve(
    pairs: Any, student_taps: tuple[str, ...], teacher_taps: tuple[str, ...] | None, field: str = "distill.pairs"
) -> Any:
    return distill.resolve_pairs(pairs or (), student_taps, teacher_taps or (), field=field)
