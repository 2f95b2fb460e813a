"""Shards: a split of a data set in a few large files with an index, for disks that are slow with many small files.

    DIR/train/manifest.json        what is here: format, classes, counts, SHA-256 of every other file; written last
    DIR/train/records.npy          where each record lies (`RECORD`), in the order of the folder it was made from
    DIR/train/names.bin            where each record came from (`PackedNames`)
    DIR/train/train-00000.tar      members 00000000.jpg and 00000000.cls, 00000001.jpg ..., as WebDataset reads them
    DIR/train/train-00000.arrayrecord   or: records of 4 bytes (label, little-endian) and the encoded image

`jaxkd shards` writes them; both formats give random access.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxkd.data.sources.labels import PackedNames
from jaxkd.data.transforms.decode import decode_rgb
from jaxkd.errors import DataError

KIND, VERSION = "jaxkd image shards", 1
MANIFEST, CONVERSION = "manifest.json", "conversion.json"
RECORDS, NAMES = "records.npy", "names.bin"
# `offset`: first byte of the image in a tar, number of the record in an ArrayRecord file.
RECORD = np.dtype([("shard", "<u4"), ("label", "<i4"), ("offset", "<u8"), ("size", "<u8"), ("crc32", "<u4")])

Encoded = bytes  # `bytes` is a method below
_OPEN_FILES = 64  # ImageNet has hundreds of shards, a process often may open no more than 1,024 files


@dataclass(frozen=True)
class Manifest:
    """Contents of a folder of shards: format, classes, counts, checksums."""

    split: str  # "train" or "val"
    format: str  # a key of `FORMATS`
    records: int  # number of images
    class_names: list[str]  # label -> name
    class_words: list[str]  # label -> words for people
    class_counts: list[int]  # label -> number of images
    # where it came from: a fingerprint of all names, sizes and labels, and how images were changed
    source: dict[str, Any]
    shards: list[dict[str, Any]]  # {"file", "records", "bytes", "sha256"} of each, in order
    index: dict[str, str]  # file -> SHA-256 of `RECORDS` and `NAMES`
    # files that could not be resized because they are no images; they are inside, byte for byte
    unreadable: list[str] = field(default_factory=list)
    kind: str = KIND
    version: int = VERSION

    def dumps(self) -> str:
        """As JSON, the same text for the same content, with a checksum of itself."""
        content = {"kind": self.kind, "version": self.version, **asdict(self)}
        content["checksum"] = content_sha256(content)
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, folder: Path, shown: str = "") -> Manifest:
        """The manifest of `folder`, which errors call `shown` where it is the copy of another.

        Raises:
          DataError: there is none, it is of something else, or of another version.
        """
        where, path = shown or folder, f"{shown or folder}/{MANIFEST}"
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if (folder / CONVERSION).exists():
                raise DataError(
                    f'The conversion into "{folder}" is not finished. '
                    "Run the same jaxkd shards command again; it continues."
                ) from None
            raise DataError(
                f'"{folder}" holds no shards: there is no {MANIFEST}. Make '
                f"shards with jaxkd shards --in=FOLDER --out={folder.parent}."
            ) from None
        except (OSError, ValueError) as error:
            raise DataError(f'"{path}" cannot be read ({error}). Convert the data again into a new folder.') from None
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise DataError(
                f'"{path}" is not a manifest of jaxkd. Give a folder that jaxkd shards wrote, '
                "or one with <split>/<label>/<image>."
            )
        if content.get("version") != VERSION:
            raise DataError(
                f'The shards in "{where}" have version {content.get("version")}, but this jaxkd reads version '
                f"{VERSION}. Use the jaxkd that wrote them, or convert the data again into a new folder."
            )
        checksum = content.pop("checksum", None)  # version 1 had none at first
        try:
            manifest = cls(**content)
            wrong = _manifest_fault(manifest)
        except TypeError as error:
            wrong = str(error)
        if not wrong and checksum is not None and checksum != content_sha256(content):
            wrong = "its checksum is another one"
        if wrong:
            raise DataError(
                f'"{path}" is damaged: {wrong}. Fetch it again, or convert the data again into a new folder.'
            )
        return manifest


def content_sha256(content: dict[str, Any]) -> str:
    """Hexadecimal SHA-256 of what JSON would hold of `content`."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _manifest_fault(m: Manifest) -> str:
    """The first value of a manifest that cannot be right, in words; "" for none."""

    def count(value: Any, least: int = 0) -> bool:
        return type(value) is int and least <= value < 2**62

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(text, str) for text in value)

    def shard(entry: Any) -> bool:
        return (
            isinstance(entry, dict)
            and {"file", "records", "bytes", "sha256"} <= entry.keys()
            and isinstance(entry["file"], str)
            and entry["file"] == os.path.basename(entry["file"])
            and "\0" not in entry["file"]
            and isinstance(entry["sha256"], str)
            and count(entry["records"])
            and count(entry["bytes"])
        )

    if not isinstance(m.split, str) or not isinstance(m.format, str) or not isinstance(m.source, dict):
        return "split, format or source is of the wrong type"
    if not (texts(m.class_names) and m.class_names and len(set(m.class_names)) == len(m.class_names)):
        return "class_names is not a list of different names"
    if not texts(m.class_words) or len(m.class_words) != len(m.class_names):
        return "class_words is not one text for each class"
    if not (isinstance(m.class_counts, list) and all(map(count, m.class_counts))):
        return "class_counts is not a list of counts"
    if not count(m.records, 1) or sum(m.class_counts) != m.records or len(m.class_counts) != len(m.class_names):
        return "class_counts do not add up to the records"
    if not (isinstance(m.shards, list) and all(map(shard, m.shards))):
        return "shards is not a list of files with records, bytes and sha256"
    if sum(entry["records"] for entry in m.shards) != m.records:
        return "the records of its shards do not add up"
    if not isinstance(m.index, dict) or set(m.index) != {RECORDS, NAMES} or not texts(list(m.index.values())):
        return f"index does not hold the checksums of {RECORDS} and {NAMES}"
    return "" if texts(m.unreadable) else "unreadable is not a list of names"


class TarWriter:
    """POSIX tar without owners and times, so that the same images give the same bytes."""

    def __init__(self, path: Path):
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def _member(self, name: str, data: Encoded) -> int:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        offset = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(data))
        return offset

    def add(self, key: int, label: int, data: Encoded, extension: str) -> int:
        """Appends a record and returns its `offset`; `extension` has no dot."""
        offset = self._member(f"{key:08d}.{extension}", data)
        self._member(f"{key:08d}.cls", str(label).encode())
        return offset

    def close(self) -> None:
        """Completes the file."""
        self._tar.close()


class ArrayRecordWriter:
    """One record per chunk and no compression, because images are compressed and read one by one."""

    def __init__(self, path: Path):
        self._path = str(path)
        self._writer = _array_record().ArrayRecordWriter(self._path, "group_size:1,uncompressed")
        self._count = 0

    def add(self, key: int, label: int, data: Encoded, extension: str) -> int:
        """See `TarWriter`."""
        with self._system_errors():
            self._writer.write(struct.pack("<i", label) + data)
        self._count += 1
        return self._count - 1

    def close(self) -> None:
        """See `TarWriter`."""
        with self._system_errors():
            self._writer.close()

    @contextlib.contextmanager
    def _system_errors(self) -> Iterator[None]:
        """A full disk is an OSError, as everywhere else."""
        try:
            yield
        except RuntimeError as error:
            raise OSError(errno.EIO, " ".join(str(error).split()), self._path) from None


class _TarShard:
    """An open tar; positional reads need no lock and share no cursor with other threads or forked processes."""

    def __init__(self, path: str):
        self._file = -1
        self._file = os.open(path, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit, the module's `os` is gone already
        if self._file >= 0:
            close(self._file)

    def read(self, offset: int, size: int) -> Encoded:
        return os.pread(self._file, size, offset)


class _ArrayRecordShard:
    """An open ArrayRecord file."""

    def __init__(self, path: str):
        self._reader = _array_record().ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")

    def read(self, offset: int, size: int) -> Encoded:
        return self._reader.read([offset])[0][4:]


FORMATS: dict[str, tuple[Callable[[Path], Any], Callable[[str], Any]]] = {
    "tar": (TarWriter, _TarShard),
    "arrayrecord": (ArrayRecordWriter, _ArrayRecordShard),
}


def _array_record() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise DataError(
            "Shards of format arrayrecord need the package array_record, which is not installed. "
            "Install it with pip install 'jaxkd[shards]', or use --format=tar."
        ) from None
    return array_record_module


@lru_cache(_OPEN_FILES)
def _open_shard(kind: str, path: str, process: int) -> Any:
    """An open shard of this process. Another thread may still read one that is dropped; then it is closed later."""
    return FORMATS[kind][1](path)


class ShardSource:
    """A split out of shards; see `Source`. Records are in the order of the folder that was converted.

    Each process opens files when it first needs them. Each image is compared with its CRC-32 when it is read.
    """

    def __init__(self, root: str | Path, split: str, *, exif: bool = False):
        self.folder, self.exif = Path(root) / split, exif
        manifest = Manifest.load(self.folder)
        if manifest.format not in FORMATS:
            raise DataError(
                f'The shards in "{self.folder}" have the format "{manifest.format}", but this jaxkd reads: '
                f"{', '.join(FORMATS)}. Convert the data again into a new folder."
            )
        if manifest.format == "arrayrecord":
            _array_record()
        files = [self.folder / shard["file"] for shard in manifest.shards]
        check_sizes(manifest, {p.name: p.stat().st_size for p in files if p.is_file()}, self.folder)
        for name, expected in manifest.index.items():
            path = self.folder / name
            if not path.is_file() or file_sha256(path) != expected:
                raise damaged_index(path)
        check_index(self.folder, manifest)
        self._describe(manifest, self.folder)

    def _describe(self, manifest: Manifest, where: str | Path) -> None:
        """Sets what a source says of itself; `where` is the place of the shards."""
        self.class_names, self.class_words = tuple(manifest.class_names), tuple(manifest.class_words)
        self.class_counts = np.array(manifest.class_counts, np.int64)
        self._format = manifest.format
        self._paths = [f"{where}/{s['file']}" for s in manifest.shards]
        self._length = manifest.records
        self._records: np.ndarray | None = None
        self._names: PackedNames | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_records": None, "_names": None}

    def _record(self, index: int) -> Any:
        if self._records is None:
            # Mapped, so that all processes of a host share one copy.
            self._records = np.load(self.folder / RECORDS, mmap_mode="r")
        return self._records[index]

    def __len__(self) -> int:
        return self._length

    def label(self, index: int) -> int:
        """See `Source`."""
        return int(self._record(index)["label"])

    def name(self, index: int) -> str:
        """See `Source`: the shard, the key in it, and the file that it was."""
        index = range(self._length)[index]
        if self._names is None:
            self._names = PackedNames((self.folder / NAMES).read_bytes())
        return f"{self._paths[int(self._record(index)['shard'])]}:{index:08d} ({self._names[index]})"

    def bytes(self, index: int) -> Encoded:
        """See `Source`."""
        record = self._record(index)
        path = self._paths[int(record["shard"])]
        try:
            data = _open_shard(self._format, path, os.getpid()).read(int(record["offset"]), int(record["size"]))
        except (OSError, RuntimeError, ValueError, IndexError) as error:  # RuntimeError: ArrayRecord's own checksums
            raise damaged_shard(path, f"cannot be read ({' '.join(str(error).split())})") from None
        if len(data) != record["size"] or zlib.crc32(data) != record["crc32"]:
            raise damaged_shard(path, f"has another checksum at record {self.name(index)}")
        return data

    def image(self, index: int) -> Image.Image:
        """See `Source`."""
        return decode_rgb(self.bytes(index), self.name(index), exif=self.exif)


def check_sizes(manifest: Manifest, sizes: Mapping[str, int], where: str | Path) -> None:
    """Raises DataError where a shard is missing or has not as many bytes as when it was made.

    Args:
      manifest: of the shards.
      sizes: file -> bytes of what is there.
      where: the place of the shards, for the message.
    """
    for shard in manifest.shards:
        size = sizes.get(shard["file"])
        if size != shard["bytes"]:
            state = "is missing" if size is None else f"has {size:,} bytes instead of {shard['bytes']:,}"
            raise damaged_shard(f"{where}/{shard['file']}", state)


def check_index(folder: Path, manifest: Manifest, shown: str = "") -> None:
    """Raises DataError where the index names other shards, labels or places than there are.

    Args:
      folder: of the index.
      manifest: of the shards.
      shown: what errors call `folder` where it is the copy of another; "" for itself.
    """
    damaged = f"{shown or folder}/{RECORDS}"
    try:
        records = np.load(folder / RECORDS, mmap_mode="r")
        names = len(PackedNames((folder / NAMES).read_bytes()))
    except (OSError, ValueError, EOFError):
        raise damaged_index(damaged) from None
    sizes = np.array([shard["bytes"] for shard in manifest.shards], np.uint64)
    fits = records.dtype == RECORD and records.shape == (manifest.records,) and names == manifest.records
    if fits:
        label, shard = records["label"], records["shard"]
        fits = label.min() >= 0 and shard.max() < len(sizes)
        fits = fits and np.bincount(label, minlength=len(manifest.class_names)).tolist() == manifest.class_counts
    if fits and manifest.format == "tar":
        fits = bool(np.all(records["offset"] + records["size"] <= sizes[records["shard"]]))
    if not fits:
        raise damaged_index(damaged)


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_shard(path: str | Path, state: str) -> DataError:
    """The error for a damaged shard; `state` continues "The shard ... "."""
    return DataError(
        f'The shard "{path}" {state}. Fetch it again, or delete it and repeat the jaxkd shards command that '
        "made it: that writes what is missing."
    )


def damaged_index(path: str | Path) -> DataError:
    """The error for a damaged index file."""
    return DataError(
        f'The index "{path}" is missing or has changed since the conversion. Fetch it again, or convert the data again '
        "into a new folder."
    )


def is_shards(folder: Path) -> bool:
    """Whether `folder` (of one split) was made by `jaxkd shards`, finished or not."""
    if not ((folder / MANIFEST).is_file() or (folder / CONVERSION).is_file()):
        return False
    return not any(entry.is_dir() for entry in os.scandir(folder))  # class folders: somebody else's manifest
