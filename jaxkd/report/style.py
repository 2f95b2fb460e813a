"""Style of all figures of the analysis: lines that survive greyscale, panels, legends outside, saving."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.files import atomic_file
from jaxkd.report import results as words
from jaxkd.report.results import Results, images_in_words, label_of, seed_in_words, shorten

DPI = 160
COLOUR_MAP = "cividis"  # its luminance rises monotonically, so that it prints in grey
# Colour, dash, marker, marker filled: any two differ in dash and marker, neighbours also in luminance.
STYLES = (
    ("#14285f", "-", "o", True),
    ("#d9673f", "--", "s", False),
    ("#1f6f54", "-.", "^", True),
    ("#c99a1a", ":", "D", False),
    ("#5b2f94", (0, (6, 1, 1, 1, 1, 1)), "v", True),
    ("#8a8a8a", (0, (3, 1)), "X", False),
)
SETTINGS = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.limits": (-3, 5),
    "grid.alpha": 0.3,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # text stays text in the PDF
}


@contextmanager
def applied() -> Iterator[None]:
    """Sets matplotlib's settings while a figure is drawn and saved; restores the caller's afterwards."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        yield


def plain(text: str, most: int = 26) -> str:
    """A name as matplotlib prints it literally: short, no mathematics, not hidden from legends by a leading "_"."""
    text = shorten(str(text), most).replace("\\", "\\\\").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def style(i: int, *, markers: bool = True) -> dict[str, Any]:
    """Keyword arguments of `plot` for the i-th of several lines."""
    colour, dash, marker, filled = STYLES[i % len(STYLES)]
    out: dict[str, Any] = {"color": colour, "linestyle": dash}
    if markers:
        out |= {"marker": marker, "markerfacecolor": colour if filled else "white", "markeredgecolor": colour}
    return out


def panels(
    count: int,
    *,
    columns: int = 3,
    width: float = 3.7,
    height: float = 3.1,
    layout: str = "constrained",
    **options: Any,
) -> tuple[Any, list]:
    """A figure of `count` equal panels in at most `columns` columns, and the axes in reading order."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = math.ceil(count / columns)
    size = (max(5.4, width * columns), max(height, 3.4 if rows == 1 and layout == "constrained" else 0) * rows + 0.5)
    figure = Figure(figsize=size, layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def finish(
    figure: Any, results: Results, models: Sequence[dict[str, Any]], band: str, *, legend_of: Sequence[Any] = ()
) -> Any:
    """Adds a legend above the panels and a footer (images, seed, `band`) below; returns the figure."""
    return add_legend(figure, f"{images_in_words(results, models)}, {seed_in_words(results)}; {band}", legend_of)


def in_units(figure: Any, results: Results) -> Any:
    """The figure with the results' own word for images in all of its texts, see `results.in_units`."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        renamed = words.in_units(results, text.get_text())
        if renamed != text.get_text():
            text.set_text(renamed)
    return figure


def add_legend(figure: Any, footer: str, legend_of: Sequence[Any] = ()) -> Any:
    """Adds one legend above the panels, outside of them, and the footer below; returns the figure."""
    inches = figure.get_size_inches()[0]
    entries: dict[str, Any] = {}
    for axis in legend_of:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        longest = max(len(label) for label in entries)
        columns = max(1, min(len(entries), int(inches * 72 / (longest * 5.4 + 50))))
        rows = math.ceil(len(entries) / columns)
        columns = math.ceil(len(entries) / rows)  # even rows
        figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=columns)
    figure.supxlabel(textwrap.fill(footer, int(inches * 17)), fontsize=7.5, color="#555555")
    return figure


def stacked_panels(count: int, *, width: float, height: float, **options: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """A figure of `count` (upper, lower) pairs of panels, at most three side by side."""
    columns = min(3, count)
    blocks = math.ceil(count / columns)
    figure, axes = panels(2 * blocks * columns, columns=columns, width=width, height=height, **options)
    places = [divmod(i, columns) for i in range(blocks * columns)]
    pairs = [(axes[2 * b * columns + c], axes[(2 * b + 1) * columns + c]) for b, c in places]
    for pair in pairs[count:]:
        for axis in pair:
            axis.set_visible(False)
    return figure, pairs[:count]


def heat_map(axis: Any, picture: np.ndarray, **options: Any) -> Any:
    """Draws a matrix with row 0 at the bottom; returns the image for a colour bar."""
    axis.grid(False)
    options = {"aspect": "auto", "cmap": COLOUR_MAP} | options
    return axis.imshow(picture, origin="lower", interpolation="nearest", **options)


def frequency_map(axis: Any, picture: np.ndarray, **options: Any) -> Any:
    """Draws a (h, w) spectrum over cycles per pixel, its zero frequency [h // 2, w // 2] centred on 0."""
    h, w = picture.shape
    left, bottom = -(w // 2 + 0.5) / w, -(h // 2 + 0.5) / h
    axis.set(xticks=(-0.5, 0, 0.5), yticks=(-0.5, 0, 0.5))
    extent = (left, left + 1, bottom, bottom + 1)
    return heat_map(axis, picture, extent=extent, aspect="auto" if h != w else "equal", **options)


def write_figure(figure: Any, path: Path, **options: Any) -> None:
    """Writes a matplotlib figure in the format of the ending of `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), **options)


def save(figure: Any, folder: Path, name: str) -> tuple[Path, Path]:
    """Writes `name`.png and `name`.pdf below `folder`; the files hold no date, so equal results give equal bytes."""
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    figure.set_dpi(DPI)
    figure.draw_without_rendering()  # finds the places of everything, once for both files
    figure.set_layout_engine("none")
    box = figure.get_tightbbox().padded(0.08)
    undated = {"CreationDate": None, "Producer": None, "Creator": "jaxkd"}
    write_figure(figure, png, dpi=DPI, bbox_inches=box, metadata={"Software": None})
    write_figure(figure, pdf, bbox_inches=box, metadata=undated)
    return png, pdf


def relative_depth(models: Sequence[dict[str, Any]]) -> bool:
    """Whether layers are drawn at their relative depth: when the models have different numbers of them."""
    return len({len(m["layers"]) for m in models}) > 1


def positions(model: dict[str, Any], relative: bool) -> np.ndarray:
    """Positions of a model's layers on the axis of depth."""
    count = len(model["layers"])
    return np.linspace(0, 1, count) if relative and count > 1 else np.arange(count, dtype=float)


def label_depth(axis: Any, relative: bool) -> None:
    """Names and ticks the axis of depth: shares of it for models of different depth, else layer numbers."""
    from matplotlib.ticker import MaxNLocator

    if relative:
        axis.set_xlabel("relative depth (0 = first layer, 1 = last)")
    else:
        axis.set_xlabel("layer (0 = first)")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))


def name_layers(axis: Any, names: Sequence[str], which: str) -> None:
    """Ticks of a heat map along "x" or "y": the names of up to eight layers, else a few indices."""
    from matplotlib.ticker import MaxNLocator

    side = axis.xaxis if which == "x" else axis.yaxis
    if len(names) > 8:
        side.set_major_locator(MaxNLocator(nbins=8, integer=True))
        return
    side.set_ticks(range(len(names)), [plain(n, 12) for n in names])
    if which == "x":
        axis.tick_params(axis="x", rotation=45)


def banded(axis: Any, x: np.ndarray, middle: np.ndarray, low: np.ndarray, high: np.ndarray, i: int, label: str) -> None:
    """A line with a translucent band, in the i-th style."""
    axis.plot(x, middle, label=label, markevery=max(1, len(x) // 24), **style(i))
    axis.fill_between(x, low, high, color=STYLES[i % len(STYLES)][0], alpha=0.14, linewidth=0)


def log_if_wide(axis: Any, values: np.ndarray, ratio: float = 30.0) -> bool:
    """Makes the y axis logarithmic when the positive `values` span more than `ratio`; says whether it did."""
    values = values[np.isfinite(values)]
    if values.size == 0 or values.min() <= 0 or values.max() / values.min() < ratio:
        return False
    log_scale(axis)
    axis.set_ylim(values.min() / 2, values.max() * 2)
    return True


def log_if_positive(axis: Any, layers: Sequence[Any]) -> None:
    """Makes the y axis logarithmic unless all values of all layers are zero or absent."""
    if any((np.asarray(values or [0], np.float64) > 0).any() for values in layers):
        log_scale(axis)


def log_scale(axis: Any) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 (as far as there is room)."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def title_of(model: dict[str, Any], more: str = "") -> str:
    """Title of a model's panel: its shortened label and, on a second line, `more`."""
    return plain(label_of(model), 34) + (f"\n{more}" if more else "")
