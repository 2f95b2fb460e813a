"""Results of a branch analysis on disk: JSON with everything, two tables, the figures, and a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxkd.analysis.branches import BRANCHES, branched, higher_in_deep, mean_differentiation, mean_of, subjects
from jaxkd.data.files import write_atomic
from jaxkd.report.branch_figures import crops_in_words, draw_branches
from jaxkd.report.html import DASH, Section, Table, figure_sections, made_section, side_by_side, write_page
from jaxkd.report.plan import Figure
from jaxkd.report.results import images_in_words, join_words, number, pick, short_number
from jaxkd.report.tables import Row, write_csv

Results = dict[str, Any]
NAMES = ("results.json", "branches.csv", "branch_profiles.csv")
SCALARS = ("high_low", "mean_frequency", "mean_share")
PLACE = ["network", "block", "pair", "branch"]
HEADER = [*PLACE, *(f"{s}{e}" for s in SCALARS for e in ("", "_sd")), "differentiation"]


def write_branches(results: Results, folder: str | Path, *, figures: bool = True) -> list[Path]:
    """Writes results.json, branches.csv (a line a branch), branch_profiles.csv (a line a ring), figures and a page.

    Args:
      results: of `analysis.pipeline.branches.analyse_branches`; "skipped", sentences on images that were left out, and
        a "command" among the settings are shown if there.
      folder: made if it is not there; files of the same names are replaced.
      figures: also figures/*.png and .pdf, and report.html with them.

    Returns:
      The paths written.
    """
    folder = Path(folder)
    written = [folder / name for name in NAMES]
    write_atomic(written[0], json.dumps(results, allow_nan=False))
    write_csv(written[1], HEADER, _scalars(results))
    write_csv(written[2], [*PLACE, "cycles_per_pixel", "amplitude"], _profiles(results))
    if figures:
        drawn = draw_branches(results, folder / "figures")
        written += [path for figure in drawn for path in (figure.png, figure.pdf)]
        written.append(write_branch_page(results, drawn, folder / "report.html"))
    return written


def _branches(results: Results) -> Iterator[tuple[Row, dict[str, Any], float | None, dict[str, Any]]]:
    """(network, block, pair, branch), the branch's numbers, its pair's (its block's) differentiation, the network."""
    for network in results["networks"]:
        for block in network["blocks"]:
            for pair in block["pairs"]:
                for branch in BRANCHES:
                    place = [network["label"], block["block"], pair["pair"], branch]
                    yield place, pair[branch], pair["differentiation"]["mean"], network
            if block["output"] is not None:
                place = [network["label"], block["block"], None, "output"]
                yield place, block["output"], pick(block, "differentiation", "mean"), network


def _scalars(results: Results) -> Iterator[Row]:
    for place, branch, distance, _ in _branches(results):
        yield [*place, *(branch[s][k] for s in SCALARS for k in ("mean", "sd")), distance]


def _profiles(results: Results) -> Iterator[Row]:
    for place, branch, _, network in _branches(results):
        for frequency, amplitude in zip(network["frequency"], branch["profile"], strict=True):
            yield [*place, frequency, amplitude]


def write_branch_page(results: Results, figures: Sequence[Figure], path: Path) -> Path:
    """Writes the page; `figures` are those of `draw_branches` for the same results. Returns `path`."""
    settings = results["settings"]
    facts = [images_in_words(results), crops_in_words(results)]
    facts += [str(settings.get(k) or "") for k in ("source", "device", "date")]
    sections = [
        Section("Overview", tables=[_overview(results["networks"])]),
        Section("What was computed", paragraphs=_computed(settings)),
        Section("Images left out", notes=[("", s) for s in results.get("skipped") or []]),
        *figure_sections(figures),
        Section("Numbers by block", tables=[_block_table(n) for n in results["networks"]]),
        made_section(results),
    ]
    return write_page(path, f"Branches of {join_words(n['label'] for n, _ in subjects(results))}", facts, sections)


def _overview(networks: Sequence[dict[str, Any]]) -> Table:
    """Facts and means over blocks, a column for each network, each control behind its network."""

    def of_branches(network: dict[str, Any], statistic: str) -> str:
        return " / ".join(short_number(mean_of(network, b, statistic)) for b in BRANCHES) if branched(network) else ""

    def counted(network: dict[str, Any]) -> str:
        more, of = higher_in_deep(network)
        return f"{more} of {of}" if of else ""

    rows = {
        ("Network", ""): lambda n: f"{n['name']}, x{n['scale']}" if n.get("name") else f"x{n['scale']}",
        ("Weights", ""): lambda n: n["weights"],
        ("Parameters", ""): lambda n: f"{n['parameters']:,}" if n.get("parameters") else "",
        ("Blocks", ""): lambda n: str(len(n["blocks"])),
        ("Differentiation", "of deep and shallow, 0 to 1, mean over blocks"): lambda n: (
            short_number(mean_differentiation(n)) if branched(n) else "one branch"
        ),
        ("High/low ratio", "deep / shallow, mean over blocks"): lambda n: of_branches(n, "high_low"),
        ("Deep branch finer", "blocks in which its high/low ratio is the higher one"): counted,
        ("Mean frequency", "deep / shallow, cycles per pixel"): lambda n: of_branches(n, "mean_frequency"),
        ("High/low ratio of outputs", "mean over blocks"): lambda n: short_number(mean_of(n, "output", "high_low")),
        ("Mean frequency of outputs", "cycles per pixel"): lambda n: short_number(
            mean_of(n, "output", "mean_frequency")
        ),
    }
    return side_by_side([n["label"] for n in networks], [(*k, map(cell, networks)) for k, cell in rows.items()])


def _computed(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "Branches.",
            "A base block of MDBN adds two branches: a deep one of two convolutions and a shallow one of a single "
            "convolution. A residual block holds two of these pairs, pair 0 and pair 1. Networks of one branch per "
            "block, such as EDSR, are the control: only their blocks' outputs have a spectrum.",
        ),
        (
            "Procedure.",
            "The MDBN paper (arXiv 2309.17334) shows by Fourier analysis that deep branches carry fine structure and "
            "shallow ones smooth content; its exact procedure is not published, so jaxkd defines its own and the "
            "numbers are not those of the paper. Each channel of a branch's output, before the two are added, loses "
            "its mean over the image, is multiplied by a Hann window (so that edges do not look like high frequencies) "
            "and transformed in two dimensions. Energy is the squared modulus, mean over channels; frequencies are in "
            "cycles per pixel of the small image, the network's input (0.5: every second pixel).",
        ),
        (
            "High/low ratio.",
            f"Energy from {settings['cut']:g} cycles per pixel on, corners of the spectrum included, over the energy "
            "below. Mean frequency is weighted by energy.",
        ),
        (
            "Differentiation.",
            "The total variation distance between the deep and the shallow branch's distributions of energy over rings "
            "of equal frequency: the share of energy that would have to move. 0: the same spectrum up to scale, 1: no "
            "frequency in common.",
        ),
        (
            "Untrained.",
            "The same network with its initial weights, on the same images: what branches differ by because two "
            "convolutions reach further than one. What training changed is the difference from it.",
        ),
    ]


def _block_table(network: dict[str, Any]) -> Table:
    """Every number of every branch, folded away until asked for."""
    rows = []
    for (_, block, pair, name), branch, distance, _ in _branches({"networks": [network]}):
        where = f"{block}, {name}" if pair is None else f"{block}, pair {pair}, {name}"
        shown = DASH if distance is None or not number(distance) >= 0 else short_number(distance)
        values = [f"{short_number(branch[s]['mean'])} ± {short_number(branch[s]['sd'])}" for s in SCALARS]
        rows.append([where, shown, *values])
    head = ["branch", "differentiation", "high/low ratio", "mean frequency (cycles per pixel)"]
    note = (
        "Differentiation is one number for both branches of a pair; beside an output, the mean of its block. Share of "
        "channel means: of the energy, in the means that all else leaves out."
    )
    title = f"{network['label']}: mean ± standard deviation over images"
    return Table([*head, "share of channel means"], rows, title, note, folded=True)
