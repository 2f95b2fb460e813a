"""Where labelled images come from: a folder, or the digits that scikit-learn ships."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from jaxkd.data.decode import read_rgb
from jaxkd.errors import DataError, did_you_mean

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
SPLITS = ("train", "val")
EMBEDDED = "embedded:"


class Source(Protocol):
    """A split of a data set with random access; it must be picklable, since worker processes get a copy.

    Attributes:
      class_names: label -> name, in the order of the labels.
    """

    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of records."""
        ...

    def label(self, index: int) -> int:
        """The label of a record, without decoding it."""
        ...

    def image(self, index: int) -> Image.Image:
        """The decoded RGB image of a record.

        Raises:
          DataError: it cannot be decoded.
        """
        ...


class FolderSource:
    """Images as `<root>/<split>/<label>/**/<file>`; labels are the sorted folder names of the training split.

    Args:
      root: the data set's folder.
      split: "train" or "val".

    Raises:
      DataError: a folder is missing or empty, a class has no images, or a class of `val` is not in `train`.
    """

    def __init__(self, root: str | Path, split: str):
        self.root, self.split = Path(root), split
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
            files = _image_files(folder / name)
            if not files:
                raise DataError(
                    f'The class folder "{folder / name}" holds no images. A class without examples cannot be learnt or '
                    f"scored. Remove the folder, or put images ({', '.join(EXTENSIONS[:4])}, ...) into it."
                )
            paths += files
            counts.append(len(files))
        self.class_names = tuple(names)
        # Arrays rather than lists of objects: millions of paths are pickled to every worker.
        self._paths = np.array(paths)
        self._labels = np.repeat(np.array([labels[n] for n in found], np.int32), counts)

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
        return len(self._paths)

    def label(self, index: int) -> int:
        """See `Source`."""
        return int(self._labels[index])

    def image(self, index: int) -> Image.Image:
        """See `Source`."""
        return read_rgb(Path(str(self._paths[index])))


def _class_folders(folder: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def _image_files(folder: Path) -> list[str]:
    """Paths of all images below `folder`, sorted, hidden files left out."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        found += [
            os.path.join(where, f) for f in sorted(files) if f.lower().endswith(EXTENSIONS) and not f.startswith(".")
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
        self.class_names = tuple(str(n) for n in digits.target_names)
        self._images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        self._labels = digits.target[chosen].astype(np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """See `Source`."""
        return int(self._labels[index])

    def image(self, index: int) -> Image.Image:
        """See `Source`."""
        return Image.fromarray(self._images[index]).convert("RGB")


_EMBEDDED = {"digits": DigitsSource}


def open_source(spec: str, split: str) -> Source:
    """The records of one split.

    Args:
      spec: a folder with `train/<label>/*` and `val/<label>/*`, or "embedded:digits".
      split: "train" or "val".

    Raises:
      DataError: the data set does not exist, is empty, or is arranged otherwise.
    """
    _check_split(split, SPLITS)
    if spec.startswith(EMBEDDED):
        name = spec.removeprefix(EMBEDDED)
        if name not in _EMBEDDED:
            raise DataError(
                f'data.source="{spec}" does not exist.{did_you_mean(name, _EMBEDDED)} Embedded data come inside a '
                "Python "
                f"package. There is: {', '.join(EMBEDDED + n for n in _EMBEDDED)}."
            )
        return _EMBEDDED[name](split)
    return FolderSource(spec, split)


def _check_split(split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise DataError(
            f'split="{split}" is not a split.{did_you_mean(split, known)} A data set is trained on and scored on '
            "separate "
            f"images. Use one of: {', '.join(known)}."
        )
