"""Checks of runs before the first of them starts, so that a mistake in the last one costs no training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxkd import parallel
from jaxkd.config.fields import plain
from jaxkd.config.paths import user_path
from jaxkd.errors import error_prefix
from jaxkd.experiment.build import assumed_epoch, build, build_optimizer, loop_settings
from jaxkd.experiment.registry import registered_task


def check_later_runs(runs: Mapping[str, ConfigDict], stages: Mapping[str, ConfigDict]) -> None:
    """Checks batches, schedule and optimiser of runs, and builds networks and objectives without weights.

    When a run starts it is checked further: weights, and what the length of its epochs or its `dynamics` decide.

    Args:
      runs: words that begin an error, such as 'Stage "students": ' -> config, checked by `check_config`.
      stages: name in the weights of runs, such as "stage:teacher" or a folder -> config of the run that trains them.

    Raises:
      JaxkdError: of the first run that cannot start.
    """
    planned = {name: (one.student.name, _given(one.student.args)) for name, one in stages.items()}
    planned |= _other_spellings(runs, planned)
    together: dict[Any, dict[str, ConfigDict]] = {}
    for who, config in runs.items():
        check = registered_task(config.task).check
        with error_prefix(who):
            mesh = parallel.make_mesh(config.mesh.data, config.mesh.model, fsdp=config.mesh.fsdp)
            if check is None:
                build(config, mesh, load=False, open_data=False)
                continue
            batches, accumulate = config.train.batch_size, config.optimizer.accumulate
            parallel.check_batch("train.batch_size", batches, mesh, accumulate=accumulate)
            parallel.check_batch("eval.batch_size", config.eval.batch_size or batches, mesh)
            build_optimizer(config, loop_settings(config, assumed_epoch(config)), None)
        together.setdefault(check, {})[who] = config
    for check, configs in together.items():
        check(configs, planned)


def _given(args: ConfigDict) -> dict[str, Any]:
    return {name: plain(value) for name, value in args.items() if value is not None}


def _other_spellings(runs: Mapping[str, ConfigDict], planned: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of runs that are the folder of a stage by another path, or lie below it -> the stage's network."""
    folders = {Path(name).expanduser().resolve(): network for name, network in planned.items()}
    found = {}
    for who, config in runs.items():
        for side in ("student", "teacher"):
            source = config[side].weights
            if not source or source in planned:
                continue
            with error_prefix(who):
                path = user_path(source, f"{side}.weights").resolve()
            for folder in (path, *path.parents):
                if folder in folders:
                    found[source] = folders[folder]
                    break
    return found
