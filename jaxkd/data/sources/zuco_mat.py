"""ZuCo's MATLAB files, results<SUBJECT>_<TASK>.mat: format 5 of ZuCo 1.0 and format 7.3 (HDF5) of ZuCo 2.0.

Both hold `sentenceData`: for each sentence its text, the mean EEG per band, and its words, with text, number of
fixations, and for each measure (GD, FFD, TRT, ...) a duration and 105 values in each of 8 bands. They differ in how
they say that something is missing, and the published reader of ZuCo 2.0 leaves out words without a letter or digit; so
does this one, and counts them.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxkd.data.sources.eeg_corpus import BANDS, GAZE, RawSentence, first_number, join_bands
from jaxkd.errors import DataError

INSTALL = "Install it with pip install 'jaxkd[eeg]'."
_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # bytes of MATLAB's own header before HDF5's signature
_MAT5 = b"MATLAB 5.0 MAT-file"
_MAT5_HEADER, _COMPRESSED = 128, 15
_REAL_WORD = re.compile("[a-zA-Z0-9]")

Sentences = Iterator[RawSentence | None]


def mat_format(path: Path) -> str:
    """ "zuco1" for a file of MATLAB's format 5, "zuco2" for one of format 7.3.

    Raises:
      DataError: it is neither.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_USER_BLOCK + len(_HDF5))
    except OSError as error:
        raise DataError(f'"{path}" cannot be read ({error.strerror}). Check its permissions.') from None
    if head.startswith(_HDF5) or head[_USER_BLOCK:] == _HDF5:
        return "zuco2"
    if head.startswith(_MAT5):
        return "zuco1"
    raise DataError(
        f'"{path}" is not a MATLAB file (it begins with {head[:12]!r}). Copy it again, or take it out of the folder.'
    )


def read_mat(path: Path, measure: str) -> Sentences:
    """The sentences of one subject and task; None is a sentence without a recording.

    Args:
      path: of either format.
      measure: of the EEG, a name of `MEASURES`.

    Raises:
      DataError: the file is damaged or has other fields, or a package is not installed.
    """
    return _read_v1(path, measure) if mat_format(path) == "zuco1" else _read_v2(path, measure)


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(
        f'"{path}" cannot be read as a MATLAB file; it may be damaged or cut off ({reason}). Copy it again.'
    )


def _wrong_fields(path: Path, where: str, missing: str, found: Any) -> DataError:
    names = ", ".join(sorted(map(str, found))[:12]) or "nothing"
    return DataError(
        f'"{path}" has no "{missing}"{where}; it has {names}. Give the files results<SUBJECT>_<TASK>.mat of ZuCo.'
    )


# --- ZuCo 1.0


def _check_v1(path: Path) -> None:
    """Verifies the checksums of a file of format 5, since SciPy may end the process where the content is damaged.

    MATLAB compresses each variable, with a checksum at the end. A file without compression (saved with -v6) has none:
    it is first read by another process, which may end.

    Raises:
      DataError: the file is damaged.
    """
    compressed = True
    with path.open("rb") as file:
        head = file.read(_MAT5_HEADER)
        order = "<" if head[-2:] == b"IM" else ">"
        end = os.fstat(file.fileno()).st_size
        while tag := file.read(8):
            kind, size = struct.unpack(f"{order}II", tag) if len(tag) == 8 else (0, 1)
            if file.tell() + size > end:
                raise _damaged(path, ValueError("it ends within a variable"))
            if kind == _COMPRESSED:
                try:
                    _inflate(file, size)
                except (zlib.error, EOFError) as error:
                    raise _damaged(path, error) from None
            else:
                compressed = False
                file.seek(size, os.SEEK_CUR)
    if not compressed:
        code = "import sys, scipy.io; scipy.io.loadmat(sys.argv[1], squeeze_me=True, struct_as_record=False)"
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True)
        if done.returncode < 0:
            raise _damaged(path, ValueError("SciPy crashes on it"))


def _inflate(file: BinaryIO, size: int) -> None:
    """Decompresses `size` bytes and forgets them.

    Raises:
      zlib.error, EOFError: they are damaged, or end early.
    """
    stream = zlib.decompressobj()
    while size and (block := file.read(min(size, 2**20))):
        size -= len(block)
        while block:
            stream.decompress(block, 2**24)
            block = stream.unconsumed_tail
    if not stream.eof:
        raise EOFError("a variable is cut off")


def _read_v1(path: Path, measure: str) -> Sentences:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f'"{path}" needs SciPy, which is not installed. {INSTALL}') from None
    _check_v1(path)
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)
    except Exception as error:  # SciPy lets through whatever a damaged file leads to
        raise _damaged(path, error) from None
    if "sentenceData" not in content:
        raise _wrong_fields(path, "", "sentenceData", (name for name in content if not name.startswith("__")))
    sentences = np.atleast_1d(content["sentenceData"])
    if not all(hasattr(s, "_fieldnames") for s in sentences):
        raise DataError(f'"sentenceData" of "{path}" is no array of structures. Give the files of ZuCo.')
    for number in range(len(sentences)):
        sentence, sentences[number] = sentences[number], None  # what is read may be freed
        yield _sentence_v1(path, number, sentence, measure)


def _sentence_v1(path: Path, number: int, sentence: Any, measure: str) -> RawSentence | None:
    for name in ("content", "word"):
        if name not in sentence._fieldnames:
            raise _wrong_fields(path, f" in sentence {number}", name, sentence._fieldnames)
    # A single word comes out as a structure and not as an array; NaN stands for a sentence that was not recorded.
    words = np.atleast_1d(sentence.word)
    if not len(words) or not hasattr(words.flat[0], "_fieldnames"):
        return None
    found = RawSentence(_text(sentence.content), len(words))
    found.mean_is_nan = _has_nan(join_bands([getattr(sentence, f"mean_{band}", None) for band in BANDS]))
    needed = ("content", "nFixations", *(f"{measure}_{band}" for band in BANDS))
    for place, word in enumerate(words.flat):
        if not first_number(getattr(word, "nFixations", None)) > 0:
            continue
        for name in needed:
            if not hasattr(word, name):
                raise _wrong_fields(path, f" in word {place} of sentence {number}", name, word._fieldnames)
        found.word.append(_text(word.content))
        found.position.append(place)
        found.eeg.append(join_bands([getattr(word, f"{measure}_{band}") for band in BANDS]))
        found.gaze.append([first_number(getattr(word, name, None)) for name in GAZE])
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "".join(np.asarray(value, str).ravel().tolist())


def _has_nan(values: np.ndarray | None) -> bool:
    return values is None or bool(np.isnan(values).any())


# --- ZuCo 2.0


def _read_v2(path: Path, measure: str) -> Sentences:
    try:
        import h5py
    except ImportError:
        raise DataError(f'"{path}" is a MATLAB file of format 7.3, which needs h5py. {INSTALL}') from None
    try:
        with h5py.File(path, "r") as file:
            yield from _sentences_v2(h5py, file, path, measure)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:  # HDF5's own words
        raise _damaged(path, error) from None


def _sentences_v2(h5py: Any, file: Any, path: Path, measure: str) -> Sentences:
    data = file.get("sentenceData")
    if not isinstance(data, h5py.Group):
        raise _wrong_fields(path, "", "sentenceData", file)
    for name in ("content", "word"):
        if name not in data:
            raise _wrong_fields(path, " in sentenceData", name, data)
    reader = _Hdf5(h5py, file)
    texts, words = reader.field(data, "content"), reader.field(data, "word")
    means = [reader.field(data, f"mean_{band}") for band in BANDS if f"mean_{band}" in data]
    for number, (text, word) in enumerate(zip(texts, words, strict=True)):
        group = reader.group(word)
        names = set(group or ())
        # Without words, MATLAB stored a number (NaN) or a structure without their fields.
        if not {"content", "nFixations"} <= names:
            yield None
            continue
        for name in (f"{measure}_{band}" for band in BANDS):
            if name not in names:
                raise _wrong_fields(path, f" in the words of sentence {number}", name, names)
        sentence = _words_v2(reader, group, names, reader.text(text), measure)
        sentence.mean_is_nan = _has_nan(join_bands([reader.numbers(m[number]) for m in means] or [None]))
        yield sentence


def _words_v2(reader: _Hdf5, group: Any, names: set[str], text: str, measure: str) -> RawSentence:
    words = [reader.text(cell) for cell in reader.field(group, "content")]
    real = [i for i, word in enumerate(words) if _REAL_WORD.search(word)]
    found = RawSentence(text, len(real), counts={"dropped_tokens": len(words) - len(real)})
    gaze = {name: reader.field(group, name) for name in GAZE if name in names}
    bands = [reader.field(group, f"{measure}_{band}") for band in BANDS]
    for place, i in enumerate(real):
        fixations = first_number(reader.numbers(gaze["nFixations"][i]))
        if not fixations > 0:
            continue
        others = [first_number(reader.numbers(gaze[name][i]) if name in gaze else None) for name in GAZE[1:]]
        found.word.append(words[i])
        found.position.append(place)
        found.eeg.append(join_bands([reader.numbers(band[i]) for band in bands]))
        found.gaze.append([fixations, *others])
    return found


class _Hdf5:
    """Cells, texts and numbers as MATLAB stores them in HDF5.

    A word is 15 small datasets, so they are read through h5py's low-level functions.
    """

    def __init__(self, h5py: Any, file: Any):
        self._h5py, self._file = h5py, file
        self._all, self._dataset, self._dereference = h5py.h5s.ALL, h5py.h5d.DatasetID, h5py.h5r.dereference
        self._types = {name: h5py.h5t.py_create(np.dtype(name)) for name in ("<f8", "<u2")}
        self._reference = h5py.h5t.py_create(h5py.ref_dtype)

    def field(self, group: Any, name: str) -> list[Any]:
        """The references of a field, in order; one object where it is stored without references.

        The fields of a structure array are arrays of references, those of a single structure are stored directly.
        """
        item = self._h5py.h5o.open(group.id, name.encode())
        if not isinstance(item, self._dataset) or item.get_type().get_class() != self._h5py.h5t.REFERENCE:
            return [item]
        references = np.empty(item.shape, self._h5py.ref_dtype)
        item.read(self._all, self._all, references, self._reference)
        return references.ravel().tolist()

    def _target(self, cell: Any) -> Any:
        return self._dereference(cell, self._file.id) if isinstance(cell, self._h5py.Reference) else cell

    def group(self, cell: Any) -> Any | None:
        """The group that a cell is or refers to, None for anything else."""
        item = self._target(cell)
        return self._h5py.Group(item) if isinstance(item, self._h5py.h5g.GroupID) else None

    def numbers(self, cell: Any, dtype: str = "<f8") -> np.ndarray:
        """The values of a dataset; none for MATLAB's empty array, of which HDF5 holds the sizes in one dimension."""
        target = self._target(cell)
        shape = target.shape if isinstance(target, self._dataset) else ()
        if len(shape) != 2:
            return np.zeros(0, dtype)
        values = np.empty(shape, dtype)
        target.read(self._all, self._all, values, self._types[dtype])
        return values.ravel(order="F")

    def text(self, cell: Any) -> str:
        """A MATLAB text: UTF-16 code units; "" for an empty one."""
        return self.numbers(cell, "<u2").tobytes().decode("utf-16-le", "replace")
