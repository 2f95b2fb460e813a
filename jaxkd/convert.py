"""Weights in one format, out in another: safetensors for every network, ONNX and StableHLO for super-resolution.

    python -m jaxkd.convert --model=mdbn_x4 --weights=net_g_latest.pth --to=onnx --out=mdbn_x4.onnx
    python -m jaxkd.convert --weights=runs/mdbn_x4 --variant=ema --out=mdbn_x4.stablehlo
    python -m jaxkd.convert --model=deit_tiny_patch16_224 --weights=deit.pth --out=deit.safetensors

Weights are a file, a Hugging Face id or a work directory of jaxkd (then --model is known). Safetensors have the names
and layouts of timm (BasicSR). ONNX and StableHLO hold the network, too, for images of any size, and are run once beside
it before the program ends. Prints a line for people and a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.cli.console import Parser, fail, model_argument, quiet
from jaxkd.errors import ConfigError, JaxkdError, WeightSourceError

FORMATS = ("onnx", "stablehlo", "safetensors")
TOLERANCE = 1e-4  # of an exported program against the network, for images in [0, 1]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m jaxkd.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="name in the zoo; not needed for a work directory")
    parser.add_argument("--model-arg", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    parser.add_argument("--weights", required=True, help="file, Hugging Face id or work directory")
    parser.add_argument("--variant", default="", help='"ema" or "raw", where the weights hold both')
    parser.add_argument("--step", default="", help='of a work directory: a number, "last" (default) or "best"')
    parser.add_argument("--to", default="", choices=("", *FORMATS), help="default: by the ending of --out")
    parser.add_argument("--out", required=True, metavar="FILE", help="ends in ." + ", .".join(FORMATS))
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    return parser


def convert(args: argparse.Namespace) -> dict[str, Any]:
    """Does what `args` (see `--help`) say; returns what is printed as JSON."""
    from jaxkd import weights
    from jaxkd.weights.exports.onnx import onnx_bytes, require_upscaler
    from jaxkd.weights.exports.stablehlo import to_stablehlo
    from jaxkd.weights.files import checked_path, write_whole

    to = _format(args)
    path = checked_path(args.out, f".{to}", overwrite=args.overwrite)
    name, model = _network(args)
    if to != "safetensors":
        require_upscaler(model, to)
    variables, origin = _weights(args, model)
    facts = {"model": name, "weights": origin}
    difference = None
    if to == "safetensors":
        weights.save_safetensors(path, model, variables, facts, overwrite=args.overwrite)
    else:
        content = onnx_bytes(model, variables, facts) if to == "onnx" else to_stablehlo(model, variables)
        difference = _difference(to, content, model, variables)
        write_whole(path, content)
    return {**facts, "format": to, "out": str(path), "bytes": path.stat().st_size, "largest_difference": difference}


def _format(args: argparse.Namespace) -> str:
    to = args.to or Path(args.out).suffix.removeprefix(".")
    if to not in FORMATS:
        raise ConfigError(
            f'--out="{args.out}" does not say the format. It is taken from the ending unless --to names it. End it in '
            f".{', .'.join(FORMATS)}."
        )
    return to


def _network(args: argparse.Namespace) -> tuple[str, Any]:
    """Name and network, the latter without weights."""
    from jaxkd import models, train

    name, model_args = args.model, {}
    run = train.find_run(args.weights)
    if run is not None:
        saved = train.read_config(run)["student"]
        if name and name != saved["name"]:
            raise ConfigError(
                f'--model="{name}", but the work directory "{args.weights}" trained {saved["name"]}. Its weights fit '
                "no other network. Leave --model out."
            )
        name, model_args = saved["name"], {k: v for k, v in saved["args"].items() if v is not None}
    if not name:
        raise ConfigError(
            f'--model is missing, and --weights="{args.weights}" is not a work directory of jaxkd that would know it. '
            "A file of weights does not say which network it is of. Give --model=NAME; jaxkd.models.list_models() has "
            "the names."
        )
    model_args |= dict(model_argument(a) for a in args.model_arg)
    return name, models.create(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in model_args.items()})


def _weights(args: argparse.Namespace, model: Any) -> tuple[Any, str]:
    """Variables and where they came from, in words."""
    from jaxkd import train, weights

    if train.find_run(args.weights) is not None:
        variables, _, origin = train.load_run_weights(args.weights, variant=args.variant or None, step=args.step)
        return variables, origin
    if args.step:
        raise ConfigError(
            f'--step="{args.step}" was given, but "{args.weights}" is not a work directory of jaxkd. A file holds one '
            "set of weights. Leave the step out."
        )
    return weights.load_with_origin(model, args.weights, variant=args.variant or None)


def _difference(to: str, content: bytes, model: Any, variables: Any) -> float | None:
    """Largest difference between the program's outputs and the network's on a random image, both on the CPU.

    Returns:
      None where nothing runs it: onnxruntime is not installed, or JAX was told to do without its CPU.

    Raises:
      WeightSourceError: it is more than `TOLERANCE`.
    """
    import jax
    import numpy as np

    from jaxkd.weights.exports.onnx import run_onnx
    from jaxkd.weights.exports.stablehlo import load_stablehlo

    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:
        return None
    image = np.random.default_rng(0).uniform(size=(1, 19, 24, 3)).astype(np.float32)
    with jax.default_device(cpu):
        theirs = run_onnx(content, image) if to == "onnx" else load_stablehlo(content)(image)
        if theirs is None:
            return None
        ours = jax.jit(lambda v, x: model.apply(v, x)[0])(jax.tree.map(np.asarray, variables), image)
    difference = float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())
    if not difference <= TOLERANCE:
        raise WeightSourceError(
            f"The outputs of the {to} program differ from the network's by {difference:.2g} and nothing was written. "
            f"More than {TOLERANCE} is not rounding. Check that the weights are finite, and report it if they are."
        )
    return difference


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, or 2 for what the user can mend."""
    try:
        args = _parser().parse_args(argv)
        quiet()
        done = convert(args)
    except JaxkdError as error:
        fail(error)
    checked = done["largest_difference"]
    if done["format"] == "safetensors":
        words = ""
    elif checked is None:
        words = "; not run beside the network, for want of onnxruntime or of JAX's CPU"
    else:
        words = f"; run beside the network: at most {checked:.1g} apart"
    print(f"{done['out']}: {done['model']} from {done['weights']}, {done['bytes'] / 1e6:.2f} MB{words}")
    print(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
