"""Top-1, top-5 and loss of a network on a validation split.

    python -m jaxkd.evaluate --model=deit_tiny_patch16_224 --weights=model.safetensors --data=/data/imagenet
    python -m jaxkd.evaluate --weights=runs/first_light/student_distilled --ema --data=embedded:digits

Weights are a timm or Hugging Face file or id, or a work directory of jaxkd (then --model is known). Prints a line for
people and a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.command import Parser, fail, model_argument, quiet
from jaxkd.errors import ConfigError, JaxkdError


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m jaxkd.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="", help="name in the zoo; not needed for a work directory")
    parser.add_argument("--model-arg", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    parser.add_argument("--weights", required=True, help="file, Hugging Face id or work directory")
    parser.add_argument(
        "--data", required=True, help='folder with val/<label>/*, shards, "tfds:NAME" or "embedded:digits"'
    )
    parser.add_argument("--split", default="val", choices=("val", "train"))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true", help="the moving average")
    which.add_argument("--raw", action="store_true", help="the raw weights (default)")
    parser.add_argument("--step", default="", help='of a work directory: a number, "last" (default) or "best"')
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--crop-pct", type=float, default=0.0, help="default: the model's own")
    parser.add_argument("--interpolation", default="", help="default: the model's own")
    parser.add_argument("--resize", action="store_true", help="resize position embeddings to the network's grid")
    parser.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
    return parser


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Scores what `args` (see `--help`) names; returns what is printed as JSON."""
    import jax
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from jaxkd import data, distill, parallel, tasks, train

    saved = _saved_config(args.weights)
    _refuse_restoration(args.model or (saved or {}).get("student", {}).get("name", ""))
    source = data.open_source(args.data, args.split)
    name, model_args, crop_pct, interpolation = args.model, {}, args.crop_pct, args.interpolation
    if saved is not None:
        if args.model and args.model != saved["student"]["name"]:
            raise ConfigError(
                f'--model="{args.model}", but the work directory "{args.weights}" trained {saved["student"]["name"]}. '
                "Its weights fit no other network. Leave --model out."
            )
        name = saved["student"]["name"]
        model_args = {k: v for k, v in saved["student"]["args"].items() if v is not None}
        scored = saved.get("eval", {})
        crop_pct, interpolation = (
            crop_pct or scored.get("crop_pct", 0),
            interpolation or scored.get("interpolation", ""),
        )
        model_args.setdefault("num_classes", len(source.class_names))
    if not name:
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
    model_args |= dict(model_argument(a) for a in args.model_arg)
    network = tasks.build_network(name, model_args, compute=args.compute)
    if network.num_classes != len(source.class_names):
        raise ConfigError(
            f"{name} has {network.num_classes} outputs, but {args.data} has {len(source.class_names)} classes. A label "
            "is the place of its folder among the sorted class folders, so the two would name different classes. Give "
            "the folder all classes of the weights, or use "
            "weights that were trained for this data set."
        )
    variant = "ema" if args.ema else "raw" if args.raw else ""
    network = tasks.load_weights(network, args.weights, variant=variant, step=args.step, resize=args.resize)
    mesh = parallel.make_mesh()
    parallel.check_batch("--batch-size", args.batch_size, mesh)
    task = tasks.ClassificationTask(network, distill.preset("none"))
    preprocess = data.EvalPreprocess(
        image_size=network.image_size,
        crop_pct=crop_pct or network.spec.crop_pct,
        interpolation=interpolation or network.spec.interpolation,
    )
    batches = data.eval_batches(source, preprocess, batch_size=args.batch_size)
    params = parallel.put_replicated(task.init(jax.random.key(0))[0], mesh)
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
        "data": args.data,
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


def _refuse_restoration(name: str) -> None:
    from jaxkd import models

    if name and models.spec(name).task == "restoration":
        raise ConfigError(
            f"{name} enlarges images, and this command counts right classes. PSNR and SSIM are measured during "
            "training (eval.sets) or by jaxkd.restoring.PairScorer. Give a network that classifies."
        )


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
    print(
        f"{result['model']}: top-1 {result['top1']:.3f} % · top-5 {result['top5']:.3f} % · loss {result['loss']:.4f} · "
        f"{result['images']:,} images · {result['images_per_second']:.1f} images/s"
    )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
