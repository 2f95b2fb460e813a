"""Check of the EEG decoder's controls on synthetic corpora whose right answers are known.

    python benchmarks/eeg_controls.py > eeg_controls.json
    python benchmarks/eeg_controls.py --parts leaks --seeds=3

Each part trains the linear network, all in this process:
  null      no signal (snr 0): every accuracy beside chance, and p-values, which must be uniform (Kolmogorov-Smirnov)
  oracle    snr 16: how far from chance to the best possible decoder
  leaks     no signal, and one planted leak at a time: which detectors fire
  shuffled  snr 16, trained on the texts of other readings
  rotation  snr 16, tested on a reader and texts that training lacks, whose code is another by so much
The seed is that of the corpus, of the split and of the run at once. Standard errors of one corpus are of a bootstrap
over texts, as the readings of a text are not independent; those of means over seeds are over the seeds, which share
nothing. Prints one JSON object; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import analysis, metrics, parallel
from jaxkd.config import fields, recipes
from jaxkd.config.fields import change
from jaxkd.errors import JaxkdError
from jaxkd.experiment.eeg import controls, decode, retrieval
from jaxkd.experiment.eeg.data import EegData, open_eeg_data
from jaxkd.experiment.eeg.fit import Trainer

CORPUS: dict[str, Any] = {"subjects": 4, "sentences": 300, "vocabulary": 60, "words": "8-9", "gaze_letters": 0}
KEYWORDS, EPOCHS, DRAWS = 50, 10, 2000
CONSTANT = ("no anchors", "memoriser")  # all candidates equal where nothing leaks
LEAKS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # settings of the corpus, of the run, and the detector
    "none": ({}, {}, ""),
    "repeated texts, split by place": ({"duplicates": 60}, {"eeg.split": "published"}, "shared texts"),
    "letters in the EEG": ({"length_leak": 1}, {}, "word length"),
    "readers have sentences of their own": ({"holes": 0.5}, {}, "subject"),
    "keywords of all texts": ({}, {"eeg.vocabulary": "all"}, "vocabulary"),
    "standardised by all readings": ({}, {"eeg.standardise": "all"}, "standardisation"),
    "letters in the gaze": ({"gaze_letters": 1}, {}, "gaze"),
}
ROTATIONS = (0, 0.25, 0.5, 1)


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    parser.add_argument("--seeds", type=int, default=20, help="corpora of null and oracle (20)")
    parser.add_argument("--few-seeds", type=int, default=3, help="corpora of each row of the other parts (3)")
    parser.add_argument("--leak", choices=LEAKS, help="only this one of the part leaks")
    parser.add_argument("--sentences", type=int, default=CORPUS["sentences"], help="texts of a corpus (300)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each training (10)")
    return parser.parse_args(argv)


class Study:
    """Trains and decodes runs on synthetic corpora; runs of equal shapes share a compiled step."""

    def __init__(self, *, epochs: int, **corpus: Any):
        self._epochs, self._corpus = epochs, CORPUS | corpus
        self._mesh, self._trainers = parallel.make_mesh(1), {}

    def config(self, seed: int, corpus: dict[str, Any], changes: dict[str, Any]) -> ConfigDict:
        """Of one run."""
        settings = self._corpus | corpus | {"seed": seed}
        source = "embedded:synthetic_zuco?" + "&".join(f"{k}={v}" for k, v in settings.items())
        own = {
            "data.source": source,
            "seed": seed,
            "eeg.split_seed": seed,
            "eeg.keywords": KEYWORDS,
            "eeg.max_words": int(str(settings["words"]).split("-")[-1]),
            "eeg.allow_leaks": True,
            "train.epochs": self._epochs,
            "schedule.warmup_epochs": 1,
            "train.batch_size": 64,
        }
        return change(recipes.contrastive(fields.base(), embedded=True), own | changes).lock()

    def trainer(self, config: ConfigDict, eeg_data: EegData) -> Trainer:
        """A trainer of this config."""
        shapes = (len(eeg_data.split.train), len(eeg_data.texts), len(eeg_data.vocabulary.words), config.eeg.max_words)
        found = self._trainers.setdefault(shapes, Trainer(config, self._mesh))
        found.config = config
        return found

    def run(
        self, seed: int, corpus: dict[str, Any], changes: dict[str, Any] | None = None, *, k: int | None = 3
    ) -> tuple[decode.Opened, decode.Decoding, Trainer]:
        """A network that was trained, and its decoded test part; of `k` anchors."""
        config = self.config(seed, corpus, changes or {})
        eeg_data = open_eeg_data(config)
        trainer = self.trainer(config, eeg_data)
        opened = decode.Opened(config, eeg_data, trainer.fit(eeg_data, "EEG"), "")
        return opened, decoding_of(opened, k), trainer


def decoding_of(opened: decode.Opened, k: int | None) -> decode.Decoding:
    """The test part by `k` anchors, without the tables of `decode.decode`."""
    eeg_data = opened.eeg_data
    queries = retrieval.make_queries(eeg_data, eeg_data.split.test, seed=opened.config.seed)
    scorer = retrieval.make_scorer(eeg_data, queries)
    decoded = opened.fitted.decode(eeg_data, eeg_data.split.test)
    tables: dict[str, Any] = {"curve": [], "retrieval": [], "subjects": [], "words": {}, "anchors": {}}
    scores = retrieval.anchor_scores(decoded, scorer, k)
    return decode.Decoding(k=k, queries=queries, scorer=scorer, scores=scores, decoded=decoded, **tables)


def standard_error(values: np.ndarray, texts: np.ndarray, seed: int) -> float:
    """Of the mean of values, by drawing texts with replacement."""
    interval = analysis.bootstrap_interval(values, texts, DRAWS, seed=seed, level=0.6827)
    return (interval.high - interval.low) / 2


def null_numbers(opened: decode.Opened, found: decode.Decoding, seed: int) -> list[dict[str, Any]]:
    """Accuracies of all methods and score-only controls in both pools: distance from chance in standard errors."""
    context = controls.Context(opened.eeg_data, found.queries, found.scorer, found.k, seed)
    decoded, texts = found.decoded, opened.eeg_data.sentence_vectors[found.queries.candidates]
    scores = {"EEG": found.scores}
    scores["EEG, by certainty"] = retrieval.anchor_scores(decoded, found.scorer, None, weight="certainty")
    fitted = opened.fitted
    scores["EEG, sentence embedding"] = decode.direct_scores(fitted.task, fitted.params, decoded, texts)
    scores |= {c.name: c.score(context, fitted) for c in controls.CONTROLS if c.score and c.name != "oracle anchors"}
    numbers = []
    for name, one in scores.items():
        for pool in controls.POOLS:
            where = found.queries.pool(pool)
            sure = retrieval.certainty_of(found.queries, one, pool, seed=seed)
            split = np.random.default_rng((seed, len(numbers))).random() * sure["tied"]
            tests = {"p": sure["p"], "p_ties_split": sure["p"] - split, "tied": sure["tied"]}
            for k in (1, 5):
                hits = metrics.top_k_hits(one, found.queries.right, k, where=where)
                away = float((hits - np.minimum(1.0, k / where.sum(axis=1))).mean())
                error = standard_error(hits, found.queries.truth, seed)
                numbers.append({"row": name, "pool": pool, "k": k, "away": away, "error": error, **tests})
    return numbers


def null(study: Study, args: argparse.Namespace) -> dict[str, Any]:
    """Without signal everything is at chance, but the number of words among all candidates."""
    from scipy.stats import kstest  # a dependency of JAX

    held = defaultdict(list)
    for seed in range(args.seeds):
        say(f"null: seed {seed + 1} of {args.seeds}")
        opened, found, _ = study.run(seed, {"snr": 0})
        for number in null_numbers(opened, found, seed):
            held[number["row"], number["pool"], number["k"]].append(number)
    rows, single = [], []
    for (name, pool, k), numbers in held.items():
        away = np.array([n["away"] for n in numbers])
        spread = float(away.std(ddof=1) / np.sqrt(len(away))) if len(away) > 1 else float("nan")
        row = {"row": name, "pool": pool, "k": k, "above_chance": 100 * float(away.mean()), "error": 100 * spread}
        row["standard_errors"] = float(away.mean() / spread) if spread > 1e-9 else 0.0
        if k == 5 and name not in CONSTANT and not name.startswith("count"):
            p_values = [n["p"] for n in numbers]
            row["ks_p"] = float(kstest(p_values, "uniform").pvalue)
            # Too many small p-values alone; where equal scores leave few values of the statistic, large ones pile up.
            row["ks_p_too_small"] = float(kstest(p_values, "uniform", alternative="greater").pvalue)
            # Uniform without an effect: of the equal values a random share counts as above the observed one.
            row["ks_p_ties_split"] = float(kstest([n["p_ties_split"] for n in numbers], "uniform").pvalue)
            row["tied"] = float(np.mean([n["tied"] for n in numbers]))
            row["p_values"] = sorted(n["p"] for n in numbers)
        rows.append(row)
        if name != "count only":
            single += [abs(n["away"]) / n["error"] for n in numbers if n["error"] > 1e-9]
    clean = [r for r in rows if not (r["row"] == "count only" and r["pool"] == "all")]
    return {
        "rows": rows,
        "within_3_standard_errors": all(abs(r["standard_errors"]) <= 3 for r in clean),
        "largest_standard_errors": max(abs(r["standard_errors"]) for r in clean),
        "single_numbers": len(single),
        "single_numbers_beyond_3_text_errors": float(np.mean(np.array(single) > 3)),
        "smallest_ks_p": min(r["ks_p"] for r in rows if "ks_p" in r),
        "smallest_ks_p_ties_split": min(r["ks_p_ties_split"] for r in rows if "ks_p" in r),
        "smallest_ks_p_too_small": min(r["ks_p_too_small"] for r in rows if "ks_p" in r),
    }


def oracle(study: Study, args: argparse.Namespace) -> dict[str, Any]:
    """The way from chance to the best possible decoder that the network goes, at snr 16."""
    snr, rows = 16, []
    for seed in range(args.seeds):
        say(f"oracle: seed {seed + 1} of {args.seeds}")
        opened, found, _ = study.run(seed, {"snr": snr}, k=5)
        words = np.diff(opened.eeg_data.corpus.start)[found.queries.readings]
        count, texts = len(found.queries.candidates), found.queries.truth
        row: dict[str, Any] = {"seed": seed, "k": found.k, "candidates": count}
        for k in (1, 5):
            best = {n: analysis.oracle_topk(float(np.sqrt(n * snr)), count, k) for n in set(words.tolist())}
            ceiling = float(np.mean([best[n] for n in words.tolist()]))
            hits = metrics.top_k_hits(found.scores, found.queries.right, k)
            error = max(standard_error(hits, texts, seed), 1e-9)
            row |= {f"top{k}": 100 * float(hits.mean()), f"oracle{k}": 100 * ceiling, f"chance{k}": 100 * k / count}
            row[f"part{k}"] = float((hits.mean() - k / count) / (ceiling - k / count))
            row[f"above_oracle_in_errors{k}"] = float((hits.mean() - ceiling) / error)
        rows.append(row)
    summary = {f"mean_{n}": float(np.mean([r[n] for r in rows])) for n in rows[0] if n not in ("seed", "k")}
    summary |= {f"least_part{k}": min(r[f"part{k}"] for r in rows) for k in (1, 5)}
    return {**summary, "rows": rows}


def fired(opened: decode.Opened, found: decode.Decoding, trainer: Trainer, seed: int) -> tuple[dict, list[dict]]:
    """Detectors, and the rows of the controls that they look at."""
    context = controls.Context(opened.eeg_data, found.queries, found.scorer, found.k, seed)
    rows = []
    for control in controls.CONTROLS:
        if control.name in ("count only", "word length only", "word length from gaze", controls.ANY_SUBJECT):
            scores = control.train(context, trainer) if control.train else [control.score(context, opened.fitted)]
            rows.append(controls.score_row(context, control.name, scores))
    return decode.detectors(opened, rows), rows


def leaks(study: Study, args: argparse.Namespace) -> dict[str, Any]:
    """Each planted leak alone, without signal, makes its own detector fire and no other; word count is set apart."""
    out: dict[str, Any] = {}
    for name in [args.leak] if args.leak else LEAKS:
        corpus, changes, detector = LEAKS[name]
        held = []
        for seed in range(args.few_seeds):
            say(f"leaks: {name}, seed {seed + 1} of {args.few_seeds}")
            found, rows = fired(*study.run(seed, {"snr": 0, **corpus}, changes), seed)
            count = found.pop("word count")
            kept = ("row", "all_top5", "all_chance5", "all_p", "matched_top5", "matched_chance5", "matched_p")
            fires = sorted(n for n, yes in found.items() if yes)
            held.append({"fires": fires, "word count": count, "rows": [{k: r[k] for k in kept} for r in rows]})
        want = [detector] if detector else []
        out[name] = {"expected": want, "exactly": sum(h["fires"] == want for h in held), "of": len(held), "seeds": held}
    return out


def shuffled(study: Study, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Networks that were trained on the texts of other readings."""
    rows = []
    for seed in range(args.few_seeds):
        say(f"shuffled: seed {seed + 1} of {args.few_seeds}")
        opened, found, trainer = study.run(seed, {"snr": 16})
        context = controls.Context(opened.eeg_data, found.queries, found.scorer, found.k, seed)
        scores = controls.shuffled_training(context, trainer)
        row = controls.score_row(context, "pairs permuted in training", scores)
        ps = [retrieval.certainty_of(found.queries, one, "all", seed=seed)["p"] for one in scores]
        own = retrieval.retrieval_row(found.queries, found.scores, "all")["top5"]
        kept = {n: row[n] for n in ("all_top5", "all_chance5", "all_low", "all_high")}
        rows.append({"seed": seed, "unshuffled_top5": own, **kept, "p_values": ps})
    return rows


def rotation(study: Study, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Accuracy for a reader and texts that training lacks, beside that for known readers."""
    rows = []
    for strength in ROTATIONS:
        found = {"cross_subject": [], "text": []}
        for split, held in found.items():
            for seed in range(args.few_seeds):
                say(f"rotation {strength}, split {split}: seed {seed + 1} of {args.few_seeds}")
                corpus = {"snr": 16, "subject_rotation": strength}
                _, decoding, _ = study.run(seed, corpus, {"eeg.split": split})
                held.append(retrieval.retrieval_row(decoding.queries, decoding.scores, "all"))
        row: dict[str, Any] = {"subject_rotation": strength, "chance5": found["text"][0]["chance5"]}
        row |= {f"{split}_top5": [r["top5"] for r in held] for split, held in found.items()}
        row |= {f"{split}_mean": float(np.mean([r["top5"] for r in held])) for split, held in found.items()}
        rows.append(row)
    return rows


PARTS: dict[str, Callable[[Study, argparse.Namespace], Any]] = {
    "null": null,
    "oracle": oracle,
    "leaks": leaks,
    "shuffled": shuffled,
    "rotation": rotation,
}


def run_parts(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """{part: its result, with the seconds that it took}."""
    study = Study(epochs=args.epochs, sentences=args.sentences)
    out = {}
    for name in names:
        begin = time.perf_counter()
        out[name] = PARTS[name](study, args)
        say(f"{name}: {time.perf_counter() - begin:.0f} s")
    return out


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON object."""
    args = parse(sys.argv[1:] if argv is None else argv)
    begin = time.perf_counter()
    result = {
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "corpus": CORPUS | {"sentences": args.sentences},
        "run": {"network": "eeg_words_linear", "keywords": KEYWORDS, "epochs": args.epochs},
        **run_parts(args, args.parts),
    }
    result["seconds"] = round(time.perf_counter() - begin, 1)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JaxkdError as error:
        sys.exit(f"benchmarks/eeg_controls.py: {error}")
