"""Members of a population: students of one program that differ in what a program can take as numbers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from jaxkd.config.fields import base, change, data_seed, flatten
from jaxkd.config.validate import forget_unread
from jaxkd.errors import ConfigError, MemberFieldError, did_you_mean

# What members may differ in. Anything else has other shapes or another number of steps, hence another program.
FIELDS = (
    "seed",
    "distill.preset",
    "distill.terms",
    "distill.pairs",
    "distill.alpha",
    "distill.temperature",
    "distill.feature_weight",
    "distill.spectral_method",
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "data.per_class",
    "data.subset_seed",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")  # names are folders
_WRITE = 'Write {"seed": (0, 1, 2)} for all combinations, or ({"name": "a", "seed": 0}, ...) for one member each.'


@dataclass(frozen=True)
class Member:
    """A student of a population.

    Attributes:
      name: its folder below `members/` of the work directory.
      group: the same for members that differ in nothing but the seed.
      changes: dotted field -> value.
      config: of the single run that it stands for, with the data seed of the population.
    """

    name: str
    group: str
    changes: dict[str, Any]
    config: ConfigDict


def members(config: ConfigDict) -> tuple[Member, ...]:
    """The members of `config.population`; () for an ordinary run.

    A member without a term that reads the teacher stands for a run of task "classification", without a teacher.

    Raises:
      ConfigError: not of the form of a population, a field in which members cannot differ, or two equal members.
    """
    if config.population is None:
        return ()
    entries = _entries(config.population)
    for entry in entries:
        for field in entry:
            _check_field(field, entry[field])
    kinds = {f: _distinct(e[f] for e in entries if f in e) for e in entries for f in e}
    shared = change(config, {"population": None, "data.seed": data_seed(config)})
    found = []
    for entry in entries:
        changes = {k: v for k, v in entry.items() if k != "name"}
        varied = [f for f in changes if f != "seed" and len(kinds[f]) + any(f not in e for e in entries) > 1]
        words = [_word(f, changes[f], kinds[f]) for f in varied]
        group = "-".join(words) or "all"
        seeds = [f"seed_{changes['seed']}"] if "seed" in changes else []
        name = entry.get("name") or "-".join(words + seeds) or group
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"config.population has a member called {name!r}, which cannot be the name of its folder. Use letters, "
                'digits and . _ + = -, for example "soft-seed_0".'
            )
        found.append(Member(name, group, changes, _member_config(shared, changes)))
    names = [m.name for m in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f'config.population has {names.count(name)} members called "{name}". Remove one, or give each a "name" '
                "of its own."
            )
    return tuple(found)


def member_values(population: Any) -> dict[str, tuple[Any, ...]]:
    """Field -> the distinct values that the members of `config.population` give it."""
    entries = _entries(population)
    return {f: tuple(_distinct(e[f] for e in entries if f in e)) for e in entries for f in e if f != "name"}


def explicit(config: ConfigDict) -> ConfigDict:
    """A copy whose population is a tuple of dicts, each with a name, as config.json holds it."""
    if config.population is None:
        return config
    entries = tuple({"name": m.name, **m.changes} for m in members(config))
    return change(config, {"population": entries}).lock()


def _entries(population: Any) -> list[dict[str, Any]]:
    """One dict of changes for each member."""
    if isinstance(population, Mapping | ConfigDict):
        grid = dict(population)
        for field, values in grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(
                    f"config.population gives {field}={values!r}, which is no list of values. Write a tuple, for "
                    f'example {{"{field}": (0, 1)}}.'
                )
        population = [dict(zip(grid, row, strict=True)) for row in itertools.product(*grid.values())] if grid else []
    proper = isinstance(population, Sequence) and not isinstance(population, str) and population
    if not proper or not all(isinstance(e, Mapping | ConfigDict) and len(e) for e in population):
        raise ConfigError(f"config.population={population!r} is no population. {_WRITE}")
    return [{str(k): e[k] for k in e} for e in population]


def _check_field(field: str, value: Any) -> None:
    if field == "name" or field in FIELDS:
        if field == "distill.pairs" and value == "auto":
            raise ConfigError(
                'config.population gives a member distill.pairs="auto", which is chosen once for all. Set it as '
                "config.distill.pairs, or give the member pairs by number."
            )
        kind = {"distill.preset": str, "distill.terms": Sequence}.get(field, object)
        if not isinstance(value, kind):
            raise ConfigError(
                f"config.population gives a member {field}={value!r}, which is of the wrong type. {_WRITE}"
            )
        return
    known = flatten(base())
    if field not in known and not field.startswith(("student.args.", "teacher.args.")):
        raise MemberFieldError(
            f'config.population changes "{field}", which is not a field of a config.{did_you_mean(field, FIELDS)} '
            f"Members may differ in {', '.join(FIELDS)}."
        )
    raise MemberFieldError(
        f"config.population changes {field} (here: {value!r}), which needs another program. Train those students in "
        f"separate runs, each with its own --config.{field}. Members may differ in {', '.join(FIELDS)}."
    )


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _word(field: str, value: Any, kinds: list[Any]) -> str:
    """The part of a name that stands for a change: "soft", "learning_rate_0.001", "terms_1"."""
    leaf = field.rpartition(".")[2]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return f"{leaf}_{value:g}"
    return f"{leaf}_{'default' if value is None else kinds.index(value)}"


def _member_config(shared: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """The single run of a member: without a teacher where nothing reads one."""
    config = change(shared, changes)
    if config.task == "distillation" and not _reads_teacher(config):
        defaults = base()
        config = change(config, {"task": "classification", "teacher.args": {}, "distill.preset": "none"})
        config = change(config, {f"teacher.{k}": v for k, v in defaults.teacher.items() if k != "args"})
    return forget_unread(config, set(changes))


def _reads_teacher(config: ConfigDict) -> bool:
    if config.distill.terms:
        return any(not isinstance(t, Mapping | ConfigDict) or t.get("loss") != "ce" for t in config.distill.terms)
    return config.distill.preset != "none"
