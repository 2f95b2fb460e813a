"""Figures of spectra: along channels as heat maps and curves, over space as radial profiles and maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.plan import SPECTRA, Plan
from jaxkd.report.results import Results, array, has_numbers, label_of, models_with, pick

BINS = 256  # of the common axis of k / C onto which layers of different width are brought
AMPLITUDE = "mean amplitude (activation units)"


def _half(spectrum: list[float]) -> np.ndarray:
    """Frequencies 0 ... C/2: the others mirror them, since features are real."""
    values = array(spectrum)
    return values[: len(values) // 2 + 1]


def _rows(model: dict[str, Any]) -> np.ndarray:
    """(L, BINS) spectra of all layers; NaN for a layer without."""
    rows = []
    for layer in model["spectrum"]:
        half = _half(layer) if layer else np.full(1, np.nan)
        bins = np.round(np.linspace(0, 0.5, BINS) * len(layer or [0])).astype(int)
        rows.append(half[np.minimum(bins, len(half) - 1)])
    return np.stack(rows)


def draw_spectrum_map(results: Results) -> Any:
    """Per model: amplitude over layer and k / C, one colour scale for all models."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullLocator

    models = models_with(results, "spectrum")
    pictures = [_rows(model) for model in models]
    every = np.concatenate([p.ravel() for p in pictures])
    every = every[np.isfinite(every) & (every > 0)]
    low, high = np.percentile(every, (0.5, 99.8)) if every.size else (0.1, 1.0)
    scale = LogNorm(low, high if high > low else low * 1.01)
    figure, axes = style.panels(len(models), width=3.9, height=3.4)
    for axis, model, picture in zip(axes, models, pictures, strict=True):
        extent = (0, 0.5, -0.5, len(picture) - 0.5)
        image = style.heat_map(axis, np.where(picture > 0, picture, np.nan), norm=scale, extent=extent)
        axis.set(title=style.title_of(model), xlabel="channel frequency k / C", ylabel="layer (0 = first)")
        style.name_layers(axis, model["layers"], "y")
    bar = figure.colorbar(image, ax=axes, label=AMPLITUDE, extend="both")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter("{x:.2g}")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return style.finish(figure, results, models, "mean over images and positions; no band")


def _ends_and_middle(layers: list[Any]) -> Iterator[tuple[int, int, str]]:
    """(style, index, label) of the first, the middle and the last layer that have numbers."""
    have = [i for i, values in enumerate(layers) if has_numbers(values)]
    chosen = sorted({have[0], have[len(have) // 2], have[-1]})
    names = ("first", "middle", "last") if len(chosen) == 3 else ("first", "last")
    for place, (i, name) in enumerate(zip(chosen, names, strict=False)):
        yield place, i, f"{name} layer"


def draw_spectrum_curves(results: Results) -> Any:
    """Per model: the spectrum of the first, a middle and the last layer, with its spread over images."""
    models = models_with(results, "spectrum")
    figure, axes = style.panels(len(models), width=3.9, height=3.4, sharey=True)
    for axis, model in zip(axes, models, strict=True):
        for place, i, label in _ends_and_middle(model["spectrum"]):
            mean = _half(model["spectrum"][i])
            sd = _half(pick(model, "spectrum_sd", i) or [0.0] * len(model["spectrum"][i]))
            x = np.arange(len(mean)) / len(model["spectrum"][i])
            low = np.maximum(mean - sd, mean / 50)  # a logarithmic axis has no place for zero
            axis.plot(x, mean, label=label, markevery=max(1, len(x) // 9), **style.style(place))
            axis.fill_between(x, low, mean + sd, color=style.STYLES[place][0], alpha=0.15, linewidth=0)
        style.log_if_positive(axis, model["spectrum"])
        axis.set(title=style.title_of(model), xlabel="channel frequency k / C", xlim=(0, 0.5))
    axes[0].set_ylabel(AMPLITUDE)
    return style.finish(figure, results, models, Plan.band, legend_of=axes)


def draw_radial(results: Results) -> Any:
    """Per model: spatial amplitude over rings of equal frequency, of the first, a middle and the last layer."""
    models = models_with(results, "radial")
    figure, axes = style.panels(len(models), width=3.9, height=3.4, sharey=True)
    for axis, model in zip(axes, models, strict=True):
        grids = []
        for place, i, label in _ends_and_middle(model["radial"]):
            x, y = array(pick(model, "radial_frequency", i)), array(model["radial"][i])
            axis.plot(x, y, label=label, **style.style(place))
            grids.append(" x ".join(str(s) for s in pick(model, "grids", i) or ()))
        style.log_if_positive(axis, model["radial"])
        title = f"grid {' to '.join(dict.fromkeys((grids[0], grids[-1])))}" if all(grids) else ""
        axis.set(title=style.title_of(model, title), xlabel="spatial frequency (cycles per token)")
    axes[0].set_ylabel(AMPLITUDE)
    return style.finish(figure, results, models, "mean over images, channels and rings; no band", legend_of=axes)


def draw_spatial(results: Results) -> Any:
    """Per model a row of maps: log amplitude over both spatial frequencies, of up to four layers."""
    models = models_with(results, "spatial")
    chosen = []
    for model in models:
        have = [i for i, s in enumerate(model["spatial"]) if has_numbers(s)]
        chosen.append(sorted({have[round(j * (len(have) - 1) / 3)] for j in range(4)}))
    columns = max(map(len, chosen))
    figure, axes = style.panels(len(models) * columns, columns=columns, width=2.3, height=2.1, layout="compressed")
    every = np.concatenate([array(m["spatial"][i]).ravel() for m, c in zip(models, chosen, strict=True) for i in c])
    low, high = np.nanpercentile(every[np.isfinite(every)], (0.5, 99.8))
    for row, (model, layers) in enumerate(zip(models, chosen, strict=True)):
        line = axes[row * columns : (row + 1) * columns]
        for axis, i in zip(line, layers, strict=False):
            picture = array(model["spatial"][i])
            image = style.frequency_map(axis, picture, vmin=low, vmax=high)
            axis.set_title(f"{style.plain(model['layers'][i], 16)} ({' x '.join(map(str, picture.shape))})", fontsize=9)
            if row == len(models) - 1:
                axis.set_xlabel("horizontal")
        for axis in line[len(layers) :]:
            axis.set_visible(False)
        line[0].set_ylabel(f"{style.plain(label_of(model), 22)}\nvertical", fontsize=9)
    figure.colorbar(image, ax=axes, label="log10 mean amplitude", extend="both")
    return style.finish(figure, results, models, "axes: cycles per token; mean over images and channels; no band")


PLANS = (
    Plan(
        "channel_spectrum_map",
        "Channel spectrum of all layers",
        SPECTRA,
        draw_spectrum_map,
        (("spectrum",),),
        ("spectrum",),
        "Amplitude at each channel frequency k for each layer, on one logarithmic colour scale for all models. "
        "Frequencies above C/2 mirror those below.",
        "The order of channels is arbitrary, so a frequency along them has no meaning of its own; another order gives "
        "another picture of the same features. Only k = 0 (the channel mean) and the level survive.",
        "no band",
    ),
    Plan(
        "channel_spectrum",
        "Channel spectrum of the first, middle and last layer",
        SPECTRA,
        draw_spectrum_curves,
        (("spectrum",),),
        ("spectrum",),
        "The rows of the heat map for the first, the middle and the last layer.",
        "As the heat map: peaks at single k > 0 depend on the arbitrary order of the channels.",
    ),
    Plan(
        "radial",
        "Spatial spectrum by radius",
        SPECTRA,
        draw_radial,
        (("radial",),),
        ("radial", "spatial", "grid"),
        "Spatial spectrum of the feature maps, averaged over channels, images and rings of equal frequency. Left: what "
        "changes slowly over the image; right: what changes from token to token.",
        "Amplitude is in activation units, so compare slopes rather than levels; grids of different size reach "
        "different frequencies. High frequency may be detail or noise; this figure does not tell which.",
        "no band: rings are averaged over all images at once",
    ),
    Plan(
        "spatial",
        "Spatial spectrum in two dimensions",
        SPECTRA,
        draw_spatial,
        (("spatial",),),
        ("spatial", "grid"),
        "The same spatial spectrum before averaging over rings. Bright arms mean horizontal or vertical structure, or "
        "the edges of the image.",
        "Averages over channels and images hide what single channels do; the borders of the map act as an edge, since "
        "the transform is periodic.",
        "no band",
    ),
)
