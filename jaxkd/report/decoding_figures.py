"""Figures of a decoded EEG run: anchors over k, controls beside chance, subjects, and the weights over the scalp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.report import style
from jaxkd.report.plan import Figure
from jaxkd.report.results import array

Results = dict[str, Any]
ANCHORS = "Anchors"
CONTROLS = "Controls"
SUBJECTS = "Subjects"
SCALP = "Electrodes"
POOLS = {"matched": "candidates of as many words as the right one", "all": "all candidates"}
BANDS = ("t1", "t2", "a1", "a2", "b1", "b2", "g1", "g2")


def draw_decoding(results: Results, folder: Path) -> list[Figure]:
    """Draws what the results have numbers for, as PNG and PDF in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        ("anchors", "Retrieval over the number of anchors", ANCHORS, draw_curve, _CURVE, results["curve"]),
        ("controls", "Controls beside chance", CONTROLS, draw_controls, _CONTROLS, results["controls"]),
        ("subjects", "Retrieval of each subject", SUBJECTS, draw_subjects, _SUBJECTS, results["subjects"]),
        ("scalp", "Input weights over the electrodes", SCALP, draw_scalp, _SCALP, results.get("scalp")),
    ]
    drawn = []
    for name, title, family, draw, caption, needed in jobs:
        if needed:
            with style.applied():
                png, pdf = style.save(draw(results), folder, name)
            drawn.append(Figure(name, title, family, png, pdf, caption))
    return drawn


_CURVE = (
    "What it shows: how often the sentence that was read is among the first 5 of all candidates, against the number of "
    "most certain anchors that are compared, on the development part (where the number is chosen) and the test part. "
    "The dotted line is chance.\nWhat it cannot show: that meaning is compressed into few anchors. A decoder of noisy "
    "words that takes them in order of certainty peaks at an intermediate number by itself (docs/eeg.md)."
)
_CONTROLS = (
    "What it shows: top-5 retrieval of the run and of each control, with the 95 % interval of the bootstrap over "
    "subjects (of the range over networks where several were trained), and chance as a vertical stroke. Left: among "
    "candidates of as many words as the right one, which the number of words cannot tell apart; right: among all.\n"
    "What it cannot show: which property of the signal a row uses. A row above chance says that its input suffices, "
    "not that the run uses it."
)
_SUBJECTS = (
    "What it shows: top-5 retrieval of each test subject among candidates of as many words as the right one, and the "
    "chance of these candidates.\nWhat it cannot show: differences between subjects with few readings; see the counts "
    "in the table."
)
_SCALP = (
    "What it shows: for each frequency band, the root mean square over outputs of the first layer's weights from each "
    "electrode, at the electrode's place seen from above (nose up), relative to the mean of all.\nWhat it cannot show: "
    "where activity comes from. Weights of a decoder also cancel noise that electrodes share (Haufe et al., 2014), and "
    "the map is of one network and one seed."
)


def draw_curve(results: Results) -> Any:
    """Top-5 over the number of anchors."""
    figure, (axis,) = style.panels(1, width=6.2)
    labels: list[str] = []
    for i, part in enumerate(("dev", "test")):
        rows = [row for row in results["curve"] if row["part"] == part]
        labels = [str(row["k"] or "all") for row in rows]
        name = {"dev": "development", "test": "test"}[part]
        axis.plot(range(len(rows)), [row["top5"] for row in rows], label=name, **style.style(i))
        axis.axhline(rows[0]["chance5"], color=style.STYLES[i][0], linestyle=":", linewidth=1.2)
    axis.set_xticks(range(len(labels)), labels)
    axis.set(xlabel="anchors", ylabel="top-5 among all candidates (%)", ylim=(0, 102))
    return style.add_legend(figure, _facts(results), [axis])


def draw_controls(results: Results) -> Any:
    """A bar for each row in each pool."""
    from matplotlib.figure import Figure as Canvas

    rows = [row for row in results["controls"] if row["networks"]]
    figure = Canvas(figsize=(9.4, 0.3 * len(rows) + 1.5), layout="constrained")
    places = np.arange(len(rows), 0, -1)
    for axis, (pool, title) in zip(figure.subplots(1, 2, sharey=True), POOLS.items(), strict=True):
        for place, row in zip(places, rows, strict=True):
            own = row["row"] == "EEG"
            top, low, high = (row[f"{pool}_{k}"] for k in ("top5", "low", "high"))
            axis.barh(place, top, height=0.6, color="#14285f" if own else "#b9c0d4")
            axis.plot([low, high], [place, place], "-", color="#d9673f", linewidth=1.6)
            chance = row[f"{pool}_chance5"]
            axis.plot([chance, chance], [place - 0.42, place + 0.42], "-", color="#222222", linewidth=1.4)
        axis.set(title=title, xlabel="top-5 (%)", xlim=(0, 102))
        axis.set_yticks(places, [style.plain(row["row"], 40) for row in rows])
    return style.add_legend(figure, _facts(results))


def draw_subjects(results: Results) -> Any:
    """Dots for subjects, sorted, with their chance."""
    rows = sorted(results["subjects"], key=lambda row: row["matched_top5"])
    figure, (axis,) = style.panels(1, width=max(5.4, 0.34 * len(rows) + 1.5))
    x = range(len(rows))
    axis.plot(x, [r["matched_top5"] for r in rows], "o", color="#14285f", label="run")
    axis.plot(x, [r["matched_chance5"] for r in rows], "_", color="#d9673f", markersize=14, label="chance")
    axis.set_xticks(x, [style.plain(r["subject"], 8) for r in rows], rotation=60)
    axis.set(ylabel="top-5 (%)", ylim=(0, 102))
    return style.add_legend(figure, _facts(results), [axis])


def draw_scalp(results: Results) -> Any:
    """A map for each band."""
    scalp = results["scalp"]
    places = flatten_scalp(array(scalp["coordinates"]))
    weights = array(scalp["weights"])
    figure, axes = style.panels(len(weights), columns=4, width=2.5, height=2.5)
    top = float(weights.max())
    for axis, values, band in zip(axes, weights, scalp["bands"], strict=True):
        dots = axis.scatter(*places.T, c=values, s=34, cmap=style.COLOUR_MAP, vmin=float(weights.min()), vmax=top)
        axis.add_patch(_head())
        axis.set(title=band, xticks=[], yticks=[], xlim=(-1.6, 1.6), ylim=(-1.6, 1.5), aspect="equal")
        axis.grid(False)
        for side in axis.spines.values():
            side.set_visible(False)
    figure.colorbar(dots, ax=axes, shrink=0.6, label="weight relative to the mean")
    return style.add_legend(figure, _facts(results))


def flatten_scalp(places: np.ndarray) -> np.ndarray:
    """(E, 3) places, +x front and +y left -> (E, 2) seen from above, nose up, by angle from the top of the head."""
    centred = places - places.mean(axis=0) * np.array([1, 1, 0])
    direction = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    angle = np.arccos(np.clip(direction[:, 2], -1, 1)) / (np.pi / 2)
    around = np.arctan2(direction[:, 1], direction[:, 0])
    return np.stack([-angle * np.sin(around), angle * np.cos(around)], axis=1)


def _head() -> Any:
    from matplotlib.patches import Circle

    return Circle((0, 0), 1.0, fill=False, color="#999999", linewidth=0.8)


def scalp_weights(kernel: np.ndarray, bands: Sequence[str] = BANDS) -> np.ndarray:
    """(bands x electrodes, C) weights -> (bands, electrodes) root mean squares over outputs, relative to their mean."""
    size = np.sqrt(np.square(np.asarray(kernel, np.float64)).mean(axis=1))
    return size.reshape(len(bands), -1) / size.mean()


def _facts(results: Mapping[str, Any]) -> str:
    settings, first = results["settings"], results["retrieval"][0]
    return (
        f"{settings['source']}, split {settings['split']}: {first['queries']} readings of {first['texts']} texts by "
        f"{first['subjects']} subject{'s'[: first['subjects'] > 1]}; one network, seed {settings['seed']}"
    )
