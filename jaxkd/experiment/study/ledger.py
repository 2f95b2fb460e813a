"""The files of a study: results.csv with a row for each run, and measured times; every write is whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jaxkd import parallel
from jaxkd.data.files import write_atomic
from jaxkd.errors import CheckpointError
from jaxkd.experiment.study.grid import Grid, Run
from jaxkd.train.run_folder import differing_fields

RESULTS, GRID, TIMES = "results.csv", "grid.json", "times.json"


@dataclass
class Row:
    """One finished run; numbers that were not measured are NaN."""

    study: str  # part
    group: str
    name: str
    seed: int
    config_hash: str
    top1: float  # percent, raw weights, at the end
    best_top1: float  # percent, the best evaluation, as papers print
    best_step: int
    steps: int
    seconds: float  # of training; of a population, of all its members together
    images_seen: int
    train_images: int
    parameters: int
    population: int  # members that trained in the same program
    diverged_at_step: int  # -1: it did not
    teacher_agreement: float = math.nan  # percent of validation images with the teacher's first class
    cka_last: float = math.nan  # debiased linear CKA of the last layers
    effective_rank_last: float = math.nan  # of the last layer's tokens

    @property
    def key(self) -> str:
        """See `Run.key`."""
        return f"{self.group}/{self.name}/{self.seed}"


class Ledger:
    """Results and times of a study's work directory.

    Attributes:
      rows: finished runs by key.
      times: measured units, each `{"kind", "students", "wall", "seconds" (of its steps alone), "steps", "flop"}`.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.rows: dict[str, Row] = {row.key: row for row in read_results(workdir / RESULTS)}
        self.times: list[dict[str, Any]] = []
        try:
            self.times = json.loads((workdir / TIMES).read_text())
        except (OSError, ValueError):  # measured again
            self.times = []

    def check(self, grid: Grid) -> None:
        """Raises CheckpointError where the work directory holds results, or started runs, of another grid.

        Groups, members and seeds may be added to a study that has begun; what began must stay as it was.
        """
        known = {key: run.config_hash for key, run in grid.runs.items()}
        try:
            claimed = json.loads((self.workdir / GRID).read_text())
            started, images, config = dict(claimed["runs"]), claimed.get("images"), claimed.get("config")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            started, images, config = {}, None, None
        now, why = grid.config.study.images, ""
        if images not in (None, now):
            why = f" It compared last layers on {images} images (study.images), and now they are {now}."
        if isinstance(config, dict):  # earlier versions did not write it
            differing = differing_fields(config, _shared(grid), "then", "now", most=4)
            why += f" The configs differ in: {differing}." if differing else ""
        for row in self.rows.values():
            self._check_run(row.key, row.config_hash, known, self.workdir / RESULTS, why)
        for key, digest in started.items():
            if key in known:
                self._check_run(key, digest, known, self.workdir / GRID, why)

    def _check_run(self, key: str, digest: str, known: Mapping[str, str], path: Path, why: str) -> None:
        if known.get(key) == digest:
            return
        now = f"has the config {known[key]} now" if key in known else "is no run of this study"
        raise CheckpointError(
            f'"{path}" belongs to another grid: its run "{key}" (config {digest}) {now}.{why} Choose a new --workdir, '
            "or use the config and options that it was started with."
        )

    def claim(self, grid: Grid) -> None:
        """Writes which runs this work directory is about."""
        runs = {key: run.config_hash for key, run in grid.runs.items()}
        facts = {"kind": "jaxkd study", "images": grid.config.study.images, "runs": runs, "config": _shared(grid)}
        self._write(GRID, json.dumps(facts, indent=1, default=str))

    def add(self, rows: Iterable[Row], grid: Grid) -> None:
        """Adds rows and rewrites results.csv in declared order."""
        self.rows |= {row.key: row for row in rows}
        order = {key: place for place, key in enumerate(grid.runs)}
        self.rows = dict(sorted(self.rows.items(), key=lambda item: order.get(item[0], len(order))))
        self._write(RESULTS, table_text([asdict(row) for row in self.rows.values()]))

    def add_time(self, **measured: Any) -> None:
        """Adds the times of a unit that ran from its beginning to its end in one go."""
        self.times.append(measured)
        self._write(TIMES, json.dumps(self.times, indent=1))

    def _write(self, name: str, text: str) -> None:
        if parallel.is_main_host():
            write_atomic(self.workdir / name, text)

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """The runs without a row."""
        return [run for run in runs if run.key not in self.rows]


def _shared(grid: Grid) -> dict[str, Any]:
    """The config of a study without its grid."""
    return {name: value for name, value in grid.config.to_dict().items() if name != "study"}


def table_text(rows: list[dict[str, Any]]) -> str:
    """CSV of dicts with the same keys; floats with 6 significant digits, NaN as an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def read_results(path: Path) -> list[Row]:
    """Rows of a results.csv; [] where there is none.

    Raises:
      CheckpointError: a file of another form.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise CheckpointError(f'"{path}" cannot be read ({error}). Restore the file, or move it away.') from None
    rows = []
    for number, cells in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        try:
            rows.append(Row(**{f.name: _parse(f.type, cells[f.name]) for f in fields(Row)}))
        except (KeyError, ValueError, TypeError):
            raise CheckpointError(
                f'Line {number} of "{path}" is no result of this jaxkd. Restore the file, or choose a new --workdir.'
            ) from None
    return rows


def _parse(kind: Any, text: str) -> Any:
    if kind == "float":
        return float(text) if text else math.nan
    return int(text) if kind == "int" else text
