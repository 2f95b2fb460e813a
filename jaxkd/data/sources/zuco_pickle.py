"""Pickles in which word-level EEG is exchanged: dict[subject] -> list of sentences, without running code.

    {"ZAB": [None, {"content": "...", "sentence_level_EEG": {"mean_t1": (105,), ...},
                    "word": [{"content": "...", "nFixations": 2, "word_level_EEG": {"GD": {"GD_t1": (105,), ...}}}],
                    "word_tokens_with_mask": ["[MASK]", "..."], "word_tokens_all": [...]}]}

`word` has the fixated words only; `word_tokens_with_mask` says where they stand. A word may also have durations under
the names of `GAZE`. Classes and functions other than those that build NumPy arrays and plain containers are refused.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.sources.eeg_corpus import BANDS, GAZE, RawSentence, first_number, join_bands
from jaxkd.errors import DataError

MASK = "[MASK]"


class _Refused(Exception):
    """A pickle names a class or function that builds something else than data."""


def _array_of_buffer(buffer: Any, dtype: np.dtype, shape: Any, order: str, axis_order: Any = None) -> np.ndarray:
    """An array as protocol 5 stores it."""
    array = np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order if order in ("C", "F") else "C")
    return array if axis_order is None else array.transpose(axis_order)


def _latin1(text: str, codec: str = "latin1") -> bytes:
    """Bytes as protocol 2 stores them."""
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    from numpy._core import multiarray

    names = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for module in ("numpy._core", "numpy.core"):  # NumPy 2, and NumPy 1
        names[f"{module}.multiarray", "_reconstruct"] = multiarray._reconstruct
        names[f"{module}.multiarray", "scalar"] = multiarray.scalar
        names[f"{module}.numeric", "_frombuffer"] = _array_of_buffer
    names["_codecs", "encode"] = _latin1
    names["collections", "OrderedDict"] = OrderedDict
    plain = (set, frozenset, complex)
    return names | {(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in plain}


class _DataUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self._names = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        """The function or class of that name, where a pickle may call it; see `_allowed`."""
        if (module, name) not in self._names:
            raise _Refused(f"{module}.{name}")
        return self._names[module, name]


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _DataUnpickler(file).load()
    except _Refused as refused:
        raise DataError(
            f'"{path}" holds {refused}, and not only arrays, numbers, texts and containers. Reading it could run any '
            "code, so nothing of it was read. If you trust the file, write it anew with NumPy arrays alone."
        ) from None
    except Exception as error:  # a damaged pickle can lead to any, and ask for any amount of memory
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f'"{path}" cannot be read as a pickle; it may be cut off ({reason}). Copy it again.') from None


def read_pickle(path: Path, measure: str) -> Iterator[tuple[str, int, RawSentence | None]]:
    """(subject, place in the list, sentence) of a pickle; None is a sentence without a recording.

    Raises:
      DataError: the file is damaged, is arranged otherwise, or holds more than data.
    """
    content = _load(path)
    if not isinstance(content, dict) or not all(isinstance(s, list) for s in content.values()):
        raise DataError(
            f'"{path}" holds a {type(content).__name__} and not a dict of subject -> list of sentences. Give the '
            "pickles of the published preprocessing."
        )
    for subject in sorted(content, key=str):
        for place, sentence in enumerate(content[subject]):
            where = f'sentence {place} of subject {subject} in "{path}"'
            yield str(subject), place, None if sentence is None else _sentence(sentence, measure, where)
            content[subject][place] = None  # what is read may be freed


def _field(item: Any, name: str, where: str) -> Any:
    if not isinstance(item, dict) or name not in item:
        found = ", ".join(map(str, item)) if isinstance(item, dict) else f"a {type(item).__name__}"
        raise DataError(
            f'There is no "{name}" in {where}; it has {found or "nothing"}. Give the pickles of the published '
            "preprocessing."
        )
    return item[name]


def _list(item: Any, name: str, where: str) -> list[Any]:
    value = _field(item, name, where)
    if not isinstance(value, list | tuple):
        raise DataError(
            f'"{name}" of {where} is a {type(value).__name__} and no list. Give the pickles of the published '
            "preprocessing."
        )
    return list(value)


def _sentence(item: Any, measure: str, where: str) -> RawSentence:
    words = _list(item, "word", where)
    with_mask = [str(token) for token in _list(item, "word_tokens_with_mask", where)]
    found = RawSentence(str(_field(item, "content", where)), len(with_mask))
    means = item.get("sentence_level_EEG", {})
    mean = join_bands([means.get(f"mean_{band}") for band in BANDS]) if isinstance(means, dict) else None
    found.mean_is_nan = mean is None or bool(np.isnan(mean).any())
    last = -1
    for word in words:
        text = str(_field(word, "content", f"a word of {where}"))
        bands = _field(_field(word, "word_level_EEG", f"a word of {where}"), measure, f"the EEG of a word of {where}")
        if not isinstance(bands, dict):
            bands = {}  # an empty list stands for a word without EEG
        place = next((i for i in range(last + 1, len(with_mask)) if with_mask[i] == text), None)
        if place is None:
            place = last + 1
            found.counts["unplaced_words"] = found.counts.get("unplaced_words", 0) + 1
        last = place
        found.word.append(text)
        found.position.append(place)
        found.eeg.append(join_bands([bands.get(f"{measure}_{band}") for band in BANDS]))
        found.gaze.append([first_number(word.get(name)) for name in GAZE])
    return found
