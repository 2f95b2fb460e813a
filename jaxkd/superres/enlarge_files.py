"""Enlarging of picture files: transparency, 16 bits and metadata stay, and a failure leaves out one file."""

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
from jaxkd.superres import image_io, sixteen_bits
from jaxkd.superres.compare_page import ComparisonPage
from jaxkd.superres.image_io import PictureInfo
from jaxkd.superres.tiling import Enlarger, Tile


@dataclass
class Enlarged:
    """Files that were enlarged."""

    # {"in", "out", "size", "seconds", "notes"} of each result; size is (height, width)
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # a sentence for each picture without a result
    seconds: float = 0.0  # of all of it
    megapixels_per_second: float = 0.0  # of the results


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
            pixels = spread_colours(pixels[..., :-1], alpha)
            pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        canvas = _canvas(picture.mode, scale * pixels.shape[0], scale * pixels.shape[1])
        for tile, part in enlarger.parts(pixels):
            if alpha is not None:
                part = _with_alpha(part, alpha, tile, scale)
            x, y = scale * tile.columns.first, scale * tile.rows.first
            if isinstance(canvas, Image.Image):
                canvas.paste(Image.fromarray(np.ascontiguousarray(part)), (x, y))
            else:
                canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
            advance()
        notes = image_io.write_picture(canvas, target, partial, about=picture.metadata, quality=quality)
    if page is not None:
        page.add(info.path.name, picture.pixels, canvas, scale, icc=picture.metadata.icc)
    size = canvas.shape[:2] if isinstance(canvas, np.ndarray) else (canvas.height, canvas.width)
    return {
        "in": str(info.path),
        "out": str(target),
        "size": list(size),
        "seconds": time.perf_counter() - start,
        "notes": [*info.notes, *notes],
    }


def _canvas(mode: str, height: int, width: int) -> Image.Image | np.ndarray:
    """An empty result: a Pillow image, or an array where Pillow has no such mode."""
    if mode in sixteen_bits.MODES:
        return np.zeros((height, width, sixteen_bits.MODES[mode]), np.uint16)
    return Image.new(mode, (width, height))


def spread_colours(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours whose fully transparent pixels continue those around them.

    Programs leave black, white or leftovers under full transparency. The network would blend them into the visible
    edge. Here such pixels get the mean of the colours nearby, weighted by their opacity: from a pyramid of halved
    pictures, the finest level first that has any colour there ("pull-push", Gortler et al. 1996).

    Args:
      colours: (H, W, C) integers.
      alpha: (H, W) of the same kind, 0 for transparent.

    Returns:
      (H, W, C); pixels that are not fully transparent keep their colours exactly.
    """
    clear = alpha == 0
    if not clear.any() or clear.all():
        return colours
    weight = alpha[..., None].astype(np.float32) / np.iinfo(alpha.dtype).max
    filled = _pull_push(colours * weight, weight)
    return np.where(clear[..., None], np.round(filled).astype(colours.dtype), colours)


def _pull_push(weighted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(H, W, C) sums of weighted colours and (H, W, 1) weights -> (H, W, C) colours without holes."""
    mean = weighted / np.where(weight > 0, weight, 1)
    if not (weight == 0).any() or max(weight.shape[:2]) == 1:
        return mean
    height, width = weight.shape[:2]
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    halves = [
        np.pad(x, odd).reshape((height + 1) // 2, 2, (width + 1) // 2, 2, -1).sum((1, 3)) for x in (weighted, weight)
    ]
    coarse = _pull_push(*halves)
    return np.where(weight > 0, mean, coarse.repeat(2, 0).repeat(2, 1)[:height, :width])


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
    return DataError(f'"{path}" could not be enlarged ({error}). Check the disk and permissions.')
