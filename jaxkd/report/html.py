"""HTML pages of results: figures with captions, tables, notes and how the results were made.

A page is one file that opens from disk: style sheet and pictures are inside, nothing is fetched and nothing runs. The
template escapes all text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxkd.data.files import write_atomic
from jaxkd.report import figures as all_figures
from jaxkd.report.depth_figures import statistic_title
from jaxkd.report.plan import Figure
from jaxkd.report.results import (
    THRESHOLDS,
    Results,
    comparisons_of,
    has_numbers,
    images_in_words,
    in_units,
    join_words,
    kept_layer,
    label_of,
    models_of,
    pick,
    seed_in_words,
    short_number,
)
from jaxkd.report.style import DPI

DASH = "–"
TEMPLATES = Path(__file__).parent / "templates"
MIME = {".png": "image/png", ".gif": "image/gif"}
Cells = Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table with a heading of its own."""

    head: Cells  # cells of the first row
    rows: Sequence[Sequence[Any]]  # cells; the first of a row is its heading, or a pair (heading, detail)
    title: str = ""  # heading, or the line that unfolds the table
    text: str = ""  # paragraph before the rows
    folded: bool = False  # closed until asked for
    words: bool = False  # cells wrap, as words do and numbers do not


@dataclass(frozen=True)
class Picture:
    """A captioned picture without a plan: saliency maps, and their animation as a GIF."""

    text: str
    alt: str
    png: Path | None
    gif: Path | None


@dataclass(frozen=True)
class Section:
    """A section of a page; one without any content is left out. Notes and paragraphs are (bold, text)."""

    heading: str
    paragraphs: Sequence[tuple[str, str]] = ()
    notes: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()
    command: str = ""

    def __bool__(self) -> bool:
        return any((self.paragraphs, self.notes, self.tables, self.figures, self.pictures, self.command))


def write_page(path: Path, title: str, facts: Iterable[str], sections: Iterable[Section]) -> Path:
    """Writes a page from `templates/page.html`; the folder is made if it is not there."""
    folder = path.parent
    filters = {
        "data_url": data_url,
        "inches": lambda png: int.from_bytes(png.read_bytes()[16:20], "big") / DPI,  # a PNG begins with its IHDR chunk
        "beside": lambda p: (p.relative_to(folder) if p.is_relative_to(folder) else Path(p.name)).as_posix(),
    }
    page = load_template(TEMPLATES / "page.html", filters).render(
        title=title, facts=" · ".join(f for f in facts if f), sections=[s for s in sections if s]
    )
    write_atomic(path, page)
    return path


def load_template(path: Path, filters: Mapping[str, Any] | None = None) -> Any:
    """The jinja2 template in `path`; it may extend or include those of the folder `templates`, with these `filters`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([path.parent, TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= filters or {}
    return environment.get_template(path.name)


def data_url(path: Path) -> str | None:
    """A picture as a data URL; None if it is not there or neither PNG nor GIF."""
    if path.suffix.lower() not in MIME or not path.is_file():
        return None
    return f"data:{MIME[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def write_report(results: Results, figures: Sequence[Figure], path: Path) -> None:
    """Writes report.html.

    Args:
      results: what `analysis.pipeline.analyse` returns; any part may be absent or null. Paths under "saliency" are
        relative to the folder of `path`; a picture that is not there is named instead of shown.
      figures: what `figures.write_figures` returned for the same results.
      path: of the HTML file.
    """
    path = Path(path)
    models = models_of(results)
    facts = [images_in_words(results), seed_in_words(results)]
    facts += [str(pick(results, "settings", k) or "") for k in ("source", "device", "date")]
    sections = [
        Section("Overview", tables=[_overview(results)]),
        Section("Notes", notes=_notes(results)),
        *figure_sections(figures),
        Section("Suggested layer pairs", tables=_suggestions(results)),
        _saliency(results, path.parent),
        Section("Numbers by layer", tables=[_layer_table(m, results) for m in models]),
        Section("Not in this report", notes=all_figures.left_out(results)),
        made_section(results),
    ]
    write_page(path, f"Feature analysis of {join_words(label_of(m) for m in models)}", facts, sections)


def figure_sections(figures: Iterable[Figure]) -> list[Section]:
    """A section for each family of figures, in the order of the figures."""
    families: dict[str, list[Figure]] = {}
    for figure in figures:
        families.setdefault(figure.family, []).append(figure)
    return [Section(family, figures=found) for family, found in families.items()]


def side_by_side(names: Cells, rows: Iterable[tuple[str, str, Iterable[str]]]) -> Table:
    """A column for each of `names` and (heading, detail, cells) as rows; rows without any cell are left out."""
    kept = [(name, detail, list(cells)) for name, detail, cells in rows]
    return Table(
        ["", *names],
        [[(name, detail), *(c or DASH for c in cells)] for name, detail, cells in kept if any(cells)],
        words=True,
    )


def _numbers(model: dict[str, Any], *paths: Sequence[str | int]) -> str:
    """ "a / b / c", or "" where there is none."""
    values = [pick(model, *p) for p in paths]
    return " / ".join(map(short_number, values)) if any(v is not None for v in values) else ""


def _overview(results: Results) -> Table:
    """Facts about every model and the numbers of its last layer."""
    models = models_of(results)

    def row(name: str, detail: str, cell: Any) -> tuple[str, str, list[str]]:
        return name, detail, [cell(m) for m in models]

    own = "99th percentile over images, at 99 / 95 / 90 / 80 % of the energy"
    shared = ("last", "pca", "uncentred", "required_d")
    centred = ("last", "pca", "centred", "required_d")
    rows = [
        row("Model", "", lambda m: str(m.get("name") or "")),
        row("Weights", "", lambda m: str(m.get("weights") or "")),
        row("Parameters", "", lambda m: f"{m['parameters']:,}" if m.get("parameters") else ""),
        row("Image size", "pixels", lambda m: " x ".join(map(str, m.get("image_size") or []))),
        row("Images", "unreadable ones in brackets", _image_count),
        row("Top-1 accuracy", "%", lambda m: "" if m.get("top1") is None else f"{m['top1']:.2f}"),
        row("Layers", "", lambda m: str(len(m.get("layers") or []))),
        row("Last layer", "tokens N x channels D", _last_size),
        row("Own directions", own, lambda m: _numbers(m, *(("last", "ranks", t, "p99") for t in THRESHOLDS))),
        row("Shared directions", own, lambda m: _numbers(m, *((*shared, t, "p99") for t in THRESHOLDS))),
        row("Shared, centred", own, lambda m: _numbers(m, *((*centred, t, "p99") for t in THRESHOLDS))),
    ]
    for key in ("participation_ratio", "stable_rank", "kurtosis"):
        name = statistic_title(key)[0].capitalize()
        mean = [_numbers(m, ("per_layer", key, "mean", kept_layer(m))) for m in models]
        rows.append((name, "last layer, mean over images", mean))
        rows.append(
            row(f"{name}, null", "Gaussian", lambda m, key=key: _numbers(m, ("last", "nulls", "gaussian", key)))
        )
    levels = "at 50 / 60 / 70 / 80 / 90 %; about the same for any order of channels"
    rows.append(row("SEP bandwidth b / D", levels, _bandwidths))
    rows.append(row("Permuting channels", "change of b / D at 90 %, 95 % interval", _permuted))
    rows = [(in_units(results, name), in_units(results, detail), cells) for name, detail, cells in rows]
    return side_by_side([label_of(m) for m in models], rows)


def _image_count(model: dict[str, Any]) -> str:
    broken = len(model.get("broken") or [])
    return f"{model.get('images', DASH)}" + (f" ({broken})" if broken else "")


def _last_size(model: dict[str, Any]) -> str:
    last = model.get("last") or {}
    return f"{last.get('layer')}: {last.get('N')} x {last.get('D')}" if last else ""


def _bandwidths(model: dict[str, Any]) -> str:
    found, size = pick(model, "last", "sep", "full", "bandwidth") or {}, pick(model, "last", "D")
    return " / ".join(DASH if d is None else f"{d / size:.3f}" for d in found.values()) if size else ""


def _permuted(model: dict[str, Any]) -> str:
    delta, interval = (pick(model, "last", "permutation", key, -1) for key in ("delta", "ci"))
    if delta is None or not has_numbers(interval):
        return ""
    return f"{delta:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"


def _notes(results: Results) -> list[tuple[str, str]]:
    notes = [("", str(n)) for n in pick(results, "settings", "notes") or []]
    notes += [(label_of(m), str(n)) for m in models_of(results) for n in m.get("notes") or []]
    notes += [
        (f"{c.get('student')} with {c.get('teacher')}", str(n))
        for c in comparisons_of(results)
        for n in c.get("notes") or []
    ]
    broken = [(label_of(m), m["broken"]) for m in models_of(results) if m.get("broken")]
    return notes + [(label, f"not read: {', '.join(map(str, names))}") for label, names in broken]


def _suggestions(results: Results) -> list[Table]:
    tables = []
    for pair in comparisons_of(results):
        suggestion = pair.get("suggestion")
        if not suggestion:
            continue
        rows = []
        for s, t in suggestion.get("pairs") or []:
            names = [str(pick(pair, f"{side}_layers", i) or i) for side, i in (("student", s), ("teacher", t))]
            cka = pick(pair, "cka", s, t)
            rows.append([*names, DASH if cka is None else f"{cka:.2f}"])
        verdict = "" if suggestion.get("supported", True) else "The profile does not support this. "
        title = f"{pair.get('student')} (student) and {pair.get('teacher')} (teacher)"
        text = verdict + str(suggestion.get("reason") or "")
        tables.append(Table(["student", "teacher", "linear CKA"], rows, title, text))
    return tables


def _saliency(results: Results, folder: Path) -> Section:
    pictures = []
    for entry in results.get("saliency") or []:
        text = f"{entry.get('model')}: {entry.get('image')}, class {entry.get('class')}"
        if entry.get("completeness_error") is not None:
            text += f"; completeness error of integrated gradients {short_number(entry['completeness_error'])}"
        files = [folder / str(entry[kind]) if entry.get(kind) else None for kind in ("png", "gif")]
        pictures.append(Picture(text, f"saliency of {entry.get('image')}", *files))
    about = (
        "Bright where the score reacts to a small change of the pixel. Such maps show sensitivity, not reasons: they "
        "look similar for networks that decide differently."
    )
    return Section("Saliency", paragraphs=[("", about)] if pictures else (), pictures=pictures)


def _layer_table(model: dict[str, Any], results: Results) -> Table:
    """Mean and standard deviation over images of every statistic, folded away until asked for."""
    shown = [s for s, spread in (model.get("per_layer") or {}).items() if has_numbers(pick(spread, "mean"))]
    layers = model.get("layers") or []
    rows = []
    for i, layer in enumerate(layers):
        cells = [f"{pick(model, 'tokens', i)} x {pick(model, 'channels', i)}"]
        for statistic in shown:
            mean, sd = (pick(model, "per_layer", statistic, k, i) for k in ("mean", "sd"))
            cells.append(DASH if mean is None else f"{short_number(mean)} ± {short_number(sd)}")
        rows.append([layer, *cells])
    heads = [f"{label} ({in_units(results, unit)})" if unit else label for label, unit in map(statistic_title, shown)]
    over = images_in_words(results, [model]).removeprefix("n = ")
    title = f"{label_of(model)}: {len(layers)} layers, mean ± standard deviation over {over}"
    return Table(["layer", "N x C", *heads], rows, title, folded=True)


def made_section(results: Results) -> Section:
    """Command, settings and versions."""
    settings = dict(results.get("settings") or {})
    command, versions = settings.pop("command", None), settings.pop("versions", None) or {}
    for name in ("notes", "left_out"):  # they have sections of their own
        settings.pop(name, None)
    rows = [[k.replace("_", " "), DASH if v is None else str(v)] for k, v in settings.items()]
    rows += [[str(k), str(v)] for k, v in versions.items()]
    tables = [Table(["setting", "value"], rows, words=True)] if rows else ()
    return Section("How it was made", tables=tables, command=str(command or ""))
