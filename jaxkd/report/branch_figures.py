"""Figures of a branch analysis with captions, from its results alone: each network beside its untrained control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.analysis.branches import (
    BRANCHES,
    branched,
    higher_in_deep,
    mean_differentiation,
    mean_of,
    over_pairs,
    subjects,
)
from jaxkd.analysis.spectrum import frequency_grid
from jaxkd.report import style
from jaxkd.report.plan import Figure
from jaxkd.report.results import array, images_in_words, number, pick, short_number

Results = dict[str, Any]
Network = dict[str, Any]
Drawn = tuple[Any, list[Any]]  # a figure, and the axes whose lines the legend names
Value = Callable[[dict[str, Any]], tuple[float, float]]  # block -> mean and standard deviation over images
MOST_BLOCKS = 6  # that are drawn as maps and profiles; numbers are of all
DECADES = 2.0  # of amplitude that a map shows below its brightest places
DEFINITIONS = "The definitions are jaxkd's own: how the MDBN paper made its Fourier analysis is not published."
ROWS = {"deep": 0, "shallow": 1, "output": 4}  # branch -> style
_CONTROL_MARKERS = "+x1234"


def branch_sentences(results: Results) -> list[str]:
    """Differentiation and high/low ratios of every network in sentences."""
    return _differences(results) + _ratios(results)


FAMILIES = {  # section of the page, what the figure cannot show
    "differentiation": (
        "Do the branches differ?",
        "It shows that two branches differ, not which is finer (see the ratios), nor that the difference helps the "
        "picture. Two convolutions reach further than one, so branches differ even untrained; and the untrained "
        "network is one draw of initial weights.",
    ),
    "high_low": (
        "Which branch is finer?",
        "A ratio says nothing about size: a branch with a high one may be weak. High frequencies may be detail, noise "
        "or the artefacts of a filter; this number does not show which.",
    ),
    "outputs": (
        "Beside networks of one branch",
        "A block's output holds all that the blocks before it have added to the first features, so that it says little "
        "about the block alone. Networks of different width, depth or training differ for more reasons than their "
        "branches.",
    ),
    "profiles": (
        "Spectra by radius",
        "Each curve is relative to its own mean, so that shapes can be compared and sizes cannot. Corners of "
        "the spectrum, beyond 0.5 cycles per pixel, are left out here; the numbers count them.",
    ),
    "maps": (
        "Spectra in two dimensions",
        "Each map is relative to its own brightest places, so that sizes cannot be compared. A map is a mean over "
        "channels and images; a bright cross comes from horizontal and vertical edges, of which photographs are full.",
    ),
}
_BARS = "Bars: plus and minus one standard deviation over images."
_CONTROL = "Thin dotted lines: the same network untrained."


def crops_in_words(results: Results) -> str:
    """ "crops of 48 x 32 pixels of the small image"."""
    height, width = results["settings"]["crop"]
    return f"crops of {width} x {height} pixels of the small image"


def _differences(results: Results) -> list[str]:
    out = []
    for network, control in subjects(results):
        if not branched(network):
            out.append(f"{network['label']} has one branch per block, and nothing to differ.")
            continue
        finite = {b["block"]: number(pick(b, "differentiation", "mean")) for b in network["blocks"]}
        finite = {name: value for name, value in finite.items() if np.isfinite(value)}
        if not finite:
            out.append(f"{network['label']}: differentiation is undefined, since its features are not finite.")
            continue
        low, high = min(finite, key=finite.get), max(finite, key=finite.get)
        mean = short_number(mean_differentiation(network))
        sentence = f"{network['label']}: differentiation {mean} on average over blocks"
        if len(finite) > 1:
            sentence += f", from {short_number(finite[low])} in {low} to {short_number(finite[high])} in {high}"
        out.append(sentence + _untrained(control, lambda n: short_number(mean_differentiation(n))) + ".")
    return out


def _ratios(results: Results) -> list[str]:
    def words(network: Network) -> str:
        if not branched(network):
            return f"{short_number(mean_of(network, 'output', 'high_low'))} in block outputs"
        deep, shallow = (short_number(mean_of(network, branch, "high_low")) for branch in BRANCHES)
        more, of = higher_in_deep(network)
        return f"{deep} in deep and {shallow} in shallow branches, higher in the deep one in {more} of {of} blocks"

    out = [f"{n['label']}: high/low ratio {words(n)}{_untrained(control, words)}." for n, control in subjects(results)]
    noise = _white_noise(results)
    return [*out, f"White noise has {short_number(noise)}."] if np.isfinite(noise) else out


def _untrained(control: Network | None, words: Any) -> str:
    return f" (untrained: {words(control)})" if control is not None else ""


def _white_noise(results: Results) -> float:
    """High/low ratio of noise: of the areas on both sides of the cut."""
    frequency = frequency_grid(*results["networks"][0]["grid"])
    low = int(((frequency < results["settings"]["cut"]) & (frequency > 0)).sum())
    return float((frequency >= results["settings"]["cut"]).sum()) / low if low else np.nan


def draw_branches(results: Results, folder: str | Path) -> list[Figure]:
    """Draws every figure that the networks have something for, as PNG and PDF.

    Returns:
      The figures, in the order in which they are read: differentiation, high_low, outputs, and of each network its
      profiles and, for each pair of branches in a block, maps.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done: list[Figure] = []
    over = f"{images_in_words(results)}, {crops_in_words(results)}"

    def add(name: str, title: str, drawn: Drawn, shows: str) -> None:
        figure = style.add_legend(drawn[0], f"{over}. {DEFINITIONS}", drawn[1])
        png, pdf = style.save(figure, folder, name)
        family, cannot = FAMILIES[name.rstrip("_0123456789")]
        caption = f"What it shows: {shows} Over {over}.\nWhat it cannot show: {cannot}"
        done.append(Figure(name, title, family, png, pdf, caption))

    all_of = subjects(results)
    with style.applied():
        if any(branched(n) for n, _ in all_of):
            shows = f"The distance of the two spectra, mean over the pairs of branches in a block. {_BARS} {_CONTROL}"
            title = "Differentiation of deep and shallow branches"
            add("differentiation", title, _draw_differentiation(results), shows)
        shows = (
            f"Energy from {results['settings']['cut']:g} cycles per pixel on over the energy below, mean over the "
            f"pairs of a block; of a network with one branch per block, of the block's output. {_BARS} {_CONTROL}"
        )
        add("high_low", "High and low frequencies in each branch", _draw_high_low(results), shows)
        if any(b["output"] for n, _ in all_of for b in n["blocks"]):
            shows = (
                "The same ratio of what each block hands on, input included: the one place where networks with "
                f"branches and networks without have the same thing to compare. {_BARS} {_CONTROL}"
            )
            title = "High and low frequencies in the output of each block"
            add("outputs", title, _draw_outputs(results), shows)
        for i, (network, control) in enumerate(all_of):
            if not _rows(network["blocks"][0]):
                continue
            shows = (
                "Amplitude (mean modulus of the Fourier transform over channels and images) in rings of equal "
                "frequency, relative to each curve's mean. Left: slow changes over the image, right: changes from "
                f"pixel to pixel. {_drawn(network)} {_CONTROL}"
            )
            title = f"Radial profiles: {network['label']}"
            add(f"profiles_{i}", title, _draw_profiles(network, control), shows)
            for j in range(max(1, *(len(b["pairs"]) for b in network["blocks"]))):
                pair = f", pair {j} of each block" if branched(network) else ""
                shows = (
                    "The same amplitudes in two dimensions, logarithmic: zero frequency in the middle, horizontal "
                    "frequencies to the sides, vertical ones up and down, the finest structure at the edges. The "
                    "white dot is the mean, which is left out. Each map "
                    f"is relative to its own brightest places. {_drawn(network)}"
                )
                title = f"Spectra in two dimensions: {network['label']}{pair}"
                add(f"maps_{i}_{j}", title, _draw_maps(network, control, j), shows)
    return done


def _drawn(network: Network) -> str:
    chosen = [b["block"] for b in _chosen(network)]
    more = len(network["blocks"]) > len(chosen)
    return f"Drawn are {len(chosen)} of {len(network['blocks'])} blocks; the tables have all." if more else ""


def _chosen(network: Network) -> list[dict[str, Any]]:
    """Up to `MOST_BLOCKS` blocks, first and last among them."""
    blocks = network["blocks"]
    places = np.linspace(0, len(blocks) - 1, min(MOST_BLOCKS, len(blocks))).round().astype(int)
    return [blocks[i] for i in places]


def _rows(block: dict[str, Any], pair: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """The branches that are drawn of a block: those of a pair, or its output."""
    if block["pairs"]:
        return [(branch, block["pairs"][pair][branch]) for branch in BRANCHES] if pair < len(block["pairs"]) else []
    return [("output", block["output"])] if block["output"] else []


def _same(block: dict[str, Any], network: Network | None) -> dict[str, Any] | None:
    """The block of the same name in another network."""
    return next((b for b in network["blocks"] if b["block"] == block["block"]), None) if network else None


def _style(i: int, control: bool = False) -> dict[str, Any]:
    """The i-th style; of a control in the same colour, thin, dotted and with a marker of strokes."""
    options = style.style(i)
    if control:
        marker = _CONTROL_MARKERS[i % len(_CONTROL_MARKERS)]
        options |= {"linestyle": ":", "linewidth": 1.3, "marker": marker, "markersize": 6}
    return options


def _draw_differentiation(results: Results) -> Drawn:
    found = [(network, control) for network, control in subjects(results) if branched(network)]
    value = lambda block: tuple(number(pick(block, "differentiation", k)) for k in ("mean", "sd"))  # noqa: E731
    figure, axis, values = _draw_networks(results, found, value)
    high = values[np.isfinite(values)].max(initial=0)
    axis.set(ylabel="differentiation: total variation\ndistance (0 to 1)", ylim=(0, min(1.02, 1.15 * (high or 1))))
    return figure, [axis]


def _draw_outputs(results: Results) -> Drawn:
    figure, axis, values = _draw_networks(results, subjects(results), partial(over_pairs, branch="output"))
    _ratio_axes([axis], results, values[:2])
    return figure, [axis]


def _draw_networks(results: Results, found: Sequence[tuple[Network, Network | None]], value: Value) -> tuple:
    """(figure, axis, values as of `_line`) of a line for each network and control."""
    figure, (axis,) = style.panels(1, width=7.5, height=3.9)
    values = [
        _line(axis, results, one, value, _style(i, one is control))
        for i, (network, control) in enumerate(found)
        for one in filter(None, (network, control))
    ]
    _label(axis, results)
    return figure, axis, np.concatenate(values, axis=1)


def _draw_high_low(results: Results) -> Drawn:
    """A panel per network: its branches, or its outputs, and those of its control."""
    found = subjects(results)
    figure, axes = style.panels(len(found), columns=2, width=5.2, height=3.6, sharey=True)
    values = []
    for axis, (network, control) in zip(axes, found, strict=True):
        for one in filter(None, (network, control)):
            for branch in BRANCHES if branched(one) else ("output",):
                label = f"{branch}, untrained" if one is control else branch
                line = _style(ROWS[branch], one is control)
                values.append(_line(axis, results, one, partial(over_pairs, branch=branch), line, label))
        axis.set_title(style.plain(network["label"], 44))
        _label(axis, results)
    _ratio_axes(axes, results, np.concatenate(values, axis=1)[:2], columns=2)
    return figure, axes


def _line(axis: Any, results: Results, network: Network, value: Value, line: dict, label: str = "") -> np.ndarray:
    """Draws a line over blocks with bars; returns (3, blocks): mean less sd, mean, mean plus sd."""
    mean, sd = np.array([value(block) for block in network["blocks"]]).T
    if np.isfinite(mean).any():
        x = style.positions({"layers": network["blocks"]}, relative=_relative(results))
        most = max(len(n["blocks"]) for n in results["networks"])
        spacing = 1 / max(1, most - 1) if _relative(results) else 1
        x = x + 0.06 * spacing * (len(axis.containers) - 1.5)  # bars side by side
        options = {"capsize": 2, "elinewidth": 0.8, "label": style.plain(label or network["label"], 40)}
        axis.errorbar(x, mean, yerr=sd, **line, **options)
    return np.stack([mean - sd, mean, mean + sd])


def _ratio_axes(axes: Sequence[Any], results: Results, values: np.ndarray, columns: int = 1) -> None:
    """One scale for all: logarithmic if the ratios span much and no bar reaches zero."""
    style.log_if_wide(axes[0], values, ratio=5)
    for axis in axes[::columns]:
        axis.set_ylabel(f"energy from {results['settings']['cut']:g} cycles per\npixel on / energy below")
    if axes[0].get_yscale() == "linear":
        axes[0].set_ylim(bottom=0)


def _label(axis: Any, results: Results) -> None:
    style.label_depth(axis, _relative(results))
    axis.set_xlabel(axis.get_xlabel().replace("layer", "block"))


def _draw_profiles(network: Network, control: Network | None) -> Drawn:
    """Amplitude over rings, a panel for each pair of each block."""
    places = [(b, j) for b in _chosen(network) for j in range(max(1, len(b["pairs"])))]
    columns = min(len(places), 3 if len(places) in (3, 5, 6, 9) else 4)
    figure, axes = style.panels(len(places), columns=columns, width=2.9, height=2.5, sharey=True)
    for axis, (block, j) in zip(axes, places, strict=True):
        other = _same(block, control)
        for rows, is_control in ((_rows(block, j), False), (_rows(other, j) if other else [], True)):
            for name, branch in rows:
                label = f"{name}, untrained" if is_control else name
                _curve(axis, network["frequency"], branch, _style(ROWS[name], is_control), label)
        axis.set_title(f"{style.plain(block['block'], 16)}, pair {j}" if block["pairs"] else block["block"])
        axis.set_xlim(0, 0.5)
    style.log_scale(axes[0])
    figure.supylabel("amplitude / mean of the curve", fontsize=9.5)
    for axis in axes[-columns:]:
        axis.set_xlabel("cycles per pixel")
    return figure, axes


def _curve(axis: Any, frequency: list[float], branch: dict[str, Any], line: dict[str, Any], label: str) -> None:
    profile = array(branch["profile"])[1:]  # ring 0 is the mean, which is left out
    level = profile.mean() if np.isfinite(profile).all() else 0.0
    if level > 0:
        x = array(frequency)[1:]
        axis.plot(x, profile / level, label=label, markevery=max(1, len(x) // 6), **line)


def _draw_maps(network: Network, control: Network | None, pair: int) -> Drawn:
    """Log amplitude over both frequencies: a column for each block; rows: each branch, and the same untrained."""
    from matplotlib.figure import Figure as Canvas

    blocks = [b for b in _chosen(network) if _rows(b, pair)]
    names = [name for name, _ in _rows(blocks[0], pair)]
    kinds = [(name, is_control) for name in names for is_control in ((False, True) if control else (False,))]
    figure = Canvas(figsize=(1.75 * len(blocks) + 2.0, 1.75 * len(kinds) + 0.9), layout="compressed")
    axes = figure.subplots(len(kinds), len(blocks), squeeze=False, sharex=True, sharey=True)
    image = None
    for column, block in enumerate(blocks):
        for axis, (name, is_control) in zip(axes[:, column], kinds, strict=True):
            source = _same(block, control) if is_control else block
            picture = array(dict(_rows(source, pair))[name]["log_amplitude"])
            top = np.nanpercentile(picture, 99.5) if np.isfinite(picture).any() else 0.0
            image = style.frequency_map(axis, picture - top, vmin=-DECADES, vmax=0)
            axis.tick_params(labelsize=8)
            if column == 0:
                axis.set_ylabel(f"{name},\nuntrained" if is_control else name)
        axes[0, column].set_title(style.plain(block["block"], 16))
    axes[-1, len(blocks) // 2].set_xlabel("horizontal frequency (cycles per pixel)")
    figure.supylabel("vertical frequency (cycles per pixel)", fontsize=9.5)
    figure.colorbar(image, ax=axes, label="log10 amplitude, 0 = brightest 0.5 %", extend="both", shrink=0.8)
    return figure, []


def _relative(results: Results) -> bool:
    return style.relative_depth([{"layers": n["blocks"]} for n in results["networks"]])
