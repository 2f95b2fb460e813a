"""The results of a branch analysis on disk: JSON with everything, two tables, the figures, and a page to read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxkd.analysis.branches import BRANCHES, branched, higher_in_deep, mean_differentiation, mean_of, subjects
from jaxkd.errors import ConfigError
from jaxkd.report import html
from jaxkd.report.branch_figures import DIFFERENTIATION, branch_caption, draw_branches
from jaxkd.report.figures import Figure
from jaxkd.report.html_style import STYLE
from jaxkd.report.results import figure_of, listed, number, pick

Results = dict[str, Any]
Row = list[Any]
NAMES = ("results.json", "branches.csv", "branch_profiles.csv")
PAGE, FIGURES = "report.html", "figures"
SCALARS = ("high_low", "mean_frequency", "mean_share")
HEADER = ["network", "block", "pair", "branch", *(f"{s}{e}" for s in SCALARS for e in ("", "_sd")), "differentiation"]
PROFILE_HEADER = ["network", "block", "pair", "branch", "cycles_per_pixel", "amplitude"]
FAMILIES = {
    "differentiation": "Do the branches differ?",
    "high_low": "Which branch is finer?",
    "outputs": "Beside networks of one branch",
    "profiles": "Spectra by radius",
    "maps": "Spectra in two dimensions",
}


def check_out(folder: str | Path, *, overwrite: bool = False) -> Path:
    """`folder`, if results may be written there; asked before the work starts.

    Raises:
      ConfigError: it holds an earlier analysis, or is a file.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f'--out="{folder}" is a file. An analysis is a folder of files. Name a folder.')
    there = [name for name in NAMES if (folder / name).exists()]
    if there and not overwrite:
        raise ConfigError(
            f'--out="{folder}" holds an earlier analysis ({there[0]}). Nothing already saved is lost by accident. '
            "Choose another folder, or add --overwrite."
        )
    return folder


def write_branches(
    results: Results, folder: str | Path, *, overwrite: bool = False, figures: bool = True
) -> list[Path]:
    """Writes results.json, branches.csv (a line a branch), branch_profiles.csv (a line a ring), figures and a page.

    Args:
      results: of `tasks.branch_analysis.analyse_branches`; "skipped", sentences on images that were left out, and a
        "command" among the settings are shown if there.
      folder: made if it is not there.
      overwrite: replace earlier results.
      figures: also figures/*.png and .pdf, and report.html with them.

    Returns:
      The paths written.

    Raises:
      ConfigError: see `check_out`.
    """
    folder = check_out(folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / name for name in NAMES]
    content = {**results, "caption": branch_caption(results)}
    written[0].write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    _write(written[1], HEADER, _scalars(results))
    _write(written[2], PROFILE_HEADER, _profiles(results))
    if figures:
        drawn = draw_branches(results, folder / FIGURES)
        written += [path for figure in drawn for path in (figure.png, figure.pdf)]
        written.append(write_page(results, drawn, folder / PAGE))
    return written


def _write(path: Path, header: Row, rows: Iterator[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([["" if v is None else repr(v) if isinstance(v, float) else v for v in row] for row in rows])


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


def write_page(results: Results, figures: Sequence[Figure], path: Path) -> Path:
    """Writes the page: one file that opens from disk, with the looks of `report.write_report`.

    Args:
      results: see `write_branches`.
      figures: of `draw_branches` for the same results.
      path: of the HTML file.

    Returns:
      `path`.
    """
    settings = results["settings"]
    title = f"Branches of {listed(n['label'] for n, _ in subjects(results))}"
    sections = [("Overview", _overview(results)), ("What was computed", _computed(results))]
    skipped = "".join(f"<li>{escape(s)}</li>" for s in results.get("skipped") or [])
    sections.append(("Images left out", f"<ul>{skipped}</ul>" if skipped else ""))
    families: dict[str, str] = {}
    for figure in figures:
        family = FAMILIES[figure.name.rstrip("_0123456789")]
        families[family] = families.get(family, "") + html.figure_section(figure, path.parent)
    sections += families.items()
    sections += [
        ("Numbers by block", "".join(_block_table(n) for n in results["networks"])),
        ("How it was made", html.made_section(results)),
    ]
    sections = [(heading, body) for heading, body in sections if body]
    links = "".join(f'<a href="#s{i}">{escape(h)}</a>' for i, (h, _) in enumerate(sections))
    body = "".join(f'<section id="s{i}"><h2>{escape(h)}</h2>{b}</section>' for i, (h, b) in enumerate(sections))
    height, width = settings["crop"]
    facts = [
        f"n = {settings['images']} image{'s' if settings['images'] != 1 else ''}",
        f"crops of {width} x {height} pixels of the small image",
        *(str(settings[k]) for k in ("source", "device", "date") if settings.get(k)),
    ]
    path.write_text(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><header><h1>{escape(title)}</h1>"
        f'<p class="facts">{escape(" · ".join(facts))}</p></header><nav>{links}</nav>{body}</main></body></html>\n',
        encoding="utf-8",
    )
    return path


def _overview(results: Results) -> str:
    """Facts and means over blocks, a column for each network, each control behind its network."""
    networks = results["networks"]

    def branch_wise(statistic: str) -> Any:
        def cell(network: dict[str, Any]) -> str:
            return " / ".join(figure_of(mean_of(network, b, statistic)) for b in BRANCHES) if branched(network) else ""

        return cell

    def counted(network: dict[str, Any]) -> str:
        more, of = higher_in_deep(network)
        return f"{more} of {of}" if of else ""

    rows = [
        ("Network", "", lambda n: f"{n['name']}, x{n['scale']}" if n.get("name") else f"x{n['scale']}"),
        ("Weights", "", lambda n: n["weights"]),
        ("Parameters", "", lambda n: f"{n['parameters']:,}" if n.get("parameters") else ""),
        ("Blocks", "", lambda n: str(len(n["blocks"]))),
        (
            "Differentiation",
            "of deep and shallow, 0 to 1, mean over blocks",
            lambda n: figure_of(mean_differentiation(n)) if branched(n) else "one branch",
        ),
        ("High/low ratio", "deep / shallow, mean over blocks", branch_wise("high_low")),
        ("Deep branch finer", "blocks in which its high/low ratio is the higher one", counted),
        ("Mean frequency", "deep / shallow, cycles per pixel", branch_wise("mean_frequency")),
        ("High/low ratio of outputs", "mean over blocks", lambda n: figure_of(mean_of(n, "output", "high_low"))),
        ("Mean frequency of outputs", "cycles per pixel", lambda n: figure_of(mean_of(n, "output", "mean_frequency"))),
    ]
    table = [[(name, detail), [cell(n) for n in networks]] for name, detail, cell in rows]
    return html.table(
        ["", *(escape(n["label"]) for n in networks)],
        (
            [escape(name) + (f" <small>{escape(detail)}</small>" if detail else "")]
            + [escape(cell) or html.DASH for cell in cells]
            for (name, detail), cells in table
            if any(cells)
        ),
        kind="side",
    )


def _computed(results: Results) -> str:
    settings = results["settings"]
    window = "multiplied by a Hann window (so that edges do not look like high frequencies)"
    shaped = f"{window} and transformed" if settings["window"] == "hann" else "transformed"
    lines = [
        "<b>Branches.</b> A base block of MDBN adds two branches: a deep one of two convolutions and a shallow one of "
        "a single convolution. A residual block holds two of these pairs, pair 0 and pair 1. Networks of one branch "
        "per block, such as EDSR, are the control: only their blocks' outputs have a spectrum.",
        "<b>Procedure.</b> The MDBN paper (arXiv 2309.17334) shows by Fourier analysis that deep branches carry fine "
        "structure and shallow ones smooth content; its exact procedure is not published, so that the one used here "
        "is ours and its numbers are not those of the paper. Each channel of a branch's output, before the two are "
        f"added, loses its mean over the image, is {shaped} in two dimensions. Energy is the squared modulus, mean "
        "over channels; frequencies are in cycles per pixel of the small image, the network's input (0.5: every second "
        "pixel).",
        f"<b>High/low ratio.</b> Energy from {settings['cut']:g} cycles per pixel on, corners of the spectrum "
        "included, over the energy below. <b>Mean frequency</b> is weighted by energy.",
        f"<b>Differentiation.</b> {DIFFERENTIATION}",
        "<b>Untrained.</b> The same network with its initial weights, on the same images: what branches differ by "
        "because two convolutions reach further than one. What training changed is the difference from it.",
    ]
    return "".join(f"<p>{line}</p>" for line in lines)


def _block_table(network: dict[str, Any]) -> str:
    """Every number of every branch, folded away until asked for."""

    def cell(value: Any) -> str:
        return f"{figure_of(value['mean'])} ± {figure_of(value['sd'])}"

    rows = []
    for place, branch, distance, _ in _branches({"networks": [network]}):
        _, block, pair, name = place
        where = f"{block}, {name}" if pair is None else f"{block}, pair {pair}, {name}"
        said = html.DASH if distance is None or not number(distance) >= 0 else figure_of(distance)
        rows.append([escape(where), said, *(escape(cell(branch[s])) for s in SCALARS)])
    head = [
        "branch",
        "differentiation",
        "high/low ratio",
        "mean frequency (cycles per pixel)",
        "share of channel means",
    ]
    summary = f"{network['label']}: mean ± standard deviation over images"
    note = (
        "<p><small>Differentiation is one number for both branches of a pair; beside an output, the mean of its block. "
        "Share of channel means: of the energy, in the means that all else leaves out.</small></p>"
    )
    return f"<details><summary>{escape(summary)}</summary>{note}{html.table(head, rows)}</details>"
