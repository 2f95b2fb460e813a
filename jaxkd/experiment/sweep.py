"""Stages: runs one after another that are compared at the end, such as a teacher and its students."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import data, parallel
from jaxkd.config.fields import change
from jaxkd.config.validate import check_stages
from jaxkd.data.files import write_atomic
from jaxkd.errors import ConfigError, did_you_mean, error_prefix
from jaxkd.experiment.checks import check_config
from jaxkd.experiment.comparison import FIGURE
from jaxkd.experiment.environment import start_lines
from jaxkd.experiment.later_runs import check_later_runs
from jaxkd.experiment.lock import WorkdirLock
from jaxkd.experiment.next_steps import print_next
from jaxkd.experiment.registry import registered_task
from jaxkd.experiment.run_log import RunLog

PREFIX = "stage:"


def stage_configs(config: ConfigDict, workdir: Path) -> dict[str, ConfigDict]:
    """name -> the stage's own config: its changes applied, `stage:<name>` replaced by that stage's folder."""
    check_stages(config)
    configs: dict[str, ConfigDict] = {}
    for stage in config.stages:
        changes = dict(stage)
        name = changes.pop("name", "")
        if not name or name in configs:
            raise ConfigError(f'A stage has the name "{name}". Give each stage a name of its own, which is its folder.')
        one = change(config, changes | {"stages": ()})
        for network in (one.student, one.teacher):
            if network.weights.startswith(PREFIX):
                wanted = network.weights.removeprefix(PREFIX)
                if wanted not in configs:
                    raise ConfigError(
                        f'Stage "{name}" takes its weights from "{network.weights}", which is not a stage before it.'
                        f"{did_you_mean(wanted, configs)} Name one of: {', '.join(configs) or 'none'}."
                    )
                network.weights = str(workdir / wanted)
        configs[name] = one.lock()
    tasks = {name: one.task for name, one in configs.items()}
    if len({registered_task(task).compare for task in tasks.values()}) > 1:
        raise ConfigError(
            f"The stages have the tasks {', '.join(f'{n}: {t}' for n, t in tasks.items())}, whose scores cannot be "
            "compared. Give each kind of task a config of its own."
        )
    return configs


def run_stages(
    config: ConfigDict, workdir: Path, run_one: Callable[..., dict[str, Any]], console: Console | None
) -> dict[str, Any]:
    """Runs every stage in `workdir/<name>`, continues where a killed call stopped, and compares at the end.

    Returns:
      `{"stages": {name: result}, "finished": bool}`; the table is printed, `summary.json` and `curves.png` are written.
    """
    configs = stage_configs(config, workdir)
    for name, one in configs.items():
        with error_prefix(f'Stage "{name}": '):
            check_config(one)
    main = parallel.is_main_host()
    with data.keep_sources():  # the check and the stages read the same data
        _check_later_stages(configs, workdir)
        with RunLog(workdir, console, active=main) as log, WorkdirLock(workdir, wanted=main) as lock:
            lock.acquire()
            log.open(*start_lines(workdir))
            return _run_in_order(configs, workdir, run_one, log.console)


def _check_later_stages(configs: dict[str, ConfigDict], workdir: Path) -> None:
    """Checks the stages that start after the next one, which checks itself."""
    left = {name: one for name, one in configs.items() if not (workdir / name / "result.json").is_file()}
    later = {f'Stage "{name}": ': one for name, one in list(left.items())[1:]}
    check_later_runs(later, {str(workdir / name): one for name, one in configs.items()})


def _run_in_order(
    configs: dict[str, ConfigDict], workdir: Path, run_one: Callable[..., dict[str, Any]], console: Console | None
) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {}
    for index, (name, one) in enumerate(configs.items(), start=1):
        if console is not None:
            console.rule(f"{index}/{len(configs)} {name}", align="left")
        results[name] = run_one(one, workdir / name, console, title=name)
        if not results[name]["finished"]:
            return {"stages": results, "finished": False}
    summary = {"stages": results, "finished": True}
    if not parallel.is_main_host():
        return summary
    write_atomic(workdir / "summary.json", json.dumps(summary, indent=2))
    table = registered_task(next(iter(configs.values())).task).compare(configs, results, workdir)
    if console is not None:
        console.print(table)
        console.print(f"Curves: {workdir / FIGURE}", markup=False, highlight=False, soft_wrap=True)
        print_next(console, [workdir / name for name in configs], workdir)
    return summary
