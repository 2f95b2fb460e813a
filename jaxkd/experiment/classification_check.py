"""Checks of classification and distillation runs that start later: data, networks, objectives, without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxkd import data, models, weights
from jaxkd.config.fields import change, flatten
from jaxkd.errors import ConfigError, error_prefix
from jaxkd.experiment.auto_pairs import AUTO
from jaxkd.experiment.checks import check_decay_tokens
from jaxkd.experiment.classification import (
    build_networks,
    check_augmentation,
    member_configs,
    names_arguments,
    resolve,
    stored_logits,
)
from jaxkd.experiment.objective import fitting_objectives

# Beginnings of the fields that decide the networks of a run, and those of what else is checked.
OF_NETWORKS = ("task", "data.source", "data.class_order", "student.", "teacher.", "precision.", "dynamics.layers")
OF_THE_REST = (
    *("distill.", "label_smoothing", "population", "optimizer.decay_tokens"),
    *("data.augment.", "data.erase.", "data.mix.", "data.per_class"),
)


@data.keep_sources()
def check_runs(runs: Mapping[str, ConfigDict], planned: Mapping[str, tuple[str, dict[str, Any]]]) -> None:
    """Checks images of each class, augmentation, networks and objectives; equal ones once, and nothing compiles.

    It lists the training split of each data set, which takes minutes for a large folder on a network disk; within
    `data.keep_sources` the runs of the same call take it over. data.per_class counts the labels of all of a split.

    Args:
      runs: words that begin an error, such as 'Stage "students": ' -> config, checked by `check_config`.
      planned: weights that are trained before -> name and arguments of their network.

    Raises:
      JaxkdError: of the first that is refused. What only weights decide, and `dynamics` but for its layers, is not
        checked.
    """

    def opened(config: ConfigDict) -> data.Source:
        return data.open_source(config.data.source, "train", class_order=config.data.class_order)

    distinct: dict[str, tuple[str, ConfigDict]] = {}
    for who, config in runs.items():
        distinct.setdefault(_key(config, (*OF_NETWORKS, *OF_THE_REST)), (who, config))
    groups: dict[str, dict[str, ConfigDict]] = {}
    for who, config in distinct.values():
        with error_prefix(who):
            source = opened(config)
        for words, one in member_configs(config, who).items():
            with error_prefix(words):
                data.check_per_class(source, one.data.per_class, where=config.data.source)
        if not _is_unknown(config.teacher, planned):
            groups.setdefault(_key(config, OF_NETWORKS), {})[who] = config
    for group in groups.values():
        config = next(iter(group.values()))
        source = opened(config)
        _check_group(group, len(source.class_names), planned)


def _is_unknown(teacher: ConfigDict, planned: Mapping[str, Any]) -> bool:
    """Whether the network is left to weights that are not there yet, as those of a run in progress elsewhere."""
    source = teacher.weights
    if not source or source in planned or names_arguments(teacher):
        return False
    return not Path(source).expanduser().exists() and not weights.published_name(source)


def _check_group(runs: dict[str, ConfigDict], classes: int, planned: Mapping[str, tuple[str, dict[str, Any]]]) -> None:
    """Checks runs that have the same networks and data."""
    who, first = next(iter(runs.items()))
    with error_prefix(who):
        first = resolve(
            first,
            num_classes=classes,
            recorded=lambda source: planned.get(source) or weights.recorded_network(source),
        )
        student, teacher, _ = build_networks(first, classes)
        # also finds arguments that do not fit together
        variables = models.abstract_variables(student.model, (1, *student.image_size, 3))
        for side, network in (("student", student), ("teacher", teacher)):
            if network is not None and first[side].weights in planned:
                _check_planned(side, first[side], network, planned[first[side].weights])
    configs, owners = {}, {}
    for who, config in runs.items():
        with error_prefix(who):
            check_decay_tokens(config, variables["params"])
            check_augmentation(config, student.image_size)
        if config.distill.pairs == AUTO:  # chosen when the run starts, which checks these first
            config = change(config, {"distill.pairs": "first+last"}).lock()
        members = member_configs(config, who)
        configs, owners = configs | members, owners | dict.fromkeys(members, config)
    objectives = fitting_objectives(student, teacher, configs)
    if teacher is not None:
        for who, objective in zip(configs, objectives, strict=True):
            with error_prefix(who):
                stored_logits(owners[who], teacher, objective)


def _check_planned(
    side: str, config: ConfigDict, network: weights.Network, trained: tuple[str, dict[str, Any]]
) -> None:
    """Raises ConfigError where a network has other arrays than the one that will be trained for it.

    Heads are left out, as are all arrays with `resize`: the loader checks those.
    """
    if config.resize:
        return
    name, args = trained
    classes = {"num_classes": network.num_classes} if "num_classes" in models.arguments(name) else {}
    given, expected = _shapes(weights.build_network(name, {**args, **classes})), _shapes(network)
    other = [k for k in expected | given if expected.get(k) != given.get(k) and not k.startswith("head")]
    if other:
        shapes = " and ".join(str(shapes.get(other[0], "none")) for shapes in (expected, given))
        raise ConfigError(
            f'{side}.weights="{config.weights}" are trained before as {name}, which has other arrays than '
            f"{network.spec.name} with {side}.args: {len(other)} differ, the first is {other[0]}, {shapes}. Give "
            f"{side}.name and {side}.args the values of that stage."
        )


def _shapes(network: weights.Network) -> dict[str, tuple[int, ...]]:
    """Path of each parameter -> its shape."""
    params = models.abstract_variables(network.model, (1, *network.image_size, 3)).get("params", {})
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def _key(config: ConfigDict, names: tuple[str, ...]) -> str:
    """The fields whose names begin with one of `names`, as text."""
    return json.dumps({k: v for k, v in flatten(config).items() if k.startswith(names)}, default=str)
