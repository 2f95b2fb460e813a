"""Declaration of a figure: what it needs, what it shows, what it cannot show, and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxkd.report.results import Results, comparisons_of, has_numbers, images_in_words, models_of, pick, seed_in_words

Keys = tuple[str, ...]
LAYERS = "Layer by layer"
SPECTRA = "Spectra"
RANKS = "Directions per image and in all"
SEP = "Spectral energy pattern (SEP)"
PAIRS = "Teacher and student"


@dataclass(frozen=True)
class Figure:
    """A figure on disk.

    `family` is its section of the page; its caption is plain text, one paragraph a line (shows, cannot show, missing).
    """

    name: str
    title: str
    family: str
    png: Path
    pdf: Path | None  # for print, where there is one
    caption: str


@dataclass(frozen=True)
class Plan:
    """A figure that can be drawn."""

    name: str  # stem of its files
    title: str  # heading
    family: str  # section of the report; figures of `PAIRS` are of comparisons, all others of models
    draw: Callable[[Results], Any]  # results -> matplotlib figure
    needs: tuple[Keys, ...]  # paths into a model (or into a comparison) of which one at least must hold numbers
    words: Keys  # a note that contains one of them tells why the numbers are missing
    shows: str  # caption
    cannot: str  # caption, on what the figure does not prove
    # what line, band and bars are; also printed below the figure
    band: str = "line: mean, band: ± 1 standard deviation over images"

    def sources(self, results: Results) -> list[dict[str, Any]]:
        """The models, or the comparisons, that the figure is about."""
        return comparisons_of(results) if self.family == PAIRS else models_of(results)

    def has(self, source: dict[str, Any]) -> bool:
        """Whether a model (a comparison) has numbers for the figure."""
        return any(has_numbers(pick(source, *keys)) for keys in self.needs)

    def caption(self, results: Results) -> str:
        """Caption of the figure, one paragraph a line: what it shows, and what it cannot show."""
        band = self.band[:1].upper() + self.band[1:]
        facts = f"Over {images_in_words(results)}, {seed_in_words(results)}."
        return f"What it shows: {self.shows} {band}. {facts}\nWhat it cannot show: {self.cannot}"


def per_layer(*names: str) -> tuple[Keys, ...]:
    """`needs` of a figure of per-layer statistics."""
    return tuple(("per_layer", name, "mean") for name in names)
