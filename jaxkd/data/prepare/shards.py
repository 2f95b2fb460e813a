"""Makes shards of an image folder, so that being killed at any moment costs one shard and changes no byte.

A shard is finished when it has its final name. Before, it is `*.partial`, and its notes (`done-00000.json`: where its
records lie, its SHA-256) are written. The manifest comes last; then the notes go. `conversion.json` says from the first
moment on what is being converted, and how.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from jaxkd.data.prepare.shard_folder import claimed, commit, partial, write
from jaxkd.data.sources.labelled import FolderSource
from jaxkd.data.sources.shards import (
    CONVERSION,
    FORMATS,
    MANIFEST,
    NAMES,
    RECORD,
    RECORDS,
    Manifest,
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
    """How a folder is converted.

    Attributes:
      format: a key of `FORMATS`.
      shard_bytes: a shard is closed before its images would exceed this; a larger image gets a shard of its own.
      resize: pixels of the short side of images whose short side is longer; 0 keeps every file byte for byte.
      quality: of the JPEG that a resized image becomes.
    """

    format: str = "tar"
    shard_bytes: int = 256_000_000
    resize: int = 0
    quality: int = 95


def convert(
    source: FolderSource, folder: Path, options: ShardOptions, *, workers: int = 0, report: Report = lambda *_: None
) -> Manifest:
    """Writes the shards of one split into `folder`, continues to, or writes those that are missing.

    Args:
      source: the split.
      folder: <out>/<split>.
      options: how.
      workers: threads that read and resize; 0 takes one per core, at most 16.
      report: called as images get done.

    Raises:
      DataError: the folder holds something else, another conversion or damaged shards, or the source changes meanwhile.
    """
    sizes = np.array([os.stat(source.name(i)).st_size for i in range(len(source))], np.int64)
    with claimed(folder, source.split, _identity(source, sizes, options)):
        return _Conversion(source, folder, options, sizes, workers or min(os.cpu_count() or 1, 16), report).run()


def verify(folder: Path, *, report: Report = lambda *_: None) -> list[str]:
    """Reads all files of a split's shards; one phrase, such as 'train-00000.tar is missing', for each bad one.

    Raises:
      DataError: there is no manifest that could be compared with.
    """
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

    Raises:
      DataError: it cannot be decoded.
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
    """What two conversions have in common exactly when they write the same bytes."""
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


class _Feed:
    """Encoded images in order, read and resized ahead by threads."""

    def __init__(self, source: FolderSource, sizes: np.ndarray, options: ShardOptions, workers: int):
        self._source, self._sizes, self._options, self._ahead = source, sizes, options, 4 * workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="jaxkd-shards")
        self._ready: deque[Future] = deque()
        self.position = 0

    def seek(self, position: int) -> None:
        """Goes to a record."""
        if position != self.position:
            self._ready.clear()
            self.position = position

    def peek(self) -> tuple[bytes, str, bool]:
        """(data, extension, whether it could be decoded where it had to be) of the record at the position."""
        while len(self._ready) < self._ahead and self.position + len(self._ready) < len(self._source):
            self._ready.append(self._pool.submit(self._make, self.position + len(self._ready)))
        return self._ready[0].result()

    def advance(self) -> None:
        """Goes to the next record."""
        self._ready.popleft()
        self.position += 1

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, index: int) -> tuple[bytes, str, bool]:
        name, data = self._source.name(index), self._source.bytes(index)
        if len(data) != self._sizes[index]:
            raise DataError(
                f'The image "{name}" had {self._sizes[index]:,} bytes when the conversion began and has now '
                f"{len(data):,}. Shards of a folder that changes would match no state of it. Wait until nothing "
                "writes into it, and convert into a new folder."
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


class _Conversion:
    """The work on a folder that is claimed."""

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
        self._sizes = sizes
        self._feed = _Feed(source, sizes, options, workers)

    def run(self) -> Manifest:
        try:
            if (self._folder / MANIFEST).exists():
                manifest = Manifest.load(self._folder)
                self._restore(manifest)
            else:
                manifest = self._finish(list(self._shards()))
        finally:
            self._feed.close()
        for name in os.listdir(self._folder):
            if name.startswith("done-") or name == CONVERSION:
                os.remove(self._folder / name)
        return manifest

    def _shards(self) -> Iterator[dict[str, Any]]:
        """The notes on all shards, each of them found finished and whole, or written now."""
        first = number = 0
        while first < len(self._source):
            path = self._folder / f"{self._source.split}-{number:05d}.{self._options.format}"
            notes_path = self._folder / f"done-{number:05d}.json"
            if path.exists():
                try:
                    notes = json.loads(notes_path.read_text())
                except (OSError, ValueError):
                    raise damaged_shard(path, "has lost the notes about it") from None
                if notes["first"] != first or file_sha256(path) != notes["sha256"]:
                    raise damaged_shard(path, "is not what it was when it was finished")
                self._report(len(notes["records"]), notes["bytes"])
            else:
                notes = {"file": path.name, "first": first, **self._write_shard(path, first, None)}
                write(notes_path, json.dumps(notes).encode())
                commit(path)
            yield notes
            first, number = first + len(notes["records"]), number + 1

    def _write_shard(self, path: Path, first: int, count: int | None) -> dict[str, Any]:
        """Writes `path`.partial with `count` records from `first` on, or with as many as fit; returns notes on it."""
        unfinished, feed = partial(path), self._feed
        writer = FORMATS[self._options.format][0](unfinished)
        feed.seek(first)
        records: list[tuple[int, int, int, int]] = []
        unreadable = []
        filled = 0
        try:
            while feed.position < len(self._source) and len(records) != count:
                data, extension, readable = feed.peek()
                if count is None and records and filled + len(data) > self._options.shard_bytes:
                    break
                label = self._source.label(feed.position)
                offset = writer.add(feed.position, label, data, extension)
                records.append((label, offset, len(data), zlib.crc32(data)))
                if not readable:
                    unreadable.append(self._source.relative_names[feed.position])
                filled += len(data)
                feed.advance()
                self._report(1, len(data))
        finally:
            writer.close()
        return {
            "records": records,
            "bytes": unfinished.stat().st_size,
            "sha256": file_sha256(unfinished),
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
            write(self._folder / name, data)
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
        write(self._folder / MANIFEST, manifest.dumps().encode())
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
            elif self._write_shard(path, first, shard["records"])["sha256"] != shard["sha256"]:
                os.remove(partial(path))
                raise DataError(
                    f'The shard "{path}" cannot be written again as it was: its images have other content now, with '
                    "the same names and sizes. It would not fit the index. Convert the data into a new folder."
                )
            else:
                commit(path)
            first += shard["records"]
