"""Networks on a command line: the same options in every command, and the network that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxkd.cli.console import Parser, model_argument
from jaxkd.errors import ConfigError, printable
from jaxkd.inference.network_args import NetworkArgs, build, identify, load  # noqa: F401 -- commands take all from here

REPLACED = {"--ema": "--variant=ema", "--raw": "--variant=raw"}
ALL_STEPS = "all"  # NetworkArgs.step of --checkpoints
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--model",
        {"metavar": "NAME", "help": "name, unless --weights says it"},
    ),
    ("--model-arg", {"metavar": "NAME=VALUE", "type": model_argument, "help": "constructor argument, repeatable"}),
    ("--weights", {"metavar": "SOURCE", "help": "file, Hugging Face id or work directory of jaxkd"}),
    (
        "--variant",
        {
            "choices": ("raw", "ema"),
            "help": "raw or averaged weights (raw; of BasicSR ema)",
        },
    ),
    ("--step", {"metavar": "STEP", "help": 'of a run: a number, "last" (default), "best"'}),
)
OLD_GRID: tuple[str, dict[str, Any]] = (  # an option of the commands that have --resize
    "--old-grid",
    {
        "metavar": "ROWSxCOLUMNS",
        "help": "patch grid of the weights, unless they say it",
    },
)


class _Collect(argparse.Action):
    """Collects the options of several networks in their order on the command line."""

    def __call__(self, parser, namespace, value, option=None) -> None:
        networks, name = namespace.networks, self.dest
        if name == "checkpoints":
            networks.append(NetworkArgs(weights=value, step=ALL_STEPS))
            return
        if name == "model" or (name == "weights" and (not networks or networks[-1].weights)):
            networks.append(NetworkArgs())
        elif not networks:
            raise ConfigError(f"{option} stands before any --model or --weights. Put it after the network it is for.")
        if name == "model_arg":
            networks[-1].args[value[0]] = value[1]
        else:
            setattr(networks[-1], name, value)


def add_network_options(parser: Parser) -> None:
    """Adds the options of one network; `network_args` reads them."""
    parser.replaced |= REPLACED
    group = parser.add_argument_group("network")
    for option, settings in OPTIONS:
        more = {"action": "append", "default": []} if option == "--model-arg" else {"default": ""}
        group.add_argument(option, **settings, **more)


def network_args(namespace: argparse.Namespace) -> NetworkArgs:
    """The network of the options that `add_network_options` added."""
    if not namespace.weights:
        raise ConfigError("--weights is missing. Give a file, a Hugging Face id or a work directory of jaxkd.")
    return NetworkArgs(
        namespace.model,
        namespace.weights,
        dict(namespace.model_arg),
        variant=namespace.variant,
        step=namespace.step,
        old_grid=getattr(namespace, "old_grid", None),
    )


def add_options_of_networks(parser: Parser) -> Any:
    """Adds the options of any number of networks, collected in `networks`; returns the group for more of them."""
    parser.replaced |= REPLACED
    parser.set_defaults(networks=[])
    group = parser.add_argument_group("networks, each with the options after its --model or --weights")
    more = (
        ("--label", {"help": "name in the report"}),
        ("--checkpoints", {"metavar": "WORKDIR", "help": "every kept checkpoint of this run (*)"}),
    )
    for option, settings in (*OPTIONS, OLD_GRID, *more):
        group.add_argument(option, **settings, action=_Collect, default=argparse.SUPPRESS)
    return group


def layer_names(layers: str) -> tuple[str, ...]:
    """`--layers`' "block_*,input" -> its names and patterns."""
    return tuple(filter(None, (t.strip() for t in layers.split(","))))


def feature_source(
    network: NetworkArgs,
    mesh: Any,
    *,
    layers: str,
    gradients: str,
    image_size: int,
    resize: bool,
    seed: int,
    layout: str,
) -> Any:
    """The `FeatureSource` of a network or of a function of the user; the arguments are options of `analyze`."""
    from jaxkd.analysis import pipeline

    names = layer_names(layers)
    if ":" in network.model:
        if network.weights or network.args or network.old_grid:
            raise ConfigError(
                f'--model="{network.model}" is a function of your own, which --weights, --model-arg and --old-grid do '
                "not reach. Leave them out."
            )
        size = (image_size or 224, image_size or 224)
        return pipeline.callable_features(
            network.model, image_size=size, label=network.label, layers=names, layout=layout or "nhwc"
        )
    if layout:
        raise ConfigError(
            f"--layout={layout} is for the maps of a function of your own, and {network.label} is a network of jaxkd. "
            "Leave it out."
        )
    if image_size:
        raise ConfigError(
            f"--image-size={image_size} is the size for a function of your own, and {network.label} is a network of "
            "jaxkd. Use --model-arg=img_size=SIZE, with --resize for weights of another grid."
        )
    gradient_of, loaded = "class" if gradients == "none" else gradients, load(network, resize=resize)
    return pipeline.network_features(
        loaded, mesh, label=network.label, layers=names, gradient_of=gradient_of, seed=seed
    )


def require_upscaler(name: str) -> None:
    """Raises ConfigError for a network that does not enlarge images."""
    from jaxkd import models

    spec = models.spec(name)
    if spec.task != "restoration":
        names = [n for n in models.list_models() if models.spec(n).task == "restoration"]
        what = "them" if spec.task == "classification" else "images"
        raise ConfigError(f"{name} {spec.purpose} and cannot enlarge {what}. Use one of: {', '.join(names)}.")


def require_image_network(name: str) -> None:
    """Raises ConfigError for a network whose input is no image."""
    from jaxkd import models

    spec = models.spec(name)
    if spec.task == "eeg_words":
        raise ConfigError(
            f"{name} {spec.purpose}, and this command reads images. Give a network for images; "
            "jaxkd.models.list_models() has the names."
        )


def resolve(given: Sequence[NetworkArgs]) -> list[NetworkArgs]:
    """The networks of a command line, each with its own label; --checkpoints becomes one network per checkpoint."""
    from jaxkd import train

    networks = list(given)
    if not networks:
        raise ConfigError("No network was given. Give --model=NAME with --weights=FILE, or --weights=WORKDIR.")
    runs = [n for n in networks if n.step == ALL_STEPS]
    if runs:
        folder = runs[0].weights
        if len(networks) > 1:
            raise ConfigError(
                f'--checkpoints="{folder}" and another network were both given. Analyse one run over time, or networks '
                "side by side."
            )
        run = train.find_run(folder)
        if run is None:
            raise ConfigError(
                f'--checkpoints="{folder}" is not a work directory of jaxkd. Give the --workdir of a run; '
                "checkpoint.keep_every_epochs keeps more of its checkpoints."
            )
        steps = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
        networks = [replace(runs[0], weights=str(run), step=str(s), label=f"step {s}") for s in steps]
    for network in networks:
        name = network.model.rpartition(":")[2] if ":" in network.model else identify(network)[0]
        run = train.find_run(network.weights) if network.weights else None
        network.label = printable(network.label or (run.name if run is not None else name))
    labels = [n.label for n in networks]
    for i, network in enumerate(networks):
        if labels.count(network.label) > 1:
            network.label = f"{network.label} ({i + 1})"
    return networks


def common_task(networks: Sequence[NetworkArgs]) -> str:
    """The task of all networks: "classification", also of functions of the user, "restoration" or "eeg_words".

    Raises:
      ConfigError: networks of different tasks.
    """
    from jaxkd import models

    names = ["" if ":" in n.model else identify(n)[0] for n in networks]
    tasks = [models.spec(name).task if name else "classification" for name in names]
    for task, what in (("eeg_words", "an encoder of EEG words"), ("restoration", "a super-resolution network")):
        if task not in tasks:
            continue
        other = next((n.label for n, t in zip(networks, tasks, strict=True) if t != task), None)
        if other is not None:
            raise ConfigError(
                f'"{networks[tasks.index(task)].label}" is {what} and "{other}" is not, and their analyses have no '
                "number in common. Analyse them in two calls, each with its own --out."
            )
        return task
    return "classification"
