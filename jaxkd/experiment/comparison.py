"""Comparison of finished stages: a table, and `curves.png` in their common folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxkd.experiment.fitted_table import Column, FittedTable
from jaxkd.experiment.member_comparison import FIGURE, compare_members
from jaxkd.report.training_curves import AVERAGE, draw_curves, draw_scores, read_bicubic, score_names, scores_caption
from jaxkd.train import read_metrics

Results = Mapping[str, dict[str, Any]]


def compare_classifiers(configs: Mapping[str, ConfigDict], results: Results, workdir: Path) -> Any:
    """Top-1 of each stage; the figure shows held-out accuracy and loss over the epochs, or each seed."""
    if any("members" in result for result in results.values()):
        return compare_members(configs, results, workdir)
    curves = {name: read_metrics(workdir / name, "eval") for name in configs}
    draw_curves(curves, workdir / FIGURE, caption=_caption(next(iter(configs.values())), results))
    return _table(results)


def compare_restorations(configs: Mapping[str, ConfigDict], results: Results, workdir: Path) -> FittedTable:
    """PSNR and SSIM of each stage beside bicubic; the figure shows PSNR over the steps."""
    curves = {name: read_metrics(workdir / name, "eval") for name in configs}
    bicubic = {k: v for name in configs for k, v in read_bicubic(workdir / name).items()}
    config, result = next(iter(configs.values())), next(iter(results.values()))
    caption = scores_caption(config.data.source, config.seed, result, runs=len(results))
    draw_scores(curves, workdir / FIGURE, bicubic=bicubic, caption=caption)
    return score_table(results, bicubic)


def _caption(config: ConfigDict, results: Results) -> str:
    any_result = next(iter(results.values()))
    return (
        f"{config.data.source}: {any_result['train_images']:,} training images, {any_result['val_images']:,} held out. "
        f"One run each, seed {config.seed}: differences below {100 / max(any_result['val_images'], 1):.1f} points are "
        "one image."
    )


def _table(results: Results) -> FittedTable:
    images = next(iter(results.values()))["val_images"]
    columns = (
        Column("run", justify="left"),
        Column("network", 7, justify="left"),
        Column("parameters", 5),
        Column("top-1"),
        Column(f"right of {images}", 4),
        Column("best", 2),
        Column("EMA top-1", 1),
        Column("loss", 3),
        Column("seconds", 6),
    )
    table = FittedTable(f"Top-1 on {images} held-out images, in percent (and how many images that is)", columns)
    for name, result in results.items():
        m = result["metrics"]
        table.rows.append(
            (
                name,
                result["student"],
                f"{result['parameters']:,}",
                f"{m['top1']:.2f}",
                str(round(m["top1"] * images / 100)),
                f"{result['best_top1']:.2f}" if "best_top1" in result else "-",
                f"{m['ema_top1']:.2f}" if "ema_top1" in m else "-",
                f"{m['loss']:.4f}",
                f"{result['seconds']:.0f}",
            )
        )
    return table


def score_table(results: Results, bicubic: Mapping[str, float]) -> FittedTable:
    """PSNR and SSIM of super-resolution runs at their end, raw weights and moving average, and of bicubic."""
    metrics = [result["metrics"] for result in results.values()]
    names = tuple(dict.fromkeys(name for scores in metrics for name in score_names(scores, bicubic)))
    sets: dict[tuple[str, str], list[str]] = {}  # a set and its convention, such as ("Set5", "y_crop4") -> metrics
    for name in names:
        group, _, metric = name.partition("/")
        sets.setdefault((group, metric.partition("_")[2]), []).append(name)
    images = next(iter(results.values()))["val_images"]
    conventions = ", ".join(dict.fromkeys(convention for _, convention in sets))
    title = f"PSNR in dB above SSIM, {conventions}: means over the images of a set, {images} in all"
    columns = [Column("run", justify="left"), Column("network", 7, justify="left"), Column("parameters", 8)]
    columns.append(Column("weights", justify="left"))
    # Of many sets the first stays.
    for place, (group, convention) in enumerate(sets):
        columns.append(Column(group if ", " not in conventions else f"{group} {convention}", min(place, 6)))
    table = FittedTable(title, (*columns, Column("seconds", 9)))

    def cells(scores: dict[str, Any], prefix: str = "") -> list[str]:
        # below one another: side by side, three sets are wider than a terminal
        return ["\n".join(_score(scores.get(prefix + name), name) for name in group) for group in sets.values()]

    table.rows.append(("bicubic", "", "", "", *cells(bicubic), ""))
    for name, result in results.items():
        scores = result["metrics"]
        about = (name, result["student"], f"{result['parameters']:,}")
        table.rows.append((*about, "raw", *cells(scores), f"{result['seconds']:.0f}"))
        if any(AVERAGE + metric in scores for metric in names):
            table.rows.append(("", "", "", "EMA", *cells(scores, AVERAGE), ""))
    return table


def _score(value: Any, name: str) -> str:
    return "-" if value is None else f"{float(value):.{2 if '/psnr' in name else 4}f}"
