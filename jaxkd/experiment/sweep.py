"""Runs after one another, compared at the end: a teacher, a student without it, a student with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxkd.config.fields import change
from jaxkd.errors import ConfigError, did_you_mean
from jaxkd.experiment.checks import check_config
from jaxkd.report.training_curves import AVERAGE, draw_curves, draw_scores, read_bicubic, score_names, scores_caption
from jaxkd.train import read_metrics

PREFIX = "stage:"


def stage_configs(config: ConfigDict, workdir: Path) -> dict[str, ConfigDict]:
    """name -> the stage's own config: its changes applied, `stage:<name>` replaced by that stage's folder.

    Raises:
      ConfigError: a stage without a name, two of one name, one that takes weights of a stage not before it, or stages
        that classify beside stages that enlarge.
    """
    configs: dict[str, ConfigDict] = {}
    for stage in config.stages:
        changes = dict(stage)
        name = changes.pop("name", "")
        if not name or name in configs:
            raise ConfigError(
                f'A stage has the name "{name}". Each stage needs a name of its own, which is its folder. Name it.'
            )
        one = change(config, changes | {"stages": ()})
        for network in (one.student, one.teacher):
            if network.weights.startswith(PREFIX):
                wanted = network.weights.removeprefix(PREFIX)
                if wanted not in configs:
                    raise ConfigError(
                        f'Stage "{name}" takes its weights from "{network.weights}", which is not a stage before it.'
                        f"{did_you_mean(wanted, configs)} Stages run in order. Before it: "
                        f"{', '.join(configs) or 'none'}."
                    )
                network.weights = str(workdir / wanted)
        configs[name] = one.lock()
    kinds = {name: one.task for name, one in configs.items()}
    if 0 < sum(task == "restoration" for task in kinds.values()) < len(kinds):
        raise ConfigError(
            f"The stages have the tasks {', '.join(f'{n}: {t}' for n, t in kinds.items())}. They are compared at the "
            "end, and top-1 and PSNR have nothing in common. Give stages of classification and of restoration configs "
            "of their own."
        )
    return configs


def run_stages(
    config: ConfigDict, workdir: Path, run_one: Callable[..., dict[str, Any]], console: Console | None
) -> dict[str, Any]:
    """Runs every stage in `workdir/<name>`, continues where a killed call stopped, and compares at the end.

    Returns:
      `{"stages": {name: result}, "finished": bool}`; the table is printed, `summary.json` and `curves.png` are written.
    """
    configs = stage_configs(config, workdir)
    for one in configs.values():
        check_config(one)  # a mistake in the last stage is found before the first one runs
    results: dict[str, dict[str, Any]] = {}
    for index, (name, one) in enumerate(configs.items(), start=1):
        if console is not None:
            console.rule(f"{index}/{len(configs)} {name}", align="left")
        results[name] = run_one(one, workdir / name, console, title=name)
        if not results[name]["finished"]:
            return {"stages": results, "finished": False}
    summary = {"stages": results, "finished": True}
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2))
    figure = workdir / "curves.png"
    curves = {name: read_metrics(workdir / name, "eval") for name in configs}
    if next(iter(configs.values())).task == "restoration":
        bicubic = {k: v for name in configs for k, v in read_bicubic(workdir / name).items()}
        one, result = next(iter(configs.values())), next(iter(results.values()))
        caption = scores_caption(one.data.source, config.seed, result, runs=len(results))
        draw_scores(curves, figure, bicubic=bicubic, caption=caption)
        table = score_table(results, bicubic)
    else:
        draw_curves(curves, figure, caption=_caption(config, results))
        table = _table(results)
    if console is not None:
        console.print(table)
        console.print(f"Curves: {figure}", markup=False, highlight=False, soft_wrap=True)
    return summary


def _caption(config: ConfigDict, results: dict[str, dict[str, Any]]) -> str:
    any_result = next(iter(results.values()))
    return (
        f"{config.data.source}: {any_result['train_images']:,} training images, {any_result['val_images']:,} held out. "
        f"One run each, seed {config.seed}: differences below {100 / max(any_result['val_images'], 1):.1f} points are "
        "one image."
    )


def _table(results: dict[str, dict[str, Any]]) -> Table:
    images = next(iter(results.values()))["val_images"]
    title = f"Top-1 on {images} held-out images, in percent (and how many images that is)"
    table = Table(title=title, title_justify="left")
    for column in (
        "run",
        "network",
        "parameters",
        "top-1",
        "right of " + str(images),
        "best",
        "EMA top-1",
        "loss",
        "seconds",
    ):
        table.add_column(column, justify="left" if column in ("run", "network") else "right")
    for name, result in results.items():
        m = result["metrics"]
        table.add_row(
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
    return table


def score_table(results: dict[str, dict[str, Any]], bicubic: dict[str, float]) -> Table:
    """PSNR and SSIM of super-resolution runs at their end, raw weights and moving average, and of bicubic.

    Args:
      results: name -> what the run returned.
      bicubic: metric -> what bicubic scores.
    """
    metrics = [result["metrics"] for result in results.values()]
    names = tuple(dict.fromkeys(name for scores in metrics for name in score_names(scores, bicubic)))
    sets: dict[tuple[str, str], list[str]] = {}  # a set and its convention, such as ("Set5", "y_crop4") -> metrics
    for name in names:
        group, _, metric = name.partition("/")
        sets.setdefault((group, metric.partition("_")[2]), []).append(name)
    images = next(iter(results.values()))["val_images"]
    conventions = ", ".join(dict.fromkeys(convention for _, convention in sets))
    title = f"PSNR in dB above SSIM, {conventions}: means over the images of a set, {images} in all"
    table = Table(title=title, title_justify="left")
    for column in ("run", "network", "parameters", "weights"):
        table.add_column(column, justify="right" if column == "parameters" else "left", no_wrap=True)
    for group, convention in sets:
        table.add_column(group if ", " not in conventions else f"{group} {convention}", justify="right")
    table.add_column("seconds", justify="right", no_wrap=True)

    def cells(scores: dict[str, Any], prefix: str = "") -> list[str]:
        # below one another: side by side, three sets are wider than a terminal
        return ["\n".join(_score(scores.get(prefix + name), name) for name in group) for group in sets.values()]

    table.add_row("", "bicubic", "", "", *cells(bicubic), "")
    for name, result in results.items():
        scores = result["metrics"]
        about = (name, result["student"], f"{result['parameters']:,}")
        table.add_row(*about, "raw", *cells(scores), f"{result['seconds']:.0f}")
        if any(AVERAGE + metric in scores for metric in names):
            table.add_row("", "", "", "EMA", *cells(scores, AVERAGE), "")
    return table


def _score(value: Any, name: str) -> str:
    return "-" if value is None else f"{float(value):.{2 if '/psnr' in name else 4}f}"
