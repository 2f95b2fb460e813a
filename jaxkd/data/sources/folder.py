"""Labelled images in a folder, one folder inside it for each class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from jaxkd.data.sources.labels import PackedNames, order_classes, read_class_words
from jaxkd.data.transforms.decode import decode_rgb, read_file
from jaxkd.errors import DataError, did_you_mean, first_few

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")

_LOG = logging.getLogger(__name__)

Encoded = bytes  # `bytes` is a method below


class FolderSource:
    """Images as `<root>/<split>/<label>/**/<file>`; labels are the sorted folder names of the training split.

    For ImageNet, whose folders are wnids, these are the labels of torchvision, timm and the published weights. A class
    folder of another split than "train" may be empty; a warning names it.

    Args:
      root: folder that holds the splits.
      split: "train" or "val".
      exif: see `Source`.
      class_order: see `order_classes`.

    Attributes:
      relative_names: record -> "<label>/.../<file>", in the order of labels and then of paths.
      labels: (records,) int32.
    """

    def __init__(self, root: str | Path, split: str, *, exif: bool = False, class_order: str = "natural"):
        self.root, self.split, self.exif = Path(root), split, exif
        folder = self._folder(split)
        found = _class_folders(folder)
        if not found:
            raise DataError(f'"{folder}" has no class folders. Arrange the images as {folder}/<label>/<image>.')
        reference = self.root / "train"
        first = split == "train" or not reference.is_dir()
        # The split that defines the labels warns, not each of them.
        names = order_classes(found if first else _class_folders(reference), class_order, where=folder if first else "")
        found = order_classes(found, class_order)
        labels = {name: label for label, name in enumerate(names)}
        unknown = [n for n in found if n not in labels]
        if unknown:
            raise DataError(
                f'"{folder}" has the class '
                f'"{unknown[0]}"{f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""}, which "{reference}" '
                f"does not have.{did_you_mean(unknown[0], names)} Give both splits the same class folders: labels "
                "are the sorted class names of the training split."
            )
        paths: list[str] = []
        counts = []
        empty: list[str] = []
        for name in found:
            files = image_files(folder / name)
            if not files and first:
                raise DataError(
                    f'The class folder "{folder / name}" holds no images. '
                    f"Remove the folder, or put images ({', '.join(EXTENSIONS[:4])}, ...) into it."
                )
            if not files:
                empty.append(name)
            paths += (f"{name}/{file}" for file in files)
            counts.append(len(files))
        if len(empty) == len(found):
            raise DataError(f'"{folder}" holds no images in its {len(found)} class folders. Put images into them.')
        if empty:
            _LOG.warning(
                '%d of %d class folders of "%s" hold no images and are ignored: %s.',
                len(empty),
                len(found),
                folder,
                first_few(empty, 4),
            )
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
            advice = 'Give a folder with train/<label>/* and val/<label>/*, or "embedded:digits" to try without data.'
            raise missing_folder(f'The data folder "{self.root}"', self.root, advice)
        folder = self.root / split
        if not folder.is_dir():
            there = sorted(p.name for p in self.root.iterdir() if p.is_dir())
            raise DataError(
                f'The data folder "{self.root}" has no folder "{split}". It has: '
                f"{first_few(there, 8) or 'no folders'}. Rename or link the right one to {folder}."
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


def missing_folder(what: str, folder: Path, advice: str) -> DataError:
    """The error for a `folder` that is none, with those beside it that have a similar name."""
    near = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    state = "is a file" if folder.exists() else "does not exist"
    return DataError(f"{what} {state}.{did_you_mean(folder.name, near)} {advice}")


def _class_folders(folder: Path) -> list[str]:
    return [e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")]


def image_files(folder: Path) -> list[str]:
    """All images below `folder`, relative to it, sorted within each folder; see `visible_files`."""
    skip = len(os.path.join(folder, ""))
    return [
        os.path.join(where[skip:], f)
        for where, files in visible_files(folder)
        for f in files
        if f.lower().endswith(EXTENSIONS)
    ]


def visible_files(folder: str | Path) -> Iterator[tuple[str, list[str]]]:
    """(path of a folder, sorted names of its files) of `folder` and all below it.

    Hidden files and folders are left out. Links are followed, and a folder that they lead to again is left out.
    """
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        about = os.stat(where)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield where, sorted(f for f in files if not f.startswith("."))
