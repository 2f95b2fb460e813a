"""Stages of a config: what each sets itself, whatever the command line says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxkd.config.fields import ARGS, change, flatten, plain
from jaxkd.config.population import member_values, members
from jaxkd.config.validate import OBJECTIVE, is_read


def own_fields(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted field -> the value that a stage gives it; of a population, the tuple of its members' values."""
    own = {k: plain(v) for k, v in stage.items() if k != "name"}
    population = own.pop("population", None)
    return own | ({} if population is None else member_values(population))


def overridden_fields(config: ConfigDict, given: set[str]) -> dict[str, dict[str, Any]]:
    """Stage -> {field: the stage's value} for fields of the command line to which the stage gives another value.

    Args:
      config: with stages, of the form that `check_stages` asks for.
      given: fields that were given on the command line.
    """
    values, found = flatten(config), {}
    for stage in config.stages:
        own = own_fields(stage)
        for side in ARGS:  # a stage may set an argument, or replace all of them
            replaced = own.pop(side.rstrip("."), None)
            if replaced is not None:
                own |= {f: replaced.get(f.removeprefix(side)) for f in given if f.startswith(side)} | {
                    k: v for k, v in own.items() if k.startswith(side)
                }
        other = {f: own[f] for f in sorted(given & own.keys()) if own[f] != values.get(f)}
        if other:
            found[stage["name"]] = other
    return found


def objective_fields_of_stages(config: ConfigDict) -> set[str]:
    """Fields of `distill` that are read by a stage with an objective of its own, or by a member of its population."""
    found: set[str] = set()
    for stage in config.stages:
        own = own_fields(stage)
        if not own.keys() & OBJECTIVE:
            continue
        changed = change(config, {k: v for k, v in stage.items() if k != "name"} | {"stages": ()})
        for one in [member.config for member in members(changed)] or [changed]:
            found |= {f for f in flatten(config.distill, "distill.") if f not in own and is_read(one, f)}
    return found
