"""Time per operation from the trace that jax.profiler writes, without TensorFlow."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]


def read_events(folder: str | Path) -> list[Event]:
    """Events of the newest `*.trace.json.gz` below the folder that was given to jax.profiler.trace.

    Raises:
      FileNotFoundError: there is none.
    """
    files = sorted(Path(folder).rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no *.trace.json.gz below {folder}")
    with gzip.open(files[-1], "rt") as file:
        return json.load(file)["traceEvents"]


def device_events(events: Iterable[Event]) -> list[Event]:
    """The events that are work of the device.

    On a GPU those on the lines called "Stream ..." of a device: kernels and copies. Other lines of a device repeat them
    by module or step. On a CPU, which has no such lines, the events that carry the name of an HLO operation.
    """
    events = list(events)
    streams = _streams(events)
    complete = [event for event in events if event.get("ph") == "X"]
    if streams:
        return [event for event in complete if (event["pid"], event["tid"]) in streams]
    return [event for event in complete if "hlo_op" in event.get("args", {})]


def _streams(events: Iterable[Event]) -> set[tuple[Any, Any]]:
    """(pid, tid) of the lines of a trace that are streams of a GPU."""
    names = (event for event in events if event.get("ph") == "M" and event.get("name") == "thread_name")
    return {(event["pid"], event.get("tid")) for event in names if str(event["args"]["name"]).startswith("Stream")}


def self_times(events: Iterable[Event]) -> list[tuple[Event, float]]:
    """(event, microseconds without the events nested in it on the same line)."""
    lines = defaultdict(list)
    for event in events:
        lines[event["pid"], event["tid"]].append(event)
    out: list[tuple[Event, float]] = []
    for line in lines.values():
        line.sort(key=lambda event: (event["ts"], -event["dur"]))
        own = [float(event["dur"]) for event in line]
        open_events: list[int] = []
        for i, event in enumerate(line):
            while open_events and _end(line[open_events[-1]]) <= event["ts"]:
                open_events.pop()
            if open_events:
                own[open_events[-1]] -= event["dur"]
            open_events.append(i)
        out += zip(line, (max(0.0, value) for value in own), strict=True)
    return out


def _end(event: Event) -> float:
    return event["ts"] + event["dur"] - 1e-3  # the file rounds to nanoseconds


def source_names(hlo: str) -> dict[str, str]:
    """HLO operation -> the path of the operation in the program, from the text of a compiled program.

    A kernel bears the operation's name with other characters as "_", so that such names are keys too.
    """
    pattern = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*?metadata=\{[^}]*?op_name="([^"]*)"', re.MULTILINE)
    names = {}
    for name, path in pattern.findall(hlo):
        names.setdefault(name, path)
        names.setdefault(re.sub(r"\W", "_", name), path)
    return names


def top_operations(
    events: Iterable[Event], sources: Mapping[str, str], *, steps: int, count: int = 10
) -> dict[str, Any]:
    """The most expensive operations of a trace.

    Args:
      events: of the trace.
      sources: from `source_names`; {} is allowed.
      steps: traced steps, over which times are averaged.
      count: how many.

    Returns:
      "operations": single HLO operations (kernels where the trace does not know the operation); "groups": the same by
      place in the program with numbers as *, so that the blocks of a network count together; "busy_ms_per_step": sum
      over all operations.
    """
    operations: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    groups: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    where: dict[str, str] = {}
    kernels: dict[str, str] = {}
    events = list(events)
    work = device_events(events)
    # Kernels of a stream are not nested, but the next one may begin before the last one has quite ended.
    times = [(e, float(e["dur"])) for e in work] if _streams(events) else self_times(work)
    for event, microseconds in times:
        args = event.get("args", {})
        name = str(args.get("hlo_op") or event["name"])
        if name.startswith("command_buffer"):  # a CUDA graph: only the kernel's name says which operation it is
            name = str(event["name"])
        place = sources.get(name) or sources.get(str(event["name"])) or str(args.get("name") or "")
        where[name], kernels[name] = place, str(event["name"])
        for table, key in ((operations, name), (groups, _group(place or str(event["name"])))):
            table[key][0] += microseconds
            table[key][1] += 1
    total = sum(time for time, _ in operations.values())

    def rows(table: Mapping[str, list[float]], key: str) -> list[dict[str, Any]]:
        ranked = sorted(table.items(), key=lambda item: -item[1][0])[:count]
        return [
            {
                key: name,
                "ms_per_step": round(time / 1e3 / steps, 4),
                "share": round(time / total, 4) if total else 0.0,
                "calls_per_step": round(calls / steps, 2),
            }
            for name, (time, calls) in ranked
        ]

    ranked = rows(operations, "operation")
    for row in ranked:
        row["where"] = where[row["operation"]]
        if kernels[row["operation"]] != row["operation"]:
            row["kernel"] = kernels[row["operation"]][:120]
    return {
        "busy_ms_per_step": round(total / 1e3 / steps, 4),
        "operations": ranked,
        "groups": rows(groups, "where"),
    }


def _group(place: str) -> str:
    """Numbers as *, and without the wrappers of jit, so that equal layers of a network are one group."""
    place = re.sub(r"^(jit\([^()]*\)/)+", "", place)
    return re.sub(r"\d+", "*", place)
