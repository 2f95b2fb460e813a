"""Saliency figures: a grid of maps beside the images, and an animation of gradient maps over the layers.

Colours are those of matplotlib's "inferno", whose lightness grows with the value, so that a grey print shows the same.
Positions that are not finite are drawn in flat blue-grey and counted in words. Image arguments are in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxkd.errors import DataError, ShapeError

COLOURS = "inferno"
NOT_FINITE = (0.35, 0.47, 0.58)
# A few pixels hold most of a gradient; the rest would be black if the largest were white (SmoothGrad, section 3.2).
PERCENTILE = 99.0
FRAME_MILLISECONDS = 800


def display_images(images: Any, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(B, H, W, 3) normalised images -> the same in [0, 1], clipped."""
    return np.clip(np.asarray(images, np.float32) * np.asarray(std) + np.asarray(mean), 0, 1)


def draw_saliency(
    images: Any,
    maps: Mapping[str, Any],
    path: Path | str,
    *,
    labels: Sequence[str] = (),
    caption: str = "",
) -> None:
    """Writes a figure with one row per image: the image, then a panel per map, each with its own scale.

    Args:
      images: (B, H, W, 3) in [0, 1].
      maps: title -> (B, H, W) >= 0, in the order of the columns, e.g. "vanilla gradient", "SmoothGrad" and
        "integrated gradients" (`saliency.attribution_map`). The brightest colour is the 99th percentile, which is
        printed below the panel.
      path: of the figure; its suffix decides the format (PNG, PDF).
      labels: text at the left of each row, e.g. file name, class and completeness error.
      caption: printed below.

    Raises:
      ShapeError: maps or labels that do not belong to the images. DataError: images outside [0, 1].
    """
    images = _checked_images(images)
    maps = {title: np.asarray(value, np.float64) for title, value in maps.items()}
    for title, value in maps.items():
        if value.shape != images.shape[:3]:
            raise ShapeError(
                f'The map "{title}" has shape {value.shape}, the images have {images.shape}. Give {images.shape[:3]}.'
            )
    if labels and len(labels) != len(images):
        raise ShapeError(f"{len(labels)} labels came with {len(images)} images. Give one for each, or none.")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows, columns = len(images), 1 + len(maps)
    size = (2.5 * columns + 0.3, rows * (2.4 * images.shape[1] / images.shape[2] + 0.3) + 0.6)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for row, axis_row in enumerate(axes):
        axis_row[0].imshow(images[row])
        if labels:
            axis_row[0].set_ylabel(labels[row], fontsize=9)
        for axis, (title, value) in zip(axis_row[1:], maps.items(), strict=True):
            heat, words = colour_map(value[row], PERCENTILE)
            axis.imshow(heat)
            axis.set_xlabel(words, fontsize=8, color="#444444")
            if not row:
                axis.set_title(title, fontsize=10)
        for axis in axis_row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    axes[0][0].set_title("image", fontsize=10)
    if caption:
        figure.supxlabel(caption, fontsize=8, color="#555555", wrap=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_layer_animation(
    image: Any,
    maps: Mapping[str, Any],
    path: Path | str,
    *,
    shared_scale: bool = False,
    title: str = "mean |gradient| of the class score",
    milliseconds: int = FRAME_MILLISECONDS,
) -> None:
    """Writes a GIF with one frame per layer: the image, and beside it the layer's map over a dim grey copy.

    Below stand the scale and one bar per layer with the mean of its map (its height in logarithm, over the decades that
    the layers span), the present one dark; a layer without a finite positive mean has none.

    Args:
      image: (H, W, 3) in [0, 1].
      maps: tap -> (h, w) >= 0 in depth order, any grid; interpolated bilinearly to the image. (1, 1), a feature without
        positions, leaves the copy grey and shows in its bar only. See `saliency.layer_gradient_maps`.
      path: of the GIF.
      shared_scale: the brightest colour is the largest value of all layers, instead of each layer's own.
      title: what the numbers are; the first line of every frame.
      milliseconds: per frame.

    Raises:
      ShapeError: no maps, or a map that is not (h, w). DataError: an image outside [0, 1].
    """
    image = _checked_images(np.asarray(image)[None])[0]
    maps = {name: np.asarray(value, np.float64) for name, value in maps.items()}
    if not maps:
        raise ShapeError("There are no maps to animate. Ask for at least one tap.")
    for name, value in maps.items():
        if value.ndim != 2 or not value.size:
            raise ShapeError(
                f'The map of "{name}" has shape {value.shape} instead of (h, w). '
                "Pick the image: {name: map[i] for name, map in maps.items()}."
            )
    finite = [v[np.isfinite(v)] for v in maps.values()]
    top = max((v.max() for v in finite if v.size), default=0.0) if shared_scale else None
    means = np.array([v.mean() if np.isfinite(v).all() else np.nan for v in maps.values()])
    frames = [_frame(image, maps, index, means, top, title) for index in range(len(maps))]
    palette = _palette(frames)
    frames = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, disposal=1)


def write_saliency(found: Iterable[Any], folder: Path) -> list[dict[str, Any]]:
    """Writes `<network>_<image>.png` and `.gif` for each `analysis.pipeline.saliency_maps.ImageSaliency`.

    Returns:
      The "saliency" entries of results.json; paths are relative to the folder's parent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries, numbers = [], {}
    for number, item in enumerate(found):
        numbers.setdefault(item.model, len(numbers) + 1)
        # Numbered, since two labels may differ only in characters that no file name should have.
        stem = f"{numbers[item.model]}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', item.model)}_{number}"
        caption = (
            f"{item.model}, class {item.predicted} (highest score) · {item.details}, completeness error "
            f"{100 * item.completeness_error:.1f} %"
        )
        maps = {title: value[None] for title, value in item.maps.items()}
        label = (Path(item.name).name,)
        draw_saliency(item.image[None], maps, folder / f"{stem}.png", labels=label, caption=caption)
        draw_layer_animation(item.image, item.layers, folder / f"{stem}.gif")
        entry = {"model": item.model, "image": item.name, "class": item.predicted}
        entry |= {kind: f"{folder.name}/{stem}.{kind}" for kind in ("png", "gif")}
        finite = np.isfinite(item.completeness_error)
        entries.append(entry | {"completeness_error": item.completeness_error if finite else None})
    return entries


def colour_map(values: np.ndarray, percentile: float = 100.0, top: float | None = None) -> tuple[np.ndarray, str]:
    """A map in colours, and its scale in words.

    Args:
      values: (h, w) >= 0.
      percentile: of the finite values that becomes the brightest colour, unless
      top: is given.

    Returns:
      (h, w, 3) in [0, 1], black for 0 and for a map of nothing but zeros; positions that are not finite in NOT_FINITE.
      The scale in words, which say so when a map is all zero or not finite somewhere.
    """
    import matplotlib

    finite = np.isfinite(values)
    count = values.size - int(finite.sum())
    inside = values[finite]
    if not inside.size:
        return np.broadcast_to(np.float64(NOT_FINITE), (*values.shape, 3)).copy(), "no finite value: nothing to show"
    if top is None:
        # More than 99 % zeros would make the percentile 0 and everything white.
        top = np.percentile(inside, percentile) or inside.max()
    heat = matplotlib.colormaps[COLOURS](np.where(finite, values, 0) / (top if top > 0 else 1))[..., :3]
    heat[~finite] = NOT_FINITE
    words = "zero everywhere" if not inside.any() else f"black 0, brightest {top:.2g}"
    return heat, words + (f"; {count} of {values.size} not finite" if count else "")


def _frame(
    image: np.ndarray, maps: Mapping[str, np.ndarray], index: int, means: np.ndarray, top: float | None, title: str
) -> Image.Image:
    """One frame of `draw_layer_animation`."""
    name, value = list(maps.items())[index]
    scale = max(1, -(-224 // image.shape[1]))
    width, height = image.shape[1] * scale, image.shape[0] * scale
    edge, head, foot = 8, 40, 62
    canvas = Image.new("RGB", (2 * width + 3 * edge, head + height + foot), "white")
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    draw.text((edge, 4), title, "#444444", font=small)
    draw.text((edge, 19), f"{name}   ({index + 1} of {len(maps)})", "black", font=font)

    photo = Image.fromarray((image * 255).round().astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    canvas.paste(photo, (edge, head))
    # The map is interpolated before it is coloured: a mean of colours is not the colour of the mean. Where a neighbour
    # is not finite, so is the result.
    fine = Image.fromarray(value.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    _, words = colour_map(value, 100.0, top)
    inside = value[np.isfinite(value)]
    if value.size > 1 or not inside.size:
        heat, _ = colour_map(np.asarray(fine), 100.0, top if top is not None else inside.max() if inside.size else 0.0)
    else:  # one colour all over would look as if everything mattered
        heat, words = np.zeros((height, width, 3)), ""
    grey = np.asarray(photo.convert("L"), np.float64)[..., None] / 255
    # Dim enough that brightness means gradient, bright enough to see what lies below.
    mixed = np.clip(0.22 * grey + 0.85 * heat, 0, 1)
    canvas.paste(Image.fromarray((mixed * 255).round().astype(np.uint8)), (width + 2 * edge, head))

    grid = f"{value.shape[0]} x {value.shape[1]} grid" if value.size > 1 else "no grid: one value for the image"
    draw.text((width + 2 * edge, head + height + 4), grid, "#444444", font=small)
    if words:
        canvas.paste(_ramp(width, 10), (width + 2 * edge, head + height + 22))
    draw.text((width + 2 * edge, head + height + 36), words, "#444444", font=small)
    _bars(draw, means, index, (edge, head + height + 4, width, foot - 24), small)
    return canvas


def _ramp(width: int, height: int) -> Image.Image:
    """The scale from 0 at the left to the brightest colour."""
    ramp, _ = colour_map(np.linspace(0, 1, width)[None].repeat(height, axis=0))
    return Image.fromarray((ramp * 255).round().astype(np.uint8))


def _palette(frames: Sequence[Image.Image]) -> Image.Image:
    """256 colours for all frames (with one palette each, the unchanged image would flicker).

    The image, the maps with the scale, and the greys of the text get shares of their own: by number of pixels alone,
    the image would take most.
    """
    half, height = frames[0].width // 2, frames[0].height
    image = frames[0].crop((0, 0, half, height))
    maps = Image.new("RGB", (half, height * (len(frames) + 1)))
    for i, frame in enumerate(frames):
        maps.paste(frame.crop((half, 0, 2 * half, height)), (0, i * height))
    maps.paste(_ramp(half, height), (0, len(frames) * height))
    colours = [value for step in range(16) for value in (17 * step,) * 3]
    for part, count in ((image, 80), (maps, 160)):
        used = part.quantize(count, dither=Image.Dither.NONE).getpalette()[: 3 * count]
        colours += used + used[-3:] * (count - len(used) // 3)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    return palette


def _bars(draw: ImageDraw.ImageDraw, means: np.ndarray, index: int, box: tuple[int, int, int, int], font: Any) -> None:
    """One bar per layer in (left, top, width, height), in logarithm; below, the present mean in words."""
    left, above, width, height = box
    logs = np.log10(means, out=np.full(len(means), np.nan), where=means > 0)
    heights = np.zeros(len(means), int)
    if np.isfinite(logs).any():
        low, high = np.nanmin(logs), np.nanmax(logs)
        share = (logs - low) / max(high - low, 1e-9)
        heights = np.nan_to_num(4 + (height - 4) * (share if high > low else np.ones_like(share))).astype(int)
    step = width / len(means)
    for i, tall in enumerate(heights):
        if tall:
            ends = (left + i * step, left + max((i + 0.8) * step, i * step + 1))
            draw.rectangle(
                (ends[0], above + height - tall, ends[1], above + height), "#222222" if i == index else "#bbbbbb"
            )
    words = "not finite" if np.isnan(means[index]) else f"{means[index]:.2g}"
    draw.text((left, above + height + 3), f"mean {words} (bars: log scale)", "#444444", font=font)


def _checked_images(images: Any) -> np.ndarray:
    """(B, H, W, 3) in [0, 1], as float.

    Raises:
      ShapeError: another shape. DataError: values outside [0, 1], or not finite.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ShapeError(f"The images have shape {images.shape}. Give (B, H, W, 3).")
    if not (np.isfinite(images).all() and images.min() >= -1e-3 and images.max() <= 1 + 1e-3):
        raise DataError(
            f"The images have values from {images.min():.3g} to {images.max():.3g}, which are not all "
            "between 0 and 1. Undo the normalisation with display_images(images, mean, std)."
        )
    return np.clip(images.astype(np.float64), 0, 1)
