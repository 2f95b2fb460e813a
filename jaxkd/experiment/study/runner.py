"""Trains the runs of a study in declared order, under a budget of time, from wherever an earlier call stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import data, parallel, train, weights
from jaxkd.config.fields import base, change, flatten
from jaxkd.config.paths import user_path
from jaxkd.config.plugins import import_plugins
from jaxkd.data.files import write_atomic
from jaxkd.errors import ConfigError, NonFiniteLossError
from jaxkd.experiment.checks import check_config
from jaxkd.experiment.classification import build_task, resolve
from jaxkd.experiment.environment import start_lines
from jaxkd.experiment.later_runs import check_later_runs
from jaxkd.experiment.lock import WorkdirLock
from jaxkd.experiment.next_steps import print_study_next
from jaxkd.experiment.run import run_one, storage_errors
from jaxkd.experiment.run_log import RunLog
from jaxkd.experiment.study import cost as costs
from jaxkd.experiment.study.grid import RUNS, Grid, Group, Run, build_grid, resolve_stages
from jaxkd.experiment.study.last_layer import TeacherLastLayer
from jaxkd.experiment.study.ledger import Ledger, Row
from jaxkd.experiment.study.plan import print_plan
from jaxkd.experiment.study.summary import write_summary
from jaxkd.experiment.sweep import PREFIX
from jaxkd.train.progress import duration

DIVERGED = "diverged.json"


@dataclass(frozen=True)
class Unit:
    """Work that is started or left out as a whole: a population, or one run.

    Attributes:
      group: that its runs belong to.
      runs: that it trains.
      together: whether they train in one program.
      folder: its work directory below the study's.
    """

    group: Group
    runs: tuple[Run, ...]
    together: bool
    folder: str

    @property
    def title(self) -> str:
        """The unit's name in lines for people."""
        if not self.together:
            return self.runs[0].key
        return f"{self.group.name} ({len(self.runs)} students)"


def units_of(group: Group, runs: list[Run], *, population: bool, shared_batches: bool) -> list[Unit]:
    """The units that train `runs` of a group, in order.

    A population has the runs of one seed, or with `shared_batches` those of all seeds: its members see the same
    batches.
    """
    if not (population and group.population):
        return [Unit(group, (run,), False, f"{RUNS}/{group.name}/{run.folder}") for run in runs]
    if shared_batches:
        sets = [tuple(runs)] if runs else []
    else:
        sets = [tuple(r for r in runs if r.seed == seed) for seed in dict.fromkeys(r.seed for r in runs)]
    units = []
    for members in sets:
        digest = hashlib.sha256(" ".join(r.key + r.config_hash for r in members).encode()).hexdigest()[:8]
        units.append(Unit(group, members, True, f"{RUNS}/{group.name}/population-{digest}"))
    return units


def run_study(
    config: ConfigDict,
    workdir: str | Path,
    *,
    console: Console | None = None,
    budget_minutes: float = 0.0,
    population: bool = True,
    dry_run: bool = False,
    tflops: float = 0.0,
) -> dict[str, Any]:
    """Trains, measures and compares everything that `config.study` declares.

    Args:
      config: with `study.groups`.
      workdir: of the study. What an earlier call finished there is kept, and what it began goes on.
      console: for the plan, progress and tables; None is silent.
      budget_minutes: a unit that would not end in this time is left out, and one that turns out slower than predicted
        is stopped with a checkpoint; 0 for no limit.
      population: whether members of a group train in one program where they can.
      dry_run: only print the plan and its cost.
      tflops: rate for the prediction before anything was measured, in 10^12 operations a second.

    Returns:
      `{"finished": bool, "runs": declared, "done": with a result, "not_run": keys, "stopped": bool}`.

    Raises:
      CheckpointError: the work directory belongs to another grid.
      JaxkdError: whatever is wrong with a run, before any training starts.
    """
    workdir = user_path(workdir, "--workdir")
    import_plugins(config.plugins)
    grid = build_grid(config, workdir)
    ledger = Ledger(workdir)
    ledger.check(grid)
    main = parallel.is_main_host()
    with data.keep_sources(), RunLog(workdir, console, active=main and not dry_run) as log:
        study = _Study(grid, ledger, workdir, log.console, budget_minutes, population, tflops)
        study.check_populations()
        study.check_runs()
        if dry_run:
            return print_plan(grid, study.plan(), ledger.times, tflops, console)
        with storage_errors(workdir), WorkdirLock(workdir, wanted=main) as lock:
            lock.acquire()
            ledger.claim(grid)
            log.open(*start_lines(workdir))
            return study.run()


class _Study:
    """One call of `run_study`."""

    def __init__(
        self,
        grid: Grid,
        ledger: Ledger,
        workdir: Path,
        console: Console | None,
        budget_minutes: float,
        population: bool,
        tflops: float,
    ):
        self._grid, self._ledger, self._workdir, self._console = grid, ledger, workdir, console
        self._begin, self._tflops, self._population = time.monotonic(), tflops, population
        self._budget = budget_minutes * 60 if budget_minutes else math.inf
        self._teachers: dict[str, TeacherLastLayer] = {}
        self._measured: dict[str, Any] | None = None  # of the unit in progress, if it ran in one go

    def plan(self) -> list[tuple[str, tuple[Run, ...], costs.Cost]]:
        """(title, runs, cost) of what is left to do, in order; a shared stage has no runs."""
        todo = [(f"stage {n}", (), costs.run_cost(c)) for n, c in self._grid.stages.items() if not self._done(n)]
        todo += [(u.title, u.runs, costs.unit_cost(u.runs, together=u.together)) for u in self._units()]
        return todo

    def check_populations(self) -> None:
        """Raises ConfigError where members of a group cannot share a program, before anything is trained."""
        for unit in self._units():
            if not unit.together:
                continue
            try:
                _check_same_images(unit)
                check_config(self._population_config(unit))
            except ConfigError as error:
                raise ConfigError(
                    f'The members of group "{unit.group.name}" cannot train as one population: {error} Or give the '
                    'group "population": False, or pass --no-population, to train each run by itself.'
                ) from None

    def check_runs(self) -> None:
        """Raises JaxkdError where a stage or a run that is left could not start, before anything is trained."""
        stages = {f"{PREFIX}{name}": one for name, one in self._grid.stages.items()}
        stages |= {str(self._workdir / name): one for name, one in self._grid.stages.items()}
        left = {f'Stage "{n}" of the study: ': c for n, c in self._grid.stages.items() if not self._done(n)}
        left |= {f'Run "{r.key}" of the study: ': r.config for r in self._ledger.missing(self._grid.runs.values())}
        check_later_runs(left, stages)

    def run(self) -> dict[str, Any]:
        """Stages, units in order, results after each."""
        todo = list(self._work())
        for number, (title, cost, work) in enumerate(todo, start=1):
            predicted = costs.predict_seconds(cost, self._ledger.times, self._tflops)
            # Each host has a clock and measured times of its own, but all must train the same units.
            if parallel.main_host_decides(predicted is not None and predicted > self._left()):
                self._say(
                    f"{title}: not started, it would take {duration(predicted or 0.0)} of {duration(self._left())} left"
                )
                if title.startswith("stage "):
                    break
                continue
            self._say(self._heading(f"{number}/{len(todo)} {title}", cost, predicted, todo[number:]))
            begin, self._measured = time.monotonic(), None
            finished = work(cost)
            self._write()
            if not finished:
                return self._result(stopped=True)
            if self._measured is not None:
                self._ledger.add_time(title=title, wall=time.monotonic() - begin, **self._measured)
        self._write()
        return self._result(stopped=False)

    def _work(self) -> Iterator[tuple[str, costs.Cost, Callable[[costs.Cost], bool]]]:
        for name, stage in self._grid.stages.items():
            if not self._done(name):
                yield f"stage {name}", costs.run_cost(stage), lambda cost, n=name, s=stage: self._stage(n, s, cost)
        for unit in self._units():
            cost = costs.unit_cost(unit.runs, together=unit.together)
            yield unit.title, cost, lambda cost, u=unit: self._unit(u, cost)

    def _units(self) -> list[Unit]:
        shared, found = self._grid.config.study.shared_batches, []
        for group in self._grid.groups:
            missing = self._ledger.missing(group.runs)
            found += units_of(group, missing, population=self._population, shared_batches=shared)
        return found

    def _done(self, folder: str) -> bool:
        return (self._workdir / folder / "result.json").is_file()

    def _left(self) -> float:
        return self._budget - (time.monotonic() - self._begin)

    def _heading(self, title: str, cost: costs.Cost, predicted: float | None, later: list) -> str:
        parts = [title, f"{cost.steps:,} steps, {cost.flop / 1e15:.3g} PFLOP"]
        if predicted is not None:
            ahead = [costs.predict_seconds(c, self._ledger.times, self._tflops) or 0.0 for _, c, _ in later]
            parts.append(f"about {duration(predicted)}, and {duration(sum(ahead))} for what follows")
        if math.isfinite(self._budget):
            parts.append(f"{duration(self._left())} of the budget left")
        return " · ".join(parts)

    def _stage(self, name: str, config: ConfigDict, cost: costs.Cost) -> bool:
        result = self._timed(config, self._workdir / name, f"stage {name}", cost)
        return bool(result["finished"])

    def _timed(self, config: ConfigDict, folder: Path, title: str, cost: costs.Cost) -> dict[str, Any]:
        """`run_one` that is stopped at the end of the budget; sets `_measured` if it ran in one go."""
        fresh, begin = not train.checkpoint_steps(folder), time.monotonic()
        timer = None
        if math.isfinite(self._budget):
            timer = threading.Timer(max(self._left(), 0.0), _ask_to_stop)
            timer.daemon = True
            timer.start()
        try:
            result = run_one(config, folder, self._console, title=title)
        finally:
            if timer is not None:
                timer.cancel()
        if fresh and result["finished"]:
            seconds = _step_seconds(folder, (time.monotonic() - begin) / cost.steps) * cost.steps
            self._measured = {"kind": cost.kind, "students": cost.students, "seconds": seconds}
            self._measured |= {"steps": cost.steps, "flop": cost.flop}
        return result

    def _unit(self, unit: Unit, cost: costs.Cost) -> bool:
        """Trains a unit and adds its rows; False if it was stopped before its end."""
        folder = self._workdir / unit.folder
        config = resolve_stages(unit.runs[0].config, self._grid.stages, self._workdir)
        if unit.together:
            config = self._population_config(unit)
        try:
            result = self._saved(folder) or self._timed(config, folder, unit.title, cost)
        except NonFiniteLossError as error:  # of a population: all members
            result = _diverged(folder, error, [run.folder for run in unit.runs] if unit.together else [])
        if not result["finished"]:
            return False
        rows = _population_rows(unit, result) if unit.together else [_row(unit.runs[0], result, 1)]
        rows = [self._with_similarity(unit, run, row) for run, row in zip(unit.runs, rows, strict=True)]
        self._ledger.add(rows, self._grid)
        return True

    def _saved(self, folder: Path) -> dict[str, Any] | None:
        """The result of a unit that ended before its rows were written."""
        for name in ("result.json", DIVERGED):
            try:
                return json.loads((folder / name).read_text())
            except (OSError, ValueError):
                continue
        return None

    def _population_config(self, unit: Unit) -> ConfigDict:
        shared = self._grid.config.study.shared_batches
        config = unit.group.config
        seed = max(config.data.seed, 0) if shared else unit.runs[0].seed
        members = tuple({"name": run.folder, **run.changes, "seed": run.seed} for run in unit.runs)
        config = change(config, {"data.seed": seed, "seed": unit.runs[0].seed, "population": members})
        config = change(config, _read_by_none(unit))
        return resolve_stages(config, self._grid.stages, self._workdir)

    def _with_similarity(self, unit: Unit, run: Run, row: Row) -> Row:
        """The row with the comparison of last layers, where there is a teacher and the run did not diverge."""
        count, config = self._grid.config.study.images, unit.group.config
        if not (count and config.teacher.name and config.teacher.weights and row.diverged_at_step < 0):
            return row
        folder = self._workdir / unit.folder
        if unit.together:
            folder = folder / "members" / run.folder
        config = resolve_stages(config, self._grid.stages, self._workdir)
        teacher = self._teacher(config)
        network = weights.network_from_run(train.read_config(folder))
        return replace(row, **teacher.measure(weights.load_weights(network, str(folder))))

    def _teacher(self, config: ConfigDict) -> TeacherLastLayer:
        key = json.dumps([config.teacher.to_dict(), config.data.source], default=str, sort_keys=True)
        if key not in self._teachers:
            source = data.open_source(config.data.source, "val", class_order=config.data.class_order)
            alone = change(config, {"distill.terms": ({"loss": "kl"},), "distill.preset": "none"})
            alone = change(alone, {f"distill.{k}": None for k in ("pairs", "alpha", "temperature", "feature_weight")})
            task = build_task(
                resolve(alone.lock(), num_classes=len(source.class_names)), num_classes=len(source.class_names)
            )
            count = self._grid.config.study.images
            self._teachers[key] = TeacherLastLayer(
                task.teacher, source, count, config.eval.crop_pct, config.eval.interpolation
            )
        return self._teachers[key]

    def _write(self) -> None:
        """Tables and figure of everything known so far."""
        if parallel.is_main_host():
            left_out = [run.key for run in self._ledger.missing(self._grid.runs.values())]
            device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            write_summary(self._grid, self._ledger, left_out, self._workdir, device)

    def _result(self, *, stopped: bool) -> dict[str, Any]:
        missing = [run.key for run in self._ledger.missing(self._grid.runs.values())]
        runs = len(self._grid.runs)
        self._say(
            f"{runs - len(missing)} of {runs} runs have results in {self._workdir}: results.csv, comparisons.csv, "
            "study.md, study.png"
        )
        print_study_next(self._console, self._workdir)
        if missing:
            groups = Counter(key.split("/")[0] for key in missing)
            listed = ", ".join(f"{group} ({count})" for group, count in groups.items())
            self._say(f"not run: {listed}; study.md names each. The same command continues.")
        return {
            "finished": not missing,
            "stopped": stopped,
            "runs": runs,
            "done": runs - len(missing),
            "not_run": missing,
        }

    def _say(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _step_seconds(folder: Path, most: float) -> float:
    """Median time of a step in the log of a run, without compilation; at most `most`, also where nothing was logged."""
    logged = [row["step_ms"] / 1e3 for row in train.read_metrics(folder, "train") if "step_ms" in row]
    return min(float(np.median(logged)), most) if logged else most


def _ask_to_stop() -> None:
    """Asks a running training to save and end, as SIGTERM does; nothing where nobody would catch the signal."""
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN, None):
        os.kill(os.getpid(), signal.SIGTERM)


def _diverged(folder: Path, error: NonFiniteLossError, members: list[str]) -> dict[str, Any]:
    """Result of a run whose loss was no longer finite; written, so that a resumed study does not repeat it."""
    steps = train.checkpoint_steps(folder)
    seen = [row["step"] for row in train.read_metrics(folder, "train")]
    last = {"diverged_at_step": max([*steps, *seen, 0])}
    result = {"finished": True, "metrics": {}, "step": last["diverged_at_step"], "error": str(error), **last}
    if members:
        result["members"] = [{"name": name, **last} for name in members]
    if parallel.is_main_host():
        write_atomic(folder / DIVERGED, json.dumps(result))
    return result


def _check_same_images(unit: Unit) -> None:
    """Raises ConfigError where the runs of a population would see other batches than the single runs."""
    subsets = {(run.config.data.per_class, run.config.data.subset_seed) for run in unit.runs}
    if len(subsets) > 1:
        raise ConfigError(
            "they differ in data.per_class or data.subset_seed, so that their epochs have other lengths. Set these in "
            "the changes of a group for each."
        )


def _read_by_none(unit: Unit) -> dict[str, Any]:
    """Changes of the group's config that take back what no run of the unit reads, such as the teacher of other runs."""
    configs, given = [run.config for run in unit.runs], {name for run in unit.runs for name in run.changes}
    values = [flatten(config) for config in configs]
    unread = {
        name: default
        for name, default in flatten(base()).items()
        if name.startswith(("distill.", "teacher.")) and name not in given and all(v[name] == default for v in values)
    }
    if all(config.task == "classification" for config in configs):
        unread |= {"task": "classification", "teacher.args": {}}
    return unread


def _row(run: Run, result: dict[str, Any], population: int) -> Row:
    """The row of a run from the result of its work directory."""
    return Row(
        study=run.part,
        group=run.group,
        name=run.name,
        seed=run.seed,
        config_hash=run.config_hash,
        top1=float(result["metrics"].get("top1", math.nan)),
        best_top1=float(result.get("best_top1", math.nan)),
        best_step=int(result.get("best_step", -1)),
        steps=int(result["step"]),
        seconds=float(result.get("seconds", math.nan)),
        images_seen=int(result.get("images_trained", 0)),
        train_images=int(result.get("train_images", 0)),
        parameters=int(result.get("parameters", 0)),
        population=population,
        diverged_at_step=int(result.get("diverged_at_step", -1)),
    )


def _population_rows(unit: Unit, result: dict[str, Any]) -> list[Row]:
    """The rows of a population, in the order of the unit's runs."""
    found = {member["name"]: member for member in result["members"]}
    rows = []
    for run in unit.runs:
        member = found.get(run.folder)
        if member is None:
            raise ConfigError(
                f'The population in {unit.folder} has no member "{run.folder}". Delete that folder, or pass '
                "--no-population."
            )
        diverged = member.get("diverged_at_step")
        one = result | {"metrics": {"top1": _number(member.get("top1"))}}
        one |= {"best_top1": _number(member.get("best_top1")), "best_step": _whole(member.get("best_step"))}
        rows.append(_row(run, one | {"diverged_at_step": _whole(diverged)}, len(unit.runs)))
    return rows


def _number(value: Any) -> float:
    return math.nan if value is None or isinstance(value, str) else float(value)


def _whole(value: Any) -> int:
    return -1 if value is None else int(value)
