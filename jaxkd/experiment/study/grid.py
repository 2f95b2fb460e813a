"""A declared grid as runs: groups of members and seeds, each run with its config and a hash of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxkd.config.fields import base, change, flatten
from jaxkd.config.validate import forget_unread
from jaxkd.errors import ConfigError, check_range, did_you_mean, error_prefix
from jaxkd.experiment.checks import check_config
from jaxkd.experiment.sweep import PREFIX, stage_configs
from jaxkd.train.run_folder import FREE_FIELDS

RUNS = "runs"  # folder of the groups' work directories
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")  # names are folders
_GROUP_KEYS = ("name", "part", "changes", "members", "seeds", "population")
_COMPARISON_KEYS = ("name", "a", "b", "family", "question")
TERMS_WITHOUT_TEACHER = ("ce",)


@dataclass(frozen=True)
class Run:
    """One training run of a study.

    Attributes:
      part: of the study, such as "a".
      group: the group that declares it.
      name: of the member.
      seed: of the run.
      changes: the member's dotted changes of the group's config, without the seed.
      config: everything, with stages in the place of weights ("stage:teacher").
      config_hash: of what its numbers depend on.
    """

    part: str
    group: str
    name: str
    seed: int
    changes: dict[str, Any]
    config: ConfigDict
    config_hash: str

    @property
    def key(self) -> str:
        """The run's name in tables: "group/name/seed"."""
        return f"{self.group}/{self.name}/{self.seed}"

    @property
    def folder(self) -> str:
        """Name of its folder, and of the member in a population."""
        return f"{self.name}-seed_{self.seed}"


@dataclass(frozen=True)
class Group:
    """Runs of one architecture: all members with all seeds.

    Attributes:
      name: of the group.
      part: of the study.
      config: the study's config with the group's changes.
      runs: seed by seed, so that a study that was cut short still has pairs.
      population: whether its members may train in one program.
    """

    name: str
    part: str
    config: ConfigDict
    runs: tuple[Run, ...]
    population: bool


@dataclass(frozen=True)
class Comparison:
    """A declared paired test: a - b over the seeds that both have."""

    name: str
    a: str  # "group/member"
    b: str
    family: str  # tests of one family share Holm's correction
    question: str  # for people


@dataclass(frozen=True)
class Grid:
    """A study: shared stages, then groups in declared order, and comparisons."""

    config: ConfigDict
    stages: dict[str, ConfigDict]
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]

    @cached_property
    def runs(self) -> dict[str, Run]:
        """Every run by its key, in declared order."""
        return {run.key: run for group in self.groups for run in group.runs}


def build_grid(config: ConfigDict, workdir: Path) -> Grid:
    """The runs that `config.study` declares, with their fields checked; `later_runs` checks what they build.

    Args:
      config: with `study.groups`, and with shared `stages`, such as a teacher, which are trained first.
      workdir: of the study; stages are its folders.

    Raises:
      ConfigError: no groups, a group of another form, a name that is used twice, a comparison of what does not exist.
      JaxkdError: whatever is wrong with the config of a run, with the run's name.
    """
    study = config.study
    if not study.groups:
        raise ConfigError(
            "study.groups is empty, so there is nothing to train. Declare groups as configs/studies/ does, or train "
            "one run with jaxkd train."
        )
    for seed in study.seeds:
        check_range("study.seeds", seed, 0, most=2**32 - 1, whole=True)
    shared = change(config, {f"study.{k}": v for k, v in base().study.items()})
    stages = stage_configs(shared, workdir)
    for name, stage in stages.items():
        with error_prefix(f'Stage "{name}" of the study: '):
            check_config(stage)
    shared = change(shared, {"stages": ()})
    groups = tuple(_group(entry, i, shared, study, stages) for i, entry in enumerate(study.groups))
    names = [group.name for group in groups]
    _refuse_twice(names, "study.groups", "groups")
    members = [f"{group.name}/{name}" for group in groups for name in dict.fromkeys(run.name for run in group.runs)]
    comparisons = tuple(_comparison(entry, i, members) for i, entry in enumerate(study.comparisons))
    _refuse_twice([c.name for c in comparisons], "study.comparisons", "comparisons")
    return Grid(config, stages, groups, comparisons)


def resolve_stages(config: ConfigDict, stages: Mapping[str, ConfigDict], workdir: Path) -> ConfigDict:
    """A copy of a run's config with the folders of stages in the place of their names."""
    changes = {}
    for side in ("student", "teacher"):
        source = config[side].weights
        if source.startswith(PREFIX):
            wanted = source.removeprefix(PREFIX)
            if wanted not in stages:
                raise ConfigError(
                    f'{side}.weights="{source}" names no stage of the study.{did_you_mean(wanted, stages)} There '
                    f"are: {', '.join(stages) or 'none'}."
                )
            changes[f"{side}.weights"] = str(workdir / wanted)
    return change(config, changes).lock()


def config_hash(
    config: ConfigDict, stages: Mapping[str, ConfigDict] | None = None, *, measured: Mapping[str, Any] | None = None
) -> str:
    """12 hexadecimal digits of what a run's numbers depend on: fields that differ from their defaults.

    Fields that a continued run may change (workers, logs, checkpoints) do not count, but its length does. A field that
    is added to jaxkd later changes no hash. Weights of a stage count with the hash of that stage.

    Args:
      config: of the run.
      stages: shared stages by name.
      measured: of `measurement`, what further numbers in the run's row depend on.
    """
    kept = _changed_fields(config, stages or {}) | dict(measured or {})
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


def measurement(config: ConfigDict, images: int, stages: Mapping[str, ConfigDict]) -> dict[str, Any]:
    """Images and teacher that the last layers of a group's runs are compared with, also of runs that learn without
    one; {} where none are compared.

    Args:
      config: of the group.
      images: `study.images`.
      stages: shared stages by name.
    """
    if not (images and config.teacher.name and config.teacher.weights):
        return {}
    fields = {k: v for k, v in _changed_fields(config, stages).items() if k.startswith(("teacher.", PREFIX))}
    return {"study.images": images, "measured": fields}


def _changed_fields(config: ConfigDict, stages: Mapping[str, ConfigDict]) -> dict[str, Any]:
    """Dotted field -> value where it differs from its default and decides numbers; see `config_hash`."""
    defaults, values = flatten(base()), flatten(config)
    free = tuple(field for field in FREE_FIELDS if field != "train.steps")
    kept = {k: v for k, v in values.items() if not k.startswith(free) and v != defaults.get(k)}
    for name, stage in stages.items():
        if f"{PREFIX}{name}" in kept.values():
            kept[f"{PREFIX}{name}"] = config_hash(stage)
    return {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in kept.items()}


def _group(entry: Any, index: int, shared: ConfigDict, study: ConfigDict, stages: dict[str, ConfigDict]) -> Group:
    where = f"study.groups[{index}]"
    entry = _entry(entry, where, _GROUP_KEYS, 'Write {"name": "deit", "members": ({"name": "soft", ...}, ...)}')
    name = _name(entry.get("name"), where)
    members, seeds = entry.get("members"), entry.get("seeds", tuple(study.seeds))
    if not isinstance(members, Sequence) or isinstance(members, str) or not members:
        raise ConfigError(f'{where} ("{name}") has no members. Give a tuple of dicts, each with a name and changes.')
    if not isinstance(seeds, Sequence) or not seeds:
        raise ConfigError(f'{where} ("{name}") has no seeds. Give a tuple of numbers, such as (0, 1, 2).')
    for seed in seeds:
        check_range(f"{where}.seeds", seed, 0, most=2**32 - 1, whole=True)
    config, runs = change(shared, dict(entry.get("changes", {}))), []
    part, measured = str(entry.get("part", "")), measurement(config, study.images, stages)
    for seed in seeds:
        for place, member in enumerate(members):
            member = dict(_entry(member, f"{where}.members[{place}]", None, 'Write {"name": "soft", ...}'))
            title = _name(member.pop("name", None), f"{where}.members[{place}]")
            with error_prefix(f'Run "{name}/{title}/{seed}" of the study: '):
                run_config = single_run(config, member | {"seed": int(seed)}, shared_batches=study.shared_batches)
                if seed == seeds[0]:  # the runs of a member differ in nothing else
                    check_config(resolve_stages(run_config, stages, Path("study")))
                if run_config.task == "restoration":
                    raise ConfigError('its task is "restoration", and studies compare top-1. Use stages instead.')
            digest = config_hash(run_config, stages, measured=measured)
            runs.append(Run(part, name, title, int(seed), member, run_config, digest))
    _refuse_twice([run.key for run in runs], where, "runs")
    population = entry.get("population", True)
    return Group(name, part, config, tuple(runs), bool(population))


def single_run(config: ConfigDict, changes: dict[str, Any], *, shared_batches: bool) -> ConfigDict:
    """The config of one member and seed; without a teacher where its objective reads none.

    Args:
      config: of the group.
      changes: of the member, with its seed.
      shared_batches: whether all seeds see the batches of data.seed; else the seed decides them too.
    """
    data_seed = max(config.data.seed, 0) if shared_batches else changes["seed"]
    config = change(config, {"data.seed": data_seed} | changes)
    if config.task == "distillation" and not _reads_teacher(config):
        defaults = base()
        alone = {"task": "classification", "teacher.args": {}}
        alone |= {f"teacher.{k}": v for k, v in defaults.teacher.items() if k != "args"}
        alone |= {f"distill.{k}": defaults.distill.get(k) for k in defaults.distill if k not in ("terms",)}
        config = change(config, alone)
    return forget_unread(config, set(changes))


def _reads_teacher(config: ConfigDict) -> bool:
    if config.distill.terms:
        return any(
            not isinstance(term, Mapping | ConfigDict) or term.get("loss") not in TERMS_WITHOUT_TEACHER
            for term in config.distill.terms
        )
    return config.distill.preset != "none"


def _comparison(entry: Any, index: int, members: Sequence[str]) -> Comparison:
    where = f"study.comparisons[{index}]"
    entry = _entry(entry, where, _COMPARISON_KEYS, 'Write {"a": "deit/soft", "b": "deit/none"}')
    for side in ("a", "b"):
        if entry.get(side) not in members:
            raise ConfigError(
                f'{where} compares {side}="{entry.get(side)}", which is no member of a group.'
                f"{did_you_mean(str(entry.get(side)), members)} Name group/member; there are {len(members)}."
            )
    name = str(entry.get("name") or f"{entry['a']} - {entry['b']}")
    return Comparison(name, entry["a"], entry["b"], str(entry.get("family", "")), str(entry.get("question", "")))


def _entry(entry: Any, where: str, keys: tuple[str, ...] | None, advice: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping | ConfigDict):
        raise ConfigError(f"{where}={entry!r} is no dict. {advice}.")
    entry = {str(key): entry[key] for key in entry}
    for key in entry if keys else ():
        if key not in keys:
            raise ConfigError(f'{where} has the key "{key}".{did_you_mean(key, keys)} It takes: {", ".join(keys)}.')
    return entry


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where} has the name {name!r}, which cannot be a folder. Use letters, digits and . _ + = -, for example "
            '"soft+spectral".'
        )
    return name


def _refuse_twice(names: Sequence[str], where: str, kind: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'{where} declares {names.count(name)} {kind} called "{name}". Rename or remove one.')
