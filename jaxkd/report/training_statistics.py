"""Tables and pictures of layer statistics over training: one CSV and one PNG per statistic.

The lines of kind "dynamics" in metrics.jsonl are the source; everything here is made from them anew, so that a resumed
run cannot leave a table with a row missing or twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.analysis.layer_statistics import LAYER_STATISTICS, LayerStatistic
from jaxkd.report import style
from jaxkd.report.tables import write_csv

Rows = Sequence[dict[str, Any]]
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # lines over depth: so many moments


def statistics_of(rows: Rows) -> tuple[str, ...]:
    """The statistics that `rows` hold, in their order."""
    names = (name for row in rows for name, value in row.items() if isinstance(value, list) and name != "layers")
    return tuple(dict.fromkeys(names))


def layers_of(rows: Rows) -> tuple[str, ...]:
    """Every layer in `rows`; those of the last row first, in its order."""
    return tuple(dict.fromkeys(layer for row in reversed(rows) for layer in row["layers"]))


def write_tables(rows: Rows, folder: Path) -> list[Path]:
    """Writes `<statistic>.csv` for each statistic: `step,epoch,<layer>,<layer>,...`, a row per observed step.

    The published tables have `Checkpoint,Layer_1,...,Layer_12`; here the first two columns say when, and layers have
    the names that `taps` and `distill.pairs` take ("block_0" is Layer_1). Values that are not finite are "nan", "inf"
    or "-inf"; a layer that a row does not have is left empty. `rows` are `{"step": 100, "epoch": 0.5, "layers":
    ["block_0", ...], "entropy": [2.4, ...], ...}` by step, as `train.read_metrics(workdir, "dynamics")` gives them.

    Returns:
      The files; none for no rows.
    """
    layers, written = layers_of(rows), []
    for name in statistics_of(rows):
        table = ([row["step"], row.get("epoch"), *_cells(row, name, layers)] for row in rows)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.csv"
        written.append(write_csv(path, ["step", "epoch", *layers], table))
    return written


def _cells(row: dict[str, Any], name: str, layers: tuple[str, ...]) -> list[Any]:
    known = dict(zip(row["layers"], row.get(name, ()), strict=False))
    return [known.get(layer, "") for layer in layers]


def draw_tables(rows: Rows, folder: Path, *, caption: str = "") -> list[Path]:
    """Writes `<statistic>.png` for each statistic: a map of layer against step, and the profile over depth at times.

    Returns:
      The files; none for no rows.
    """
    names, layers = statistics_of(rows), layers_of(rows)
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        values = [[_number(v) for v in _cells(row, name, layers)] for row in rows]
        _draw(name, values, rows, layers, folder / f"{name}.png", caption)
    return [folder / f"{name}.png" for name in names]


def _number(value: Any) -> float:
    """Of a number, "nan", or nothing; infinity has no place on an axis either."""
    number = float(value) if value != "" else math.nan
    return number if math.isfinite(number) else math.nan


@style.applied()
def _draw(name: str, values: list[list[float]], rows: Rows, layers: tuple[str, ...], path: Path, caption: str) -> None:
    import matplotlib
    from matplotlib.colors import LogNorm

    statistic = LAYER_STATISTICS.get(name, LayerStatistic(name.replace("_", " "), ""))
    title, unit = statistic.label.capitalize(), statistic.unit
    # A gradient is exactly 0 where a layer's tokens do not reach the loss: a gap on a logarithmic axis.
    known = [v for row in values for v in row if v > 0]
    logarithmic = statistic.logarithmic and len(set(known)) > 1
    if logarithmic:
        values = [[v if v > 0 else math.nan for v in row] for row in values]
    figure, axes = style.panels(2, width=6.25, height=3.7, width_ratios=(1.15, 1))
    # A colour map whose lightness is monotone: it survives a printer without colours.
    norm = LogNorm(min(known), max(known)) if logarithmic else None
    by_layer = [list(column) for column in zip(*values, strict=True)]
    shown = style.heat_map(axes[0], by_layer, cmap="viridis", norm=norm)
    figure.colorbar(shown, ax=axes[0], label=unit)
    ticks = _spread(len(rows), 7)
    axes[0].set_xticks(ticks, [f"{rows[i]['step']:,}\n{_epoch(rows[i])}" for i in ticks])
    every = _spread(len(layers), 14)
    axes[0].set_yticks(every, [layers[i] for i in every])
    axes[0].set(xlabel="step, and epoch below", title=title)
    moments = _spread(len(rows), len(DASHES))
    for place, (i, dash) in enumerate(zip(moments, DASHES, strict=False)):
        colour = matplotlib.colormaps["viridis"](0.85 * (1 - place / max(len(moments) - 1, 1)))  # later is darker
        label = f"step {rows[i]['step']:,}" + (f", epoch {_epoch(rows[i])}" if "epoch" in rows[i] else "")
        axes[1].plot(range(len(layers)), values[i], linestyle=dash, color=colour, label=label, marker=".")
    axes[1].set_xticks(every, [layers[i] for i in every], rotation=60, ha="right", fontsize=8)
    axes[1].set(xlabel="layer", ylabel=unit, title="Over depth", yscale="log" if logarithmic else "linear")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if caption:
        figure.supxlabel(caption, fontsize=8, color="#555555")
    style.write_figure(figure, path, dpi=130)


def _epoch(row: dict[str, Any]) -> str:
    return f"{row['epoch']:g}" if "epoch" in row else ""


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of 0 ... count - 1, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
