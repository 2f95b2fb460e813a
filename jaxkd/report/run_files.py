"""Reader of work directories for their reports: of a run, a population, stages or a study, whole or damaged.

Files that are missing or cannot be read are named in `problems`; everything else is still there.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxkd.config.fields import base, flatten
from jaxkd.data.files import is_locked
from jaxkd.data.metric_rows import read_rows
from jaxkd.errors import ConfigError, printable

RUN, POPULATION, STAGES, STUDY = "run", "population", "stages", "study"
LOG, ENVIRONMENT, RESULT, CONFIG, METRICS = "log.txt", "environment.json", "result.json", "config.json", "metrics.jsonl"
LOCK = "run.lock"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """The files of one run.

    Attributes:
      name: in the report.
      path: its work directory.
      config: dotted field -> value, as JSON has it; {} where it is lost.
      result: of result.json; {} before the end.
      train, evaluations: rows of metrics.jsonl.
      starts: of environment.json, oldest first; [] of older versions.
      versions: of the newest checkpoint; {} where there is none.
      log: lines of log.txt; None where there is no such file.
      problems: sentences on what is missing or damaged.
      running: whether a process trained there when the files were read; None where the file system has no locks.
    """

    name: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    train: Rows = field(default_factory=list)
    evaluations: Rows = field(default_factory=list)
    starts: Rows = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    log: list[str] | None = None
    problems: list[str] = field(default_factory=list)
    running: bool | None = False

    @property
    def step(self) -> int:
        """The last step that the files know of."""
        rows = [row["step"] for row in (*self.train[-1:], *self.evaluations[-1:])]
        done = self.result.get("step")
        return max([*rows, done if isinstance(done, int) else 0])

    @property
    def state(self) -> str:
        """ "running", "finished", where the run stopped, or where it is if nothing says whether it runs."""
        if self.running:
            return "running"
        done = self.result.get("step")
        extended = isinstance(done, int) and self.step > done  # a finished run that was continued
        if not extended and (self.result.get("finished") or "population" in self.result):  # that of a member
            return "finished"
        if self.running is None:
            return f"at step {self.step:,}" + (f" of {self.total:,}" if self.total else "")
        return f"stopped at step {self.step:,}" + (f" of {self.total:,}" if self.total else "")

    @property
    def total(self) -> int:
        """Steps of the whole run as its newest start or its config says them; 0: unknown."""
        recorded = self.starts[-1].get("total_steps") if self.starts else None
        steps = recorded or self.config.get("train.steps") or self.config.get("schedule.steps")
        return steps if isinstance(steps, int) else 0

    @property
    def continuation(self) -> str:
        """The command that goes on with the run, as its newest start was given; "" where none is recorded."""
        start = self.starts[-1] if self.starts else {}
        command, folder = start.get("command"), start.get("folder")
        if not isinstance(command, str) or not command:
            return ""
        processes = start.get("processes")
        if isinstance(processes, int) and processes > 1:  # the recorded command is that of one of them
            return f"the launcher that started its {processes} processes"
        elsewhere = isinstance(folder, str) and folder != os.getcwd()
        return f"cd {shlex.quote(folder)} && {command}" if elsewhere else command

    @property
    def members(self) -> Rows:
        """Rows of the members of a population; [] before its end."""
        found = self.result.get("members")
        return [m for m in found if isinstance(m, dict) and m.get("name")] if isinstance(found, list) else []


@dataclass(frozen=True)
class Workdir:
    """A work directory: its kind, its runs in order, and of a study its tables.

    Attributes:
      path: of the directory.
      kind: "run", "population", "stages" or "study".
      runs: of stages and studies those inside.
      results, comparisons: rows of a study's results.csv and comparisons.csv.
      log: lines of its own log.txt; None where there is none.
      problems: sentences, besides those of the runs.
    """

    path: Path
    kind: str
    runs: list[RunFiles]
    results: list[dict[str, str]] = field(default_factory=list)
    comparisons: list[dict[str, str]] = field(default_factory=list)
    log: list[str] | None = None
    problems: list[str] = field(default_factory=list)


@cache
def defaults() -> dict[str, Any]:
    """Dotted field -> its default, as JSON has it."""
    return json.loads(json.dumps(flatten(base()), default=str))


def read_workdir(path: str | Path, *, name: str = "") -> Workdir:
    """Reads what is there.

    Args:
      path: of a run, of stages or of a study.
      name: of it in the report; of runs inside a prefix. "" is the folder's name, and no prefix.

    Raises:
      ConfigError: no such folder, or one that holds no run.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise ConfigError(f'"{path}" is not a folder. Give the --workdir of a run or a study.')
    inside = {p.parent for pattern in (CONFIG, METRICS) for p in path.glob(f"*/{pattern}")}
    prefix, problems = (f"{name}/" if name else ""), []
    if (path / "results.csv").exists() or (path / "grid.json").exists():
        units = {p.parent for pattern in (CONFIG, METRICS) for p in path.glob(f"runs/*/*/{pattern}")}
        runs = [
            read_run(p, prefix + str(p.relative_to(path)).removeprefix("runs/"))
            for p in (*_in_order(path, inside), *sorted(units))
        ]
        tables = [_read_csv(path / file, problems) for file in ("results.csv", "comparisons.csv")]
        return Workdir(path, STUDY, runs, *tables, log=_read_lines(path / LOG), problems=problems)
    if any((path / file).exists() for file in (CONFIG, METRICS, RESULT, "checkpoints")):
        run = read_run(path, name or path.resolve().name)
        kind = POPULATION if run.config.get("population") or run.members else RUN
        return Workdir(path, kind, [run])
    if not inside:
        raise ConfigError(
            f'"{path}" holds no run: no {CONFIG}, {METRICS} or results.csv, nor folders with them. Give the --workdir '
            "of a run or a study."
        )
    runs = [read_run(p, prefix + p.name) for p in _in_order(path, inside)]
    return Workdir(path, STAGES, runs, log=_read_lines(path / LOG))


def _in_order(path: Path, folders: set[Path]) -> list[Path]:
    """Folders of stages in the order in which they ran, as far as summary.json or the age of their configs tells."""
    summary = _read_json(path / "summary.json", [], wanted=False).get("stages")
    known = list(summary) if isinstance(summary, dict) else []

    def rank(folder: Path) -> tuple[int, float, str]:
        try:
            age = (folder / CONFIG).stat().st_mtime
        except OSError:
            age = 0.0
        return (known.index(folder.name) if folder.name in known else len(known)), age, folder.name

    return sorted(folders, key=rank)


def read_run(path: Path, name: str) -> RunFiles:
    """The files of the run in `path`."""
    problems: list[str] = []
    meta = _checkpoint_meta(path)
    config = _read_json(path / CONFIG, problems, wanted=True)
    if not config and isinstance(meta.get("config"), dict):
        config = meta["config"]
        problems.append("The config is that of the newest checkpoint.")
    result = _read_json(path / RESULT, problems, wanted=False)
    starts = _read_json(path / ENVIRONMENT, problems, wanted=False).get("starts")
    rows: dict[str, Rows] = {"train": [], "eval": []}
    try:
        rows = {kind: read_rows(path / METRICS, kind) for kind in rows}
        if not (path / METRICS).exists() and "population" not in result:
            problems.append(f"{METRICS} is missing: there are no curves.")
    except OSError as error:
        problems.append(f"{METRICS} cannot be read ({error.strerror or error}): there are no curves.")
    versions = meta.get("versions")
    return RunFiles(
        name=printable(name),
        path=path,
        config=_flat(config, base()),
        result=result,
        train=rows["train"],
        evaluations=rows["eval"],
        starts=[s for s in starts if isinstance(s, dict)] if isinstance(starts, list) else [],
        versions=versions if isinstance(versions, dict) else {},
        log=_read_lines(path / LOG),
        problems=problems,
        running=is_locked(path / LOCK),
    )


def _flat(config: Mapping[str, Any], known: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted names; a dictionary that is the value of a field, such as a schedule, stays whole."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = known.get(name) if isinstance(known, ConfigDict) else None
        if isinstance(value, dict) and isinstance(inner, ConfigDict):
            found |= _flat(value, inner, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _checkpoint_meta(path: Path) -> dict[str, Any]:
    """Metadata of the newest checkpoint; {} where none can be read."""
    for folder in sorted(path.glob("checkpoints/[0-9]*"), key=lambda p: (len(p.name), p.name), reverse=True):
        if meta := _read_json(folder / "meta" / "metadata", [], wanted=False):
            return meta
    return {}


def _read_json(path: Path, problems: list[str], *, wanted: bool) -> dict[str, Any]:
    """An object of JSON; {} and perhaps a sentence where there is none."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        return content
    except FileNotFoundError:
        if wanted:
            problems.append(f"{path.name} is missing.")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read ({' '.join(str(error).split())[:120]}).")
    return {}


def _read_csv(path: Path, problems: list[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return [{str(k): str(v) for k, v in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, csv.Error) as error:
        problems.append(f"{path.name} cannot be read ({error}).")
        return []


def _read_lines(path: Path) -> list[str] | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
