"""Results of a decoded EEG run on disk: tables, sentences, figures and a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.data.files import write_atomic
from jaxkd.report.decoding_figures import POOLS, draw_decoding
from jaxkd.report.html import DASH, Section, Table, figure_sections, made_section, write_page
from jaxkd.report.tables import write_csv

Results = dict[str, Any]
RETRIEVAL = (
    *("method", "pool", "candidates", "queries", "texts", "subjects", "top1", "chance1", "top5", "chance5", "top25"),
    *("chance25", "mrr", "median_rank", "low", "high", "text_low", "text_high", "p", "p_holm", "failed"),
)
CONTROLS = (
    *("row", "networks", "expected"),
    *(
        f"{pool}_{name}"
        for pool in ("matched", "all")
        for name in ("candidates", "top1", "chance1", "top5", "chance5", "low", "high", "p", "p_holm", "mrr")
    ),
)


def write_decoding(results: Results, folder: Path, *, figures: bool = True) -> list[Path]:
    """Writes results.json, leaks.json, report.html, figures, and as .csv retrieval, controls, curve, subjects, texts.

    Args:
      results: of `experiment.eeg.results.collect`.
      folder: is there already; files of the same names are replaced.
      figures: also figures/*.png and .pdf and the page.

    Returns:
      The paths written.
    """
    written = [folder / "results.json", folder / "leaks.json"]
    write_atomic(written[0], json.dumps(results, indent=1, allow_nan=False))
    write_atomic(written[1], json.dumps(results["leaks"], indent=2))
    tables = {
        "retrieval.csv": (RETRIEVAL, results["retrieval"]),
        "controls.csv": (CONTROLS, results["controls"]),
        "curve.csv": (("part", "k", *RETRIEVAL[1:14]), results["curve"]),
        "subjects.csv": (tuple(results["subjects"][0]), results["subjects"]),
        "text_metrics.csv": (("mode", *TEXT_METRICS, *MORE_TEXT_METRICS), results.get("text_metrics") or []),
    }
    for name, (header, rows) in tables.items():
        written.append(write_csv(folder / name, list(header), [[row.get(h) for h in header] for row in rows]))
    if figures:
        drawn = draw_decoding(results, folder / "figures")
        written += [path for figure in drawn for path in (figure.png, figure.pdf)]
        written.append(write_decoding_page(results, drawn, folder / "report.html"))
    return written


def write_decoding_page(results: Results, figures: Sequence[Any], path: Path) -> Path:
    """Writes the page; `figures` are those of `draw_decoding` for the same results. Returns `path`."""
    settings, by_family = results["settings"], {section.heading: section for section in figure_sections(figures)}

    def with_tables(family: str, heading: str, *tables: Table) -> Section:
        drawn = by_family.get(family)
        return Section(heading, figures=drawn.figures if drawn else (), tables=[t for t in tables if t.rows])

    facts = [str(settings.get(k) or "") for k in ("source", "weights", "device", "date")]
    sections = [
        Section("In short", paragraphs=[("", sentence) for sentence in results["sentences_in_short"]]),
        Section("Leaks", notes=_leak_notes(results)),
        with_tables("Controls", "Controls", control_table(results["controls"])),
        Section("Retrieval", tables=[retrieval_table(results["retrieval"])]),
        with_tables("Anchors", "Anchors", anchor_table(results)),
        with_tables("Subjects", "Subjects", *subject_tables(results)),
        Section("Sentences", tables=[*text_tables(results), *example_tables(results)]),
        with_tables("Electrodes", "Electrodes"),
        made_section(results),
    ]
    return write_page(path, "EEG to text", facts, sections)


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}"


def _p(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def control_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Top-5 of every row beside chance, in both pools."""
    cells = []
    for row in rows:
        line: list[Any] = [(row["row"], f"expected: {row['expected']}")]
        for pool in ("matched", "all"):
            if not row["networks"]:
                line += ["not run", DASH, DASH]
                continue
            interval = f"{row[f'{pool}_low']:.1f} to {row[f'{pool}_high']:.1f}"
            line += [f"{row[f'{pool}_top5']:.1f} ({row[f'{pool}_chance5']:.1f})", interval, _p(row[f"{pool}_p_holm"])]
        cells.append(line)
    head = [
        *("row", "top-5, as many words (chance)", "95 % interval", "p, corrected"),
        *("top-5, all (chance)", "95 % interval", "p, corrected"),
    ]
    text = (
        "Percent. The p-values are of permutations of the texts within subjects (and, among as many words, within "
        "numbers of words), corrected by Holm over the rows of a pool."
    )
    return Table(head, cells, text=text)


def retrieval_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Every method in every pool."""
    cells = [
        [
            (row["method"], f"{row['pool']}: {row['candidates']:.1f} candidates"),
            *(f"{row[f'top{k}']:.1f} ({row[f'chance{k}']:.1f})" for k in (1, 5, 25)),
            f"{row['mrr']:.3f}",
            f"{row['median_rank']:g}",
            f"{row['low']:.1f} to {row['high']:.1f}" if "low" in row else DASH,
            _p(row.get("p_holm")),
        ]
        for row in rows
    ]
    head = ["method and pool", "top-1 (chance)", "top-5 (chance)", "top-25 (chance)", "MRR", "median rank"]
    text = (
        "Percent, one right answer each; equal scores count as ordered at random. A numbered pool holds the right text "
        "and others drawn for each reading; its interval and p-value are those of top-5."
    )
    failed = [f"{row['failed']:.1f} % of the answers of {row['method']}" for row in rows if row.get("failed")]
    if any("failed" in row for row in rows):
        text += (
            " Reranked: a language model ordered the best candidates of the method before it, the others follow in "
            "their own order; where its answer could not be read, they count as ordered at random"
            f"{': ' + '; '.join(failed) if failed else ''}."
        )
    return Table([*head, "95 % interval of top-5", "p, corrected"], cells, text=text)


def anchor_table(results: Results) -> Table:
    """Accuracies of words and anchors."""
    words, anchors = results["words"], results["anchors"]
    rows = [
        [
            (f"top-{k}", "of the keywords that were read"),
            *(_percent(words.get(f"{kind}_top{k}")) for kind in ("word", "word_chance", "balanced", "balanced_chance")),
        ]
        for k in (1, 5, 10)
        if words
    ]
    rows += [
        [
            (name, f"of the {results['k'] or 'all'} anchors against the keywords of the text"),
            *(_percent(anchors[f"{part}{key}"]) for part in ("", "chance_")),
            *(DASH, DASH),
        ]
        for name, key in (("precision", "precision"), ("recall", "recall"), ("F", "f"))
    ]
    text = (
        "Percent. Chance of the words is that of always naming the most frequent keywords, chance of the anchors that "
        "of comparing them with the text of a reading that is drawn at random."
    )
    return Table(["words and anchors", "all", "chance", "mean over keywords", "chance"], rows, text=text)


def subject_tables(results: Results) -> list[Table]:
    """Top-5 as the mean over the subjects and of the worst, and, folded away, of each."""
    head = ["subject", "readings", "top-5, as many words (chance)", "top-5, all (chance)"]

    def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
        shown = [[f"{row[f'{pool}_top5']:.1f} ({row[f'{pool}_chance5']:.1f})" for pool in POOLS] for row in rows]
        return [[row["subject"], str(row["queries"]), *own] for row, own in zip(rows, shown, strict=True)]

    text = (
        "Percent. The mean weighs all subjects alike; the worst has the least top-5 above chance among as many words."
    )
    return [
        Table(head, cells(results["subject_summary"]), text=text),
        Table(head, cells(results["subjects"]), title="Numbers of the subjects", folded=True),
    ]


def text_tables(results: Results) -> list[Table]:
    """Text metrics of each way to make sentences."""
    found = results.get("text_metrics") or []
    rows = [[row["mode"], *(_percent(row.get(k)) for k in TEXT_METRICS)] for row in found]
    text = (
        "Percent; WER and CER may exceed 100. Overlap with the right sentence is high for fluent text of the genre "
        "whatever was read: compare with the rows of prior and no anchors, which use the same means. "
    ) + " ".join(failure_sentences(results))
    more = [[row["mode"], *(_percent(row.get(k)) for k in MORE_TEXT_METRICS)] for row in found]
    return [
        Table(["mode", *TEXT_METRICS.values()], rows, text=text),
        Table(["mode", *MORE_TEXT_METRICS.values()], more, title="Further text metrics", text=VARIANTS, folded=True),
    ]


def failure_sentences(results: Results) -> list[str]:
    """Numbers of answers that gave no sentence, with their most frequent reasons."""
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in results.get("text_metrics") or []:
        if row.get("failures"):
            by_reason.setdefault(row["reason"], []).append(row)
    return [
        f"Without a sentence: {sum(row['failures'] for row in rows)} of {sum(row['readings'] for row in rows)} "
        f"({'; '.join(row['mode'] for row in rows)}). Most frequent reason: {reason}."
        for reason, rows in by_reason.items()
    ]


TEXT_METRICS = {
    "bleu1": "BLEU-1",
    "bleu4": "BLEU-4",
    "content_bleu1": "BLEU-1 of content words",
    "rouge1_f": "ROUGE-1 F",
    "rougeL_f": "ROUGE-L F",
    "wer": "WER",
    "cer": "CER",
    "identical": "identical outputs",
    "empty": "empty",
    "failed": "failed",
}
MORE_TEXT_METRICS = {
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "rouge1_sets_f": "ROUGE-1 F of sets",
    "match_f": "match F",
    "distinct1": "distinct-1",
    "distinct2": "distinct-2",
}
VARIANTS = (
    "BLEU: of the corpus, uniform weights, one reference, no smoothing, as nltk's corpus_bleu; its tokens are words, "
    "numbers and single punctuation marks in lower case after NFKC, which WER, CER and distinct read too. ROUGE-1 and "
    "ROUGE-L: mean F over the readings, as rouge-score without stemming (runs of a-z and 0-9 in lower case); of sets: "
    "ROUGE-1 of the package rouge, as in EEG-to-text papers (different words, split at blanks, case kept). Match F: "
    "greedy cosines of the run's static word vectors, no BERTScore. Distinct: different words, or pairs of words, over "
    "all of them."
)


def example_tables(results: Results) -> list[Table]:
    """Ten sentences with anchors and candidates."""
    cells = [
        [
            (row["text"], f"{row['subject']}, {row['words']} words"),
            ", ".join(f"{word} ({probability:.2f})" for word, probability in row["anchors"]),
            row["sentence"] or "(none)",
            " / ".join(row["best"]),
            f"{row['rank']:g} of {row['candidates']}",
        ]
        for row in results.get("examples") or []
    ]
    text = "Readings of the test part, spread evenly over them; their quality is not selected."
    return [
        Table(
            ["text that was read", "anchors", "sentence", "best candidates", "rank of the text"],
            cells,
            "Ten readings",
            text,
            words=True,
        )
    ]


def _leak_notes(results: Results) -> list[tuple[str, str]]:
    report = results["leaks"]
    notes = [("Leak", leak) for leak in report["leaks"]]
    if not notes:
        notes = [("None", "no text and no nearly equal text is in two parts, and all was fitted on training readings")]
    firing = [name for name, fires in results["detectors"].items() if fires]
    quiet = [name for name, fires in results["detectors"].items() if not fires]
    notes.append(("Detectors that fire", ", ".join(firing) or "none"))
    notes.append(("Detectors that do not", ", ".join(quiet) or "none"))
    return notes


def print_decoding(results: Results) -> None:
    """Prints the table of controls and the sentences on what it says."""
    from rich.console import Console
    from rich.table import Table as RichTable

    table = control_table(results["controls"])
    shown = RichTable(title="Controls: top-5 in percent (chance)")
    for head in table.head:
        shown.add_column(head, justify="left" if head == "row" else "right")
    for row in table.rows:
        shown.add_row(row[0][0], *map(str, row[1:]))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(shown)
    for sentence in results["sentences_in_short"]:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    for sentence in failure_sentences(results):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    for leak in results["leaks"]["leaks"]:
        console.print(f"LEAK: {leak}", markup=False, highlight=False, soft_wrap=True)
    firing = [name for name, fires in results["detectors"].items() if fires]
    console.print(f"Detectors that fire: {', '.join(firing) or 'none'}", markup=False, highlight=False, soft_wrap=True)
