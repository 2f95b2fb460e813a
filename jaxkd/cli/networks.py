"""Networks as a command line describes them: which there are, what they are called, of which kind they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxkd import models, train
from jaxkd.errors import ConfigError


@dataclass
class Wanted:
    """One network of the command line.

    Attributes:
      model: name in the zoo, "module:function", or "" for a work directory.
      weights: file, Hugging Face id, work directory, or "" for initial weights.
      args: constructor arguments.
      label: what results call it.
      variant: "ema", "raw" or "" for the default.
      step: of a work directory.
    """

    model: str = ""
    weights: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    variant: str = ""
    step: str = ""


def wanted_networks(given: Sequence[Wanted], checkpoints: str = "") -> list[Wanted]:
    """The networks that were asked for, each with a label of its own.

    Args:
      given: as described; their labels are filled in.
      checkpoints: work directory whose kept checkpoints are the networks instead, or "".

    Raises:
      ConfigError: none, both kinds, or one that is not known.
    """
    wanted = list(given)
    if checkpoints:
        if wanted:
            raise ConfigError(
                f'--checkpoints="{checkpoints}" and --model or --weights were both given. The first analyses one '
                "run over time, the others networks side by side. Use one of them."
            )
        run = train.find_run(checkpoints)
        if run is None:
            raise ConfigError(
                f'--checkpoints="{checkpoints}" is not a work directory of jaxkd. It holds config.json and '
                "checkpoints/. Give the --workdir of a run; checkpoint.keep_every_epochs keeps more of them."
            )
        steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
        wanted = [Wanted(weights=str(run), step=str(s), label=f"step {s}") for s in steps]
    if not wanted:
        raise ConfigError(
            "No network was given. An analysis reads the features of at least one. Give --model=NAME with "
            "--weights=FILE, --weights=WORKDIR, or --model=module:function."
        )
    for w in wanted:
        run = train.find_run(w.weights) if w.weights else None
        if not w.model and run is None:
            raise ConfigError(
                f'--weights="{w.weights}" came without --model, and is not a work directory of jaxkd that would know '
                "it. Put --model=NAME before it; jaxkd.models.list_models() has the names."
            )
        w.label = w.label or (run.name if run is not None else w.model.rpartition(":")[2])
    labels = [w.label for w in wanted]
    for i, w in enumerate(wanted):
        if labels.count(w.label) > 1:
            w.label = f"{w.label} ({i + 1})"
    return wanted


def name_and_args(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """Name in the zoo and constructor arguments; of a work directory, what it trained.

    Raises:
      ConfigError: the work directory trained another network than `wanted.model`.
    """
    name, args = wanted.model, dict(wanted.args)
    run = train.find_run(wanted.weights) if wanted.weights else None
    if run is not None:
        saved = train.read_config(run)
        if name and name != saved["student"]["name"]:
            raise ConfigError(
                f'--model="{name}", but the work directory "{wanted.weights}" trained {saved["student"]["name"]}. Its '
                "weights fit no other network. Leave --model out."
            )
        name = saved["student"]["name"]
        args = {k: v for k, v in saved["student"]["args"].items() if v is not None} | args
    return name, args


def all_upscalers(wanted: Sequence[Wanted]) -> bool:
    """Whether the networks make images of images; False if they classify (or are functions, which are not asked).

    Raises:
      ConfigError: some do and some do not. UnknownNameError: no such network.
    """
    kinds = [":" not in w.model and models.spec(name_and_args(w)[0]).task == "restoration" for w in wanted]
    if any(kinds) and not all(kinds):
        first, other = wanted[kinds.index(True)].label, wanted[kinds.index(False)].label
        raise ConfigError(
            f'"{first}" is a super-resolution network and "{other}" is none. The first kind gets the Fourier analysis '
            "of its branches, the other the statistics of features, and no number is common to both. Analyse them in "
            "two calls, each with an --out of its own."
        )
    return any(kinds)
