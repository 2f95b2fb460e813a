"""Classification data sets of TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from jaxkd.data.transforms.decode import decode_rgb
from jaxkd.errors import DataError, did_you_mean

TFDS = "tfds:"
OPTIONS = ("data_dir", "train", "val", "image", "label")
SYNTAX = '"tfds:NAME" or "tfds:NAME?data_dir=/data/tfds&train=train[:90%]&val=train[90%:]"'
# What the held-out split with labels is called, the best first; imagenet2012 has a `test` without labels.
_HELD_OUT = ("validation", "val", "valid", "dev", "test")

Encoded = bytes  # `bytes` is a method below


@dataclass(frozen=True)
class TfdsSpec:
    """Parsed form of "tfds:NAME?option=value&..."."""

    name: str  # of the data set, perhaps with config and version: "cifar10", "cifar10_corrupted/brightness_1:1.0.0"
    data_dir: str = ""  # where it was prepared; "" is TFDS' own default (TFDS_DATA_DIR or ~/tensorflow_datasets)
    train: str = "train"  # what is trained on, in TFDS' language of splits
    val: str = ""  # what is scored on; "" takes the first of validation, val, valid, dev, test that exists
    image: str = ""  # feature with the image; "" takes the only one
    label: str = ""  # feature with the label, for example "coarse_label" of cifar100; "" takes the supervised one

    @classmethod
    def parse(cls, spec: str) -> TfdsSpec:
        """From a data.source that starts with "tfds:"."""
        name, _, rest = spec.removeprefix(TFDS).partition("?")
        options = {}
        for part in rest.split("&") if rest else ():
            key, separator, value = part.partition("=")
            if key not in OPTIONS or not separator or not value:
                raise DataError(
                    f'data.source="{spec}" has "{part}", which is not an option of TFDS '
                    f"data.{did_you_mean(key, OPTIONS)} Write {SYNTAX}; the options are {', '.join(OPTIONS)}."
                )
            options[key] = os.path.expanduser(value) if key == "data_dir" else value
        if not name:
            raise DataError(f'data.source="{spec}" names no data set. Write {SYNTAX}.')
        return cls(name, **options)


class TfdsSource:
    """A split of a prepared TFDS data set; see `Source`. Records are in the order in which TFDS stored them.

    Labels lie inside the records, so `label` and `class_counts` read them; the latter reads the whole split, once,
    and keeps them.
    """

    def __init__(self, spec: str, split: str, *, exif: bool = False):
        self.spec, self.exif = TfdsSpec.parse(spec), exif
        tfds = _tfds()
        builder = _builder(tfds, self.spec)
        self.split = _split(builder, self.spec, split)
        self._image = _feature(tfds, builder, self.spec, "image", tfds.features.Image)
        self._label = _feature(tfds, builder, self.spec, "label", tfds.features.ClassLabel)
        feature = builder.info.features[self._label]
        self.class_names: tuple[str, ...] = tuple(feature.names or (str(i) for i in range(feature.num_classes)))
        self.class_words = self.class_names
        # Not the builder: it knows where it was loaded from, and a worker needs no more than the folder.
        self._folder = str(builder.data_path)
        self._labels: np.ndarray | None = None  # of all records, once they were counted
        self._length = len(_data_source(self.spec.name, self._folder, self.split, self._image, os.getpid()))

    def _example(self, index: int) -> dict[str, Any]:
        try:
            return _record(self.spec.name, self._folder, self.split, self._image, os.getpid(), index)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f'The record {self.name(index)} in "{self._folder}" cannot be read ({" ".join(str(error).split())}). '
                "Delete the folder and prepare the data set again."
            ) from None

    def __len__(self) -> int:
        return self._length

    @property
    def class_counts(self) -> np.ndarray:
        """See `Source`; the first access reads the whole split."""
        if self._labels is None:
            self._labels = np.array([self.label(i) for i in range(self._length)], np.int32)
        return np.bincount(self._labels, minlength=len(self.class_names)).astype(np.int64)

    def label(self, index: int) -> int:
        """See `Source`."""
        if self._labels is not None:
            return int(self._labels[index])
        label = int(self._example(index)[self._label])
        if not 0 <= label < len(self.class_names):
            raise DataError(
                f"The record {self.name(index)} has the label {label}, which is none of the {len(self.class_names)} "
                f"classes. Choose a split with labels: tfds:{self.spec.name}?val=validation."
            )
        return label

    def name(self, index: int) -> str:
        """See `Source`: data set, split and number."""
        return f"tfds:{self.spec.name}/{self.split}:{range(self._length)[index]}"

    def bytes(self, index: int) -> Encoded:
        """See `Source`."""
        return self._example(index)[self._image]

    def image(self, index: int) -> Image.Image:
        """See `Source`."""
        return decode_rgb(self.bytes(index), self.name(index), exif=self.exif)


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"TFDS data need the package tensorflow-datasets, which cannot be imported ({error}). "
            "Install it, without TensorFlow, with pip install 'jaxkd[tfds]'."
        ) from None
    return tensorflow_datasets


@lru_cache(maxsize=8)
def _data_source(name: str, folder: str, split: str, image: str, process: int) -> Any:
    """TFDS' data source of this process; its readers must not be shared with a forked one."""
    tfds = _tfds()
    _allow_open_files()
    builder = tfds.builder_from_directory(folder)
    try:
        return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()}, file_format="array_record")
    except (ValueError, KeyError) as error:
        raise DataError(
            f'"{split}" is not a split of tfds:{name} ({" ".join(str(error).split())}). It has: '
            f"{', '.join(builder.info.splits)}. Write for example train=train[:90%]&val=train[90%:]."
        ) from None


@lru_cache(maxsize=32)  # image and label of a record are asked for one after the other, by several threads
def _record(name: str, folder: str, split: str, image: str, process: int, index: int) -> dict[str, Any]:
    return _data_source(name, folder, split, image, process)[index]


def _allow_open_files() -> None:
    """As many open files as the system lets us: imagenet2012 has 1,024 shards, which TFDS keeps open."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < 16384:
            limit = 16384 if hard == resource.RLIM_INFINITY else min(hard, 16384)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _builder(tfds: Any, spec: TfdsSpec) -> Any:
    """A builder whose data are on the disk in a format with random access."""
    where = {"data_dir": spec.data_dir} if spec.data_dir else {}
    try:
        builder = tfds.builder(spec.name, **where)
    except tfds.core.DatasetNotFoundError:
        name = spec.name.split("/")[0].split(":")[0]
        raise DataError(
            f'TFDS knows no data set "{spec.name}".{did_you_mean(name, _known(tfds))} It is neither one of its '
            f"catalogue nor prepared in {spec.data_dir or 'its default folder'}. Check the name at "
            "https://www.tensorflow.org/datasets/catalog, or give the folder with ?data_dir=."
        ) from None
    except (ValueError, AssertionError, ImportError, OSError) as error:
        raise DataError(
            f'TFDS cannot open "{spec.name}" ({" ".join(str(error).split())[:300]}). A name may be followed by '
            "/config and :version. Check them at https://www.tensorflow.org/datasets/catalog."
        ) from None
    folder = str(builder.data_path)
    if not builder.info.splits:
        raise DataError(
            f'The data set tfds:{spec.name} is not prepared: there is nothing in "{folder}". '
            f"{_how_to_prepare(builder, spec)}"
        )
    if not _has_random_access(builder):
        raise DataError(
            f'The data set tfds:{spec.name} in "{folder}" is stored as {builder.info.file_format.value}, which has no '
            f"random access. {_how_to_prepare(builder, spec, other=True)}"
        )
    return builder


def _has_random_access(builder: Any) -> bool:
    formats = {builder.info.file_format, *builder.info.alternative_file_formats}
    return any(f is not None and f.value == "array_record" for f in formats)


def _how_to_prepare(builder: Any, spec: TfdsSpec, *, other: bool = False) -> str:
    folder = spec.data_dir or "/data/tfds"
    text = (
        f'Prepare it {"into another folder " if other else ""}with: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{spec.name}', data_dir='{'/OTHER/FOLDER' if other else folder}', "
        "file_format='array_record').download_and_prepare()\"; then pass "
        f'tfds:{spec.name}?data_dir={"/OTHER/FOLDER" if other else folder}. If that ends with "No module named '
        "'tensorflow'\", this data set needs TensorFlow once, to be written: run it in an environment of its own with "
        "pip install tensorflow tensorflow-datasets array_record."
    )
    manual = " ".join((getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None) or "").split())
    if manual:
        text += f" It cannot be downloaded by a program; put its files into {folder}/downloads/manual first: {manual}"
    return text


def _known(tfds: Any) -> list[str]:
    with contextlib.suppress(ImportError):  # the list of community data sets may need TensorFlow
        return tfds.list_builders(with_community_datasets=False)
    return []


def _split(builder: Any, spec: TfdsSpec, split: str) -> str:
    there = tuple(builder.info.splits)
    if split == "train" or spec.val:
        wanted = spec.train if split == "train" else spec.val
        name = wanted.split("[")[0].split("+")[0]
        if name not in there:
            raise DataError(
                f'tfds:{spec.name} has no split "{name}".{did_you_mean(name, there)} It has: {", ".join(there)}. '
                f"Say which ones to use: tfds:{spec.name}?train={there[0]}[:90%]&val={there[0]}[90%:]."
            )
        return wanted
    for name in _HELD_OUT:
        if name in there:
            return name
    raise DataError(
        f"tfds:{spec.name} has no held-out split; it has: {', '.join(there)}. Split one, e.g. "
        f"tfds:{spec.name}?train={there[0]}[:90%]&val={there[0]}[90%:]."
    )


def _feature(tfds: Any, builder: Any, spec: TfdsSpec, role: str, kind: type) -> str:
    """Name of the feature that is the image or the label."""
    features = builder.info.features
    asked = getattr(spec, role)
    found = [k for k, f in features.items() if isinstance(f, kind)]
    supervised = builder.info.supervised_keys or ()
    chosen = [asked] if asked else [k for k in supervised if k in found] or found
    if len(chosen) == 1 and chosen[0] in found:
        return chosen[0]
    what = f'no {role} "{asked}"' if asked else f"{len(found)} features that could be the {role}"
    raise DataError(
        f"tfds:{spec.name} has {what}; its features are: "
        f"{', '.join(f'{k} ({type(f).__name__})' for k, f in features.items())}. Choose one with "
        f"tfds:{spec.name}?{role}=NAME, or use a data set of labelled images."
    )
