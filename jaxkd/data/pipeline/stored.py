"""Arrays that belong to training batches, kept in files, and a pipeline that adds them to its batches."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.files import atomic_file, claim_folder, write_atomic
from jaxkd.data.pipeline.resumable import Batch, ResumableBatches
from jaxkd.errors import DataError, first_few

MANIFEST, FORMAT = "cache.json", 1
IMAGES = "images"  # name of the images' checksums, which are stored with the arrays
_DIGEST = hashlib.sha256().digest_size
_FILE_IMAGES = 8192  # images of a file: what a killed run loses at most, and what is read at once
_SAMPLED = 1024  # bytes of an image that its checksum is of, at least


@dataclass(frozen=True)
class Part:
    """Neighbouring batches of an epoch, which share a file.

    Attributes:
      path: of the file.
      start: position of its first batch, counted from 0 over all epochs.
      count: how many batches.
    """

    path: Path
    start: int
    count: int


class BatchStore:
    """Arrays of training batches by position, in files of a folder that are written once and whole.

    A file holds the arrays of one part of an epoch, one after the other, checksums of the images that they belong to,
    and the SHA-256 of all that. `cache.json` holds the identity of the batches and arrays.

    Args:
      folder: made when the first file is written.
      identity: gives the facts that decide the arrays, name -> JSON-able value; called once, when it is first needed.
      arrays: name -> shape and type for one image.
      batch_size: images of a batch.
      steps_per_epoch: batches of an epoch.
      field: the config field that names the folder, for errors.
    """

    def __init__(
        self,
        folder: Path,
        identity: Callable[[], dict[str, Any]],
        arrays: Mapping[str, Any],
        *,
        batch_size: int,
        steps_per_epoch: int,
        field: str,
    ):
        self.folder, self._field, self._make_identity = folder, field, identity
        arrays = {name: (tuple(a.shape), np.dtype(a.dtype)) for name, a in arrays.items()}
        self._arrays = arrays | {IMAGES: ((), np.dtype(np.uint32))}
        self._batch_size, self._steps = batch_size, steps_per_epoch
        self._per_file = max(_FILE_IMAGES // batch_size, 1)
        self._loaded: tuple[Path | None, dict[str, np.ndarray]] = (None, {})
        self._checked = False

    @property
    def bytes_per_image(self) -> int:
        """Bytes on disk of one image, without the checksum of its file."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._arrays.values())

    def megabytes(self, batches: int) -> float:
        """Size of so many batches on disk, in 10^6 bytes."""
        return batches * self._batch_size * self.bytes_per_image / 1e6

    def part(self, position: int) -> Part:
        """The part that holds the batch at `position`."""
        epoch, step = divmod(position, self._steps)
        index = step // self._per_file
        first = index * self._per_file
        path = self.folder / f"epoch_{epoch:04d}" / f"part_{index:05d}.bin"
        return Part(path, epoch * self._steps + first, min(self._per_file, self._steps - first))

    def parts(self, batches: int) -> Iterator[Part]:
        """The parts that hold the first `batches` batches; the last one may hold more."""
        position = 0
        while position < batches:
            part = self.part(position)
            yield part
            position = part.start + part.count

    def missing(self, batches: int) -> list[Part]:
        """Of these, the parts that were not written yet.

        Raises:
          DataError: the folder holds the arrays of other batches, or a file has another size than was written.
        """
        self.check()
        absent = []
        for part in self.parts(batches):
            if not part.path.exists():
                absent.append(part)
            elif part.path.stat().st_size != part.count * self._batch_size * self.bytes_per_image + _DIGEST:
                raise self._damage(part.path)
        return absent

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder, and keeps other processes from writing into it.

        Raises:
          DataError: another process is writing.
        """
        with claim_folder(self.folder, option=self._field):
            yield

    def write(self, part: Part, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Writes the arrays of all batches of a part, and with them `image_checksums` under IMAGES."""
        self.check()
        if not (self.folder / MANIFEST).exists():
            write_atomic(self.folder / MANIFEST, json.dumps(self._identity, indent=1))
        digest = hashlib.sha256()
        with atomic_file(part.path) as temporary, temporary.open("wb") as file:
            for name, (_, dtype) in self._arrays.items():
                for batch in batches:
                    content = np.ascontiguousarray(batch[name], dtype).tobytes()
                    digest.update(content)
                    file.write(content)
            file.write(digest.digest())

    def read(self, position: int) -> dict[str, np.ndarray]:
        """Name -> array of the batch at `position`, and the checksums of its images under "images".

        Raises:
          DataError: they were never written, or the file is not as it was written.
        """
        self.check()
        part = self.part(position)
        if self._loaded[0] != part.path:
            self._loaded = (part.path, self._load(part))
        return {name: array[position - part.start] for name, array in self._loaded[1].items()}

    def check(self) -> None:
        """Raises DataError where the folder holds arrays of other batches, or does not say of which."""
        path = self.folder / MANIFEST
        if self._checked or not (path.exists() or next(self.folder.glob("epoch_*"), None)):
            return
        try:
            content = path.read_bytes() if path.exists() else b""
            there = json.loads(content)
            there["format"], there.items()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DataError(
                f'"{path}" is damaged, so that nobody can tell what {self._field}="{self.folder}" holds. Delete that '
                "folder; the same command fills it again."
            ) from None
        now = self._identity
        differing = [name for name in dict.fromkeys((*now, *there)) if there.get(name) != now.get(name)]
        if differing:
            words = [f"{name}: {there.get(name)!r} there, {now.get(name)!r} now" for name in differing]
            raise DataError(
                f'{self._field}="{self.folder}" was written for another run. Choose another folder, or go back to that '
                f"run's settings. They differ in: {first_few(words, 8)}."
            )
        self._checked = True

    @cached_property
    def _identity(self) -> dict[str, Any]:
        identity = {"format": FORMAT, **self._make_identity(), "batches_per_file": self._per_file}
        return json.loads(json.dumps(identity))

    def _load(self, part: Part) -> dict[str, np.ndarray]:
        try:
            content = part.path.read_bytes()
        except FileNotFoundError:
            raise DataError(
                f'{self._field}="{self.folder}" lacks {part.path.relative_to(self.folder)}. Start the run again with '
                "the same command, which writes it."
            ) from None
        images = part.count * self._batch_size
        whole = len(content) == images * self.bytes_per_image + _DIGEST
        if not whole or hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
            raise self._damage(part.path)
        found, offset = {}, 0
        for name, (shape, dtype) in self._arrays.items():
            size = images * math.prod(shape)
            array = np.frombuffer(content, dtype, size, offset)
            found[name] = array.reshape(part.count, self._batch_size, *shape)
            offset += array.nbytes
        return found

    def _damage(self, path: Path) -> DataError:
        return DataError(
            f'"{path}" in {self._field} is not as it was written. Delete this file, and start the run again with the '
            "same command, which writes it again."
        )


class StoredBatches:
    """The batches of `pipeline` together with what `store` holds for them.

    Args:
      pipeline: makes the batches, of the whole batch on this host.
      store: holds their arrays.
      views: epochs after which the batches repeat; 0 for never.
      mixed: whether images of a batch are mixed later, so that none of them may differ from those of the store.
    """

    def __init__(self, pipeline: ResumableBatches, store: BatchStore, *, views: int = 0, mixed: bool = False):
        self.pipeline, self.store = pipeline, store
        self.steps_per_epoch, self.broken = pipeline.steps_per_epoch, pipeline.broken
        self.repeat_after, self._mixed = views * pipeline.steps_per_epoch, mixed
        self.get_state, self.set_state, self.close = pipeline.get_state, pipeline.set_state, pipeline.close

    def __iter__(self) -> StoredBatches:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          DataError: nothing is stored for it, the file is damaged, or an image is not the one that was there when the
            arrays were made.
        """
        position = self.pipeline.get_state()["position"]
        place = position % self.repeat_after if self.repeat_after else position
        batch, stored = next(self.pipeline), self.store.read(place)
        differs = stored.pop(IMAGES) != image_checksums(batch["image"])
        if not self._mixed:
            differs &= batch["mask"]  # one that can no longer be read is left out of the loss
        if differs.any():
            raise DataError(
                f"Image {int(np.argmax(differs))} of the batch after step {position} is not the one that "
                f'"{self.store.part(place).path}" was written for. Restore the images and the versions of Pillow and '
                f'NumPy of that time, or delete the folder "{self.store.folder}"; the same command fills it again.'
            )
        return batch | stored


def image_checksums(images: np.ndarray) -> np.ndarray:
    """(B, ...) uint8 -> (B,) uint32, CRC-32 of every n-th byte of each image, so many that it takes no time."""
    rows = images.reshape(len(images), -1)
    rows = np.ascontiguousarray(rows[:, :: max(rows.shape[1] // _SAMPLED, 1)])
    return np.array([zlib.crc32(row) for row in rows], np.uint32)
