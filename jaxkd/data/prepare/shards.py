"""Conversion of an image folder into shards; a killed conversion loses one shard, and continuing changes no byte.

`conversion.json` is written first and holds the input and the options. A shard gets its final name when it is complete,
after its notes (`done-00000.json`: offsets of its records, its SHA-256). The manifest is written last; then the notes
are removed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from jaxkd.data.files import atomic_file, write_atomic
from jaxkd.data.ordered_map import ordered_map
from jaxkd.data.prepare.shard_folder import claim_shard_folder
from jaxkd.data.sources.folder import FolderSource
from jaxkd.data.sources.shards import (
    CONVERSION,
    FORMATS,
    MANIFEST,
    NAMES,
    RECORD,
    RECORDS,
    Manifest,
    content_sha256,
    damaged_index,
    damaged_shard,
    file_sha256,
)
from jaxkd.data.transforms.decode import decode_rgb
from jaxkd.errors import DataError

_ORIENTATION = 0x0112  # EXIF tag
Report = Callable[[int, int], None]  # images and bytes that got done since the last call


@dataclass(frozen=True)
class ShardOptions:
    """Settings of a conversion."""

    format: str = "tar"  # a key of `FORMATS`
    # a shard is closed before its images would exceed this; a larger image gets a shard of its own
    shard_bytes: int = 256_000_000
    resize: int = 0  # pixels of the short side of images whose short side is longer; 0 keeps every file byte for byte
    quality: int = 95  # of the JPEG that a resized image becomes


def convert(
    source: FolderSource, folder: Path, options: ShardOptions, *, workers: int = 0, report: Report = lambda *_: None
) -> Manifest:
    """Writes the shards of one split into `folder`, continues to, or writes those that are missing."""
    sizes = np.array([os.stat(source.name(i)).st_size for i in range(len(source))], np.int64)
    with claim_shard_folder(folder, source.split, _identity(source, sizes, options)):
        return _Conversion(source, folder, options, sizes, workers, report).run()


def verify(folder: Path, *, report: Report = lambda *_: None) -> list[str]:
    """Reads all files of a split's shards; one phrase, such as 'train-00000.tar is missing', for each bad one."""
    manifest = Manifest.load(folder)
    files = {name: (expected, 0, 0) for name, expected in manifest.index.items()}
    files |= {s["file"]: (s["sha256"], s["records"], s["bytes"]) for s in manifest.shards}
    bad = []
    for name, (expected, records, size) in files.items():
        if not (folder / name).is_file():
            bad.append(f"{name} is missing")
        elif file_sha256(folder / name) != expected:
            bad.append(f"{name} has another checksum")
        report(records, size)
    return bad


def shrink(data: bytes, name: str, short_side: int, quality: int) -> bytes | None:
    """A JPEG whose short side has `short_side` pixels (bicubic), or None if that of the image is no longer.

    Its EXIF orientation is kept, other metadata are not; chroma has half the resolution.
    """
    rgb = decode_rgb(data, name)
    scale = short_side / min(rgb.size)
    if scale >= 1:
        return None
    exif = Image.Exif()
    with Image.open(io.BytesIO(data)) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation != 1:
        exif[_ORIENTATION] = orientation
    width, height = (max(round(side * scale), 1) for side in rgb.size)
    file = io.BytesIO()
    rgb.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()


def _identity(source: FolderSource, sizes: np.ndarray, options: ShardOptions) -> dict[str, Any]:
    """Settings that are equal if and only if two conversions write the same bytes."""
    digest = hashlib.sha256(json.dumps(source.class_names).encode())
    for part in (source.relative_names.blob, sizes.astype("<i8").tobytes(), source.labels.astype("<i4").tobytes()):
        digest.update(part)
    identity = {
        "fingerprint": digest.hexdigest(),
        "images": len(source),
        "format": options.format,
        "shard_bytes": options.shard_bytes,
        "resize": options.resize,
    }
    if options.resize:  # another encoder writes other bytes
        identity |= {"quality": options.quality, "pillow": PIL.__version__}
    return identity


class _Conversion:
    """The conversion into a folder that is claimed."""

    def __init__(
        self,
        source: FolderSource,
        folder: Path,
        options: ShardOptions,
        sizes: np.ndarray,
        workers: int,
        report: Report,
    ):
        self._source, self._folder, self._options, self._report = source, folder, options, report
        self._sizes, self._workers = sizes, workers
        self._images = self._read_from(0)
        self._current: tuple[int, tuple[bytes, str, bool] | None] = (-1, None)  # the last image that was read

    def run(self) -> Manifest:
        try:
            if (self._folder / MANIFEST).exists():
                manifest = Manifest.load(self._folder)
                self._restore(manifest)
            else:
                manifest = self._finish(list(self._shards()))
        finally:
            self._images.close()
        for name in os.listdir(self._folder):
            if name.startswith("done-") or name == CONVERSION:
                os.remove(self._folder / name)
        return manifest

    def _read_from(self, first: int) -> Iterator[tuple[bytes, str, bool]]:
        return ordered_map(self._read, range(first, len(self._source)), threads=self._workers)

    def _image(self, index: int) -> tuple[bytes, str, bool]:
        """(data, extension, whether it could be decoded if it had to be) of a record; fast in order of the records."""
        before, image = self._current
        if index != before:
            if index != before + 1:
                self._images.close()
                self._images = self._read_from(index)
            image = next(self._images)
            self._current = index, image
        return image

    def _read(self, index: int) -> tuple[bytes, str, bool]:
        name, data = self._source.name(index), self._source.bytes(index)
        if len(data) != self._sizes[index]:
            raise DataError(
                f'The image "{name}" had {self._sizes[index]:,} bytes when the conversion began and has now '
                f"{len(data):,}. Wait until nothing writes into its folder, and convert into a new folder."
            )
        extension = os.path.splitext(name)[1][1:].lower()
        if not self._options.resize:
            return data, extension, True
        try:
            small = shrink(data, name, self._options.resize, self._options.quality)
        except DataError:
            # Kept as it is: training decides what happens to unreadable images, of folders and of shards alike.
            return data, extension, False
        return (data, extension, True) if small is None else (small, "jpg", True)

    def _shards(self) -> Iterator[dict[str, Any]]:
        """The notes on all shards, each of them found finished and whole, or written now."""
        first = number = 0
        while first < len(self._source):
            path = self._folder / f"{self._source.split}-{number:05d}.{self._options.format}"
            notes_path = self._folder / f"done-{number:05d}.json"
            if path.exists():
                try:
                    notes = json.loads(notes_path.read_text())
                    written = dict(notes)
                    checksum = written.pop("checksum", None)  # the first version had none
                    begin, digest = notes["first"], notes["sha256"]
                except (OSError, ValueError, KeyError, TypeError):
                    raise damaged_shard(path, "has lost the notes about it") from None
                if checksum is not None and checksum != content_sha256(written):
                    raise damaged_shard(path, "has damaged notes about it")
                if begin != first or file_sha256(path) != digest:
                    raise damaged_shard(path, "is not what it was when it was finished")
                self._report(len(notes["records"]), notes["bytes"])
            else:
                with atomic_file(path) as unfinished:
                    notes = {"file": path.name, "first": first, **self._write_shard(unfinished, first, None)}
                    write_atomic(notes_path, json.dumps(notes | {"checksum": content_sha256(notes)}))
            yield notes
            first, number = first + len(notes["records"]), number + 1

    def _write_shard(self, path: Path, first: int, count: int | None) -> dict[str, Any]:
        """Writes `count` records from `first` on, or as many as fit if it is None; returns notes on them."""
        writer = FORMATS[self._options.format][0](path)
        records: list[tuple[int, int, int, int]] = []
        unreadable = []
        filled = 0
        try:
            for index in range(first, len(self._source) if count is None else first + count):
                data, extension, readable = self._image(index)
                if count is None and records and filled + len(data) > self._options.shard_bytes:
                    break
                label = self._source.label(index)
                records.append((label, writer.add(index, label, data, extension), len(data), zlib.crc32(data)))
                if not readable:
                    unreadable.append(self._source.relative_names[index])
                filled += len(data)
                self._report(1, len(data))
        finally:
            writer.close()
        return {
            "records": records,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "unreadable": unreadable,
        }

    def _finish(self, shards: list[dict[str, Any]]) -> Manifest:
        """Writes the index and the manifest."""
        source = self._source
        records = np.array([(i, *record) for i, s in enumerate(shards) for record in s["records"]], RECORD)
        file = io.BytesIO()
        np.save(file, records)
        index = {RECORDS: file.getvalue(), NAMES: source.relative_names.blob}
        for name, data in index.items():
            write_atomic(self._folder / name, data)
        manifest = Manifest(
            split=source.split,
            format=self._options.format,
            records=len(source),
            class_names=list(source.class_names),
            class_words=list(source.class_words),
            class_counts=source.class_counts.tolist(),
            source=_identity(source, self._sizes, self._options),
            shards=[
                {"file": s["file"], "records": len(s["records"]), "bytes": s["bytes"], "sha256": s["sha256"]}
                for s in shards
            ],
            index={name: hashlib.sha256(data).hexdigest() for name, data in index.items()},
            unreadable=[name for s in shards for name in s["unreadable"]],
        )
        write_atomic(self._folder / MANIFEST, manifest.dumps())
        return manifest

    def _restore(self, manifest: Manifest) -> None:
        """Writes the shards of a finished conversion that somebody has deleted."""
        for name, expected in manifest.index.items():
            if not (self._folder / name).is_file() or file_sha256(self._folder / name) != expected:
                raise damaged_index(self._folder / name)
        first = 0
        for shard in manifest.shards:
            path = self._folder / shard["file"]
            if path.exists():
                self._report(shard["records"], shard["bytes"])
            else:
                with atomic_file(path) as unfinished:
                    if self._write_shard(unfinished, first, shard["records"])["sha256"] != shard["sha256"]:
                        raise DataError(
                            f'The shard "{path}" cannot be written again as it was: its images have other content now, '
                            "with the same names and sizes. Convert the data into a new folder."
                        )
            first += shard["records"]
