"""A network by its name, its arguments and its weights, as commands and `jaxkd.load` are given it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxkd.errors import ConfigError


@dataclass
class NetworkArgs:
    """One network of a command line or of `jaxkd.load`."""

    model: str = ""  # name of the network, "module:function", or "" for a work directory
    weights: str = ""  # file, Hugging Face id, work directory, or "" for initial weights
    args: dict[str, Any] = field(default_factory=dict)  # constructor arguments
    label: str = ""  # name in results
    variant: str = ""  # "ema", "raw" or "" for the default
    step: str = ""  # of a work directory
    old_grid: str | None = None  # "2x8": of patches that the weights were made for


def file_facts(network: NetworkArgs) -> Any:
    """The `weights.FileFacts` of a file of weights that is the network's own, or None.

    They are not those of the network where --model names another one. A file on the Hugging Face Hub is fetched, but
    for those of timm, which say nothing.
    """
    from jaxkd import train, weights

    if not network.weights or train.find_run(network.weights) is not None:
        return None
    path = Path(network.weights).expanduser()
    if weights.hub_id(network.weights) is not None:
        if weights.published_name(network.weights):
            return None
        path = weights.locate(network.weights)
    facts = weights.read_facts(path)
    if facts is None or not facts.model:
        return None
    return facts if network.model in ("", facts.model, facts.model.partition(".")[0]) else None


def identify(network: NetworkArgs) -> tuple[str, dict[str, Any]]:
    """Name and constructor arguments; of a work directory or a file that says them, those of its network."""
    from jaxkd import train, weights

    run = train.find_run(network.weights) if network.weights else None
    if run is not None:
        trained = train.read_config(run)["student"]
        if network.model not in ("", trained["name"]):
            raise ConfigError(
                f'--model="{network.model}", but the work directory "{network.weights}" trained {trained["name"]}. '
                "Leave --model out."
            )
        return trained["name"], {k: v for k, v in trained["args"].items() if v is not None} | network.args
    facts = file_facts(network)
    if facts is not None:
        return facts.model, facts.args | network.args
    name = network.model or weights.published_name(network.weights)
    if name:
        return name, dict(network.args)
    runs = [p.parent.name for p in sorted(Path(network.weights).glob("*/config.json"))]
    if runs:
        raise ConfigError(
            f'--weights="{network.weights}" holds several runs: {", ".join(runs)}. Choose one, for example '
            f"--weights={network.weights}/{runs[-1]}."
        )
    if network.weights:
        weights.locate(network.weights)  # a path that does not exist
    raise ConfigError(
        f'--model is missing, and --weights="{network.weights}" is neither a work directory nor a file of jaxkd, which '
        "would name its network. Give --model=NAME, in Python model=NAME; jaxkd.models.list_models() has the names."
    )


def build(network: NetworkArgs, *, compute: str = "float32", **defaults: Any) -> Any:
    """The `weights.Network` without weights.

    Args:
      network: of the command line.
      compute: "float32" or "bfloat16".
      **defaults: constructor arguments that `network` may override.

    Raises:
      ConfigError, UnknownNameError: see `identify` and `weights.build_network`.
    """
    from jaxkd import train, weights

    name, args = identify(network)
    built, facts = weights.build_network(name, defaults | args, compute=compute), file_facts(network)
    if facts is not None:
        return replace(built, spec=facts.apply(built.spec), class_names=facts.class_names)
    run = train.find_run(network.weights) if network.weights else None
    if run is None:
        return built
    scored = train.read_config(run).get("eval", {})
    preprocessing = {k: scored[k] for k in ("crop_pct", "interpolation") if scored.get(k)}
    return replace(
        built, spec=replace(built.spec, **preprocessing), class_names=train.recorded_classes(network.weights)
    )


def grid(text: str | None) -> tuple[int, int] | None:
    """`--old-grid`'s "2x8" -> (2, 8); None where the option was left out."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise ConfigError(f'--old-grid="{text}" is not a grid. Give rows and columns of patches, e.g. --old-grid=2x8.')
    return int(match[1]), int(match[2])


def load(
    network: NetworkArgs,
    built: Any = None,
    *,
    compute: str = "float32",
    resize: bool = False,
) -> Any:
    """The `weights.Network` with its weights, or without any where `network` names none.

    Args:
      network: of the command line.
      built: what `build` returned, to build it only once.
      compute: see `build`.
      resize: see `weights.load`.

    Raises:
      ConfigError, UnknownNameError, WeightSourceError, WeightMismatchError, CheckpointError: see `weights.load`.
    """
    from jaxkd import weights

    built = built or build(network, compute=compute)
    if network.weights:
        fitting = {"resize": resize, "old_grid": grid(network.old_grid)}
        return weights.load_weights(built, network.weights, variant=network.variant, step=network.step, **fitting)
    for name in ("variant", "step", "old_grid"):
        if getattr(network, name):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option}={getattr(network, name)} was given for {network.model}, which has no --weights. Add them, "
                f"or leave {option} out."
            )
    return built
