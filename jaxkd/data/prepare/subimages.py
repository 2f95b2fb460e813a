"""Cuts large images into overlapping sub-images, which training reads much faster than the whole.

Along each axis they start at 0, `step`, 2 `step`, ... as far as they fit; if more than `thresh` pixels are left over at
the end, one more ends there. Sub-images are numbered from 001, row by row: `0001.png` -> `0001_s001.png`, ... These are
the places and names of BasicSR's preparation of DIV2K (480, 240, 0), so that folders made by either can be mixed. What
differs: an image that is shorter than `size` along an axis is kept whole along it (there, nothing can be cut), and the
output is RGB of 8 bits, always PNG.

A file appears under its name when it is complete, and `subimages.json`, written first, says how everything in the
folder is made. So a stopped command can be repeated: it writes what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from jaxkd.data.files import claim_folder, remove_partial_files, write_atomic
from jaxkd.data.ordered_map import ordered_map
from jaxkd.data.prepare.shard_folder import check_unchanged
from jaxkd.data.sources.folder import image_files, missing_folder
from jaxkd.data.transforms.crops import Box, Size
from jaxkd.data.transforms.decode import decode_rgb, read_file
from jaxkd.errors import DataError, check_range

SETTINGS = "subimages.json"
_VERSION = 1
Report = Callable[[int, int, int], None]  # images done, images in all, sub-images since the last call


@dataclass(frozen=True)
class CutOptions:
    """Settings for cutting sub-images."""

    size: int = 480  # pixels of a side of a sub-image
    step: int = 240  # pixels from one to the next; less than `size` makes them overlap
    thresh: int = 0  # pixels at the end of an axis that may be left out

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("step", 1), ("thresh", 0)):
            check_range(name, getattr(self, name), least, whole=True, hint="480, 240 and 0 are usual for DIV2K")


@dataclass
class CutResult:
    """Result of a run."""

    images: int = 0  # that could be read
    subimages: int = 0  # of them, in the folder
    written: int = 0  # how many of these are new
    small: int = 0  # images shorter than `size` along an axis
    failed: list[str] = field(default_factory=list)  # what is wrong with each image that could not be read


def cut_boxes(size: Size, options: CutOptions) -> list[Box]:
    """(left, upper, right, lower) of the sub-images of an image of (height, width), in the order of their numbers."""
    rows, columns = (_starts(side, options) for side in size)
    height, width = (min(options.size, side) for side in size)
    return [(x, y, x + width, y + height) for y in rows for x in columns]


def _starts(side: int, options: CutOptions) -> list[int]:
    if side <= options.size:
        return [0]
    starts = list(range(0, side - options.size + 1, options.step))
    if side - (starts[-1] + options.size) > options.thresh:
        starts.append(side - options.size)
    return starts


def cut_folder(
    source: Path, out: Path, options: CutOptions, *, workers: int = 0, report: Report = lambda *_: None
) -> CutResult:
    """Cuts all images below `source` into `out`, with the same subfolders; continues where it was stopped.

    An image that cannot be read is named in the result, and the rest are done.
    """
    names = _names(source)
    if out.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(out.resolve()):
        raise DataError(f'"{out}" and "{source}" lie in one another. Choose another --out.')
    result = CutResult()
    with _claim_output(out, {"kind": "jaxkd sub-images", "version": _VERSION, **_identity(source, names, options)}):
        # Pillow releases Python's lock while it decodes and encodes.
        parts = ordered_map(lambda name: _cut(source / name, out / name, options), names, threads=workers)
        for number, (problem, count, written, small) in enumerate(parts, 1):
            result.images += not problem
            result.subimages += count
            result.written += written
            result.small += small
            result.failed += [problem] if problem else []
            report(number, len(names), count)
    return result


def _names(source: Path) -> list[str]:
    if not source.is_dir():
        raise missing_folder(f'The folder "{source}"', source, "Check --in.")
    names = image_files(source)
    if not names:
        raise DataError(f'"{source}" holds no images. Check --in; images end in .png, .jpg or the like.')
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            raise DataError(
                f'"{source}" has "{other}" and "{name}", whose sub-images would have equal names. Rename one of them.'
            )
    return names


def _identity(source: Path, names: list[str], options: CutOptions) -> dict[str, Any]:
    """Settings that are equal if and only if two calls write the same files."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{os.stat(source / name).st_size}\0".encode(errors="surrogateescape"))
    return {"images": len(names), "fingerprint": digest.hexdigest(), **asdict(options)}


@contextlib.contextmanager
def _claim_output(out: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Locks `out` for this process, and checks that it is new or holds sub-images made with the same settings."""
    with claim_folder(out):
        names = sorted(n for n in os.listdir(out) if not (n.startswith(".") and n.endswith(".partial")))
        if SETTINGS in names:
            check_unchanged(out, "other sub-images", _read_settings(out), settings)
        elif names:
            raise DataError(
                f'"{out}" holds "{names[0]}"{f" and {len(names) - 1} more" if len(names) > 1 else ""}, and no '
                f"{SETTINGS}. Choose a new folder for --out."
            )
        else:
            write_atomic(out / SETTINGS, json.dumps(settings, indent=1))
        remove_partial_files(out)
        yield


def _read_settings(out: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        settings = json.loads((out / SETTINGS).read_text())
        if isinstance(settings, dict):
            return settings
    raise DataError(
        f'"{out / SETTINGS}" was not written by this version of jaxkd. Choose another --out, or delete that folder.'
    )


def _cut(path: Path, out: Path, options: CutOptions) -> tuple[str, int, int, bool]:
    """(what is wrong or "", sub-images, how many are new, whether it is small) of an image."""
    try:
        data = read_file(path)
        boxes, image = None, None
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as header:
            boxes = cut_boxes((header.height, header.width), options)
        if boxes is None:
            image = decode_rgb(data, str(path))
            boxes = cut_boxes((image.height, image.width), options)
        parts = [out.with_name(f"{out.stem}_s{n:03d}.png") for n in range(1, len(boxes) + 1)]
        missing = [(part, box) for part, box in zip(parts, boxes, strict=True) if not part.exists()]
        if missing and image is None:
            image = decode_rgb(data, str(path))
    except DataError as error:
        return str(error), 0, 0, False
    for part, box in missing:
        file = io.BytesIO()
        image.crop(box).save(file, "PNG", compress_level=3)  # 6, the default, takes twice as long for 4% less
        write_atomic(part, file.getvalue())
    left, upper, right, lower = boxes[0]
    return "", len(boxes), len(missing), min(right - left, lower - upper) < options.size
