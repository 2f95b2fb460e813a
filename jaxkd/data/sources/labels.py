"""Names of classes and of records."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxkd.errors import DataError, check_choice, first_few

CLASS_ORDERS = ("natural", "text")
_LOG = logging.getLogger(__name__)

# Files that come with ImageNet, its Kaggle edition, Tiny ImageNet and their subsets: "wnid<TAB or space>words" a line.
WORDS_FILES = ("classes.txt", "synset_words.txt", "LOC_synset_mapping.txt", "words.txt")


def order_classes(names: Iterable[str], order: str, *, where: str | Path = "") -> list[str]:
    """Class names in the order of their labels.

    Args:
      names: of the class folders.
      order: "natural", as timm's folder reader: numbers inside a name count as numbers and capitals do not matter
        (1, 2, 10); or "text", as torchvision (1, 10, 2).
      where: the folder, for the warning where "natural" is another order than "text".

    Raises:
      ConfigError: another order.
    """
    check_choice("class_order", order, CLASS_ORDERS)
    text = sorted(names)
    natural = sorted(text, key=_natural_key)
    if order == "natural" and natural != text and where:
        first = next(i for i, (a, b) in enumerate(zip(natural, text, strict=True)) if a != b)
        _LOG.warning(
            'The class folders of "%s" have another order as text: label %d is "%s" here, as in timm, but "%s" in '
            'torchvision. For weights trained with torchvision\'s order choose class_order="text".',
            where,
            first,
            natural[first],
            text[first],
        )
    return natural if order == "natural" else text


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def check_same_classes(recorded: Sequence[str], names: Sequence[str], weights: str, data: str) -> None:
    """Raises DataError unless the classes that `weights` were trained on are those of `data`, in the same order."""
    if not recorded or tuple(recorded) == tuple(names):
        return
    if sorted(recorded) == sorted(names):
        label = next(i for i, (a, b) in enumerate(zip(recorded, names, strict=True)) if a != b)
        raise DataError(
            f'The classes of "{data}" have another order than those that "{weights}" were trained on: label {label} is '
            f'"{names[label]}" there and "{recorded[label]}" in the weights. Choose the other class order (natural or '
            "text), or train again."
        )
    known, trained = set(names), set(recorded)
    missing = [n for n in recorded if n not in known]
    other = [n for n in names if n not in trained]
    raise DataError(
        f'The classes of "{data}" are not those that "{weights}" were trained on: '
        f"{f'it lacks {first_few(missing, 4)}' if missing else ''}{' and ' if missing and other else ''}"
        f"{f'it has {first_few(other, 4)} besides' if other else ''}. Use the data set of the weights, or train on "
        "this one."
    )


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
