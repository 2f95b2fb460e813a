"""Writers of a corpus in the formats of ZuCo: MATLAB files of ZuCo 1.0 and 2.0, and the exchange pickle.

    write_zuco(open_eeg("embedded:synthetic_zuco"), "folder", "zuco2")

They let the readers be tested and timed without the recordings: one corpus through all three gives equal batches. Only
what the readers need is written; all measures hold the corpus's EEG, and raw signals are empty.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.files import atomic_file
from jaxkd.data.sources.eeg_corpus import BANDS, ELECTRODES, GAZE, MEASURES, EegCorpus
from jaxkd.data.sources.zuco_mat import INSTALL
from jaxkd.data.sources.zuco_pickle import MASK
from jaxkd.errors import DataError, check_choice

FORMATS = ("zuco1", "zuco2", "pickle")
_HEADER = b"MATLAB 7.3 MAT-file, written by jaxkd"


def write_zuco(
    corpus: EegCorpus, folder: str | Path, file_format: str, *, measures: Sequence[str] = MEASURES
) -> list[Path]:
    """Writes one file for each subject and task, or for each task (pickle).

    Args:
      corpus: its sentences must be as many words, parted by blanks, as `word_count` says; sentences that a subject did
        not read are written as missing.
      folder: made if it does not exist; files are replaced.
      file_format: "zuco1", "zuco2" or "pickle".
      measures: names under which the EEG of a word is written; it is the same for each.

    Returns:
      The files.

    Raises:
      DataError: a sentence of another number of words, or h5py is not installed.
    """
    check_choice("file_format", file_format, FORMATS)
    files = []
    for task in np.unique(corpus.task).tolist():
        of_task = np.flatnonzero(corpus.task == task)
        texts = {int(corpus.index[i]): corpus.text[i] for i in of_task.tolist()}
        by_subject = {}
        for subject in np.unique(corpus.subject[of_task]).tolist():
            mine = {int(corpus.index[i]): i for i in of_task[corpus.subject[of_task] == subject].tolist()}
            by_subject[subject] = [_Sentence(corpus, texts.get(k, ""), mine.get(k)) for k in range(max(texts) + 1)]
        if file_format == "pickle":
            path = Path(folder, f"task-{task}-dataset.pickle")
            content = {subject: [s.as_dict(measures) for s in sentences] for subject, sentences in by_subject.items()}
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                pickle.dump(content, file, protocol=4)
            files.append(path)
            continue
        write = _write_v1 if file_format == "zuco1" else _write_v2
        for subject, sentences in by_subject.items():
            path = Path(folder, f"results{subject}_{task}.mat")
            with atomic_file(path) as temporary:
                write(temporary, sentences, measures)
            files.append(path)
    return files


class _Sentence:
    """A sentence of the corpus, or one that was not recorded (`read` is False)."""

    def __init__(self, corpus: EegCorpus, text: str, reading: int | None):
        self.text, self.read = text, reading is not None
        self.tokens = text.split(" ")
        if reading is None:
            return
        if len(self.tokens) != corpus.word_count[reading]:
            raise DataError(
                f'The sentence "{text[:40]}" has {len(self.tokens)} words, and its word_count is '
                f"{corpus.word_count[reading]}. Give a corpus whose sentences hold all their words."
            )
        words = corpus.words_of(reading)
        self.place = {int(p): k for k, p in enumerate(corpus.position[words])}  # in the sentence -> in the columns
        self.eeg = np.asarray(corpus.eeg[words], np.float64).reshape(-1, len(BANDS), ELECTRODES)
        self.gaze = np.asarray(corpus.gaze[words], np.float64)

    def mean(self, band: int) -> np.ndarray:
        """(105,) mean of the words without NaN, zeros if there is none."""
        usable = self.eeg[~np.isnan(self.eeg).any((1, 2)), band]
        return usable.mean(0) if len(usable) else np.zeros(ELECTRODES)

    def as_dict(self, measures: Sequence[str]) -> dict[str, Any] | None:
        """As the exchange pickle holds it."""
        if not self.read:
            return None
        words = []
        for place, k in self.place.items():
            levels = {m: {f"{m}_{b}": self.eeg[k, i] for i, b in enumerate(BANDS)} for m in measures}
            gaze = dict(zip(GAZE[1:], self.gaze[k, 1:].tolist(), strict=True))
            fixations = {"nFixations": int(self.gaze[k, 0])}
            words.append({"content": self.tokens[place], **fixations, **gaze, "word_level_EEG": levels})
        with_mask = [token if i in self.place else MASK for i, token in enumerate(self.tokens)]
        return {
            "content": self.text,
            "sentence_level_EEG": {f"mean_{b}": self.mean(i) for i, b in enumerate(BANDS)},
            "word": words,
            "word_tokens_has_fixation": [self.tokens[place] for place in self.place],
            "word_tokens_with_mask": with_mask,
            "word_tokens_all": self.tokens,
        }


_SENTENCE_FIELDS = ("content", "word", *(f"mean_{b}" for b in BANDS))


def _write_v1(path: Path, sentences: list[_Sentence], measures: Sequence[str]) -> None:
    from scipy.io import savemat  # comes with JAX

    empty = np.zeros((0, 0))
    fields = ("content", *GAZE, *(f"{m}_{b}" for m in measures for b in BANDS))
    data = np.zeros(len(sentences), [(name, object) for name in _SENTENCE_FIELDS])
    for row, sentence in zip(data, sentences, strict=True):
        row["content"] = sentence.text
        for i, band in enumerate(BANDS):
            row[f"mean_{band}"] = sentence.mean(i) if sentence.read else np.nan
        if not sentence.read:
            row["word"] = np.nan
            continue
        words = np.zeros(len(sentence.tokens), [(name, object) for name in fields])
        for place, (word, token) in enumerate(zip(words, sentence.tokens, strict=True)):
            k = sentence.place.get(place)
            word["content"] = token
            for j, name in enumerate(GAZE):
                absent = k is None or np.isnan(sentence.gaze[k, j])
                word[name] = empty if absent else sentence.gaze[k, j]
            for measure in measures:
                for i, band in enumerate(BANDS):
                    word[f"{measure}_{band}"] = empty if k is None else sentence.eeg[k, i]
        row["word"] = words
    with path.open("wb") as file:
        savemat(file, {"sentenceData": data}, oned_as="row", do_compression=True)


def _write_v2(path: Path, sentences: list[_Sentence], measures: Sequence[str]) -> None:
    try:
        import h5py
    except ImportError:
        raise DataError(f"Files of ZuCo 2.0 are written with h5py, which is not installed. {INSTALL}") from None
    with h5py.File(path, "w", userblock_size=512) as file:
        _Hdf5Writer(h5py, file, measures).write(sentences)
    with path.open("r+b") as file:
        file.write(_HEADER)


class _Hdf5Writer:
    """Structures as MATLAB stores them: fields are arrays of references, those of a single structure the values.

    A word is 15 small datasets, so they are written through h5py's low-level functions.
    """

    def __init__(self, h5py: Any, file: Any, measures: Sequence[str]):
        self._h5py, self._file, self._measures, self._count = h5py, file, measures, 0
        self._targets = file.create_group("#refs#")
        self._empty = self._dataset(np.zeros(2, np.uint64))
        h5py.Dataset(self._empty).attrs["MATLAB_empty"] = np.uint8(1)
        self._nan = self._dataset(np.full((1, 1), np.nan))

    def _name(self) -> bytes:
        self._count += 1
        return str(self._count).encode()

    def _dataset(self, values: np.ndarray) -> Any:
        h5s, values = self._h5py.h5s, np.ascontiguousarray(values)
        space, kind = h5s.create_simple(values.shape), self._h5py.h5t.py_create(values.dtype)
        dataset = self._h5py.h5d.create(self._targets.id, self._name(), kind, space)
        dataset.write(h5s.ALL, h5s.ALL, values)
        return dataset

    def _number(self, value: float) -> Any:
        return self._empty if np.isnan(value) else self._dataset(np.full((1, 1), value))

    def _text(self, text: str) -> Any:
        units = np.frombuffer(text.encode("utf-16-le"), "<u2")
        return self._dataset(units[:, None]) if len(units) else self._empty

    def _field(self, group: Any, name: str, targets: list[Any]) -> None:
        """A field of a structure array; `targets` are low-level identifiers."""
        h5py = self._h5py
        if len(targets) == 1:
            group[name] = (
                h5py.Group(targets[0]) if isinstance(targets[0], h5py.h5g.GroupID) else h5py.Dataset(targets[0])
            )
            return
        references = np.array([h5py.h5r.create(t, b".", h5py.h5r.OBJECT) for t in targets], h5py.ref_dtype)
        group.create_dataset(name, data=references[:, None], dtype=h5py.ref_dtype)

    def write(self, sentences: list[_Sentence]) -> None:
        """Writes `sentenceData`."""
        data = self._file.create_group("sentenceData")
        self._field(data, "content", [self._text(s.text) for s in sentences])
        self._field(data, "word", [self._words(s) if s.read else self._nan for s in sentences])
        for i, band in enumerate(BANDS):
            means = [self._dataset(s.mean(i)[None]) if s.read else self._nan for s in sentences]
            self._field(data, f"mean_{band}", means)

    def _words(self, sentence: _Sentence) -> Any:
        group = self._targets.create_group(self._name())
        places = [sentence.place.get(place) for place in range(len(sentence.tokens))]
        self._field(group, "content", [self._text(token) for token in sentence.tokens])
        self._field(group, "rawEEG", [self._empty] * len(places))
        for j, name in enumerate(GAZE):
            values = [np.nan if k is None else sentence.gaze[k, j] for k in places]
            self._field(group, name, [self._number(value) for value in values])
        for i, band in enumerate(BANDS):
            cells = [self._empty if k is None else self._dataset(sentence.eeg[k, i][None]) for k in places]
            for measure in self._measures:
                self._field(group, f"{measure}_{band}", cells)
        return group.id
