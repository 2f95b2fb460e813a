"""Retrieval over the number of anchors on a synthetic corpus, where no theory of meaning can be the reason.

    python benchmarks/eeg_granularity.py --figure=benchmarks/figures/eeg_granularity.png > eeg_granularity.json

For each signal-to-noise ratio a linear network is trained, and its k most certain anchors retrieve the sentence that
was read among all texts of the test part. Beside it stands the best decoder that knows the corpus: each fixated word is
a Gaussian channel over all words of the language, y_v = sqrt(snr) [v is the word] + noise, whose posterior
probabilities under the words' frequencies in training are the certainties. Anchors are then chosen and scored in the
same way; it also decodes a larger language, nearer to a real one, that so few readings could not teach. The last point
of each curve takes all anchors, each weighted by its certainty. Prints one JSON object;
progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from eeg_controls import Study

from jaxkd.data.sources.synthetic_zuco import FUNCTION_WORDS
from jaxkd.errors import JaxkdError
from jaxkd.experiment.eeg import retrieval
from jaxkd.experiment.eeg.data import EegData, open_eeg_data
from jaxkd.experiment.eeg.scoring import Decoded
from jaxkd.language.anchors import CandidateScorer
from jaxkd.language.keywords import tokens
from jaxkd.report import style

SNRS = (4, 9, 16)
ANCHORS: tuple[int | None, ...] = (1, 2, 3, 4, 5, 6, 8, 10, None)
CORPUS = {"vocabulary": 120, "words": "14-16"}
LARGE = {
    "vocabulary": 800,
    "words": "18-22",
    "sentences": 1500,
    "subjects": 1,
    "function_words": 0.5,
}  # too hard to learn
LARGE_NAME = "best decoder, 800 words"
WEIGHTED = "by certainty"


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seeds", type=int, default=3, help="corpora of each ratio (3)")
    parser.add_argument("--sentences", type=int, default=400, help="texts of a corpus (400)")
    parser.add_argument("--epochs", type=int, default=10, help="of each training (10)")
    parser.add_argument("--figure", type=Path, help="where the curves are drawn, a .png or .pdf file")
    return parser.parse_args(argv)


def ideal(eeg_data: EegData, readings: np.ndarray, snr: float, seed: int) -> Decoded:
    """Outputs of the best decoder for some readings: log posterior probabilities of the classes."""
    corpus, vocabulary = eeg_data.corpus, eeg_data.vocabulary
    spoken = [(tokens(word) or ("",))[0] for word in corpus.word]
    language = sorted({*spoken, *FUNCTION_WORDS})
    place = {word: i for i, word in enumerate(language)}
    said = np.array([place[word] for word in spoken])
    count = np.bincount(said[np.isin(corpus.reading_of_word, eeg_data.split.train)], minlength=len(language)) + 0.5
    words = np.concatenate([np.arange(*corpus.start[[r, r + 1]]) for r in readings])
    channel = np.random.default_rng((seed, 7)).standard_normal((len(words), len(language)))
    channel[np.arange(len(words)), said[words]] += np.sqrt(snr)
    log_posterior = np.sqrt(snr) * channel + np.log(count / count.sum())
    keyword = vocabulary.classes(language)
    logits = np.full((len(words), vocabulary.null + 1), -np.inf)
    for column in range(len(language)):
        logits[:, keyword[column]] = np.logaddexp(logits[:, keyword[column]], log_posterior[:, column])
    lengths = np.diff(corpus.start)[readings]
    start = np.concatenate([[0], np.cumsum(lengths)])
    return Decoded(readings, start, logits, eeg_data.word_class[words], np.zeros((len(readings), 1)))


def curve(queries: retrieval.Queries, scorer: CandidateScorer, decoded: Decoded) -> dict[str, dict[str, float]]:
    """{number of anchors: top-1 and top-5 among all candidates}, "all", and all by certainty."""
    out = {}
    for k, weight in [*((k, "equal") for k in ANCHORS), (None, "certainty")]:
        name = WEIGHTED if weight == "certainty" else str(k or "all")
        scores = retrieval.anchor_scores(decoded, scorer, k, weight=weight)
        row = retrieval.retrieval_row(queries, scores, "all")
        out[name] = {n: row[n] for n in ("top1", "top5")}
    return out


def large_curve(study: Study, snr: float, seed: int) -> dict[str, dict[str, float]]:
    """The curve of the best decoder on the larger language."""
    config = study.config(seed, {**LARGE, "snr": snr}, {"eeg.keywords": 0})
    eeg_data = open_eeg_data(config)
    queries = retrieval.make_queries(eeg_data, eeg_data.split.test, seed=seed)
    scorer = retrieval.make_scorer(eeg_data, queries)
    return curve(queries, scorer, ideal(eeg_data, queries.readings, snr, seed))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """{ratio: {"network" and "best decoder": {k: mean top-5 and top-1, and of each seed}}}."""
    study = Study(epochs=args.epochs, sentences=args.sentences)
    out: dict[str, Any] = {}
    for snr in SNRS:
        curves: dict[str, list] = {"network": [], "best decoder": [], LARGE_NAME: []}
        for seed in range(args.seeds):
            say(f"snr {snr}: seed {seed + 1} of {args.seeds}")
            opened, found, _ = study.run(seed, {**CORPUS, "snr": snr}, {"eeg.keywords": 100})
            curves["network"].append(curve(found.queries, found.scorer, found.decoded))
            best = ideal(opened.eeg_data, opened.eeg_data.split.test, snr, seed)
            curves["best decoder"].append(curve(found.queries, found.scorer, best))
            curves[LARGE_NAME].append(large_curve(study, snr, seed))
        out[str(snr)] = {
            "candidates": len(found.queries.candidates),
            "queries": len(found.queries.readings),
            **{
                who: {
                    k: {n: float(np.mean([c[k][n] for c in held])) for n in ("top1", "top5")}
                    | {"top5_seeds": [c[k]["top5"] for c in held]}
                    for k in held[0]
                }
                for who, held in curves.items()
            },
        }
    return out


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws top-5 over the number of anchors, a panel for each ratio."""
    with style.applied():
        figure, axes = style.panels(len(SNRS), sharey=True)
        names = [str(k or "all") for k in ANCHORS] + [WEIGHTED]
        for axis, snr in zip(axes, SNRS, strict=True):
            found = result[str(snr)]
            for i, who in enumerate(("best decoder", "network", LARGE_NAME)):
                values = [found[who][name]["top5"] for name in names]
                axis.plot(range(len(ANCHORS)), values[:-1], label=who, **style.style(i))
                axis.plot([len(ANCHORS)], values[-1:], **style.style(i))
                if len(found[who][names[0]]["top5_seeds"]) > 1:
                    spread = np.array([found[who][name]["top5_seeds"] for name in names])
                    error = spread.std(axis=1, ddof=1) / np.sqrt(spread.shape[1])
                    bars = {"fmt": "none", "ecolor": style.STYLES[i][0], "elinewidth": 0.8, "capsize": 2}
                    axis.errorbar(range(len(names)), values, error, **bars)
            chance = 100 * min(1.0, 5 / found["candidates"])
            axis.axhline(chance, color="#8a8a8a", linewidth=1, label=f"chance, {found['candidates']} candidates")
            axis.set_xticks(range(len(names)), [*names[:-1], "weighted"], fontsize=7.5)
            axis.set_title(f"snr {snr}")
            axis.set_xlabel("anchors")
        axes[0].set_ylabel("top-5, %")
        seeds = len(result[str(SNRS[0])]["network"]["1"]["top5_seeds"])
        style.add_legend(figure, f"synthetic corpora, mean and standard error of {seeds} seeds", axes[:1])
        style.write_figure(figure, path, dpi=style.DPI)


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON object."""
    args = parse(sys.argv[1:] if argv is None else argv)
    begin = time.perf_counter()
    result = {
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "corpus": {**CORPUS, "sentences": args.sentences},
        "larger_language": LARGE,
        "epochs": args.epochs,
        "snr": measure(args),
    }
    result["seconds"] = round(time.perf_counter() - begin, 1)
    if args.figure:
        draw(result["snr"], args.figure)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JaxkdError as error:
        sys.exit(f"benchmarks/eeg_granularity.py: {error}")
