"""report.html: every figure with its caption, tables of all models side by side, notes, and how it was made.

One file that opens from disk: the style sheet is inside, pictures are embedded, nothing is fetched and nothing runs.
All text that comes from outside (labels, paths, notes) is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxkd.report import figures as figures_module
from jaxkd.report.figures import Figure
from jaxkd.report.html_style import STYLE
from jaxkd.report.results import (
    Results,
    array,
    figure_of,
    has_numbers,
    images_in_words,
    kept_layer,
    label_of,
    listed,
    models_of,
    pick,
    seed_in_words,
)
from jaxkd.report.style import DPI

DASH = "–"
MIME = {".png": "image/png", ".gif": "image/gif"}
STATISTICS = {
    "intensity": "intensity",
    "entropy": "entropy (bits)",
    "entropy_own_range": "entropy, own range (bits)",
    "activation_mean": "mean |activation|",
    "activation_max": "max |activation|",
    "gradient": "mean |gradient|",
    "rank_99": "rank 99 %",
    "rank_95": "rank 95 %",
    "rank_90": "rank 90 %",
    "rank_80": "rank 80 %",
    "participation_ratio": "participation ratio",
    "stable_rank": "stable rank",
    "kurtosis": "kurtosis",
    "massive_share": "largest channel's share",
}


def write_report(results: Results, figures: Sequence[Figure], path: Path) -> None:
    """Writes the report.

    Args:
      results: see `analysis.reading`; any part may be absent or null. Paths under "saliency" are relative to the
        folder of `path`; a picture that is not there is named instead of shown.
      figures: what `figures.write_figures` returned for the same results.
      path: of the HTML file.
    """
    path = Path(path)
    names = [label_of(m) for m in models_of(results)]
    title = f"Feature analysis of {listed(names)}"
    sections = [("Overview", _overview(results)), ("Notes", _notes(results))]
    families: dict[str, list[str]] = {}
    for figure in figures:
        families.setdefault(figures_module.family_of(figure.name), []).append(figure_section(figure, path.parent))
    sections += [(family, "".join(parts)) for family, parts in families.items()]
    sections += [
        ("Suggested layer pairs", _suggestions(results)),
        ("Saliency", _saliency(results, path.parent)),
        ("Numbers by layer", "".join(_layer_table(m) for m in models_of(results))),
        ("Not in this report", _left_out(results)),
        ("How it was made", made_section(results)),
    ]
    sections = [(heading, body) for heading, body in sections if body]
    links = "".join(f'<a href="#s{i}">{escape(h)}</a>' for i, (h, _) in enumerate(sections))
    body = "".join(f'<section id="s{i}"><h2>{escape(h)}</h2>{b}</section>' for i, (h, b) in enumerate(sections))
    facts = [
        images_in_words(results),
        seed_in_words(results),
        *(_said(results, k) for k in ("source", "device", "date")),
    ]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><header><h1>{escape(title)}</h1>"
        f'<p class="facts">{escape(" · ".join(f for f in facts if f))}</p></header>'
        f"<nav>{links}</nav>{body}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _said(results: Results, key: str) -> str:
    value = pick(results, "settings", key)
    return "" if value is None else str(value)


def table(head: Iterable[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    """A table that scrolls inside its box. Cells are HTML already, the first of each row its heading.

    `kind` is "side" for words, which wrap, in a column for each model; "numbers" do not wrap.
    """
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    ]
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _overview(results: Results) -> str:
    """Rows of facts, a column for each model; rows that no model can fill are left out."""
    models = models_of(results)
    rows: list[tuple[str, str, list[str]]] = []

    def add(name: str, detail: str, cells: Iterable[str]) -> None:
        cells = list(cells)
        if any(c and c != DASH for c in cells):
            rows.append((name, detail, [c or DASH for c in cells]))

    def numbers(model: dict[str, Any], *paths: Sequence[str | int]) -> str:
        values = [pick(model, *p) for p in paths]
        return " / ".join(figure_of(v) for v in values) if any(v is not None for v in values) else DASH

    add("Model", "", (str(m.get("name") or DASH) for m in models))
    add("Weights", "", (str(m.get("weights") or DASH) for m in models))
    add("Parameters", "", (f"{m['parameters']:,}" if m.get("parameters") else DASH for m in models))
    sizes = (pick(m, "image_size") or [] for m in models)
    add("Image size", "pixels", (" x ".join(str(s) for s in size) for size in sizes))
    add("Images", "unreadable ones in brackets", (_image_count(m) for m in models))
    add("Layers", "", (str(len(m.get("layers") or [])) for m in models))
    add("Last layer", "tokens N x channels D", (_last_size(m) for m in models))
    levels = ("99", "95", "90", "80")
    own = "99th percentile over images, at 99 / 95 / 90 / 80 % of the energy"
    add("Own directions", own, (numbers(m, *(("last", "ranks", t, "p99") for t in levels)) for m in models))
    needs = [[("last", "pca", c, "required_d", t, "p99") for t in levels] for c in ("uncentred", "centred")]
    add("Shared directions", own, (numbers(m, *needs[0]) for m in models))
    add("Shared, centred", own, (numbers(m, *needs[1]) for m in models))
    for key, name, null in (
        ("participation_ratio", "Participation ratio", "last layer, mean over images"),
        ("stable_rank", "Stable rank", "last layer, mean over images"),
        ("kurtosis", "Kurtosis", "last layer, mean over images; Gaussian: 3"),
    ):
        add(name, null, (numbers(m, ("per_layer", key, "mean", kept_layer(m))) for m in models))
        add(f"{name}, null", "Gaussian", (numbers(m, ("last", "nulls", "gaussian", key)) for m in models))
    add(
        "SEP bandwidth b / D",
        "at 50 / 60 / 70 / 80 / 90 %; about the same for any order of channels",
        map(_bandwidths, models),
    )
    add("Permuting channels", "change of b / D at 90 %, 95 % interval", map(_permuted, models))
    head = ["", *(escape(label_of(m)) for m in models)]
    return table(
        head,
        (
            [escape(name) + (f" <small>{escape(detail)}</small>" if detail else ""), *map(escape, cells)]
            for name, detail, cells in rows
        ),
        kind="side",
    )


def _image_count(model: dict[str, Any]) -> str:
    broken = len(model.get("broken") or [])
    return f"{model.get('images', DASH)}" + (f" ({broken})" if broken else "")


def _last_size(model: dict[str, Any]) -> str:
    last = model.get("last") or {}
    return f"{last.get('layer')}: {last.get('N')} x {last.get('D')}" if last else DASH


def _bandwidths(model: dict[str, Any]) -> str:
    found, size = pick(model, "last", "sep", "full", "bandwidth") or {}, pick(model, "last", "D")
    return " / ".join(DASH if d is None else f"{d / size:.3f}" for d in found.values()) if size else DASH


def _permuted(model: dict[str, Any]) -> str:
    delta, interval = (pick(model, "last", "permutation", key, -1) for key in ("delta", "ci"))
    if delta is None or not has_numbers(interval):
        return DASH
    return f"{delta:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"


def _notes(results: Results) -> str:
    items = [(label_of(m), n) for m in models_of(results) for n in m.get("notes") or []]
    pairs = results.get("comparisons") or []
    items += [(f"{c.get('student')} with {c.get('teacher')}", n) for c in pairs for n in c.get("notes") or []]
    lines = [f"<li><b>{escape(str(name))}</b>: {escape(str(note))}</li>" for name, note in items]
    for model in models_of(results):
        if model.get("broken"):
            names = ", ".join(map(str, model["broken"]))
            lines.append(f"<li><b>{escape(label_of(model))}</b>: not read: {escape(names)}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def embedded(path: Path) -> str | None:
    """A picture as a data URL; None if it is not there or neither PNG nor GIF."""
    if path.suffix.lower() not in MIME or not path.is_file():
        return None
    return f"data:{MIME[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def figure_section(figure: Figure, folder: Path) -> str:
    """The picture in a box that scrolls sideways on a phone rather than shrink its text away, and the caption."""
    source = embedded(figure.png)
    if source is None:
        return f"<h3>{escape(figure.title)}</h3><p>The picture {escape(figure.png.name)} is gone.</p>"
    width = int.from_bytes(figure.png.read_bytes()[16:20], "big") / DPI  # inches; the IHDR chunk comes first
    least = width * 72 if width > 5.8 else 0  # narrow ones fit a phone with letters of 8 pixels
    size = f"max-width:{width * 108:.0f}px;min-width:{least:.0f}px"
    caption = []
    for line in figure.caption.split("\n"):
        lead, colon, rest = line.partition(": ")
        mark = ' class="cannot"' if lead.startswith("What it cannot") else ""
        caption.append(f"<p{mark}><b>{escape(lead)}{colon.strip()}</b> {escape(rest)}</p>")
    pdf = figure.pdf.relative_to(folder) if figure.pdf.is_relative_to(folder) else Path(figure.pdf.name)
    hint = '<p class="hint">Wider than the screen: slide it sideways.</p>' if least else ""
    return (
        f'<figure id="{escape(figure.name)}"><h3>{escape(figure.title)}</h3>'
        '<div class="scroll picture" tabindex="0">'
        f'<img src="{source}" alt="{escape(figure.title)}" style="{size}"></div>'
        f"{hint}<figcaption>{''.join(caption)}"
        f'<p class="file"><small>For print: {escape(pdf.as_posix())}</small></p></figcaption></figure>'
    )


def _suggestions(results: Results) -> str:
    parts = []
    for pair in results.get("comparisons") or []:
        suggestion = pair.get("suggestion")
        if not suggestion:
            continue
        name = f"{pair.get('student')} (student) and {pair.get('teacher')} (teacher)"
        verdict = "" if suggestion.get("supported", True) else "The profile does not support this. "
        parts.append(f"<h3>{escape(name)}</h3><p>{escape(verdict + str(suggestion.get('reason') or ''))}</p>")
        names = (pair.get("student_layers") or [], pair.get("teacher_layers") or [])
        rows = []
        for s, t in suggestion.get("pairs") or []:
            cka = pick(pair, "cka", s, t)
            cells = [pick(names[0], s) or s, pick(names[1], t) or t, DASH if cka is None else f"{cka:.2f}"]
            rows.append([escape(str(c)) for c in cells])
        if rows:
            parts.append(table(["student", "teacher", "linear CKA"], rows))
    return "".join(parts)


def _saliency(results: Results, folder: Path) -> str:
    parts = []
    for entry in results.get("saliency") or []:
        head = f"{entry.get('model')}: {entry.get('image')}, class {entry.get('class')}"
        error = entry.get("completeness_error")
        if error is not None:
            head += f"; completeness error of integrated gradients {figure_of(error)}"
        pictures = {}
        for kind in ("png", "gif"):
            source = embedded(folder / str(entry[kind])) if entry.get(kind) else None
            alt = escape(f"saliency of {entry.get('image')}")
            pictures[kind] = f'<img src="{source}" alt="{alt}">' if source else ""
            if entry.get(kind) and not source:
                pictures[kind] = f"<p>The picture {escape(str(entry[kind]))} is not there.</p>"
        if pictures["gif"]:  # closed at first: not everybody can read beside a moving picture
            pictures["gif"] = f"<details><summary>Animation over layers</summary>{pictures['gif']}</details>"
        parts.append(f"<div><p>{escape(head)}</p>{pictures['png']}{pictures['gif']}</div>")
    about = (
        "<p>Bright where the score reacts to a small change of the pixel. Such maps show sensitivity, not reasons: "
        "they look similar for networks that decide differently.</p>"
    )
    return f'{about}<div class="saliency">{"".join(parts)}</div>' if parts else ""


def _layer_table(model: dict[str, Any]) -> str:
    """Mean and standard deviation over images of every statistic, folded away until asked for."""
    shown = [s for s in STATISTICS if has_numbers(pick(model, "per_layer", s, "mean"))]
    extra = [s for s in model.get("per_layer") or {} if s not in STATISTICS]
    rows = []
    for i, layer in enumerate(model.get("layers") or []):
        cells = [f"{pick(model, 'tokens', i)} x {pick(model, 'channels', i)}"]
        for statistic in shown + extra:
            mean, sd = (pick(model, "per_layer", statistic, k, i) for k in ("mean", "sd"))
            cells.append(DASH if mean is None else f"{figure_of(mean)} ± {figure_of(sd)}")
        rows.append([escape(c) for c in (layer, *cells)])
    head = ["layer", "N x C", *(STATISTICS.get(s, s) for s in shown + extra)]
    count = int(array(model.get("tokens")).size)
    summary = f"{label_of(model)}: {count} layers, mean ± standard deviation over {images_in_words({}, [model])[4:]}"
    return f"<details><summary>{escape(summary)}</summary>{table(map(escape, head), rows)}</details>"


def _left_out(results: Results) -> str:
    lines = [f"<li><b>{escape(t)}</b>: {escape(reason)}</li>" for t, reason in figures_module.left_out(results)]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def made_section(results: Results) -> str:
    """What a reader needs to do it again: command, settings and versions, as HTML."""
    settings = dict(results.get("settings") or {})
    command = settings.pop("command", None)
    versions = settings.pop("versions", None) or {}
    ran = f'<pre class="scroll" tabindex="0">{escape(str(command))}</pre>' if command else ""
    rows = [[escape(k.replace("_", " ")), escape(DASH if v is None else str(v))] for k, v in settings.items()]
    rows += [[escape(str(k)), escape(str(v))] for k, v in versions.items()]
    return ran + (table(["setting", "value"], rows, kind="side") if rows else "")
