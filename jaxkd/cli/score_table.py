"""Table of super-resolution scores: the network beside bicubic, set by set, and its cost."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from jaxkd.experiment.fitted_table import Column, FittedTable


def print_table(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints the scores, and the cost if it was measured, as a table that leaves out columns of a narrow terminal."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)  # a file does not wrap
    kinds = tuple(dict.fromkeys(name.rpartition("/")[2] for name in result["metrics"]))
    columns = [Column("set", justify="left"), Column("images", 8), Column("network", justify="left")]
    # Of several scores the first stays.
    columns += [Column(k + (" (dB)" if k.startswith("psnr") else ""), min(i, 3)) for i, k in enumerate(kinds)]
    cost = result.get("cost")
    cells: list[str] = []
    if cost is not None:
        cells = [f"{cost['parameters']:,}", f"{cost['gflop']:,.2f}", f"{cost['latency_ms']:,.1f}"]
        cells.append("-" if cost["memory_mb"] is None else f"{cost['memory_mb']:,.1f}")
        columns += [Column("parameters", 5), Column("GFLOP", 6), Column("ms", 4), Column("MB", 7)]
    table = FittedTable(escape(f"{result['model']}, {result['loaded']}"), columns)
    for name, images in result["images"].items():
        for row, scores in ((result["model"], result["metrics"]), ("bicubic", result["bicubic"])):
            values = [f"{float(scores[f'{name}/{k}']):.{2 if k.startswith('psnr') else 4}f}" for k in kinds]
            first = row != "bicubic"
            head = (escape(name), f"{images:,}") if first else ("", "")
            table.rows.append((*head, row, *values, *(cells if first else [""] * len(cells))))
    console.print(table)
    if cost is not None:
        height, width = cost["result"]
        console.print(
            f"GFLOP, ms and MB are for a result of {width} x {height} in one pass. GFLOP: {cost['flop_is']}. "
            f"ms: median of {cost['calls']} calls on {cost['device']}, {result['compute']}. MB: arguments, result and "
            "what the compiled program holds between.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
