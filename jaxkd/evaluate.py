"""Top-1, top-5 and loss of a classifier on a validation split; PSNR and SSIM of a super-resolution network.

    jaxkd evaluate --model=deit_tiny_patch16_224 --weights=model.safetensors --data=/data/imagenet
    jaxkd evaluate --weights=runs/first_light/teacher --variant=ema --data=embedded:digits
    jaxkd evaluate --weights=runs/mdbn_x4 --variant=ema --data=Set5=/data/Set5 --data=Set14=/data/Set14
    jaxkd evaluate --model=mdbn_x4 --weights=mdbn.pth --data=/data/Set5/HR --crop=4 --cost

Weights are a timm, BasicSR or Hugging Face file or id, or a work directory of jaxkd (then --model is known). Prints a
line for people (super-resolution: a table with MATLAB's bicubic beside the network) and a line of JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jaxkd.cli import compile_cache, console, networks, score_table
from jaxkd.cli.commands import program
from jaxkd.errors import ConfigError

CLASSIFIERS_ONLY = ("batch_size", "crop_pct", "interpolation", "resize", "old_grid", "class_order", "other_classes")
UPSCALERS_ONLY = ("crop", "rgb", "cost")


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(prog=program("evaluate"), description=__doc__)
    networks.add_network_options(parser)
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="SOURCE",
        help='folder with val/<label>/*, shards, "tfds:NAME", "embedded:digits"; or [NAME=]FOLDER of large images, '
        "repeatable",
    )
    parser.add_argument("--split", default="val", choices=("val", "train"))
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
    classifiers = parser.add_argument_group("classifiers only")
    classifiers.add_argument("--batch-size", type=int, help="default: 64")
    classifiers.add_argument("--crop-pct", type=float, help="default: the model's own")
    classifiers.add_argument("--interpolation", help="default: the model's own")
    classifiers.add_argument("--resize", action="store_true", help="resize position embeddings to the network's grid")
    classifiers.add_argument(networks.OLD_GRID[0], **networks.OLD_GRID[1])
    classifiers.add_argument(
        "--class-order", choices=("natural", "text"), help="folders 1, 2, 10 (default) or 1, 10, 2"
    )
    classifiers.add_argument("--other-classes", action="store_true", help="although trained on other class names")
    upscalers = parser.add_argument_group("super-resolution only")
    upscalers.add_argument(
        "--crop",
        choices=("scale", "4"),
        help="pixels left out: the scale (default) or 4",
    )
    upscalers.add_argument("--rgb", action="store_true", help="compare RGB; default: BT.601 luma")
    upscalers.add_argument("--cost", action="store_true", help="parameters, GFLOP, latency, memory at 1280 x 720")
    compile_cache.add_option(parser)
    return parser


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Scores the network that `args` (see `--help`) describe; returns what is printed as JSON."""
    import jax

    from jaxkd import models

    given = networks.network_args(args)
    name, _ = networks.identify(given)
    networks.require_image_network(name)
    upscales = models.spec(name).task == "restoration"
    unread, kind = (CLASSIFIERS_ONLY, "enlarges") if upscales else (UPSCALERS_ONLY, "classifies")
    console.refuse_options({option: getattr(args, option) for option in unread}, f"{name} {kind} images")
    result = (_score_upscaler if upscales else _score_classifier)(args, given)
    about = {"model": name, "weights": args.weights, "split": args.split, "compute": args.compute}
    return about | result | {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}


def _score_classifier(args: argparse.Namespace, given: networks.NetworkArgs) -> dict[str, Any]:
    from jaxkd import data, parallel
    from jaxkd.experiment import classification

    network = networks.build(given, compute=args.compute)
    if len(args.data) > 1:
        raise ConfigError(
            f"--data was given {len(args.data)} times: {', '.join(args.data)}. {network.spec.name} classifies images "
            "and is scored on one data set. Give --data once."
        )
    source = data.open_source(args.data[0], args.split, class_order=args.class_order or "natural")
    classification.check_classes(network, source, args.data[0])
    if not args.other_classes:
        data.check_same_classes(network.class_names, source.class_names, given.weights, args.data[0])
    batch_size = 64 if args.batch_size is None else args.batch_size
    parallel.check_batch("--batch-size", batch_size, parallel.make_mesh())
    network = networks.load(given, network, resize=args.resize)
    with console.progress() as progress:
        scores = classification.score_classifier(
            network,
            source,
            batch_size=batch_size,
            crop_pct=args.crop_pct or 0,
            interpolation=args.interpolation or "",
            progress=progress,
        )
    return {"loaded": network.origin, "data": args.data[0]} | scores


def _score_upscaler(args: argparse.Namespace, given: networks.NetworkArgs) -> dict[str, Any]:
    from jaxkd import data
    from jaxkd.superres import scoring

    folders = scoring.named_sets(args.data, "--data")
    network = networks.build(given, compute=args.compute)
    scale = network.model.scale
    sets = {name: data.open_pairs(folder, scale, split=args.split) for name, folder in folders.items()}
    network = networks.load(given, network)
    crop, luma = scoring.CROPS[args.crop or "scale"] or scale, not args.rgb
    with console.progress() as progress:
        scores = scoring.score_network(network, sets, crop=crop, luma=luma, cost=args.cost, progress=progress)
    return {"loaded": network.origin, "data": folders, "scale": scale, "crop": crop, "luma": luma} | scores


@console.command()
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, or 2 for a user error."""
    args = _parser().parse_args(argv)
    console.quiet()
    compile_cache.use_compile_cache(not args.no_compile_cache)
    result = evaluate(args)
    if "bicubic" in result:
        score_table.print_table(result)
    else:
        print(
            f"{result['model']}, {result['loaded']}: top-1 {result['top1']:.3f} % · top-5 {result['top5']:.3f} % · "
            f"loss {result['loss']:.4f} · {result['images']:,} images · {result['images_per_second']:.1f} images/s"
        )
    console.print_json(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
