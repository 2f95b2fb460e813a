"""Enlarging of picture files: transparency, 16 bits, EXIF and ICC profile stay, and a failure leaves out one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxkd.data.transforms.imresize import imresize
from jaxkd.errors import DataError, JaxkdError
from jaxkd.superres import image_io
from jaxkd.superres.compare_page import ComparisonPage
from jaxkd.superres.image_io import PictureInfo
from jaxkd.superres.tiling import Enlarger, Tile


@dataclass
class Enlarged:
    """Files that were enlarged.

    Attributes:
      done: {"in", "out", "size", "seconds", "notes"} of each result; size is (height, width).
      failed: a sentence for each picture without a result.
      seconds: of all of it.
      megapixels_per_second: of the results.
    """

    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megapixels_per_second: float = 0.0


def enlarge_files(
    targets: Mapping[Path, Path],
    enlarger: Enlarger,
    *,
    quality: int = 95,
    overwrite: bool = False,
    page: ComparisonPage | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Enlarged:
    """Enlarges every file of `targets` that can be enlarged.

    Args:
      targets: {file: result}, of `inputs.place`.
      enlarger: the network.
      quality: of JPEG and WebP, 1 to 100.
      overwrite: replace results that exist.
      page: takes in each picture and its result.
      say: called with a line on each file.
      progress: called with how many windows of how many are done.
    """
    result, start = Enlarged(), time.perf_counter()

    def fail(path: Path, error: Exception) -> None:
        result.failed.append(str(error if isinstance(error, JaxkdError) else _as_data_error(path, error)))
        say(f"jaxkd: left out. {result.failed[-1]}")

    jobs: list[tuple[PictureInfo, Path, int]] = []  # with the number of windows
    for file, target in targets.items():
        try:
            if target.exists() and not overwrite:
                raise DataError(f'"{target}" exists already. Add --overwrite to replace it.')
            info = image_io.inspect(file)
            image_io.check_writable(info, target, enlarger.scale)
            jobs.append((info, target, len(enlarger.layout(info.height, info.width).tiles)))
        except JaxkdError as error:
            fail(file, error)
    finished, total = 0, sum(windows for *_, windows in jobs)

    def advance() -> None:
        nonlocal finished
        finished += 1
        progress(finished, max(finished, total))

    for info, target, windows in jobs:
        try:
            done = enlarge_file(
                info, target, enlarger, quality=quality, overwrite=overwrite, page=page, advance=advance
            )
        except (JaxkdError, OSError, MemoryError) as error:
            total -= windows
            fail(info.path, error)
            continue
        result.done.append(done)
        notes = "".join(f"; {note}" for note in done["notes"])
        say(f"{target} {done['size'][1]:,} x {done['size'][0]:,}, {done['seconds']:.1f} s{notes}")
    result.seconds = time.perf_counter() - start
    pixels = sum(d["size"][0] * d["size"][1] for d in result.done)
    result.megapixels_per_second = pixels / 1e6 / max(result.seconds, 1e-9)
    return result


def enlarge_file(
    info: PictureInfo,
    target: Path,
    enlarger: Enlarger,
    *,
    quality: int = 95,
    overwrite: bool = False,
    page: ComparisonPage | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Enlarges one picture from file to file; `advance` is called after each window.

    Returns:
      Its entry of `Enlarged.done`.
    """
    start, scale = time.perf_counter(), enlarger.scale
    with image_io.replacing(target, overwrite=overwrite) as partial:  # first: a full disk shows before work
        picture = image_io.read_picture(info.path)
        pixels, alpha = picture.pixels, None
        if info.alpha:
            alpha = pixels[..., -1]
            pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
        # Pillow's own memory is the canvas: it needs no second one to write from.
        canvas = Image.new(picture.mode, (scale * pixels.shape[1], scale * pixels.shape[0]))
        for tile, part in enlarger.parts(pixels):
            if alpha is not None:
                part = _with_alpha(part, alpha, tile, scale)
            corner = (scale * tile.columns.first, scale * tile.rows.first)
            canvas.paste(Image.fromarray(np.ascontiguousarray(part)), corner)
            advance()
        notes = image_io.write_picture(canvas, target, partial, exif=picture.exif, icc=picture.icc, quality=quality)
    if page is not None:
        page.add(info.path.name, picture.pixels, canvas, scale, icc=picture.icc)
    return {
        "in": str(info.path),
        "out": str(target),
        "size": [canvas.height, canvas.width],
        "seconds": time.perf_counter() - start,
        "notes": [*info.notes, *notes],
    }


def _with_alpha(part: np.ndarray, alpha: np.ndarray, tile: Tile, scale: int) -> np.ndarray:
    """An enlarged piece with the transparency of its place, enlarged by bicubic interpolation, as its last channel."""
    rows, columns = tile
    window = imresize(alpha[rows.start : rows.stop, columns.start : columns.stop], scale)
    y, x = scale * (rows.first - rows.start), scale * (columns.first - columns.start)
    window = window[y : y + part.shape[0], x : x + part.shape[1], None]
    return np.concatenate([part if part.ndim == 3 else part[..., None], window], axis=2)


def _as_data_error(path: Path, error: Exception) -> DataError:
    if isinstance(error, MemoryError):
        return DataError(
            f'"{path}" does not fit into memory, which has to hold picture and result. Cut it into pieces, or use a '
            "machine with more memory."
        )
    return DataError(f'"{path}" was given up ({error}). Check the disk and permissions.')
