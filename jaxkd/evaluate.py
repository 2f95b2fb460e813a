"""Top-1, top-5 and loss of a classifier on a validation split; PSNR and SSIM of a super-resolution network.

    python -m jaxkd.evaluate --model=deit_tiny_patch16_224 --weights=model.safetensors --data=/data/imagenet
    python -m jaxkd.evaluate --weights=runs/first_light/student_distilled --ema --data=embedded:digits
    python -m jaxkd.evaluate --weights=runs/mdbn_x4 --ema --data=Set5=/data/Set5 --data=Set14=/data/Set14
    python -m jaxkd.evaluate --model=mdbn_x4 --weights=mdbn.pth --data=/data/Set5/HR --crop=4 --cost

Weights are a timm, BasicSR or Hugging Face file or id, or a work directory of jaxkd (then --model is known). Prints a
line for people (super-resolution: a table with MATLAB's bicubic beside the network) and a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd import weights
from jaxkd.cli.console import Parser, fail, model_argument, quiet
from jaxkd.errors import ConfigError, JaxkdError

BATCH_SIZE = 64
CLASSIFIERS_ONLY = ("batch_size", "crop_pct", "interpolation", "resize")
UPSCALERS_ONLY = ("crop", "rgb", "cost")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m jaxkd.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="", help="name in the zoo; not needed for a work directory")
    parser.add_argument("--model-arg", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    parser.add_argument("--weights", required=True, help="file, Hugging Face id or work directory")
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="SOURCE",
        help='folder with val/<label>/*, shards, "tfds:NAME" or "embedded:digits"; super-resolution: FOLDER of large '
        "images or NAME=FOLDER, which may be repeated",
    )
    parser.add_argument("--split", default="val", choices=("val", "train"))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true", help="the moving average")
    which.add_argument("--raw", action="store_true", help="the raw weights (default)")
    parser.add_argument("--step", default="", help='of a work directory: a number, "last" (default) or "best"')
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
    classifiers = parser.add_argument_group("classifiers only")
    classifiers.add_argument("--batch-size", type=int, help=f"default: {BATCH_SIZE}")
    classifiers.add_argument("--crop-pct", type=float, help="default: the model's own")
    classifiers.add_argument("--interpolation", help="default: the model's own")
    classifiers.add_argument("--resize", action="store_true", help="resize position embeddings to the network's grid")
    upscalers = parser.add_argument_group("super-resolution only")
    upscalers.add_argument(
        "--crop", metavar="BORDER", help='pixels left out on each side: "scale" (default), or 4 at every scale'
    )
    upscalers.add_argument("--rgb", action="store_true", help="compare RGB; default: BT.601 luma")
    upscalers.add_argument(
        "--cost", action="store_true", help="also parameters, GFLOP, latency and memory for a result of 1280 x 720"
    )
    return parser


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Scores what `args` (see `--help`) names; returns what is printed as JSON."""
    from jaxkd import models
    from jaxkd.cli import superres_evaluation as evaluation

    saved = _saved_config(args.weights)
    name, model_args = _wanted(args, saved)
    if models.spec(name).task == "restoration":
        _refuse(args, CLASSIFIERS_ONLY, f"{name} enlarges images", "classifiers and their images")
        return evaluation.evaluate(args, name, model_args)
    _refuse(args, UPSCALERS_ONLY, f"{name} classifies images", "PSNR and SSIM of networks that enlarge")
    if len(args.data) > 1:
        raise ConfigError(
            f"--data was given {len(args.data)} times: {', '.join(args.data)}. {name} classifies images, and its "
            "labels are those of one data set. Give --data once."
        )
    return _evaluate_classifier(args, saved, name, model_args)


def _wanted(args: argparse.Namespace, saved: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Name in the zoo and constructor arguments, by the command line and by the run."""
    given = dict(model_argument(a) for a in args.model_arg)
    if saved is not None:
        name = saved["student"]["name"]
        if args.model and args.model != name:
            raise ConfigError(
                f'--model="{args.model}", but the work directory "{args.weights}" trained {name}. '
                "Its weights fit no other network. Leave --model out."
            )
        return name, {k: v for k, v in saved["student"]["args"].items() if v is not None} | given
    if args.model:
        return args.model, given
    runs = [p.parent.name for p in sorted(Path(args.weights).glob("*/config.json"))]
    if runs:
        raise ConfigError(
            f'--weights="{args.weights}" holds several runs: {", ".join(runs)}. Each has weights of its own. '
            f"Choose one, for example --weights={args.weights}/{runs[-1]}."
        )
    raise ConfigError(
        f'--model is missing, and --weights="{args.weights}" is not a work directory of jaxkd that would know it. '
        "A file of weights does not say which network it is of. Give --model=NAME; jaxkd.models.list_models() has "
        "the names."
    )


def _refuse(args: argparse.Namespace, options: Sequence[str], network: str, meaning: str) -> None:
    """Raises ConfigError for options that were given and that this kind of network does not read."""
    for option in options:
        value = getattr(args, option)
        if value is not None and value is not False:
            shown = f"--{option.replace('_', '-')}" + ("" if value is True else f"={value}")
            raise ConfigError(
                f"{shown} was given, but {network}. It is about {meaning}, and nothing reads it here. Leave it out."
            )


def _evaluate_classifier(
    args: argparse.Namespace, saved: dict[str, Any] | None, name: str, model_args: dict[str, Any]
) -> dict[str, Any]:
    import jax
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from jaxkd import data, distill, parallel, tasks, train

    folder, batch_size = args.data[0], BATCH_SIZE if args.batch_size is None else args.batch_size
    source = data.open_source(folder, args.split)
    scored = {} if saved is None else saved.get("eval", {})
    crop_pct = args.crop_pct or scored.get("crop_pct", 0)
    interpolation = args.interpolation or scored.get("interpolation", "")
    if saved is not None:
        model_args.setdefault("num_classes", len(source.class_names))
    network = weights.build_network(name, model_args, compute=args.compute)
    if network.num_classes != len(source.class_names):
        raise ConfigError(
            f"{name} has {network.num_classes} outputs, but {folder} has {len(source.class_names)} classes. A label "
            "is the place of its folder among the sorted class folders, so the two would name different classes. Give "
            "the folder all classes of the weights, or use "
            "weights that were trained for this data set."
        )
    variant = "ema" if args.ema else "raw" if args.raw else ""
    network = weights.load_weights(network, args.weights, variant=variant, step=args.step, resize=args.resize)
    mesh = parallel.make_mesh()
    parallel.check_batch("--batch-size", batch_size, mesh)
    task = tasks.ClassificationTask(network, distill.preset("none"))
    preprocess = data.eval_preprocess(network.spec, network.image_size, crop_pct, interpolation)
    batches = data.eval_batches(source, preprocess, batch_size=batch_size)
    params = parallel.put_on_mesh(task.init(jax.random.key(0))[0], mesh)
    eval_step = train.compile_eval_step(task, mesh)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        shown = progress.add_task("batches", total=len(batches))
        means, images, rate = train.evaluate(
            eval_step,
            batches,
            {"": (params, {})},
            {},
            mesh,
            progress=lambda done: progress.update(shown, completed=done),
        )
    return {
        "model": name,
        "weights": args.weights,
        "loaded": network.origin,
        "data": folder,
        "split": args.split,
        "images": images,
        **means[""],
        "images_per_second": rate,
        "image_size": network.image_size,
        "crop_pct": preprocess.crop_pct,
        "interpolation": preprocess.interpolation,
        "compute": args.compute,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _saved_config(weights: str) -> dict[str, Any] | None:
    """The resolved config of the work directory that `weights` names, or None if it names none."""
    from jaxkd import train

    run = train.find_run(weights)
    return None if run is None else train.read_config(run)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, or 2 for what the user can mend."""
    try:
        args = _parser().parse_args(argv)
        quiet()
        result = evaluate(args)
    except JaxkdError as error:
        fail(error)
    except KeyboardInterrupt:
        print("jaxkd: stopped.", file=sys.stderr)
        return 130
    if "bicubic" in result:
        from jaxkd.cli import superres_evaluation as evaluation

        evaluation.show(result)
    else:
        print(_line(result))
    print(json.dumps(result))
    return 0


def _line(result: dict[str, Any]) -> str:
    return (
        f"{result['model']}: top-1 {result['top1']:.3f} % · top-5 {result['top5']:.3f} % · loss {result['loss']:.4f} · "
        f"{result['images']:,} images · {result['images_per_second']:.1f} images/s"
    )


if __name__ == "__main__":
    sys.exit(main())
