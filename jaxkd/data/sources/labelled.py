"""Sources of labelled images: a folder, shards, TFDS, or the digits inside scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from jaxkd.data.sources.labels import PackedNames, read_class_words
from jaxkd.data.sources.shards import MANIFEST, ShardSource, is_shards
from jaxkd.data.sources.tfds import TFDS, TfdsSource
from jaxkd.data.transforms.decode import decode_rgb, read_file
from jaxkd.errors import DataError, did_you_mean

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
SPLITS = ("train", "val")
EMBEDDED = "embedded:"

Encoded = bytes  # `bytes` is a method below


class Source(Protocol):
    """A split of a data set with random access.

    It must be picklable, since worker processes get a copy; files are opened by the process that reads them. Its
    methods may be called from many threads.

    Attributes:
      class_names: label -> name, in the order of the labels; for an ImageNet folder the wnids.
      class_words: label -> words for people, where a file of the data set has them, else the name.
      class_counts: (classes,) int64, label -> number of records.
      exif: whether `image` obeys EXIF rotation; whoever decodes `bytes` should do the same.
    """

    class_names: tuple[str, ...]
    class_words: tuple[str, ...]
    exif: bool

    @property
    def class_counts(self) -> np.ndarray: ...

    def __len__(self) -> int:
        """Number of records."""
        ...

    def label(self, index: int) -> int:
        """The label of a record, without decoding it."""
        ...

    def name(self, index: int) -> str:
        """Where a record lies, for logs and errors: a path, or a shard and the place in it."""
        ...

    def bytes(self, index: int) -> Encoded | None:
        """The encoded file of a record, or None where images are stored as arrays.

        Raises:
          DataError: it cannot be read.
        """
        ...

    def image(self, index: int) -> Image.Image:
        """The decoded RGB image of a record; data/transforms/decode.py says what becomes of grey, alpha, 16 bits

        Raises:
          DataError: it cannot be read or decoded; the message has its `name`.
        """
        ...


class FolderSource:
    """Images as `<root>/<split>/<label>/**/<file>`; labels are the sorted folder names of the training split.

    For ImageNet, whose folders are wnids, these are the labels of torchvision, timm and the published weights.

    Args:
      root: the data set's folder; `labels.WORDS_FILES` in it give the classes' words.
      split: "train" or "val".
      exif: obey EXIF rotation.

    Attributes:
      root: see above.
      split: see above.
      relative_names: record -> "<label>/.../<file>", in the order of labels and then of paths.
      labels: (records,) int32.

    Raises:
      DataError: a folder is missing or empty, a class has no images, or a class of `val` is not in `train`.
    """

    def __init__(self, root: str | Path, split: str, *, exif: bool = False):
        self.root, self.split, self.exif = Path(root), split, exif
        folder = self._folder(split)
        found = _class_folders(folder)
        if not found:
            raise DataError(
                f'"{folder}" has no class folders. Each label is a folder of its own with its images inside. Arrange '
                f"the images as {folder}/<label>/<image>."
            )
        reference = self.root / "train"
        names = found if split == "train" or not reference.is_dir() else _class_folders(reference)
        unknown = [n for n in found if n not in set(names)]
        if unknown:
            raise DataError(
                f'"{folder}" has the class '
                f'"{unknown[0]}"{f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""}, which "{reference}" has '
                f"not.{did_you_mean(unknown[0], names)} Labels are the sorted class names of the training "
                "split, so every image would get a wrong one. Give both splits the same class folders."
            )
        labels = {name: label for label, name in enumerate(names)}
        paths: list[str] = []
        counts = []
        for name in found:
            files = image_files(folder / name)
            if not files:
                raise DataError(
                    f'The class folder "{folder / name}" holds no images. A class without examples cannot be learnt or '
                    f"scored. Remove the folder, or put images ({', '.join(EXTENSIONS[:4])}, ...) into it."
                )
            paths += (f"{name}/{file}" for file in files)
            counts.append(len(files))
        self.class_names = tuple(names)
        self.class_words = read_class_words(self.root, names)
        # Arrays rather than lists of objects: millions of paths are pickled to every worker.
        self.relative_names = PackedNames.pack(paths)
        self.labels = np.repeat(np.array([labels[n] for n in found], np.int32), counts)
        self._prefix = os.path.join(folder, "")

    @property
    def class_counts(self) -> np.ndarray:
        """See `Source`."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def _folder(self, split: str) -> Path:
        if not self.root.is_dir():
            parent = self.root.parent
            near = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
            raise DataError(
                f'The data folder "{self.root}" does not exist.{did_you_mean(self.root.name, near)} A run needs '
                "<folder>/train/<label>/* and <folder>/val/<label>/*. Check the path, or use "
                '"embedded:digits" to try without data.'
            )
        folder = self.root / split
        if not folder.is_dir():
            there = sorted(p.name for p in self.root.iterdir() if p.is_dir())
            raise DataError(
                f'The data folder "{self.root}" has no folder "{split}". Training reads train/<label>/*, evaluation '
                f"val/<label>/*. It has: {', '.join(there[:8]) or 'no folders'}{', ...' if len(there) > 8 else ''}. "
                f"Rename or link the right one to {folder}."
            )
        return folder

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> int:
        """See `Source`."""
        return int(self.labels[index])

    def name(self, index: int) -> str:
        """See `Source`: the path."""
        return self._prefix + self.relative_names[index]

    def bytes(self, index: int) -> Encoded:
        """See `Source`."""
        return read_file(self.name(index))

    def image(self, index: int) -> Image.Image:
        """See `Source`."""
        return decode_rgb(self.bytes(index), self.name(index), exif=self.exif)


def _class_folders(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def image_files(folder: Path) -> list[str]:
    """All images below `folder`, relative to it, sorted within each folder, hidden files left out."""
    found = []
    skip = len(os.path.join(folder, ""))
    for where, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        inside = where[skip:]
        found += [
            os.path.join(inside, f) for f in sorted(files) if f.lower().endswith(EXTENSIONS) and not f.startswith(".")
        ]
    return found


class DigitsSource:
    """The 1,797 handwritten 8x8 digits of scikit-learn (test part of the UCI set, Alpaydin and Kaynak 1998).

    Every fifth image is held out as "val" (359 images), the others train (1,438). Neighbours come from the same writer,
    so held-out digits are by known hands: accuracies here compare methods and do not measure generalisation to new
    writers.
    """

    def __init__(self, split: str):
        from sklearn.datasets import load_digits

        digits = load_digits()
        held_out = np.arange(len(digits.target)) % 5 == 4
        chosen = held_out if split == "val" else ~held_out
        self.class_names = self.class_words = tuple(str(n) for n in digits.target_names)
        self.exif = False
        self.split = split
        self._images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self._labels = digits.target[chosen].astype(np.int32)

    @property
    def class_counts(self) -> np.ndarray:
        """See `Source`."""
        return np.bincount(self._labels, minlength=len(self.class_names)).astype(np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """See `Source`."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """See `Source`."""
        return f"embedded:digits/{self.split}:{range(len(self))[index]}"

    def bytes(self, index: int) -> None:
        """See `Source`: digits are arrays, there is no file."""
        return None

    def image(self, index: int) -> Image.Image:
        """See `Source`."""
        return Image.fromarray(self._images[index]).convert("RGB")


_EMBEDDED = {"digits": DigitsSource}


def open_source(spec: str, split: str, *, exif: bool = False) -> Source:
    """The records of one split.

    Args:
      spec: a folder with `train/<label>/*` and `val/<label>/*`; a folder of shards that `python -m jaxkd.shards` made;
        "tfds:NAME" or "tfds:NAME?data_dir=DIR" (see `tfds_source.TfdsSpec`); or "embedded:digits".
      split: "train" or "val".
      exif: turn images as their EXIF orientation says; timm and torchvision do not.

    Raises:
      DataError: the data set does not exist, is empty, or is arranged otherwise.
    """
    _check_split(split, SPLITS)
    if spec.startswith(EMBEDDED):
        name = spec.removeprefix(EMBEDDED)
        if name not in _EMBEDDED:
            raise DataError(
                f'data.source="{spec}" does not exist.{did_you_mean(name, _EMBEDDED)} Embedded data come inside a '
                f"Python package. There is: {', '.join(EMBEDDED + n for n in _EMBEDDED)}."
            )
        return _EMBEDDED[name](split)
    if spec.startswith(TFDS):
        return TfdsSource(spec, split, exif=exif)
    root = Path(spec)
    if is_shards(root):
        raise DataError(
            f'"{root}" holds the shards of one split. A run reads two splits, and finds them by their names. Give the '
            f"folder above it: {root.resolve().parent}."
        )
    if is_shards(root / split):
        return ShardSource(root, split, exif=exif)
    others = [s for s in SPLITS if is_shards(root / s)]
    if others and not (root / split).is_dir():
        raise DataError(
            f'The shards in "{root}" have no split "{split}": there is no {root / split / MANIFEST}. There is only '
            f'"{others[0]}". Convert the other split into the same folder: python -m jaxkd.shards --in=FOLDER '
            f"--out={root}."
        )
    return FolderSource(root, split, exif=exif)


def _check_split(split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise DataError(
            f'split="{split}" is not a split.{did_you_mean(split, known)} A data set is trained on and scored on '
            "separate "
            f"images. Use one of: {', '.join(known)}."
        )
