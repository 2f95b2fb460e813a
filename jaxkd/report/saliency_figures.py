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
from PIL import Image

from jaxkd.data.files import atomic_file
from jaxkd.report import style

COLOURS = "inferno"
NOT_FINITE = (0.35, 0.47, 0.58)
# A few pixels hold most of a gradient; the rest would be black if the largest were white (SmoothGrad, section 3.2).
PERCENTILE = 99.0
FRAME_MILLISECONDS = 800


def draw_saliency(
    images: np.ndarray, maps: Mapping[str, np.ndarray], path: Path, *, labels: Sequence[str], caption: str
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
    """
    from matplotlib.figure import Figure

    rows, columns = len(images), 1 + len(maps)
    size = (2.5 * columns + 0.3, rows * (2.4 * images.shape[1] / images.shape[2] + 0.3) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, axis_row in enumerate(axes):
        axis_row[0].imshow(images[row])
        axis_row[0].set_ylabel(labels[row], fontsize=9)
        for axis, (title, value) in zip(axis_row[1:], maps.items(), strict=True):
            top, words = scale_of(value[row], PERCENTILE)
            axis.imshow(value[row], cmap=colours(), vmin=0, vmax=top)
            axis.set_xlabel(words, fontsize=8, color="#444444")
            if not row:
                axis.set_title(title, fontsize=10)
        for axis in axis_row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    axes[0][0].set_title("image", fontsize=10)
    figure.supxlabel(caption, fontsize=8, color="#555555", wrap=True)
    style.write_figure(figure, path, dpi=130)


def draw_layer_animation(image: np.ndarray, maps: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes a GIF with one frame per layer: the image, and beside it the layer's map over a dim grey copy.

    Below stand the scale and one bar per layer with the mean of its map (its height in logarithm, over the decades that
    the layers span), the present one dark; a layer without a finite positive mean has none.

    Args:
      image: (H, W, 3) in [0, 1].
      maps: tap -> (h, w) >= 0 in depth order, any grid; interpolated bilinearly to the image. (1, 1), a feature without
        positions, leaves the copy grey and shows in its bar only. See `saliency.layer_gradient_maps`.
      path: of the GIF.
    """
    means = np.array([v.mean() if np.isfinite(v).all() else np.nan for v in maps.values()])
    frames = [_frame(image, maps, index, means) for index in range(len(maps))]
    # One palette for all: with one for each frame, the unchanged image would flicker.
    palette = Image.fromarray(np.concatenate([np.asarray(f) for f in frames])).quantize(dither=Image.Dither.NONE)
    frames = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    options = {"save_all": True, "duration": FRAME_MILLISECONDS, "loop": 0, "disposal": 1}
    with atomic_file(path) as temporary:
        frames[0].save(temporary, format="GIF", append_images=frames[1:], **options)


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


def colours() -> Any:
    """The colour map of all maps; positions that are not finite are in NOT_FINITE."""
    import matplotlib

    return matplotlib.colormaps[COLOURS].with_extremes(bad=NOT_FINITE)


def scale_of(values: np.ndarray, percentile: float = 100.0) -> tuple[float, str]:
    """The value of a map's brightest colour, and its scale in words.

    Returns:
      A positive number, 1 for a map without positive values; the words say so when a map is all zero or not finite
      somewhere.
    """
    inside = values[np.isfinite(values)]
    if not inside.size:
        return 1.0, "no finite value: nothing to show"
    # More than 99 % zeros would make the percentile 0 and everything white.
    top = np.percentile(inside, percentile) or inside.max()
    words = f"black 0, brightest {top:.2g}" if inside.any() else "zero everywhere"
    count = values.size - inside.size
    return float(top) or 1.0, words + (f"; {count} of {values.size} not finite" if count else "")


def _frame(image: np.ndarray, maps: Mapping[str, np.ndarray], index: int, means: np.ndarray) -> Image.Image:
    """One frame of `draw_layer_animation`; lengths are in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name, value = list(maps.items())[index]
    own, words = scale_of(value)
    enlarged = max(1, -(-224 // image.shape[1]))
    height, width = (enlarged * n for n in image.shape[:2])
    edge, head, foot = 8, 40, 62
    right, size = width + 2 * edge, np.array([2 * width + 3 * edge, head + height + foot])
    figure = Figure(figsize=size / 100, dpi=100)

    def place(left: int, bottom: int, w: int, h: int) -> Any:
        axis = figure.add_axes((*np.array([left, bottom]) / size, *np.array([w, h]) / size))
        axis.axis("off")
        return axis

    def write(left: int, bottom: int, text: str, colour: str = "#444444", points: float = 8.5) -> None:
        figure.text(left, bottom, text, color=colour, fontsize=points, transform=None)

    write(edge, size[1] - 14, "mean |gradient| of the class score")
    write(edge, size[1] - 33, f"{name}   ({index + 1} of {len(maps)})", "black", 11)
    place(edge, foot, width, height).imshow(image, interpolation="nearest")
    panel = place(right, foot, width, height)
    extent = (0, 1, 0, 1)
    grey = image @ (0.299, 0.587, 0.114)
    panel.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
    single = value.size == 1 and np.isfinite(value).all()
    # So opaque that brightness means gradient, and what lies below can be seen. A mean of colours is not the colour of
    # the mean, so the map is interpolated before it is coloured.
    options = {"alpha": 0.8, "interpolation": "bilinear", "interpolation_stage": "data", "aspect": "auto"}
    # One colour all over would look as if everything mattered.
    picture = np.zeros((1, 1)) if single else value
    panel.imshow(picture, cmap=colours(), vmin=0, vmax=own, extent=extent, **options)
    if not single:
        place(right, foot - 32, width, 10).imshow(np.arange(256)[None], cmap=colours(), aspect="auto")
    grid = f"{value.shape[0]} x {value.shape[1]} grid" if value.size > 1 else "no grid: one value for the image"
    write(right, foot - 16, grid)
    write(right, foot - 46, "" if single else words)
    bars, shown = place(edge, 20, width, foot - 24), np.flatnonzero(means > 0)
    if shown.size:
        bars.bar(shown, means[shown], color=["#222222" if i == index else "#bbbbbb" for i in shown])
        low, high = means[shown].min(), means[shown].max()
        bars.set(yscale="log", xlim=(-0.5, len(means) - 0.5), ylim=(0.9 * low * (low / high) ** 0.1, high))
    mean = "not finite" if np.isnan(means[index]) else f"{means[index]:.2g}"
    write(edge, 6, f"mean {mean} (bars: log scale)")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
