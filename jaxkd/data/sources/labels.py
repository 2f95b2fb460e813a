"""Names of classes and of records."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

# Files that come with ImageNet, its Kaggle edition, Tiny ImageNet and their subsets: "wnid<TAB or space>words" a line.
WORDS_FILES = ("classes.txt", "synset_words.txt", "LOC_synset_mapping.txt", "words.txt")


def read_class_words(root: str | Path, class_names: Sequence[str]) -> tuple[str, ...]:
    """Human-readable names of classes, from the first of `WORDS_FILES` in `root` that knows one of them.

    Returns:
      label -> words such as "tench, Tinca tinca"; where no file names a class, its own name.
    """
    for name in WORDS_FILES:
        path = Path(root) / name
        if not path.is_file():
            continue
        words = {}
        for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
            # A class folder may have spaces in its name, so a tab decides where there is one.
            key, _, rest = line.strip().partition("\t" if "\t" in line.strip() else " ")
            if rest.strip():
                words.setdefault(key.strip(), rest.strip())
        if any(c in words for c in class_names):
            return tuple(words.get(c, c) for c in class_names)
    return tuple(class_names)


class PackedNames:
    """Millions of file names as two arrays, which are quick to pickle: their bytes, and where each one ends.

    A list of strings would cost a hundred bytes of overhead for each name in each worker process, and numpy's
    fixed-width strings four bytes for each character of the longest name.

    Args:
      blob: the names, each followed by a zero byte, which no file name contains.
    """

    def __init__(self, blob: bytes):
        self._bytes = np.frombuffer(blob, np.uint8)
        self._ends = np.flatnonzero(self._bytes == 0)

    @classmethod
    def pack(cls, names: Iterable[str]) -> PackedNames:
        """The names in their order."""
        return cls(b"".join(os.fsencode(n) + b"\0" for n in names))

    @property
    def blob(self) -> bytes:
        """The bytes that the constructor takes."""
        return self._bytes.tobytes()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]  # negative indices, and IndexError
        start = int(self._ends[index - 1]) + 1 if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])].tobytes())
