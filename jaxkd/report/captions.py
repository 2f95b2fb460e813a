"""Figures in plain words: what each shows, its numbers in sentences, and what it cannot show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxkd.report import sep_captions
from jaxkd.report.results import (
    Results,
    array,
    figure_of,
    images_in_words,
    kept_layer,
    label_of,
    listed,
    models_of,
    models_with,
    number,
    pick,
    seed_in_words,
)

SHOWS = {
    "intensity": "The mean amplitude of the Fourier transform along the channels (divided by C), averaged over "
    "positions and frequencies, for each layer: SpectralKD's model-wise profile, in activation units.",
    "entropy": "The Shannon entropy in bits of the histogram of the C channel values at each position, averaged over "
    "positions. High: the channels spread over many bins. Low: most values share a few bins.",
    "activation": "The mean and the largest absolute activation of an image, for each layer, in activation units.",
    "gradient": "The mean absolute gradient at each layer: by how much the score moves, to first order, when one "
    "activation moves by one unit.",
    "feature_shape": "Four numbers of an image's token matrix at each layer: participation ratio and stable rank count "
    "directions (the first weighs all of them, the second compares all with the strongest); kurtosis and the share of "
    "a token's energy in its largest channel tell of outliers. The narrow strips give the levels of tokens that mean "
    "nothing, at the size of the last layer.",
    "channel_spectrum_map": "The amplitude at each channel frequency k for each layer, on one logarithmic colour scale "
    "for all models. Frequencies above C/2 are left out: they mirror those below, since features are real.",
    "channel_spectrum": "The rows of the heat map for the first, the middle and the last layer.",
    "radial": "The spatial spectrum of the feature maps, averaged over channels, images and rings of equal frequency. "
    "Left: what changes slowly over the image; right: what changes from token to token.",
    "spatial": "The same spatial spectrum before averaging over rings; zero frequency lies in the middle. Bright arms "
    "mean horizontal or vertical structure, or the edges of the image.",
    "ranks_by_layer": "The number of directions that hold 99, 95, 90 and 80 % of the energy of one image's tokens "
    "(uncentred), for each layer.",
    "rank_histogram": "For the tokens of the last layer: how many directions an image needs when it may choose its own "
    "(per-image rank, from its singular values), and how many when all images share one basis (the eigenvectors of the "
    "second moment of all tokens, uncentred, in their global order).",
    "pca": "Above, the share of the energy that each shared direction holds. Below, the energy of an image that the "
    "first d shared directions capture, for the median image and for those that fare worst.",
    "cka": "Linear CKA between each layer of the student (rows) and each of the teacher (columns): 1 if the features "
    "of the images are equal up to rotation and scale, near 0 if unrelated. The estimator is the unbiased one over "
    "chunks of images.",
    "principal_cosines": "The cosines of the angles between the main subspaces of the two last layers, in descending "
    "order: 1 where a direction of one is a linear function of the other.",
} | sep_captions.SHOWS

CANNOT = {
    "intensity": "Intensity grows with the scale of the features; the level says nothing about information, and levels "
    "of different models are not comparable without their scales. By itself it does not say which layers to distil.",
    "entropy": "With a range shared by all layers, one outlier in any layer lowers the entropy of all of them, so "
    "levels are comparable within one network and hardly between networks or checkpoints; the range of each layer "
    "removes that, but not an outlier of the layer itself. It is no measure of information about the image.",
    "activation": "Scale alone: a layer norm behind the layer removes it. The largest value is that of a single entry.",
    "gradient": "A small gradient may mean large activations rather than an unimportant layer, since it is per unit of "
    "activation; gradients of a single score do not add up to importance. Patch tokens behind the last block of a "
    "network that reads its class token do not reach the score: their gradient is exactly 0.",
    "feature_shape": "Uncentred: a shared mean direction or one massive activation pushes both counts towards 1, "
    "however rich the rest is. The null levels hold for the size of the last layer, not for layers of another size.",
    "channel_spectrum_map": "The order of channels is arbitrary, so a frequency along them has no meaning of its own; "
    "another order gives another picture of the same features. Only k = 0 (the channel mean) and the level survive.",
    "channel_spectrum": "As the heat map: peaks at single k > 0 depend on the arbitrary order of the channels.",
    "radial": "Amplitude is in activation units, so compare slopes rather than levels; grids of different size reach "
    "different frequencies. High frequency may be detail or noise; this figure does not tell which.",
    "spatial": "Averages over channels and images hide what single channels do; the borders of the map act as an edge, "
    "since the transform is periodic.",
    "ranks_by_layer": "A rank cannot exceed min(N, C), the grey line; few tokens make a low rank "
    "by themselves. Energies are uncentred: one strong mean direction makes the rank small.",
    "rank_histogram": "That the shared basis needs more is certain beforehand: an image's own singular vectors are its "
    "best basis, so no other needs fewer, and its rank is at most min(N, D). The figure shows the size of the gap, not "
    "that a narrower student must fail; and a single mean direction can dominate uncentred energies.",
    "pca": "With fewer tokens than channels, or few images, the shared basis is fitted to these very images and looks "
    "better than it would on others. Centring removes the mean direction only.",
    "cka": "Dominated by the directions of largest variance; a high value does not mean that a linear map carries over "
    "what the task needs, and it depends on which images were used.",
    "principal_cosines": "The more directions are kept and the fewer the tokens, the larger the cosines by chance; "
    "they weigh a weak direction like a strong one.",
} | sep_captions.CANNOT

BANDS = {
    "channel_spectrum_map": "No band.",
    "radial": "No band: rings are averaged over all images at once.",
    "spatial": "No band.",
    "cka": "No band.",
    "principal_cosines": "No band.",
    "ranks_by_layer": "Line: mean; band: quartiles; bars: one standard deviation, over images.",
    "rank_histogram": "Dashed lines: 99th percentile over images, as published. The spread is the histogram itself.",
    "pca": "Shaded: from the 1st to the 10th percentile of the images.",
} | sep_captions.BANDS
SD = "Line: mean; band: plus and minus one standard deviation over images."


def write_caption(name: str, results: Results) -> str:
    """The caption of a figure, one paragraph a line: what it shows, its numbers (if any), what it cannot show.

    Args:
      name: of the figure, as in `figures.PLANS`.
      results: as the figures read them.
    """
    facts = f"Over {images_in_words(results)}, {seed_in_words(results)}."
    lines = [f"What it shows: {SHOWS[name]} {BANDS.get(name, SD)} {facts}"]
    sentences = NUMBERS[name](results) if name in NUMBERS else []
    if sentences:
        lines.append(f"Numbers: {' '.join(sentences)}")
    lines.append(f"What it cannot show: {CANNOT[name]}")
    return "\n".join(lines)


def _ends(results: Results, statistic: str, unit: str = "") -> list[str]:
    """Where each model's profile is lowest and highest."""
    out = []
    for model in models_with(results, "per_layer", statistic, "mean"):
        mean = array(pick(model, "per_layer", statistic, "mean"))
        low, high = int(np.nanargmin(mean)), int(np.nanargmax(mean))
        if low == high:
            out.append(f"{label_of(model)}: {figure_of(mean[low])}{unit} in {model['layers'][low]}.")
            continue
        out.append(
            f"{label_of(model)}: lowest {figure_of(mean[low])}{unit} in {model['layers'][low]}, highest "
            f"{figure_of(mean[high])}{unit} in {model['layers'][high]}."
        )
    return out


def _entropy(results: Results) -> list[str]:
    sentences = _ends(results, "entropy", " bits") or _ends(results, "entropy_own_range", " bits")
    bins = pick(results, "settings", "bins")
    if bins:
        sentences.append(f"The most that {bins} bins allow is {math.log2(bins):.2f} bits.")
    return sentences


def _shape(results: Results) -> list[str]:
    out = []
    for model in models_with(results, "per_layer", "participation_ratio", "mean"):
        last = figure_of(pick(model, "per_layer", "participation_ratio", "mean", kept_layer(model)))
        sentence = f"{label_of(model)}: an image of the last layer has about {last} effective directions"
        null = pick(model, "last", "nulls", "gaussian", "participation_ratio")
        out.append(sentence + (f"; Gaussian tokens of that size have {figure_of(null)}." if null is not None else "."))
    for model in models_with(results, "per_layer", "kurtosis", "mean"):
        kurtosis = array(pick(model, "per_layer", "kurtosis", "mean"))
        place = int(np.nanargmax(kurtosis))
        out.append(
            f"{label_of(model)}: kurtosis is highest in {model['layers'][place]}, {figure_of(kurtosis[place])} "
            "(Gaussian: 3)."
        )
    return out


def _ranks(results: Results) -> list[str]:
    out = []
    for model in models_with(results, "per_layer", "rank_99", "mean"):
        mean = array(pick(model, "per_layer", "rank_99", "mean"))
        have = np.flatnonzero(np.isfinite(mean))
        first, last = int(have[0]), int(have[-1])
        out.append(
            f"{label_of(model)}: 99 % of an image's energy lies in {figure_of(mean[first])} directions in "
            f"{model['layers'][first]} and in {figure_of(mean[last])} in {model['layers'][last]}, of at most "
            f"{min(model['tokens'][last], model['channels'][last])} there."
        )
    return out


def _histogram(results: Results) -> list[str]:
    out = []
    for model in models_of(results):
        own = {t: pick(model, "last", "ranks", t, "p99") for t in ("99", "95", "90", "80")}
        shared = {t: pick(model, "last", "pca", "uncentred", "required_d", t, "p99") for t in own}
        parts = []
        if any(v is not None for v in own.values()):
            parts.append(f"own directions {'/'.join(_rounded(v) for v in own.values())}")
        if any(v is not None for v in shared.values()):
            parts.append(f"shared {'/'.join(_rounded(v) for v in shared.values())}")
        if parts:
            width, tokens = pick(model, "last", "D"), pick(model, "last", "N")
            out.append(
                f"{label_of(model)} (D = {width}, N = {tokens}), 99th percentile over images at 99/95/90/80 %: "
                f"{listed(parts)}."
            )
    return out


def _rounded(value: Any) -> str:
    return "undefined" if value is None else f"{round(number(value))}"


def _pca(results: Results) -> list[str]:
    out = []
    for model in models_with(results, "last", "pca", "uncentred", "eigenvalues"):
        values = array(pick(model, "last", "pca", "uncentred", "eigenvalues"))
        d = pick(model, "last", "pca", "uncentred", "global_d", "99")
        if not values.sum() > 0:
            continue
        sentence = (
            f"{label_of(model)}: the strongest direction holds {100 * values[0] / values.sum():.1f} % of all energy"
        )
        if d is not None:
            sentence += f", and 99 % of it lies in {_rounded(d)} of {len(values)} directions"
        out.append(f"{sentence}.")
    return out


def _cka(results: Results) -> list[str]:
    out = []
    for pair in results.get("comparisons") or []:
        cka = array(pair.get("cka"))
        if cka.ndim != 2 or not np.isfinite(cka).any():
            continue
        row, column = np.unravel_index(np.nanargmax(cka), cka.shape)
        out.append(
            f"{pair['student']} and {pair['teacher']}: highest {cka[row, column]:.2f} between "
            f"{pick(pair, 'student_layers', int(row))} and {pick(pair, 'teacher_layers', int(column))}; "
            f"last layers {figure_of(cka[-1, -1])}."
        )
    return out


def _cosines(results: Results) -> list[str]:
    out = []
    for pair in results.get("comparisons") or []:
        cosines = array(pair.get("principal_cosines"))
        cosines = cosines[np.isfinite(cosines)]
        if cosines.size:
            dims = pair.get("principal_dims") or {}
            out.append(
                f"{pair['student']} ({_rounded(dims.get('student'))} directions) and {pair['teacher']} "
                f"({_rounded(dims.get('teacher'))}): mean cosine {cosines.mean():.2f}, "
                f"{int((cosines > 0.9).sum())} of {cosines.size} above 0.9."
            )
    return out


NUMBERS: dict[str, Callable[[Results], list[str]]] = {
    "intensity": lambda r: _ends(r, "intensity"),
    "entropy": _entropy,
    "activation": lambda r: _ends(r, "activation_mean"),
    "gradient": lambda r: _ends(r, "gradient"),
    "feature_shape": _shape,
    "ranks_by_layer": _ranks,
    "rank_histogram": _histogram,
    "pca": _pca,
    "cka": _cka,
    "principal_cosines": _cosines,
} | sep_captions.NUMBERS
