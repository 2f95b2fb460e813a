"""Time per operation from the trace that jax.profiler writes, without TensorFlow."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
MOST_EVENTS = 1_000_000  # that JAX writes into such a file; it drops the others


@dataclass
class Operation:
    """Time and calls of one HLO operation in a trace.

    Attributes:
      name: of the operation; of the kernel, where the trace does not know the operation.
      where: its path in the program; "".
      kernel: name of the event.
      microseconds: of all its calls.
      calls: how many.
    """

    name: str
    where: str = ""
    kernel: str = ""
    microseconds: float = 0.0
    calls: int = 0


def newest_trace(folder: str | Path) -> Path:
    """The newest `*.trace.json.gz` below the folder that was given to jax.profiler.trace.

    Raises:
      FileNotFoundError: there is none.
    """
    files = sorted(Path(folder).rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"no *.trace.json.gz below {folder}")
    return files[-1]


def read_events(folder: str | Path) -> list[Event]:
    """Events of `newest_trace(folder)`.

    Raises:
      FileNotFoundError: there is none.
    """
    with gzip.open(newest_trace(folder), "rt") as file:
        return json.load(file)["traceEvents"]


def device_events(events: Iterable[Event]) -> list[Event]:
    """The events that are work of the device.

    On a GPU those on the lines called "Stream ..." of a device: kernels and copies. Other lines of a device repeat them
    by module or step. On a TPU those on the lines "XLA Ops". On a CPU, which has no such lines, the events that carry
    the name of an HLO operation.
    """
    events = list(events)
    lines = _lines(events, "Stream") or _lines(events, "XLA Ops")
    complete = [event for event in events if event.get("ph") == "X"]
    if lines:
        return [event for event in complete if (event["pid"], event["tid"]) in lines]
    return [event for event in complete if "hlo_op" in event.get("args", {})]


def _lines(events: Iterable[Event], prefix: str) -> set[tuple[Any, Any]]:
    """(pid, tid) of the lines of a trace whose name begins with `prefix`."""
    names = (event for event in events if event.get("ph") == "M" and event.get("name") == "thread_name")
    return {(event["pid"], event.get("tid")) for event in names if str(event["args"]["name"]).startswith(prefix)}


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


def operations(events: Iterable[Event], sources: Mapping[str, str], *, module: str = "") -> list[Operation]:
    """Work of the device by operation, in the order of the trace.

    Args:
      events: of the trace.
      sources: from `source_names`; {} is allowed.
      module: name of the compiled program that counts, such as "jit_step_fn"; "": all. Events without the name
        of a program count.
    """
    found: dict[str, Operation] = {}
    events = list(events)
    work = device_events(events)
    # Kernels of a stream are not nested, but the next one may begin before the last one has quite ended.
    times = [(e, float(e["dur"])) for e in work] if _lines(events, "Stream") else self_times(work)
    for event, microseconds in times:
        args = event.get("args", {})
        if module and not str(args.get("hlo_module") or module).startswith(module):
            continue
        name = str(args.get("hlo_op") or event["name"])
        if name.startswith("command_buffer"):  # a CUDA graph: only the kernel's name says which operation it is
            name = str(event["name"])
        one = found.setdefault(name, Operation(name))
        one.where = sources.get(name) or sources.get(str(event["name"])) or str(args.get("name") or "")
        one.kernel = str(event["name"])
        one.microseconds += microseconds
        one.calls += 1
    return list(found.values())


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
    found = operations(events, sources)
    groups: dict[str, Operation] = {}
    for one in found:
        group = groups.setdefault(name := _group(one.where or one.kernel), Operation(name))
        group.microseconds += one.microseconds
        group.calls += one.calls
    total = sum(one.microseconds for one in found)

    def row(one: Operation, key: str) -> dict[str, Any]:
        return {
            key: one.name,
            "ms_per_step": round(one.microseconds / 1e3 / steps, 4),
            "share": round(one.microseconds / total, 4) if total else 0.0,
            "calls_per_step": round(one.calls / steps, 2),
        }

    def largest(of: Iterable[Operation]) -> list[Operation]:
        return sorted(of, key=lambda one: -one.microseconds)[:count]

    rows = []
    for one in largest(found):
        rows.append(row(one, "operation") | {"where": one.where})
        if one.kernel != one.name:
            rows[-1]["kernel"] = one.kernel[:120]
    return {
        "busy_ms_per_step": round(total / 1e3 / steps, 4),
        "operations": rows,
        "groups": [row(one, "where") for one in largest(groups.values())],
    }


def _group(place: str) -> str:
    """Numbers as *, and without the wrappers of jit, so that equal layers of a network are one group."""
    place = re.sub(r"^(jit\([^()]*\)/)+", "", place)
    return re.sub(r"\d+", "*", place)
