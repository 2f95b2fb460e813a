"""Word-level EEG of people who read sentences: the text of `data.source` -> an `EegCorpus`.

    corpus = open_eeg("embedded:synthetic_zuco?snr=16&subjects=12&seed=0")
    corpus = open_eeg("/data/zuco", measure="GD", cache="/data/cache")
    corpus.facts                                                        # counts of what was read, masked, left out

A folder holds, at any depth, files results<SUBJECT>_<TASK>.mat of ZuCo 1.0 and 2.0, or pickles whose names have the
task, such as task1-SR-dataset.pickle and task2-NR-2.0-dataset.pickle. See `synthetic_zuco.SyntheticZuco` for the
settings of the synthetic corpus, `zuco_mat.py` and `zuco_pickle.py` for the files.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxkd.config.paths import user_path
from jaxkd.data.sources.eeg_cache import cache_key, load_cached, save_cached
from jaxkd.data.sources.eeg_corpus import MEASURES, CorpusBuilder, EegCorpus
from jaxkd.data.sources.synthetic_zuco import EMBEDDED_EEG, SyntheticZuco, synthetic_corpus
from jaxkd.data.sources.zuco_mat import mat_format, read_mat
from jaxkd.data.sources.zuco_pickle import read_pickle
from jaxkd.errors import DataError, check_choice, did_you_mean, first_few

# The literature leaves this subject of ZuCo 2.0 out; `subjects` can name it.
LEFT_OUT = ("YMH",)
_MAT_NAME = re.compile(r"results([A-Za-z0-9]+)_(SR|NR|TSR)\.mat", re.IGNORECASE)
_TASK_IN_NAME = re.compile(r"(?:^|[^A-Za-z])(SR|NR|TSR)(?=[^A-Za-z]|$)", re.IGNORECASE)
_PICKLES = (".pickle", ".pkl")
_LOG = logging.getLogger(__name__)

OnProgress = Callable[[int, int, str], None]


def _silent(done: int, total: int, status: str) -> None:
    pass


@dataclass(frozen=True)
class _File:
    path: Path
    name: str  # in the folder
    task: str
    subject: str = ""  # of a .mat; a pickle has many


def open_eeg(
    source: str | Path,
    *,
    measure: str = "GD",
    subjects: Sequence[str] | None = None,
    strict_nan: bool = False,
    cache: str | Path | None = None,
    on_progress: OnProgress = _silent,
) -> EegCorpus:
    """The readings of a corpus of word-level EEG.

    Args:
      source: a folder of files of ZuCo or one such file; or "embedded:synthetic_zuco", with settings after a question
        mark.
      measure: the fixations over which the EEG of a word is averaged: "GD" (all of the first pass), "FFD" (the first
        one) or "TRT" (all).
      subjects: codes of the subjects to read; None is all but `LEFT_OUT`.
      strict_nan: leave out every sentence with NaN, as the published reader does; see `CorpusBuilder`.
      cache: folder in which what was read from files is kept for the next time (3.4 kB a word); None keeps nothing.
        Embedded corpora are made anew.
      on_progress: called with files done, files in all, and a text with the rate and the time that is left.

    Returns:
      The corpus, by subject, task and place in the file.

    Raises:
      DataError: the source does not exist, holds nothing of ZuCo, is damaged, or has not one of `subjects`.
      ConfigError: an unknown measure.
    """
    check_choice("measure", measure, MEASURES)
    spec = str(source)
    if spec.startswith("embedded:"):
        return _embedded(spec, subjects, strict_nan)
    root = user_path(source, "data.source")
    files, ignored = _find_files(root)
    wanted = None if subjects is None else sorted(set(subjects))
    left_out = [] if wanted else [f.name for f in files if f.subject in LEFT_OUT]
    files = [f for f in files if not f.subject or (f.subject in wanted if wanted else f.subject not in LEFT_OUT)]
    arguments = {"measure": measure, "strict_nan": strict_nan, "subjects": wanted, "left_out": LEFT_OUT}
    folder = None if cache is None else user_path(cache, "cache")
    key = cache_key([(f.name, f.path) for f in files], arguments)
    corpus = None if folder is None else load_cached(folder, key)
    if corpus is None:
        facts = {"source": spec, "measure": measure, "strict_nan": strict_nan}
        facts |= {"files": [f.name for f in files], "ignored_files": ignored, "left_out_files": left_out}
        corpus = _read(files, wanted, facts, on_progress)
        if folder is not None:
            save_cached(folder, key, corpus)
    return _of_subjects(corpus, spec, subjects)


def _embedded(spec: str, subjects: Sequence[str] | None, strict_nan: bool) -> EegCorpus:
    name = spec.partition("?")[0]
    if name not in EMBEDDED_EEG:
        raise DataError(
            f'data.source="{spec}" does not exist.{did_you_mean(name, EMBEDDED_EEG)} There is: '
            f"{', '.join(EMBEDDED_EEG)}."
        )
    corpus = _of_subjects(synthetic_corpus(SyntheticZuco.parse(spec)), spec, subjects)
    if strict_nan:
        broken = np.bincount(corpus.reading_of_word, ~corpus.usable, minlength=len(corpus)) > 0
        corpus = corpus.select(~broken)
        corpus.facts["strict_nan_sentences"] = int(broken.sum())
    return corpus


def _of_subjects(corpus: EegCorpus, source: str, subjects: Sequence[str] | None) -> EegCorpus:
    unknown = sorted(set(subjects or ()) - set(corpus.subjects))
    if unknown:
        raise DataError(
            f'"{source}" has no readings of {first_few(unknown, 5)}. The subjects are: '
            f"{', '.join(corpus.subjects) or 'none'}."
        )
    if not len(corpus):
        raise DataError(
            f'No sentence of "{source}" has a usable recording: '
            + ", ".join(f"{name} {corpus.facts[name]}" for name in _EMPTY if corpus.facts.get(name))
            + ". Check the files."
        )
    if subjects is None or set(subjects) == set(corpus.subjects):
        return corpus
    return corpus.select(np.isin(corpus.subject, list(subjects)))


_EMPTY = ("missing_sentences", "no_fixation_sentences", "strict_nan_sentences", "readings")


def _find_files(root: Path) -> tuple[list[_File], list[str]]:
    """The files of ZuCo in a folder, by subject and task, and the names of other .mat files."""
    if not root.exists():
        raise DataError(
            f'data.source="{root}" does not exist. Give a folder of ZuCo, or {EMBEDDED_EEG[0]} to try without data.'
        )
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    files, ignored = [], []
    for path in paths:
        name, suffix = path.name if root.is_file() else str(path.relative_to(root)), path.suffix.lower()
        if suffix == ".mat" and (match := _MAT_NAME.fullmatch(path.name)):
            files.append(_File(path, name, match[2].upper(), match[1]))
        elif suffix in _PICKLES:
            tasks = {t.upper() for t in _TASK_IN_NAME.findall(path.stem)}
            if len(tasks) != 1:
                raise DataError(
                    f'The name of "{path}" does not say which task it holds. Name it as task1-SR-dataset.pickle, with '
                    "SR, NR or TSR."
                )
            files.append(_File(path, name, tasks.pop()))
        elif suffix == ".mat":
            ignored.append(name)
    if not files:
        others = f" (it has {first_few(ignored, 3)})" if ignored else ""
        raise DataError(
            f'"{root}" has no files results<SUBJECT>_<TASK>.mat and no pickles{others}. Give the folder with the files '
            f"of ZuCo, or {EMBEDDED_EEG[0]} to try without data."
        )
    if ignored:
        _LOG.info("Other MATLAB files are left alone: %s", first_few(ignored, 5))
    return sorted(files, key=lambda f: (f.subject, f.task, f.name)), ignored


def _read(files: list[_File], wanted: list[str] | None, facts: dict, on_progress: OnProgress) -> EegCorpus:
    builder = CorpusBuilder(strict_nan=facts["strict_nan"])
    seen: dict[tuple[str, str], str] = {}  # (subject, task) -> file
    sizes = [f.path.stat().st_size for f in files]
    begin = time.monotonic()
    for i, file in enumerate(files):
        on_progress(i, len(files), _status(file.name, sum(sizes[:i]), sum(sizes), time.monotonic() - begin))
        corpus, sentences = _sentences(file, facts["measure"])
        for subject, index, sentence in sentences:
            if subject not in wanted if wanted else subject in LEFT_OUT:
                continue
            if seen.setdefault((subject, file.task), file.name) != file.name:
                raise DataError(
                    f'Both "{seen[subject, file.task]}" and "{file.name}" hold subject {subject}, task {file.task}. '
                    "Keep one of them in the folder."
                )
            builder.add(subject, corpus or _corpus_of(file.name, subject), file.task, index, sentence)
    on_progress(len(files), len(files), _status("", sum(sizes), sum(sizes), time.monotonic() - begin))
    return builder.build(facts)


def _sentences(file: _File, measure: str):
    """The name of the corpus, "" where the subject tells it, and (subject, index, sentence) of a file."""
    if not file.subject:
        return "", read_pickle(file.path, measure)
    corpus = "synthetic" if file.subject.startswith("SYN") else mat_format(file.path)
    return corpus, ((file.subject, i, s) for i, s in enumerate(read_mat(file.path, measure)))


def _corpus_of(name: str, subject: str) -> str:
    """The corpus of a subject in a pickle: codes begin with Z in ZuCo 1.0 and with Y in 2.0."""
    if subject.startswith("SYN"):
        return "synthetic"
    return "zuco2" if subject.startswith("Y") or "2.0" in name else "zuco1"


def _status(name: str, done: int, total: int, seconds: float) -> str:
    if not done or seconds <= 0:
        return name
    rate = done / seconds
    left = f", {(total - done) / rate:.0f} s left" if done < total else ""
    return f"{name} {rate / 1e6:.1f} MB/s{left}".strip()
