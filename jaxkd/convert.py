"""Conversion of trained networks: safetensors, ONNX and StableHLO.

    jaxkd convert --model=mdbn_x4 --weights=net_g_latest.pth --to=onnx --out=mdbn_x4.onnx
    jaxkd convert --weights=runs/deit_cait --variant=ema --out=deit.onnx [--with-preprocessing]
    jaxkd convert --model=deit_tiny_patch16_224 --weights=deit.pth --out=deit.safetensors
    jaxkd convert --weights=runs/deit_cait --variant=ema --push-to-hub=USER/NAME [--private]

Weights are a file, a Hugging Face id or a work directory of jaxkd (then --model is known). Safetensors have the names
and layouts of timm (BasicSR), and in their header the network's name and arguments, its classes and its preprocessing,
so that no command needs --model or --model-arg for them; of a network that timm has, the `timm.create_model` call that
loads the file is printed. ONNX and StableHLO hold the network, too: a classifier for any number of images of its size,
a super-resolution network for images of any size. They are compared with the network before they are written, a
classifier on two photographs; `jaxkd.load` and `jaxkd.predict` take them.

--push-to-hub uploads to the Hugging Face Hub, with the token of `hf auth login`: weights, a config.json that
`timm.create_model("hf-hub:USER/NAME", pretrained=True)` reads where timm has the network, and a model card made from
the run, in which folders of this machine are left out. --out=FOLDER/ writes these files only. Prints a line for people
and a line of JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.cli import console, networks
from jaxkd.cli.commands import program
from jaxkd.errors import ConfigError, printable

FORMATS = ("onnx", "stablehlo", "safetensors")


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(prog=program("convert"), description=__doc__)
    networks.add_network_options(parser)
    parser.add_argument("--to", default="", choices=FORMATS, help="default: by the ending of --out")
    parser.add_argument(
        "--out",
        default="",
        metavar="FILE|FOLDER/",
        help=f"ends in .{', .'.join(FORMATS)}, or in a slash: the files of --push-to-hub",
    )
    parser.add_argument("--push-to-hub", default="", metavar="USER/NAME", help="upload to the Hugging Face Hub")
    parser.add_argument("--private", action="store_true", help="make a new repository of --push-to-hub private")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="of an exported classifier: from uint8 pixels to probabilities; default: from normalised images to logits",
    )
    return parser


def convert(args: argparse.Namespace) -> dict[str, Any]:
    """Converts the weights that `args` (see `--help`) name; returns what is printed as JSON."""
    from dataclasses import replace

    from jaxkd import train, weights
    from jaxkd.inference import hub_folder
    from jaxkd.inference.class_names import output_names
    from jaxkd.weights import exports
    from jaxkd.weights.files import checked_path

    if args.push_to_hub or args.out.endswith("/"):
        return _publish(args)
    if args.private:
        raise ConfigError("--private is for --push-to-hub=USER/NAME, which was not given. Leave it out.")
    if not args.out:
        raise ConfigError("Neither --out nor --push-to-hub was given. Give --out=FILE, ending in .onnx for example.")
    to = args.to or Path(args.out).suffix.removeprefix(".")
    if to not in FORMATS:
        raise ConfigError(f'--out="{args.out}" does not say the format. End it in .{", .".join(FORMATS)}, or add --to.')
    path = checked_path(args.out, f".{to}", overwrite=args.overwrite)
    given = networks.network_args(args)
    network = networks.build(given)
    if to != "safetensors":
        exports.require_exportable(network.model, to)
    elif args.with_preprocessing:
        raise ConfigError("--with-preprocessing is for programs, and safetensors hold weights. Write --to=onnx.")
    network = networks.load(given, network)
    about = {"model": network.spec.name, "weights": printable(network.origin)}
    difference = timm = None
    if to == "safetensors":
        metadata = about | weights.to_metadata(network)
        weights.save_safetensors(path, network.model, network.variables, metadata, overwrite=args.overwrite)
        timm = hub_folder.timm_call(network, path)
    else:
        names = output_names(network, of_run=train.find_run(given.weights) is not None)
        metadata = about | weights.to_metadata(replace(network, class_names=names))
        pixels = exports.Normalisation(network.spec.mean, network.spec.std) if args.with_preprocessing else None
        difference = exports.save(
            path, network.model, network.variables, metadata, to=to, overwrite=args.overwrite, normalisation=pixels
        )
    size = path.stat().st_size
    return {**about, "format": to, "out": str(path), "bytes": size, "largest_difference": difference, "timm": timm}


def _publish(args: argparse.Namespace) -> dict[str, Any]:
    """`convert` with --push-to-hub, or with a folder as --out."""
    import contextlib
    import tempfile

    from jaxkd.inference import hub_folder, hub_upload

    console.refuse_options(
        {"to": args.to or None, "with_preprocessing": args.with_preprocessing}, "a folder holds safetensors"
    )
    if args.out and not args.out.endswith("/"):
        raise ConfigError(
            f'--out="{args.out}" is a file. With --push-to-hub give a folder, --out={args.out}/, or none.'
        )
    repository = hub_upload.check_repository(args.push_to_hub) if args.push_to_hub else ""
    given = networks.network_args(args)
    network = networks.build(given)
    networks.require_image_network(network.spec.name)
    network = networks.load(given, network)
    with contextlib.ExitStack() as stack:
        folder = Path(args.out or stack.enter_context(tempfile.TemporaryDirectory()))
        files = hub_folder.write_folder(
            network, folder, source=given.weights, repository=repository, overwrite=args.overwrite
        )
        size, address = sum(file.stat().st_size for file in files), ""
        if repository:
            message = f"{network.spec.name} by jaxkd"
            address = hub_upload.upload(files, repository, private=args.private, message=message)
    return {
        "model": network.spec.name,
        "weights": printable(network.origin),
        "format": "folder",
        "out": address or str(folder),
        "files": [file.name for file in files],
        "bytes": size,
        "largest_difference": None,
        "timm": None,
    }


@console.command()
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, or 2 for a user error."""
    args = _parser().parse_args(argv)
    console.quiet()
    done = printable(convert(args))
    checked = done["largest_difference"]
    if done["format"] in ("safetensors", "folder"):
        words = ""
    elif checked is None:
        words = "; not compared with the network, which needs onnxruntime and JAX's CPU"
    else:
        words = f"; outputs differ from the network's by at most {checked:.1g}"
    print(f"{done['out']}: {done['model']} from {done['weights']}, {done['bytes'] / 1e6:.2f} MB{words}")
    if done["timm"]:
        print(f"In timm: {done['timm']}")
    console.print_json(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
