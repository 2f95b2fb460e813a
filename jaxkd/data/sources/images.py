"""Images to look at, not to learn from: any folder of them, without labels, in a fixed order."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jaxkd.config.paths import has_scheme, user_path
from jaxkd.data.sources.folder import EXTENSIONS, image_files, missing_folder
from jaxkd.data.sources.registry import EMBEDDED, Source, open_source, registered_opener
from jaxkd.data.transforms.decode import decode_rgb, read_file
from jaxkd.errors import DataError, first_few


class ImageFolder:
    """Every image below a folder, as a `Source` of one class."""

    class_names = class_words = ("",)
    exif = False

    def __init__(self, root: str | Path, *, per_class: int = 0):
        self.root = Path(root)
        if not self.root.is_dir():
            advice = 'Give a folder of images, or "embedded:digits" to try without data.'
            raise missing_folder(f'--images="{root}"', self.root, advice)
        files = image_files(self.root)
        if per_class:
            folders = itertools.groupby(files, os.path.dirname)
            files = [file for _, inside in folders for file in itertools.islice(inside, per_class)]
        if not files:
            raise DataError(
                f'--images="{root}" holds no images. Give a folder with files that end in {first_few(EXTENSIONS, 4)}.'
            )
        self._files = files

    @property
    def class_counts(self) -> np.ndarray:
        """See `Source`."""
        return np.array([len(self)], np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def label(self, index: int) -> int:
        """There are no labels: 0."""
        return 0

    def name(self, index: int) -> str:
        """See `Source`: the path."""
        return os.path.join(self.root, self._files[index])

    def bytes(self, index: int) -> bytes:
        """See `Source`."""
        return read_file(self.name(index))

    def image(self, index: int) -> Image.Image:
        """See `Source`."""
        return decode_rgb(self.bytes(index), self.name(index))


@dataclass(frozen=True)
class FirstImages:
    """The first `count` records of a source."""

    source: Source
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getattr__(self, name: str):
        return getattr(object.__getattribute__(self, "source"), name)


def open_images(
    spec: str, *, per_class: int = 0, max_images: int = 0, class_order: str = "natural"
) -> tuple[Source, bool]:
    """Images for an analysis, and whether their labels are known.

    Args:
      spec: a folder of images, with folders inside or not; a data set of `open_source` (its validation split); a split
        of one, such as "/data/imagenet/val".
      per_class: of a plain folder: how many of each folder inside, 0 for all.
      max_images: the first so many; 0 for all.
      class_order: of a labelled folder, see `labels.order_classes`.
    """
    named = registered_opener(spec) is not None or spec.startswith(EMBEDDED) or has_scheme(spec)
    root = Path(spec) if named else user_path(spec, "--images")
    labelled = named or (root / "val").is_dir()
    if labelled and per_class:
        raise DataError(
            f'--per-class={per_class} does not go with --images="{spec}", which is a labelled data set. Give the '
            f"folder of the split: {root / 'val'}."
        )
    source = open_source(spec, "val", class_order=class_order) if labelled else ImageFolder(root, per_class=per_class)
    return (FirstImages(source, max_images) if 0 < max_images < len(source) else source), labelled
