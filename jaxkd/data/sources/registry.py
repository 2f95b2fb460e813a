"""The registry of labelled data sources: the text of `data.source` -> random access to the images of a split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from jaxkd.config.paths import has_scheme, user_path
from jaxkd.data.sources.digits import DigitsSource
from jaxkd.data.sources.folder import FolderSource
from jaxkd.data.sources.labels import CLASS_ORDERS
from jaxkd.data.sources.shards import MANIFEST, ShardSource, is_shards
from jaxkd.data.sources.stored_shards import StoredShards
from jaxkd.data.sources.synthetic_zuco import EMBEDDED_EEG
from jaxkd.data.sources.tfds import TFDS, TfdsSource
from jaxkd.errors import ConfigError, DataError, check_choice, did_you_mean

SPLITS = ("train", "val")
EMBEDDED = "embedded:"

_KEPT: ContextVar[dict[tuple, Source] | None] = ContextVar("kept sources", default=None)  # within `keep_sources`

Encoded = bytes  # `bytes` is a method below


class Source(Protocol):
    """A split of a data set with random access.

    It must be picklable, since worker processes get a copy; files are opened by the process that reads them. Its
    methods may be called from many threads.

    Attributes:
      class_names: label -> name, in the order of the labels; for an ImageNet folder the wnids.
      class_words: label -> words for people, where a file of the data set has them, else the name.
      exif: whether `image` obeys EXIF rotation; whoever decodes `bytes` should do the same.
    """

    class_names: tuple[str, ...]
    class_words: tuple[str, ...]
    exif: bool

    @property
    def class_counts(self) -> np.ndarray:
        """Records of each label: (classes,) int64."""
        ...

    def __len__(self) -> int:
        """Number of records."""
        ...

    def label(self, index: int) -> int:
        """The label of a record, without decoding it."""
        ...

    def name(self, index: int) -> str:
        """Place of a record, for logs and errors: a path, or a shard and the place in it."""
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


class Opener(Protocol):
    """Opens one split of the data set that `spec`, the whole text of `data.source`, names."""

    def __call__(self, spec: str, split: str, *, exif: bool) -> Source: ...


OPENERS: dict[str, Opener] = {}


def register_source(name: str, opener: Opener) -> None:
    """Makes `data.source` understand `name`.

    Args:
      name: a whole text such as "embedded:digits", or a prefix with its colon such as "tfds:", after which a user
        writes what the opener reads.
      opener: `(spec, split, *, exif) -> Source`; `split` is "train" or "val". It raises DataError for what is not
        there. The source is pickled to worker processes, so its class must be importable by name.

    Raises:
      ConfigError: the name has no colon, which would hide a folder, or is taken.
    """
    if ":" not in name:
        raise ConfigError(
            f'The data source "{name}" has no colon, so a folder of that name could not be told apart. Register it as '
            f'"{name}:" or "embedded:{name}".'
        )
    if name in OPENERS:
        raise ConfigError(f'The data source "{name}" is registered already. Choose another name.')
    OPENERS[name] = opener


def registered_opener(spec: str) -> Opener | None:
    """The opener registered for `spec` or its prefix, or None where `spec` is a folder."""
    prefix, colon, _ = spec.partition(":")
    return OPENERS.get(spec) or OPENERS.get(prefix + colon)


def open_source(spec: str, split: str, *, exif: bool = False, class_order: str = "natural") -> Source:
    """The records of one split.

    Args:
      spec: a folder with `train/<label>/*` and `val/<label>/*`; a folder of shards that `jaxkd shards` made;
        the address of such a folder in an object store, "gs://bucket/folder" (see `stored_shards`); "tfds:NAME" or
        "tfds:NAME?data_dir=DIR" (see `tfds.TfdsSpec`); "embedded:digits"; or what `register_source` was given.
      split: "train" or "val".
      exif: turn images as their EXIF orientation says; timm and torchvision do not.
      class_order: of the class folders, see `labels.order_classes`.

    Returns:
      Within `keep_sources` the same object for the same arguments.

    Raises:
      ConfigError: `class_order` is not the default, and the source has no class folders.
      DataError: the data set does not exist, is empty, or is arranged otherwise.
    """
    kept = _KEPT.get()
    if kept is None:
        return _open(spec, split, exif=exif, class_order=class_order)
    key = (spec, split, exif, class_order)
    if key not in kept:
        kept[key] = _open(spec, split, exif=exif, class_order=class_order)
    return kept[key]


@contextlib.contextmanager
def keep_sources() -> Iterator[None]:
    """Context in which `open_source` lists a split once: runs after one another may read the same data set."""
    kept = _KEPT.get()
    token = _KEPT.set({} if kept is None else kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def _open(spec: str, split: str, *, exif: bool, class_order: str) -> Source:
    check_choice("split", split, SPLITS, error=DataError)
    check_choice("class_order", class_order, CLASS_ORDERS)
    opener = registered_opener(spec)
    if opener is not None:
        _refuse_order(spec, class_order, "")
        return opener(spec, split, exif=exif)
    if spec.startswith(EMBEDDED):
        if spec.partition("?")[0] in EMBEDDED_EEG:
            raise DataError(
                f'data.source="{spec}" holds EEG and no images. Read it with a config whose task is "contrastive", or '
                f"choose images: {', '.join(OPENERS)}."
            )
        raise DataError(
            f'data.source="{spec}" does not exist.{did_you_mean(spec, [*OPENERS, *EMBEDDED_EEG])} There is: '
            f"{', '.join(OPENERS)}; of EEG: {', '.join(EMBEDDED_EEG)}."
        )
    if has_scheme(spec):
        _refuse_order(spec, class_order, "; shards keep the order that they were made with")
        return StoredShards(spec, split, exif=exif)
    return _open_folder(user_path(spec, "data.source"), split, exif=exif, class_order=class_order)


def fetch_records(source: Source, records: Sequence[int]) -> None:
    """Tells a source which records are read next; one in an object store then requests them together."""
    fetch = getattr(source, "fetch", None)
    if fetch is not None:
        fetch(records)


def _open_folder(root: Path, split: str, *, exif: bool, class_order: str) -> Source:
    if is_shards(root):
        raise DataError(
            f'"{root}" holds the shards of one split, and a run reads two. Give the folder above it: '
            f"{root.resolve().parent}."
        )
    if is_shards(root / split):
        made = f"shards keep the order that they were made with (--class-order={class_order} of jaxkd shards)"
        _refuse_order(str(root), class_order, f"; {made}")
        return ShardSource(root, split, exif=exif)
    others = [s for s in SPLITS if is_shards(root / s)]
    if others and not (root / split).is_dir():
        raise DataError(
            f'The shards in "{root}" have no split "{split}": there is no {root / split / MANIFEST}, only '
            f'"{others[0]}". Convert the other split into the same folder: jaxkd shards --in=FOLDER '
            f"--out={root}."
        )
    return FolderSource(root, split, exif=exif, class_order=class_order)


def _refuse_order(spec: str, class_order: str, hint: str) -> None:
    if class_order != CLASS_ORDERS[0]:
        raise ConfigError(
            f'class_order="{class_order}" orders class folders, and the data source "{spec}" has none. Leave it out'
            f"{hint}."
        )


register_source("embedded:digits", lambda spec, split, *, exif: DigitsSource(split))
register_source(TFDS, TfdsSource)
