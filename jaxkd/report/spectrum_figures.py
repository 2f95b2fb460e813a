"""Figures of spectra: along channels as heat maps and curves, over space as radial profiles and maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.depth_figures import footer_of
from jaxkd.report.results import Results, array, has_numbers, label_of, models_with, pick, three

BINS = 256  # of the common axis of k / C onto which layers of different width are brought


def _half(spectrum: list[float]) -> np.ndarray:
    """Frequencies 0 ... C/2: the others mirror them, since features are real."""
    values = array(spectrum)
    return values[: len(values) // 2 + 1]


def draw_spectrum_map(results: Results) -> Any:
    """Per model: amplitude over layer and k / C, one colour scale for all models."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullLocator

    models = models_with(results, "spectrum")
    pictures = []
    for model in models:
        rows = []
        for layer in model["spectrum"]:
            half = _half(layer) if layer else np.full(1, np.nan)
            width = len(layer) if layer else 1
            bins = np.round(np.linspace(0, 0.5, BINS) * width).astype(int)
            rows.append(half[np.minimum(bins, len(half) - 1)])
        pictures.append(np.stack(rows))
    every = np.concatenate([p.ravel() for p in pictures])
    every = every[np.isfinite(every) & (every > 0)]
    low, high = np.percentile(every, (0.5, 99.8)) if every.size else (0.1, 1.0)
    scale = LogNorm(low, high if high > low else low * 1.01)
    figure, axes = style.panels(len(models), width=3.9, height=3.4)
    for axis, model, picture in zip(axes, models, pictures, strict=True):
        count = len(picture)
        picture = np.where(picture > 0, picture, np.nan)
        image = axis.imshow(
            picture,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            norm=scale,
            cmap=style.COLOUR_MAP,
            extent=(0, 0.5, -0.5, count - 0.5),
        )
        axis.grid(False)
        axis.set(title=style.title_of(model), xlabel="channel frequency k / C", ylabel="layer (0 = first)")
        style.name_layers(axis, model["layers"], "y")
    bar = figure.colorbar(image, ax=axes, label="mean amplitude (activation units)", extend="both")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter("{x:.2g}")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return style.finish(figure, footer_of(results, models, "mean over images and positions; no band"))


def draw_spectrum_curves(results: Results) -> Any:
    """Per model: the spectrum of the first, a middle and the last layer, with its spread over images."""
    models = models_with(results, "spectrum")
    figure, axes = style.panels(len(models), width=3.9, height=3.4, sharey=True)
    for axis, model in zip(axes, models, strict=True):
        have = [i for i, s in enumerate(model["spectrum"]) if has_numbers(s)]
        for place, i in enumerate(three(have)):
            mean = _half(model["spectrum"][i])
            sd = _half(pick(model, "spectrum_sd", i) or [0.0] * len(model["spectrum"][i]))
            x = np.arange(len(mean)) / len(model["spectrum"][i])
            low = np.maximum(mean - sd, mean / 50)  # a logarithmic axis has no place for zero
            which = ("first", "middle", "last")[place] if len(three(have)) == 3 else ("first", "last")[place]
            axis.plot(x, mean, label=f"{which} layer", markevery=max(1, len(x) // 9), **style.style(place))
            axis.fill_between(x, low, mean + sd, color=style.STYLES[place][0], alpha=0.15, linewidth=0)
        if any((array(model["spectrum"][i]) > 0).any() for i in have):
            style.log_scale(axis)
        axis.set(title=style.title_of(model), xlabel="channel frequency k / C")
        axis.set_xlim(0, 0.5)
    axes[0].set_ylabel("mean amplitude (activation units)")
    band = "line: mean, band: ± 1 standard deviation over images"
    return style.finish(figure, footer_of(results, models, band), legend_of=axes)


def draw_radial(results: Results) -> Any:
    """Per model: spatial amplitude over rings of equal frequency, of the first, a middle and the last layer."""
    models = models_with(results, "radial")
    figure, axes = style.panels(len(models), width=3.9, height=3.4, sharey=True)
    for axis, model in zip(axes, models, strict=True):
        have = [i for i, r in enumerate(model["radial"]) if has_numbers(r)]
        for place, i in enumerate(three(have)):
            which = ("first", "middle", "last")[place] if len(three(have)) == 3 else ("first", "last")[place]
            axis.plot(
                array(pick(model, "radial_frequency", i)),
                array(model["radial"][i]),
                label=f"{which} layer",
                **style.style(place),
            )
        if any((array(model["radial"][i]) > 0).any() for i in have):
            style.log_scale(axis)
        sizes = [" x ".join(str(s) for s in pick(model, "grids", i) or ()) for i in three(have)]
        grids = " to ".join(dict.fromkeys((sizes[0], sizes[-1])))
        axis.set(
            title=style.title_of(model, f"grid {grids}" if all(sizes) else ""),
            xlabel="spatial frequency (cycles per token)",
        )
    axes[0].set_ylabel("mean amplitude (activation units)")
    return style.finish(
        figure, footer_of(results, models, "mean over images, channels and rings; no band"), legend_of=axes
    )


def draw_spatial(results: Results) -> Any:
    """Per model a row of maps: log amplitude over both spatial frequencies, of up to four layers."""
    models = models_with(results, "spatial")
    chosen = []
    for model in models:
        have = [i for i, s in enumerate(model["spatial"]) if has_numbers(s)]
        few = sorted({have[round(j * (len(have) - 1) / 3)] for j in range(4)})
        chosen.append(few)
    columns = max(len(c) for c in chosen)
    figure, axes = style.panels(len(models) * columns, columns=columns, width=2.3, height=2.1, layout="compressed")
    every = np.concatenate([array(m["spatial"][i]).ravel() for m, c in zip(models, chosen, strict=True) for i in c])
    low, high = np.nanpercentile(every[np.isfinite(every)], (0.5, 99.8))
    for row, (model, layers) in enumerate(zip(models, chosen, strict=True)):
        line = axes[row * columns : (row + 1) * columns]
        for axis, i in zip(line, layers, strict=False):
            picture = array(model["spatial"][i])
            h, w = picture.shape
            # pixel (h // 2, w // 2) is the zero frequency and lies centred on 0
            left, bottom = -(w // 2 + 0.5) / w, -(h // 2 + 0.5) / h
            image = axis.imshow(
                picture,
                origin="lower",
                vmin=low,
                vmax=high,
                cmap=style.COLOUR_MAP,
                interpolation="nearest",
                extent=(left, left + 1, bottom, bottom + 1),
                aspect="auto" if h != w else "equal",
            )
            axis.grid(False)
            axis.set_title(f"{style.plain(model['layers'][i], 16)} ({h} x {w})", fontsize=9)
            axis.set_xticks((-0.5, 0, 0.5))
            axis.set_yticks((-0.5, 0, 0.5))
            if row == len(models) - 1:
                axis.set_xlabel("horizontal")
        for axis in line[len(layers) :]:
            axis.set_visible(False)
        line[0].set_ylabel(f"{style.plain(label_of(model), 22)}\nvertical", fontsize=9)
    figure.colorbar(image, ax=axes, label="log10 mean amplitude", extend="both")
    return style.finish(
        figure, footer_of(results, models, "axes: cycles per token; mean over images and channels; no band")
    )
