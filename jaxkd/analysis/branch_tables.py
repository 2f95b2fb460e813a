"""The results of a branch analysis on disk: JSON with everything, two tables, the figure and its caption."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxkd.analysis.branch_figures import branch_caption, draw_branches
from jaxkd.analysis.branches import BRANCHES
from jaxkd.analysis.reading import pick
from jaxkd.errors import ConfigError

Results = dict[str, Any]
Row = list[Any]
NAMES = ("branches.json", "branches.csv", "branch_profiles.csv")
SCALARS = ("high_low", "mean_frequency", "mean_share")
HEADER = ["network", "block", "pair", "branch", *(f"{s}{e}" for s in SCALARS for e in ("", "_sd")), "differentiation"]
PROFILE_HEADER = ["network", "block", "pair", "branch", "cycles_per_pixel", "amplitude"]


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
            f'--out="{folder}" holds an earlier analysis of branches ({there[0]}). Nothing already saved is lost by '
            "accident. Choose another folder, or add --overwrite."
        )
    return folder


def write_branches(
    results: Results, folder: str | Path, *, overwrite: bool = False, figures: bool = True
) -> list[Path]:
    """Writes branches.json, branches.csv (a line per branch), branch_profiles.csv (a line per ring) and the figure.

    Args:
      results: of `tasks.branch_analysis.analyse_branches`.
      folder: made if it is not there.
      overwrite: replace earlier results.
      figures: also branches.png and .pdf.

    Returns:
      The paths written.

    Raises:
      ConfigError: see `check_out`.
    """
    folder = check_out(folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / name for name in NAMES]
    content = {**results, "caption": branch_caption(results)}
    written[0].write_text(json.dumps(content, allow_nan=False))
    _write(written[1], HEADER, _scalars(results))
    _write(written[2], PROFILE_HEADER, _profiles(results))
    return written + (list(draw_branches(results, folder / "branches.png")) if figures else [])


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
