"""The model card of a network: what it is, how it was trained, what it scored, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxkd import __version__, weights

_PERCENT = ("top1", "top5")


def model_card(
    network: weights.Network,
    repository: str,
    *,
    is_timm: bool,
    config: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> str:
    """README.md with the header that the Hugging Face Hub reads.

    Args:
      network: with its origin.
      repository: "USER/NAME", as readers are to type it.
      is_timm: whether timm reads the folder, too.
      config: of the run that trained it, as in its config.json; None where there was no run.
      result: of the run, as in its result.json.
    """
    classifies = network.spec.task == "classification"
    header = {
        "library_name": "timm" if is_timm else "jaxkd",
        "pipeline_tag": "image-classification" if classifies else "image-to-image",
        "tags": ["jaxkd", *(["timm"] if is_timm else []), *(["image-classification"] if classifies else [])],
    }
    parts = ["---", *(f"{name}: {json.dumps(value)}" for name, value in header.items()), "---", ""]
    parts += [f"# {repository.rpartition('/')[2]}", "", _about(network), ""]
    if config is not None:
        parts += ["## Training", "", *_training(config), ""]
        scores = _scores(result or {})
        if scores:
            parts += [
                "## Results",
                "",
                f"| validation images, after step {(result or {}).get('step', '?')} | |",
                "| --- | --- |",
                *scores,
                "",
            ]
    parts += ["## Use", "", *_use(network, repository, is_timm), ""]
    return "\n".join(parts)


def _about(network: weights.Network) -> str:
    spec = network.spec
    words = f"`{spec.name}`, which {spec.purpose}. Weights: {network.origin}, written by jaxkd {__version__}."
    if spec.task != "classification":
        return words
    height, width = network.image_size
    words += (
        f" {network.num_classes} classes, {height} x {width} pixels, crop {spec.crop_pct:g}, {spec.interpolation}, "
        f"mean {tuple(spec.mean)}, std {tuple(spec.std)}."
    )
    if 0 < len(network.class_names) <= 50:
        words += f" Classes: {', '.join(network.class_names)}."
    return words


def _training(config: Mapping[str, Any]) -> list[str]:
    """Rows on what a reader asks first; the whole config is in training_config.json."""
    student, teacher = config.get("student", {}), config.get("teacher", {})
    distill, training = config.get("distill", {}), config.get("train", {})
    rows = {"task": config.get("task"), "data": config.get("data", {}).get("source")}
    if student.get("weights"):
        rows["starts from"] = student["weights"]
    if config.get("task") == "distillation":
        rows["teacher"] = " ".join(filter(None, (teacher.get("name"), teacher.get("weights"))))
        rows["objective"] = distill.get("preset") or json.dumps(distill.get("terms"), default=str)
        rows["layer pairs"] = json.dumps(distill.get("pairs"), default=str)
    steps = training.get("steps") or config.get("schedule", {}).get("steps") or None
    rows |= {
        "steps": steps,
        "epochs": None if steps else training.get("epochs"),
        "batch": training.get("batch_size"),
        "learning rate": config.get("optimizer", {}).get("learning_rate"),
        "seed": config.get("seed"),
    }
    table = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "", "null")]
    return ["| | |", "| --- | --- |", *table, "", "`training_config.json` has every field."]


def _scores(result: Mapping[str, Any]) -> list[str]:
    metrics = result.get("metrics")
    if not isinstance(metrics, Mapping):
        return []
    rows = []
    for name, value in metrics.items():
        if isinstance(value, int | float):
            unit = " %" if name.removeprefix("ema_") in _PERCENT else ""
            rows.append(f"| {_cell(name)} | {value:.4g}{unit} |")
    return rows


def _use(network: weights.Network, repository: str, is_timm: bool) -> list[str]:
    photo = "jaxkd.predict(model, variables, 'photo.jpg')"
    shown = "# [(class name, probability), ...]" if network.spec.task == "classification" else "# a larger image"
    lines = [
        "```python",
        "import jaxkd",
        "",
        f'model, variables = jaxkd.load("{repository}")',
        f"{photo.replace(chr(39), chr(34))}  {shown}",
        "```",
    ]
    if is_timm:
        scheme = "hf-hub" if "/" in repository else "local-dir"
        lines += [
            "",
            "```python",
            "import timm",
            "",
            f'model = timm.create_model("{scheme}:{repository}", pretrained=True)',
            "```",
        ]
    return lines


def _cell(value: Any) -> str:
    return str(value).replace("|", r"\|").replace("\n", " ")
