"""HTML page of work directories: what was run, results, curves, environment and warnings, side by side."""

from __future__ import annotations

import math
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxkd.report import run_curves
from jaxkd.report.html import DASH, Section, Table, side_by_side, write_page
from jaxkd.report.plan import Figure
from jaxkd.report.results import join_words, shorten
from jaxkd.report.run_files import ENVIRONMENT, LOG, STAGES, STUDY, RunFiles, Workdir, defaults, read_workdir
from jaxkd.report.training_curves import read_bicubic

MOST_CURVES = 12  # runs whose curves share a figure
MOST_COLUMNS = 8  # runs beside one another in a table; of further ones a sentence tells
MOST_MESSAGES = 20
OLDER = "older versions wrote none, or training has not begun"
LONG = 120  # characters of a value
MESSAGE = re.compile(r"\S+ \S+ ((?:warning|error|critical): .*)")
SCORES = {"top1": "top-1 (%)", "retrieval_top5": "retrieval top-5 (%)"}


def write_run_report(paths: Sequence[str | Path], out: Path) -> list[str]:
    """Writes one page of all work directories to a file.

    Args:
      paths: of runs, populations, stages or studies.
      out: ends in .html; its folder is made where it is missing, and an old file is replaced.

    Returns:
      Sentences, which the page has too: how stopped runs are continued, then what could not be shown.

    Raises:
      ConfigError: a path is no work directory.
    """
    given = [Path(path).expanduser() for path in paths]
    names = _names(given) if len(given) > 1 else [""]
    folders = [read_workdir(path, name=name) for path, name in zip(given, names, strict=True)]
    runs = [run for folder in folders for run in folder.runs]
    stopped = [(run.name, _how_to_continue(run)) for run in runs if run.state.startswith("stopped")]
    problems = [(run.name, text) for run in runs for text in run.problems]
    problems += [(str(folder.path), text) for folder in folders for text in folder.problems]
    with tempfile.TemporaryDirectory() as temporary:
        figures, missing = _figures(folders, runs, Path(temporary))
        problems += missing
        sections = [
            Section(
                "Result",
                notes=stopped,
                tables=[*_study_tables(folders), _results(runs), *(_members(run) for run in runs if run.members)],
            ),
            Section("Curves", figures=figures),
            Section("Networks", tables=[_networks(runs)]),
            _commands(runs),
            Section("Fields of the config", tables=_fields(runs)),
            _environment(runs),
            Section("Warnings and errors", notes=_messages(folders, runs)),
            Section("Not in this report", notes=problems),
        ]
        facts = [_kinds(folders), f"{sum(r.state == 'finished' for r in runs)} of {len(runs)} runs finished"]
        title = f"Training of {join_words(shorten(f.path.resolve().name, 40) for f in folders)}"
        write_page(out, title, facts, sections)
    return [f"{name}: {text}" for name, text in (*stopped, *problems)]


def _how_to_continue(run: RunFiles) -> str:
    command = run.continuation or "the command that started it"
    return f"{run.state}; continue with: {command}"


def _names(paths: Sequence[Path]) -> list[str]:
    """For each path, its shortest end that no other path has."""
    parts, names = [path.resolve().parts for path in paths], []
    for place, own in enumerate(parts):
        others = [p for i, p in enumerate(parts) if i != place]
        lengths = (n for n in range(1, len(own)) if all(p[-n:] != own[-n:] for p in others))
        length = next(lengths, 0)
        names.append("/".join(own[-length:]) if length else f"{paths[place]} ({place + 1})")
    return names


def _kinds(folders: Sequence[Workdir]) -> str:
    words = {STAGES: "stages", STUDY: "a study"}
    return ", ".join(f"{folder.path} ({words.get(folder.kind, f'a {folder.kind}')})" for folder in folders)


def _text(value: Any) -> str:
    """A field's value on one line."""
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."


def _score(value: Any) -> str:
    if isinstance(value, list):
        numbers = [v for v in value if isinstance(v, int | float) and math.isfinite(v)]
        return f"{statistics.fmean(numbers):.2f} (mean)" if numbers else DASH
    return f"{value:.2f}" if isinstance(value, int | float) else DASH


def _latest(run: RunFiles) -> Mapping[str, Any]:
    """The last scores of a run: of its result, or of its last evaluation."""
    metrics = run.result.get("metrics")
    return metrics if isinstance(metrics, dict) and metrics else (run.evaluations[-1] if run.evaluations else {})


def _results(runs: Sequence[RunFiles]) -> Table:
    """A row for each run: where it is, and its scores."""
    latest = {run.name: _latest(run) for run in runs}
    scores = list(dict.fromkeys(s for m in latest.values() if m for s in run_curves.scores_in([m])))
    averaged = [s for s in scores if any(run_curves.EMA + s in m for m in latest.values())]
    head = ["run", "state", "step"]
    for score in scores:
        title = SCORES.get(score, score)
        head += [title, *([f"{title}, EMA"] if score in averaged else []), f"best {title}"]
    rows = []
    for run in runs:
        metrics = latest[run.name]
        cells: list[str] = [
            run.state,
            f"{run.step:,}" + (f" of {run.total:,}" if run.total not in (0, run.step) else ""),
        ]
        for score in scores:
            cells.append(_score(metrics.get(score)))
            if score in averaged:
                cells.append(_score(metrics.get(run_curves.EMA + score)))
            cells.append(_best(run, score))
        seconds, trained = run.result.get("seconds"), run.result.get("train_images")
        cells += [_duration(seconds), f"{trained:,}" if isinstance(trained, int) else DASH]
        rows.append([(run.name, str(run.path)), *cells])
    return Table([*head, "time", "training images"], rows, "Runs" if len(runs) > 1 else "", folded=len(runs) > 30)


def _best(run: RunFiles, score: str) -> str:
    best, step = run.result.get(f"best_{score}"), run.result.get("best_step")
    if best is None:
        rows = [(row[score], row["step"]) for row in run.evaluations if isinstance(row.get(score), int | float)]
        best, step = max(rows, default=(None, None))
    return DASH if best is None else f"{_score(best)} at {step:,}" if isinstance(step, int) else _score(best)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return DASH
    hours, minutes, rest = int(seconds) // 3600, int(seconds) // 60 % 60, seconds % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02.0f} s" if minutes else f"{rest:.1f} s"


def _members(run: RunFiles) -> Table:
    """The members of a population."""
    rows = []
    for member in run.members:
        metrics = member.get("metrics") if isinstance(member.get("metrics"), dict) else {}
        diverged = member.get("diverged_at_step")
        best, step = _score(member.get("best_top1")), member.get("best_step")
        rows.append(
            [
                str(member["name"]),
                _score(member.get("top1")),
                _score(metrics.get("ema_top1")),
                f"{best} at {step:,}" if isinstance(step, int) else best,
                f"step {diverged:,}" if isinstance(diverged, int) else DASH,
            ]
        )
    title = f"{run.name}: {len(rows)} members"
    return Table(["member", "top-1 (%)", "EMA", "best", "diverged"], rows, title, folded=len(rows) > 12)


def _study_tables(folders: Sequence[Workdir]) -> list[Table]:
    """Means over seeds, and the declared comparisons, as results.csv and comparisons.csv have them."""
    tables = []
    for folder in folders:
        groups: dict[str, list[dict[str, str]]] = {}
        for row in folder.results:
            groups.setdefault(f"{row.get('group')}/{row.get('name')}", []).append(row)
        rows = []
        for name, found in groups.items():
            scores = [s for s in (_float(row.get("top1")) for row in found) if math.isfinite(s)]
            best = [s for s in (_float(row.get("best_top1")) for row in found) if math.isfinite(s)]
            spread = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else DASH
            rows.append([name, str(len(found)), _score(scores), spread, _score(best)])
        if rows:
            head = ["group/run", "seeds", "top-1 (%)", "sd over seeds", "best top-1 (%)"]
            tables.append(Table(head, rows, f"Study {folder.path.name}: means over seeds"))
        tested = []
        for row in folder.comparisons:
            numbers = {k: _float(row.get(k)) for k in ("difference", "low", "high", "p_t_holm", "p_sign_flip_holm")}
            cells = [
                DASH if math.isnan(v) else f"{v:+.2f}" if k in ("difference", "low", "high") else f"{v:.3g}"
                for k, v in numbers.items()
            ]
            tested.append([str(row.get("name")), str(row.get("pairs")), *cells])
        if tested:
            head = ["comparison", "pairs", "difference (points)", "low", "high", "p (t, Holm)", "p (flips, Holm)"]
            tables.append(Table(head, tested, "Paired differences with 95 % intervals"))
    return tables


def _float(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _figures(
    folders: Sequence[Workdir], runs: Sequence[RunFiles], folder: Path
) -> tuple[list[Figure], list[tuple[str, str]]]:
    """(figures, (name, sentence) of what was not drawn)."""
    figures, missing = [], []
    for study in folders:
        if study.kind == STUDY and (study.path / "study.png").is_file():
            png = study.path / "study.png"
            figures.append(
                Figure(
                    "study",
                    f"Study {study.path.name}",
                    "Curves",
                    png,
                    None,
                    "Shows: means over seeds with intervals, every seed as a dot.",
                )
            )
    shown = [run for run in runs if run.train or run.evaluations][:MOST_CURVES]
    if len(shown) < len(runs):
        left = [run.name for run in runs if run not in shown and (run.train or run.evaluations)]
        missing += [("Curves", f"left out, more than {MOST_CURVES} runs: {', '.join(left)}")] if left else []
    try:
        curves = [c for run in shown for c in _curves(run, alone=len(runs) == 1)]
        if curves:
            png = folder / run_curves.FILE
            run_curves.draw_curves(curves, png)
            text = "Shows: loss, held-out scores and learning rate over the optimiser steps, as metrics.jsonl has them."
            figures.append(Figure("curves", "Training", "Curves", png, None, text))
    except Exception as error:  # the rest of the page is worth having
        missing.append(("Curves", f"not drawn ({type(error).__name__}: {' '.join(str(error).split())[:200]})"))
    return figures, missing


def _curves(run: RunFiles, *, alone: bool) -> list[run_curves.Curve]:
    """Curves of a run; beside others the lines of members have its name too."""
    found = run_curves.curves_of(run.name, run.train, run.evaluations, run.members, read_bicubic(run.path))
    if alone:
        return found
    return [replace(c, run=f"{run.name}: {c.run}") if c.run not in (run.name, "bicubic") else c for c in found]


def _networks(runs: Sequence[RunFiles]) -> Table:
    """Task, networks and data of each run."""
    rows = []
    for run in (r for r in runs if r.config):
        value = run.config.get
        parameters = run.result.get("parameters")
        rows.append(
            [
                (run.name, str(value("task") or "")),
                f"{value('student.name')}" + (f", {parameters:,} parameters" if isinstance(parameters, int) else ""),
                str(value("student.weights") or "random"),
                str(value("teacher.name") or DASH) if value("task") == "distillation" else DASH,
                str(value("teacher.weights") or DASH) if value("task") == "distillation" else DASH,
                str(value("data.source") or DASH),
            ]
        )
    head = ["run", "student", "its weights", "teacher", "its weights", "data"]
    return Table(head, rows, words=True, folded=len(rows) > 30, title="Networks of all runs" if len(rows) > 30 else "")


def _commands(runs: Sequence[RunFiles]) -> Section:
    """The commands of the newest starts, each once."""
    commands = dict.fromkeys(str(run.starts[-1].get("command") or "") for run in runs if run.starts)
    unknown = [run.name for run in runs if not run.starts]
    notes = (
        [
            (
                "Not recorded",
                f"{', '.join(unknown[:MOST_COLUMNS])}: no {ENVIRONMENT}; {OLDER}",
            )
        ]
        if unknown
        else []
    )
    lines = [command.replace(" --", " \\\n    --") for command in commands if command]  # a shell takes it as it stands
    return Section("Command", command="\n".join(lines), notes=notes)


def _fields(runs: Sequence[RunFiles]) -> list[Table]:
    """Fields that differ between runs, fields that differ from the defaults, and all others, folded."""
    known = defaults()
    shown = [run for run in runs if run.config][:MOST_COLUMNS]
    names = list(dict.fromkeys([*known, *(n for run in shown for n in run.config)]))
    values = {name: [run.config.get(name, known.get(name)) for run in shown] for name in names}
    if not shown:
        return []

    def default_text(name: str) -> str:
        return _text(known[name]) if name in known else "the network's own"

    differing = {n: v for n, v in values.items() if any(one != v[0] for one in v)}
    changed = {n: v[0] for n, v in values.items() if n not in differing and (n not in known or v[0] != known[n])}
    same = {n: v[0] for n, v in values.items() if n not in differing and n not in changed}
    tables = []
    if differing:
        more = f" Of {len(runs)} runs the first {len(shown)}." if len(shown) < len(runs) else ""
        head = ["field", *(run.name for run in shown), "default"]
        rows = [[n, *map(_text, v), default_text(n)] for n, v in differing.items()]
        tables.append(Table(head, rows, "Fields that differ between the runs", more.strip(), words=True))
    rows = [[n, _text(v), default_text(n)] for n, v in changed.items()]
    everywhere = " and are the same in all runs" if len(shown) > 1 else ""
    tables.append(
        Table(["field", "value", "default"], rows, f"Fields that differ from the defaults{everywhere}", words=True)
    )
    rows = [[n, _text(v)] for n, v in same.items()]
    tables.append(Table(["field", "value"], rows, f"{len(rows)} fields have their defaults", folded=True, words=True))
    return tables


def _environment(runs: Sequence[RunFiles]) -> Section:
    """Machine, versions, time and throughput of each run."""
    shown = list(runs)[:MOST_COLUMNS]
    newest = [run.starts[-1] if run.starts else {} for run in shown]
    recorded = [
        start.get("versions") if isinstance(start.get("versions"), dict) else run.versions
        for run, start in zip(shown, newest, strict=True)
    ]

    def row(title: str, detail: str, cells: Iterable[Any]) -> tuple[str, str, list[str]]:
        return title, detail, [_cell_text(cell) for cell in cells]

    rows = [
        row("First start", "", (run.starts[0].get("date") if run.starts else None for run in shown)),
        row("Starts", "", (len(run.starts) or None for run in shown)),
        row("Last continued after", "step", (_continued(start) for start in newest)),
        row("Device", "", (s.get("device") or r.result.get("device") for r, s in zip(shown, newest, strict=True))),
        row("Host", "", (start.get("host") for start in newest)),
        row("Processes", "", (start.get("processes") for start in newest)),
        row("CPUs of the host", "", (start.get("cpus") for start in newest)),
        row("System", "", (start.get("platform") for start in newest)),
        row("Python", "", (s.get("python") or v.get("python") for s, v in zip(newest, recorded, strict=True))),
        *(
            row(n, "version", (v.get(n) for v in recorded))
            for n in dict.fromkeys(n for v in recorded for n in v)
            if n != "python"
        ),
        row("Time in training", "", (_duration(_logged(run, "seconds")) for run in shown)),
        *(
            row(title, f"{unit}, median of the log", (_median(run, key) for run in shown))
            for title, unit, key in THROUGHPUT
        ),
    ]
    more = [("", f"Of {len(runs)} runs the first {len(shown)}.")] if len(shown) < len(runs) else []
    return Section("Environment", paragraphs=more, tables=[side_by_side([run.name for run in shown], rows)])


def _continued(start: Mapping[str, Any]) -> Any:
    after = start.get("continues_after")
    return "it did not" if start and after is None else after


THROUGHPUT = (
    ("Throughput", "examples a second", "images_per_second"),
    ("Step", "ms", "step_ms"),
    ("Waiting for data", "%", "data_wait_percent"),
)


def _cell_text(value: Any) -> str:
    return "not recorded" if value in (None, DASH) else str(value) or DASH


def _logged(run: RunFiles, name: str) -> Any:
    """A value of the result, or of the last row that has it."""
    return run.result.get(name) or next((row[name] for row in reversed(run.train) if name in row), None)


def _median(run: RunFiles, name: str) -> str | None:
    values = [row[name] for row in run.train if isinstance(row.get(name), int | float)]
    return f"{statistics.median(values):,.1f}" if values else None


def _messages(folders: Sequence[Workdir], runs: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """Warnings and errors of the logs, equal ones once, the newest of each run."""
    notes: list[tuple[str, str]] = []
    logs = [(run.name, run.log) for run in runs]
    logs += [(f.path.name, f.log) for f in folders if f.kind in (STAGES, STUDY) and f.log is not None]
    without = [name for name, log in logs if log is None]
    seen: set[str] = set()
    for name, log in ((n, log) for n, log in logs if log is not None):
        counts = Counter(m[1] for m in map(MESSAGE.fullmatch, log) if m)
        new = {text: count for text, count in counts.items() if text not in seen}
        seen |= new.keys()
        for text, count in list(new.items())[-MOST_MESSAGES:]:
            notes.append((name, shorten(text, 600) + (f" ({count} times)" if count > 1 else "")))
        if len(new) > MOST_MESSAGES:
            notes.append((name, f"{len(new) - MOST_MESSAGES} earlier ones stand in {LOG}"))
    if without:
        notes.append(
            (
                "Not recorded",
                f"{', '.join(without[:MOST_COLUMNS])}: there is no {LOG}; {OLDER}",
            )
        )
    return notes or [("", f"None in {LOG}.")]
