"""The figure of a branch analysis, from its results alone: spectra in two dimensions, profiles, numbers by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.analysis import drawing
from jaxkd.analysis.branches import BRANCHES
from jaxkd.analysis.reading import array, figure_of, number, pick

Results = dict[str, Any]
MOST_BLOCKS = 6  # that are drawn as maps and profiles; the numbers below are of all
DECADES = 2.0  # of amplitude that a map shows below its brightest places
OURS = "The definitions are jaxkd's own: how the MDBN paper made its Fourier analysis is not published."


def branch_caption(results: Results) -> str:
    """What the figure shows, its numbers in sentences and what it cannot show; plain text, one paragraph a line."""
    settings = results["settings"]
    count = f"{settings['images']} image{'s' if settings['images'] != 1 else ''}"
    window = "under a Hann window, " if settings["window"] == "hann" else ""
    shows = (
        f"Amplitude spectra of branch outputs over {count}, {window}without each channel's mean; frequencies are in "
        f"cycles per pixel of the small image. High means {settings['cut']:g} and above, corners included. "
        "Differentiation is the total variation distance between the deep and the shallow branch's distributions of "
        "energy over rings of equal frequency: 0 for the same spectrum up to scale, 1 for no frequency in common."
    )
    sentences = [_numbers(network) for network in results["networks"]]
    cannot = (
        f"{OURS} Differentiation says that two branches differ, not which is finer (see the ratios) nor that the "
        "difference helps the picture; two convolutions differ from one even untrained."
    )
    return "\n".join([shows, " ".join(sentences), cannot])


def _numbers(network: dict[str, Any]) -> str:
    blocks = network["blocks"]
    if not any(b["pairs"] for b in blocks):
        ratio = _mean([number(pick(b, "output", "high_low", "mean")) for b in blocks])
        return f"{network['label']} has one branch per block; its outputs have a high/low ratio of {figure_of(ratio)}."
    distances = {b["block"]: number(pick(b, "differentiation", "mean")) for b in blocks}
    finite = {name: value for name, value in distances.items() if np.isfinite(value)}
    if not finite:
        return f"{network['label']}: differentiation is undefined, since its features are not finite."
    deep, shallow = (_mean([_over_pairs(b, branch) for b in blocks]) for branch in BRANCHES)
    low, high = min(finite, key=finite.get), max(finite, key=finite.get)
    return (
        f"{network['label']}: differentiation {figure_of(_mean(list(finite.values())))} on average, from "
        f"{figure_of(finite[low])} in {low} to {figure_of(finite[high])} in {high}; high/low ratio {figure_of(deep)} "
        f"in the deep and {figure_of(shallow)} in the shallow branches."
    )


def _mean(values: list[float]) -> float:
    """Mean of those that are finite; NaN if none is."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else np.nan


def draw_branches(results: Results, path: str | Path) -> tuple[Path, Path]:
    """Draws the figure.

    Args:
      results: of `tasks.branch_analysis.analyse_branches`.
      path: of the PNG; a PDF goes beside it.

    Returns:
      Both paths.
    """
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    branched = [n for n in results["networks"] if any(b["pairs"] for b in n["blocks"])]
    first = branched[0] if branched else results["networks"][0]
    with drawing.look():
        figure = Figure(figsize=(11.5, 11.2), layout="constrained")
        maps, profiles, numbers = figure.subfigures(3, 1, height_ratios=(1.1 if branched else 0.65, 0.95, 1.1))
        _draw_maps(maps, first)
        _draw_profiles(profiles, results["networks"], first)
        _draw_numbers(numbers, results, bool(branched))
        settings = results["settings"]
        sides = " x ".join(str(s) for s in settings["crop"])
        count = f"n = {settings['images']} image{'s' if settings['images'] != 1 else ''} of {sides} pixels"
        footer = f"{count}; lines: mean over images, bars: ± 1 standard deviation. {OURS}"
        return drawing.save(drawing.finish(figure, footer), path.parent, path.stem)


def _chosen(network: dict[str, Any]) -> list[dict[str, Any]]:
    """Up to `MOST_BLOCKS` blocks, first and last among them."""
    blocks = network["blocks"]
    places = np.linspace(0, len(blocks) - 1, min(MOST_BLOCKS, len(blocks))).round().astype(int)
    return [blocks[i] for i in places]


def _rows(block: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The branches that are drawn of a block: those of its last pair, or its output."""
    if block["pairs"]:
        return [(branch, block["pairs"][-1][branch]) for branch in BRANCHES]
    return [("output", block["output"])] if block["output"] else []


def _draw_maps(part: Any, network: dict[str, Any]) -> None:
    """Log amplitude over both frequencies, each map relative to its own brightest places."""
    blocks = _chosen(network)
    rows = len(_rows(blocks[0]))
    axes = part.subplots(rows, len(blocks), squeeze=False, sharex=True, sharey=True)
    h, w = network["grid"]
    left, bottom = -(w // 2 + 0.5) / w, -(h // 2 + 0.5) / h
    image = None
    for column, block in enumerate(blocks):
        for axis, (name, branch) in zip(axes[:, column], _rows(block), strict=True):
            picture = array(branch["log_amplitude"])
            top = np.nanpercentile(picture, 99.5) if np.isfinite(picture).any() else 0.0
            image = axis.imshow(
                picture - top,
                origin="lower",
                vmin=-DECADES,
                vmax=0,
                cmap=drawing.COLOUR_MAP,
                interpolation="nearest",
                extent=(left, left + 1, bottom, bottom + 1),
                aspect="equal",
            )
            axis.grid(False)
            axis.set_xticks((-0.5, 0, 0.5))
            axis.set_yticks((-0.5, 0, 0.5))
            if column == 0:
                axis.set_ylabel(f"{name}\nvertical", fontsize=9)
        axes[0, column].set_title(_title(block), fontsize=9)
        axes[-1, column].set_xlabel("horizontal")
    part.suptitle(f"{drawing.plain(network['label'], 40)}: amplitude of frequencies (cycles per pixel)", fontsize=10.5)
    part.colorbar(image, ax=axes, label="log10 amplitude,\n0 = brightest 0.5 %", extend="both", shrink=0.85)


def _title(block: dict[str, Any]) -> str:
    name = drawing.plain(block["block"], 16)
    return f"{name}, pair {block['pairs'][-1]['pair']}" if block["pairs"] else name


def _draw_profiles(part: Any, networks: list[dict[str, Any]], first: dict[str, Any]) -> None:
    """Amplitude over rings, each curve relative to its mean: deep and shallow of `first`, then outputs of every net."""
    blocks = [b for b in _chosen(first) if b["pairs"]]
    blocks = [blocks[i] for i in sorted({0, len(blocks) // 2, len(blocks) - 1})] if blocks else []
    axes = part.subplots(1, len(blocks) + 1, squeeze=False, sharey=True)[0]
    for axis, block in zip(axes, blocks, strict=False):
        for i, (name, branch) in enumerate(_rows(block)):
            _curve(axis, first, branch, i, name)
        axis.set_title(f"{drawing.plain(first['label'], 24)}\n{_title(block)}")
    for i, network in enumerate(networks):
        if network["blocks"] and network["blocks"][-1]["output"]:
            _curve(axes[-1], network, network["blocks"][-1]["output"], i + len(BRANCHES), network["label"])
    axes[-1].set_title("output of the last block,\nevery network")
    drawing.log_scale(axes[0])
    axes[0].set_ylabel("amplitude, relative to\nthe curve's mean")
    for axis in axes:
        axis.set_xlabel("frequency (cycles per pixel)")
        axis.set_xlim(0, 0.5)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8)
    part.suptitle("Radial profiles", fontsize=10.5)


def _curve(axis: Any, network: dict[str, Any], branch: dict[str, Any], i: int, label: str) -> None:
    profile = array(branch["profile"])[1:]  # ring 0 is the mean, which is left out
    level = profile.mean() if np.isfinite(profile).all() else 0.0
    if level > 0:
        x = array(network["frequency"])[1:]
        every = max(1, len(x) // 9)
        axis.plot(x, profile / level, label=drawing.plain(label, 30), markevery=every, **drawing.style(i))


def _draw_numbers(part: Any, results: Results, branched: bool) -> None:
    """High/low ratio of every branch and output, and differentiation, by block."""
    axes = part.subplots(1, 2, squeeze=False)[0]
    ratios = []
    for network in results["networks"]:
        x = drawing.positions({"layers": network["blocks"]}, relative=_relative(results))
        # of a network with branches the output, the whole residual stream, is left to the table
        names = BRANCHES if any(b["pairs"] for b in network["blocks"]) else ("output",)
        for branch in names:
            mean = np.array([_over_pairs(b, branch) for b in network["blocks"]])
            if np.isfinite(mean).any():
                label = network["label"] if branch == "output" else f"{network['label']}, {branch}"
                axes[0].plot(x, mean, label=drawing.plain(label, 36), **drawing.style(len(ratios)))
                ratios.append(mean)
    drawing.log_if_wide(axes[0], np.concatenate(ratios) if ratios else np.zeros(0), ratio=5)
    axes[0].set(ylabel=f"energy from {results['settings']['cut']:g} on / below", title="High/low ratio")
    for i, network in enumerate(n for n in results["networks"] if any(b["pairs"] for b in n["blocks"])):
        x = drawing.positions({"layers": network["blocks"]}, relative=_relative(results))
        mean, sd = (
            np.array([number(pick(b, "differentiation", k)) for b in network["blocks"]]) for k in ("mean", "sd")
        )
        options = drawing.style(i) | {"capsize": 2, "elinewidth": 0.8}
        axes[1].errorbar(x, mean, yerr=sd, label=drawing.plain(network["label"], 36), **options)
    axes[1].set(ylabel="total variation distance", title="Differentiation of deep and shallow", ylim=(0, 1))
    if not branched:
        axes[1].text(0.5, 0.5, "one branch per block:\nnothing to compare", ha="center", va="center", color="#555555")
        axes[1].set_xlim(0, 1)
    for axis in axes:
        drawing.label_depth(axis, _relative(results))
        axis.set_xlabel(axis.get_xlabel().replace("layer", "block"))
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _relative(results: Results) -> bool:
    return drawing.relative_depth([{"layers": n["blocks"]} for n in results["networks"]])


def _over_pairs(block: dict[str, Any], branch: str) -> float:
    """Mean high/low ratio of a branch, averaged over the pairs of a block."""
    of = [block["output"]] if branch == "output" else [pair[branch] for pair in block["pairs"]]
    values = [number(b["high_low"]["mean"]) for b in of if b]
    return float(np.mean(values)) if values else np.nan
