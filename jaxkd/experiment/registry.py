"""Registry of tasks: `config.task` names the functions that build and compare its runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxkd.errors import ConfigError, check_choice
from jaxkd.experiment.components import Components


@dataclass(frozen=True)
class TaskEntry:
    """A registered task."""

    build: Callable[..., Components]  # `(config, mesh, *, workdir, console, load, open_data) -> Components`
    # `(configs, results, workdir) -> rich.Table` of stages, with `curves.png`; stages can be compared if they
    # have the same one
    compare: Callable[..., Any]
    # `({who: config}, {weights: (name, arguments) of the network that is trained for them}) -> None` checks runs before
    # the first of them starts; None builds each without weights and data
    check: Callable[..., None] | None = None


_TASKS: dict[str, TaskEntry] = {}


def register_task(
    name: str,
    build: Callable[..., Components],
    compare: Callable[..., Any],
    check: Callable[..., None] | None = None,
) -> None:
    """Makes `config.task = name` possible; see `TaskEntry`.

    Raises:
      ConfigError: another task of that name is registered.
    """
    entry = TaskEntry(build, compare, check)
    if _TASKS.setdefault(name, entry) != entry:
        raise ConfigError(f'A task "{name}" is registered already. Register yours under another name.')


def registered_task(name: str) -> TaskEntry:
    """The task that `config.task` names."""
    check_choice("task", name, sorted(_TASKS))
    return _TASKS[name]
