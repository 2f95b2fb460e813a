"""Commands that go on from a finished run, with its real paths, as the end of a run prints them."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxkd.data.sources.pair_files import find_pairs
from jaxkd.errors import JaxkdError
from jaxkd.train import MEMBERS, find_run, initial_share_warning

MANY_IMAGES = 1000  # of an analysis that should end in minutes
REPORT = "report.html"


def print_next(console: Console | None, folders: Sequence[Path], workdir: Path) -> None:
    """Prints the commands of `next_commands` below the line "Next:"; silent without a console."""
    if console is None:
        return
    _print(console, next_commands(folders, workdir))


def print_study_next(console: Console | None, workdir: Path) -> None:
    """Prints the command that makes the report of a study."""
    if console is not None:
        _print(console, [_report(workdir)])


def _print(console: Console, commands: Sequence[Sequence[str]]) -> None:
    for line in ("Next:", *(f"  {shlex.join(command)}" for command in commands)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def next_commands(folders: Sequence[Path], workdir: Path) -> list[list[str]]:
    """The words of each command: those of the task, and the report.

    Args:
      folders: work directories of single runs, in order; the commands are about the last one, of a population about
        its best member.
      workdir: of the whole, which the report shows.

    Returns:
      Only the report where the last run has no result, as after a stop.
    """
    try:
        run = _best_member(folders[-1])
        config, result = _read(run)
        if run != folders[-1]:  # a member without a teacher is compared with that of the others
            whole, facts = _read(folders[-1])
            config, result = {**config, "task": whole["task"], "teacher": whole["teacher"]}, {**facts, **result}
        task = config["task"]
        if task == "restoration":
            commands = _of_upscaler(run, config, result)
        elif task == "contrastive":
            commands = _of_encoder(run, config, result)
        elif task in ("classification", "distillation"):
            commands = _of_classifier(run, config, result)
        else:  # of a plugin
            commands = []
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        commands = []
    return [*commands, _report(workdir)]


def _read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config, result) of a run."""
    config, result = (json.loads((run / name).read_bytes()) for name in ("config.json", "result.json"))
    return config, result


def _report(workdir: Path) -> list[str]:
    return ["jaxkd", "report", str(workdir), f"--out={workdir / REPORT}"]


def _best_member(run: Path) -> Path:
    """The folder of the member with the best last score; `run` itself where it is no population."""
    members = json.loads((run / "result.json").read_bytes()).get("members") or []
    scored = [m for m in members if m.get("top1") is not None and (run / MEMBERS / m["name"]).is_dir()]
    return run / MEMBERS / max(scored, key=lambda m: m["top1"])["name"] if scored else run


def _network(run: Path, config: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """--weights of a run, with the moving average where it scored better and has forgotten the initial weights."""
    metrics = result.get("metrics") or {}
    main = next((n for n in metrics if n in ("top1", "retrieval_top5") or "/psnr" in n), "")
    raw, average = metrics.get(main), metrics.get(f"ema_{main}")
    better = raw is not None and average is not None and average > raw
    step = result.get("step") or result.get("best_step") or 0  # of a member the second
    better = better and not initial_share_warning(config["ema"]["decay"], step, warmup=config["ema"]["warmup"])
    return [f"--weights={run}", *(["--variant=ema"] if better else [])]


def _of_classifier(run: Path, config: dict[str, Any], result: dict[str, Any]) -> list[list[str]]:
    source, order = config["data"]["source"], config["data"].get("class_order", "natural")
    ordered = [] if order == "natural" else [f"--class-order={order}"]
    few = [f"--max-images={MANY_IMAGES}"] if (result.get("val_images") or MANY_IMAGES + 1) > MANY_IMAGES else []
    network = _network(run, config, result)
    return [
        ["jaxkd", "evaluate", *network, f"--data={source}", *ordered],
        [
            "jaxkd",
            "analyze",
            *_teacher(config),
            *network,
            f"--images={source}",
            *ordered,
            *few,
            f"--out={run}/analysis",
        ],
        ["jaxkd", "convert", *network, f"--out={run}/student.safetensors"],
    ]


def _teacher(config: dict[str, Any]) -> list[str]:
    """Options of the teacher for `analyze`; [] where there is none, or none with weights."""
    teacher = config["teacher"]
    if config["task"] != "distillation" or not teacher["weights"] or teacher["weights"] == "none":
        return []
    variant = [f"--variant={teacher['variant']}"] if teacher.get("variant") else []
    if find_run(teacher["weights"]) is not None:
        return [f"--weights={teacher['weights']}", *variant]
    size = config["student"]["args"].get("img_size")  # a teacher sees the student's images
    args = {"img_size": size} | {k: v for k, v in teacher["args"].items() if v is not None}
    words = [f"--model-arg={k}={v}" for k, v in args.items() if v is not None]
    return [f"--model={teacher['name']}", *words, f"--weights={teacher['weights']}", *variant]


def _of_upscaler(run: Path, config: dict[str, Any], result: dict[str, Any]) -> list[list[str]]:
    sets = config["eval"].get("sets") or [config["data"]["source"]]
    sets, network = [sets] if isinstance(sets, str) else list(sets), _network(run, config, result)
    scored = [f"--crop={config['eval']['crop']}"] if config["eval"].get("crop") in ("scale", "4") else []
    scored += [] if config["eval"].get("luma", True) else ["--rgb"]
    images = sets[0].partition("=")[2] or sets[0]
    commands = [
        ["jaxkd", "evaluate", *network, *(f"--data={one}" for one in sets), *scored],
        ["jaxkd", "analyze", *network, f"--images={images}", f"--out={run}/analysis"],
    ]
    if picture := _picture(images, config):
        commands.append(["jaxkd", "upscale", *network, f"--in={picture}", f"--out={run}/upscaled", "--compare"])
    ending = "onnx" if importlib.util.find_spec("onnx") else "safetensors"
    return [*commands, ["jaxkd", "convert", *network, f"--out={run}/student.{ending}"]]


def _picture(images: str, config: dict[str, Any]) -> str:
    """A small picture of the validation set, or a large one where there are only these; "" where there is none."""
    try:
        scale = int(config["student"]["name"].rpartition("_x")[2])
        found = find_pairs(images, scale, "val")
        return found.lr[0] or found.hr[0]
    except (JaxkdError, OSError, ValueError, IndexError):
        return ""


def _of_encoder(run: Path, config: dict[str, Any], result: dict[str, Any]) -> list[list[str]]:
    network = _network(run, config, result)
    return [
        ["jaxkd", "decode", *network, f"--out={run}/decoding"],
        ["jaxkd", "analyze", *network, f"--out={run}/analysis"],
        ["jaxkd", "convert", *network, f"--out={run}/student.safetensors"],
    ]
