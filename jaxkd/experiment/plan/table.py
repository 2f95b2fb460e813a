"""The plan of a train step as text."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

MEMORY = {
    "parameters": "parameters",
    "optimizer": "optimiser",
    "ema": "EMA",
    "teacher": "teacher",
    "batch": "batch",
    "activations": "activations and other temporaries",
    "padding_and_others": "padding and others",
    "peak": "peak",
}


def size(count: float) -> str:
    """1,234,567 -> "1.23 MB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count:,.0f} B"


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Prints a plan of `make_plan`."""
    networks = " <- ".join(name for name in (plan["student"], plan["teacher"]) if name)
    classes = f", {plan['classes']} classes" if plan["classes"] else ""
    slices = f", {plan['slices']} slices" if plan["slices"] > 1 else ""
    console.print(
        f"{plan['task']} of {networks}{classes}, {plan['dtype']}, batch {plan['batch_size']:,} on "
        f"{plan['chips']} x {plan['chip']}{slices} ({plan['batch_per_chip']:g} a chip; mesh "
        f"{' x '.join(f'{name} {count}' for name, count in plan['mesh'].items())})",
        highlight=False,
    )
    console.print(_memory(plan))
    if plan["flops_per_image"]:
        console.print(_work(plan))
        console.print(_collectives(plan))
        console.print(_operations(plan))
    given = plan["input"]
    if given:
        cores = f"{given['cores']:,} ({given['cores_per_host']} a host)" if given["cores"] else "not known"
        hosts = "the host has" if plan["hosts"] == 1 else f"the {plan['hosts']:,} hosts have"
        console.print(
            f"Input: {given['images_per_second']:,.0f} images/s at {given['cpu_ms_per_image']} ms of CPU an image need "
            f"{given['cores_needed']:,} cores; {hosts} {cores}"
            f"{', assumed; --host-cores changes it' if given['cores_assumed'] else ''}.",
            highlight=False,
        )
    if "search" in plan:
        largest = plan["largest_batch"]
        tried = "; ".join(
            f"{row['batch_size']:,}: {row['peak_bytes'] / 2**30:.2f} GiB{'' if row['fits'] else ' (too large)'}, "
            f"{row['seconds']:.0f} s"
            for row in plan["search"]
        )
        found = f"{largest:,}" if largest else "none that was tried"
        full = plan["memory_full_at"]
        full = f" By the line through the two largest, memory is full at {full:,} (not compiled)." if full else ""
        console.print(f"Largest batch that was compiled and fits: {found}.{full} Compiled: {tried}.", highlight=False)
    for note in plan["notes"]:
        console.print(note, highlight=False)
    code = f"; {plan['code_bytes'] / 1e6:.1f} MB of machine code" if plan["code_bytes"] else ""
    console.print(f"Compiled in {plan['compile_seconds']} s with jax {plan['jax']}{code}.", highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


def _memory(plan: dict[str, Any]) -> Table:
    table, memory = _table("memory of a chip", "bytes", "share of it"), plan["memory"]
    for name, title in MEMORY.items():
        share = f"{memory[name] / memory['room']:.1%}" if memory["room"] else ""
        table.add_row(title, size(memory[name]), share)
    if memory["room"]:
        table.add_row("what a program may use", size(memory["room"]), "")
    return table


def _work(plan: dict[str, Any]) -> Table:
    table = _table("work", "an image", "a chip and step", "at least")
    images = plan["batch_per_chip"]
    times = plan["roofline_ms"] or {}

    def time(name: str) -> str:
        if name not in times:
            return ""
        return f"{times[name]:.3g} ms" + (" (binds)" if times["binds"] == name else "")

    names = ("flops", "matrix_flops", "bytes", "hbm_bytes")
    flops, products, every, traffic = (plan[f"{name}_per_image"] for name in names)
    table.add_row("arithmetic", f"{flops / 1e9:.3g} GFLOP", f"{flops * images / 1e12:.3g} TFLOP", "")
    table.add_row(
        "of these in matrix products",
        f"{products / 1e9:.3g} GFLOP",
        f"{products * images / 1e12:.3g} TFLOP",
        time("compute"),
    )
    table.add_row("bytes read and written", size(every), size(every * images), "")
    table.add_row("of these in its main memory", size(traffic), size(traffic * images), time("memory"))
    sent = sum(row["bytes"] for row in plan["collectives"])
    table.add_row("collectives", "", size(sent), time("interconnect"))
    if plan["images_per_second_bound"]:
        table.add_row("upper bound", f"{plan['images_per_second_bound']:,.0f} images/s", "", "")
    return table


def _collectives(plan: dict[str, Any]) -> Table:
    table = _table("collectives of a step", "count", "bytes of a chip")
    for row in plan["collectives"]:
        kind = "send (between slices)" if row["kind"] == "send" else row["kind"]
        table.add_row(kind, f"{row['count']:,}", size(row["bytes"]))
    if not plan["collectives"]:
        table.add_row("none", "", "")
    return table


def _operations(plan: dict[str, Any]) -> Table:
    table = _table("heaviest modules by bytes read and written", "operations", "bytes of a chip", "share")
    for row in plan["operations"]:
        table.add_row(row["module"], f"{row['count']:,}", size(row["bytes"]), f"{row['share']:.1%}")
    return table
