"""Controls of EEG-to-text decoding on real data: stimuli, averaged EEG of words, and event-related potentials.

    python benchmarks/eeg_real.py --data=/path/to/eeg > eeg_real.json

The folder holds
  zuco_texts/zuco_sentences.csv     corpus, task, group, sentence of the 1,888 stimuli of ZuCo 1.0 and 2.0
  zuco_aggregated_eeg/zuco.8.tsv    word, 17 gaze features, 8 bands of EEG, label; blank lines between sentences. Public
                                    features of ZuCo 1.0 (DS3Lab/zuco-nlp), averaged over 12 readers and all electrodes
                                    and binned to 0..7
  zuco_aggregated_eeg/type_dict_gaze.json    five gaze means of each word type; left out where it is missing
  erp_semantic_priming/erps.npz     (287, 20, 287) potentials of 18 readers in 16 conditions (doomlab/EEG-Lang)

Word lengths: ridge regression reads the letters of each word from its features, in ten folds over sentences (equal
texts in one fold); a sentence is then looked for among those of equally many tokens by the correlation of the two
sequences of lengths. Rows "sum of ..." add up the features instead and fit nothing to letters. Queries are sentences of
at least 8 tokens with at least 10 candidates. Potentials: means of 100 ms from -150 ms, less the mean of each subject;
the nearest centroid of the other subjects; and a permutation test that exchanges conditions within subjects.
Prints one JSON object; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxkd import analysis, metrics
from jaxkd.errors import DataError, JaxkdError
from jaxkd.language.texts import group_texts, shared_texts

GAZE, EEG = slice(0, 17), slice(17, 25)
LEAST_TOKENS, LEAST_CANDIDATES, FOLDS, PENALTY = 8, 10, 10, 1.0
DRAWS, WINDOW_MS, FIRST_MS, WINDOWS = 2000, 100, -150, 11


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the files above")
    parser.add_argument("--permutations", type=int, default=4999, help="of the test on the potentials (4999)")
    parser.add_argument("--seed", type=int, default=0, help="of folds, noise, draws and permutations (0)")
    return parser.parse_args(argv)


def existing(path: Path) -> Path:
    """The path, or an error that names it."""
    if not path.is_file():
        raise DataError(f'"{path}" is not there. Give --data the folder that its documentation describes.')
    return path


def stimuli(folder: Path) -> dict[str, Any]:
    """Sentences, distinct ones, and how many two sets share."""
    with existing(folder / "zuco_texts" / "zuco_sentences.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts, sources = [r["sentence"] for r in rows], [f"{r['corpus']} {r['task']}" for r in rows]
    exact, joined = group_texts(texts, similarity=None), group_texts(texts)
    sizes = np.bincount(exact)
    return {
        "sentences": len(texts),
        "distinct": len(sizes),
        "distinct_with_near_duplicates_joined": int(joined.max()) + 1,
        "repeated_texts": int((sizes > 1).sum()),
        "sentences_of_repeated_texts": int(sizes[sizes > 1].sum()),
        "sets": {
            name: {
                "sentences": sources.count(name),
                "distinct": len({g for g, s in zip(exact.tolist(), sources, strict=True) if s == name}),
            }
            for name in sorted(set(sources))
        },
        "in_both": {" and ".join(pair): count for pair, count in shared_texts(texts, sources).items()},
    }


class Tokens(NamedTuple):
    """Words of all sentences after one another: `word`, (n, 25) `features`, and `count` of each sentence."""

    word: list[str]
    features: np.ndarray
    count: np.ndarray

    @property
    def letters(self) -> np.ndarray:
        """(n,) characters of each token."""
        return np.array([len(word) for word in self.word], np.float64)

    def texts(self) -> list[str]:
        """The sentences."""
        ends = np.cumsum(self.count).tolist()
        return [" ".join(self.word[e - c : e]) for e, c in zip(ends, self.count.tolist(), strict=True)]


def read_tokens(path: Path) -> Tokens:
    """Reads the averaged EEG."""
    words, features, counts = [], [], [0]
    for number, line in enumerate(existing(path).read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if not line.strip():
            counts.append(0)
            continue
        if len(fields) != 27:
            raise DataError(f'Line {number} of "{path}" has {len(fields)} fields, not 27. Fetch the file again.')
        words.append(fields[0])
        features.append([float(v) for v in fields[1:26]])
        counts[-1] += 1
    return Tokens(words, np.array(features), np.array([c for c in counts if c]))


def read_lengths(features: np.ndarray, tokens: Tokens, fold: np.ndarray) -> np.ndarray:
    """(n,) letters of each token by ridge regression on the words of the other folds; `fold` is of each sentence."""
    of_word, letters = np.repeat(fold, tokens.count), tokens.letters
    predicted = np.empty(len(letters))
    for one in range(FOLDS):
        train = of_word != one
        predicted[~train] = analysis.fit_ridge(features[train], letters[train], PENALTY).predict(features[~train])
    return predicted


class Search(NamedTuple):
    """Queries against candidates of equally many tokens: (Q,) `queries`, (Q, S) `where`, (S,) `start` of sentences."""

    queries: np.ndarray
    where: np.ndarray
    start: np.ndarray
    text: np.ndarray

    @classmethod
    def among(cls, tokens: Tokens, text: np.ndarray) -> Search:
        """All sentences that are long enough and have candidates enough."""
        same = tokens.count[:, None] == tokens.count[None, :]
        queries = np.flatnonzero((tokens.count >= LEAST_TOKENS) & (same.sum(axis=1) >= LEAST_CANDIDATES))
        return cls(queries, same[queries], np.concatenate([[0], np.cumsum(tokens.count)]), text)

    def score(self, predicted: np.ndarray, letters: np.ndarray) -> np.ndarray:
        """(Q, S) correlations of predicted and real lengths; 0 outside of the pools."""

        def centred(values: np.ndarray, i: int) -> np.ndarray:
            own = values[self.start[i] : self.start[i + 1]]
            own = own - own.mean()
            return own / max(float(np.linalg.norm(own)), 1e-12)

        real = [centred(letters, i) for i in range(len(self.start) - 1)]
        scores = np.zeros(self.where.shape)
        for row, (query, pool) in enumerate(zip(self.queries.tolist(), self.where, strict=True)):
            found = centred(predicted, query)
            scores[row, pool] = [found @ real[i] for i in np.flatnonzero(pool)]
        return scores

    def row(self, predicted: np.ndarray, letters: np.ndarray, seed: int) -> dict[str, Any]:
        """Accuracies with 95 % intervals over texts, chance, and the correlation of predicted and real letters."""
        right = self.queries[:, None] == np.arange(self.where.shape[1])[None, :]
        scores = self.score(predicted, letters)
        out: dict[str, Any] = {"correlation_with_letters": round(float(np.corrcoef(predicted, letters)[0, 1]), 3)}
        for k in (1, 5):
            hits = metrics.top_k_hits(scores, right, k, where=self.where)
            interval = analysis.bootstrap_interval(hits, self.text[self.queries], DRAWS, seed=seed)
            out[f"top{k}"] = round(interval.mean, 3)
            out[f"top{k}_interval"] = [round(interval.low, 3), round(interval.high, 3)]
            out[f"chance{k}"] = round(metrics.mean_chance(right, k, where=self.where), 3)
        return out


def type_gaze(path: Path, tokens: Tokens) -> np.ndarray | None:
    """(n, 5) gaze means of each token's word type, 0 for types that are not listed; None without the file."""
    if not path.is_file():
        return None
    known = json.loads(path.read_text())
    width = max(len(v) for v in known.values())
    return np.array(
        [[float(v) for v in known.get(word.lower(), known.get(word, [0.0] * width))] for word in tokens.word]
    )


def indicators(binned: np.ndarray) -> np.ndarray:
    """(n, K) 0 or 1 for each value of each column: a straight line through the numbers of the bins is not assumed."""
    return np.concatenate([column[:, None] == np.unique(column) for column in binned.T], axis=1).astype(np.float64)


def averaged_eeg(folder: Path, seed: int) -> dict[str, Any]:
    """Word lengths read from averaged EEG, from gaze, and from EEG without gaze."""
    tokens = read_tokens(folder / "zuco.8.tsv")
    text = group_texts(tokens.texts())
    rng = np.random.default_rng(seed)
    fold = (rng.permutation(int(text.max()) + 1) % FOLDS)[text]
    search, letters = Search.among(tokens, text), tokens.letters
    gaze, eeg = tokens.features[:, GAZE], tokens.features[:, EEG]
    all_words = np.ones(len(letters), bool)
    rest = analysis.regress_out(eeg, gaze, all_words)
    rest_of_bins = analysis.regress_out(eeg, indicators(gaze), all_words)
    noise = np.random.default_rng(seed).standard_normal(len(letters))
    of_types = type_gaze(folder / "type_dict_gaze.json", tokens)
    fitted = {"eight bands of EEG": eeg, "17 gaze features": gaze, "first gaze feature alone": gaze[:, :1]}
    fitted |= {} if of_types is None else {"gaze means of the word type": of_types}
    fitted |= {"EEG without gaze": rest, "EEG without bins of gaze": rest_of_bins}
    fitted |= {"Gaussian noise, 8 features": rng.standard_normal(eeg.shape)}
    summed = {"sum of eight bands of EEG": eeg, "sum of 17 gaze features": gaze, "sum of EEG without gaze": rest}
    summed["sum of EEG without bins of gaze"] = rest_of_bins
    rows = {}
    for name, features in fitted.items():
        say(f"word lengths from {name}")
        rows[name] = search.row(read_lengths(features, tokens, fold), letters, seed)
    for name, features in {**summed, "Gaussian noise": noise[:, None]}.items():
        say(f"word lengths from {name}")
        rows[name] = search.row(features.sum(axis=1), letters, seed)
    pools = search.where.sum(axis=1)
    return {
        "sentences": len(tokens.count),
        "tokens": len(letters),
        "queries": len(search.queries),
        "mean_candidates": round(float(pools.mean()), 1),
        "variance_of_eeg_explained_by_gaze": np.round(1 - rest.var(axis=0) / eeg.var(axis=0), 3).tolist(),
        "rows": rows,
    }


def window_means(potential: np.ndarray, time_ms: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """(n, channels x 11) means over 100 ms each from -150 ms, less the mean of each subject over its conditions."""
    starts = FIRST_MS + np.arange(WINDOWS) * WINDOW_MS
    parts = [potential[:, :, (time_ms >= t) & (time_ms < t + WINDOW_MS)].mean(axis=2) for t in starts]
    means = np.stack(parts, axis=2).reshape(len(potential), -1)
    for one in np.unique(subject):
        means[subject == one] -= means[subject == one].mean(axis=0)
    return means


def centroid_accuracy(features: np.ndarray, condition: np.ndarray, subject: np.ndarray) -> float:
    """Share of rows that are nearest to the centroid of their condition over the other subjects."""
    codes = np.eye(int(condition.max()) + 1)[condition]
    hits = 0
    for one in np.unique(subject):
        own = subject == one
        centroid = codes[~own].T @ features[~own] / codes[~own].sum(axis=0)[:, None]
        distance = np.square(centroid).sum(axis=1)[None, :] - 2 * features[own] @ centroid.T
        hits += int((distance.argmin(axis=1) == condition[own]).sum())
    return hits / len(condition)


def potentials(path: Path, permutations: int, seed: int) -> dict[str, Any]:
    """Sixteen conditions from the other subjects' event-related potentials."""
    with np.load(existing(path), allow_pickle=False) as held:
        subject, code = held["subject"], held["code"]
        features = window_means(held["erp_microvolt"].astype(np.float64), held["time_ms"], subject)
    condition = np.unique(code, return_inverse=True)[1]
    say(f"potentials: {permutations} permutations")
    found = analysis.permutation_test(
        lambda labels: centroid_accuracy(features, labels, subject), condition, subject, permutations, seed=seed
    )
    return {
        "readings": len(condition),
        "subjects": len(np.unique(subject)),
        "conditions": int(condition.max()) + 1,
        "accuracy": round(found.observed, 4),
        "right": round(found.observed * len(condition)),
        "chance": round(1 / (int(condition.max()) + 1), 4),
        "p": found.p,
        "permutations": permutations,
        "null_mean": round(float(found.null.mean()), 4),
        "null_highest": round(float(found.null.max()), 4),
    }


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON object."""
    args = parse(sys.argv[1:] if argv is None else argv)
    begin = time.perf_counter()
    result = {
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "seed": args.seed,
        "stimuli": stimuli(args.data),
        "averaged_eeg": averaged_eeg(args.data / "zuco_aggregated_eeg", args.seed),
        "potentials": potentials(args.data / "erp_semantic_priming" / "erps.npz", args.permutations, args.seed),
    }
    result["seconds"] = round(time.perf_counter() - begin, 1)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JaxkdError as error:
        sys.exit(f"benchmarks/eeg_real.py: {error}")
