"""See what the features do: spectra, entropy, ranks, PCA, SEP, saliency, or the branches of super-resolution networks.

    python -m jaxkd.analyze --model=cait_s24_224 --weights=cait.safetensors \\
        --model=deit_tiny_patch16_224 --weights=deit.safetensors --images=/data/imagenet/val --per-class=1 --out=report
    python -m jaxkd.analyze --weights=runs/first_light/teacher --weights=runs/first_light/student_distilled \\
        --images=embedded:digits --out=report
    python -m jaxkd.analyze --checkpoints=runs/first_light/student_distilled --images=embedded:digits --out=dynamics
    python -m jaxkd.analyze --model=my_package.my_module:features --image-size=224 --images=DIR --out=report
    python -m jaxkd.analyze --weights=runs/mdbn_x4 --weights=runs/edsr_x4 --images=/data/Set14 --out=branches

Options that describe a network (--weights, --model-arg, --label, --variant, --step) belong to the --model before them;
--weights with a work directory of jaxkd needs no --model. The first network is the teacher of the comparisons. A
function of your own gets (B, H, W, 3) fp32 NumPy images in [0, 1] and answers {name: (B, N, C) or (B, h, w, C)}.

Super-resolution networks (mdbn_x*, edsr_x*) get a Fourier analysis of their branches, each beside itself untrained.
--images are then large images, which are shrunk by the network's scale as in training, or pairs ("DIR?lr=NAME"); with
--small-images they are the network's input as they are. Options marked (*) do nothing there and are refused.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd import weights
from jaxkd.analysis import pipeline
from jaxkd.cli.console import Parser, PhaseProgress, end_on_sigterm, fail, model_argument, quiet
from jaxkd.errors import ConfigError, JaxkdError

NOT_OF_BRANCHES = (  # options that do nothing for super-resolution networks
    *("checkpoints", "resize", "image_size", "per_class", "crop_pct", "interpolation", "batch_size", "low_memory"),
    *("layers", "last", "entropy_range", "bins", "gradients", "no_ranks", "permutations", "bootstrap"),
    *("permutation_images", "saliency", "no_compare"),
)


class _OfModel(argparse.Action):
    """Collects options of networks in the order in which they stand on the command line."""

    def __call__(self, parser, namespace, value, option=None) -> None:
        from jaxkd.cli.networks import Wanted

        wanted: list[Wanted] = namespace.wanted
        name = self.dest
        starts = name == "model" or (name == "weights" and (not wanted or wanted[-1].weights))
        if starts:
            wanted.append(Wanted())
        elif not wanted:
            raise ConfigError(
                f"{option}={value} stands before any --model or --weights. It describes a network. Put it after it."
            )
        if name == "model_arg":
            key, argument = model_argument(value)
            wanted[-1].args[key] = argument
        else:
            setattr(wanted[-1], name, value)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m jaxkd.analyze", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(wanted=[])
    networks = parser.add_argument_group("networks")
    for name, text in (
        ("--model", "name in the zoo, or module:function"),
        ("--weights", "file, Hugging Face id or work directory of jaxkd; left out: initial weights"),
        ("--model-arg", "constructor argument NAME=VALUE, may be repeated"),
        ("--label", "what the report calls it"),
        ("--variant", '"ema" or "raw", where the weights hold both'),
        ("--step", 'of a work directory: a number, "last" or "best"'),
    ):
        networks.add_argument(name, action=_OfModel, default=argparse.SUPPRESS, help=text)
    which = networks.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true", help="the moving average, of networks without --variant")
    which.add_argument("--raw", action="store_true", help="the raw weights; default, but for super-resolution the EMA")
    networks.add_argument("--checkpoints", default="", help="work directory of jaxkd: every kept checkpoint of it (*)")
    networks.add_argument("--resize", action="store_true", help="resize position embeddings to the network's grid (*)")
    networks.add_argument("--image-size", type=int, default=0, help="of a function of your own (224) (*)")
    images = parser.add_argument_group("images")
    images.add_argument("--images", required=True, help='folder of images, data set or "embedded:digits"')
    images.add_argument(
        "--per-class", type=int, default=0, help="first N files of each folder (published: 1); 0: all (*)"
    )
    images.add_argument("--max-images", type=int, default=0, help="first N images; 0: all")
    images.add_argument("--small-images", action="store_true", help="super-resolution: they are small already")
    images.add_argument("--crop-pct", type=float, default=0.0, help="default: each network's own (*)")
    images.add_argument("--interpolation", default="", help="default: each network's own (*)")
    what = parser.add_argument_group("statistics (*)")
    what.add_argument(
        "--layers", default="", help="taps or patterns such as block_*,cls_block_*; default: blocks or stages"
    )
    what.add_argument("--last", default="", help="layer for ranks, PCA and SEP; default: the deepest")
    what.add_argument("--entropy-range", default="chunk", metavar="chunk|exact|LOW:HIGH", help="of the histogram")
    what.add_argument("--bins", type=int, default=100, help="of the histogram")
    what.add_argument("--gradients", choices=("none", "class", "loss"), default="class")
    what.add_argument("--no-ranks", action="store_true", help="leave out singular values")
    what.add_argument("--permutations", type=int, default=100, help="channel permutations of SEP; 0: none")
    what.add_argument("--bootstrap", type=int, default=2000, help="draws of the confidence intervals")
    what.add_argument("--permutation-images", type=int, default=0, help="first N images; 0: all")
    what.add_argument("--saliency", type=int, default=2, help="saliency maps of the first N images; 0: none")
    what.add_argument("--no-compare", action="store_true", help="leave out CKA and principal angles")
    how = parser.add_argument_group("how")
    how.add_argument("--out", required=True, help="folder for report.html, results.json, CSV and figures")
    how.add_argument("--overwrite", action="store_true", help="replace an earlier report in --out")
    how.add_argument("--seed", type=int, default=2026, help="of permutations, draws and untrained networks")
    how.add_argument("--batch-size", type=int, default=8, help="images at once; changes no number (*)")
    how.add_argument("--low-memory", action="store_true", help="features of a chunk wait on the disk (*)")
    how.add_argument("--no-figures", action="store_true", help="numbers only")
    return parser


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What was given or is the default, and in `given` the names of what was given, be it the default or not."""
    parser = _parser()
    args, unset = parser.parse_args(argv), object()
    # argparse gives no default to a name that is there already
    probe = argparse.Namespace(**{**dict.fromkeys(vars(args), unset), "wanted": []})
    args.given = {name for name, value in vars(parser.parse_args(argv, probe)).items() if value is not unset}
    return args


def analyze(args: argparse.Namespace, *, command: str = "") -> dict[str, Any]:
    """Does what `args` (see `--help`) say; returns the results that results.json holds."""
    from rich.console import Console

    from jaxkd import parallel
    from jaxkd.analysis.pipeline.dataset_pass import StreamOptions
    from jaxkd.analysis.pipeline.summary import SummaryOptions
    from jaxkd.cli.networks import all_upscalers, wanted_networks
    from jaxkd.data.sources.images import open_images
    from jaxkd.report.tables import write_tables

    out = _out_folder(args)
    wanted = wanted_networks(args.wanted, args.checkpoints)
    if all_upscalers(wanted):
        return _branches(wanted, args, out, command)
    if args.small_images:
        raise ConfigError(
            "--small-images was given, and the networks classify. They take images of one size, and none is shrunk "
            "by a scale. Leave it out."
        )
    entropy_range, value_range = _entropy_range(args.entropy_range)
    _check_counts(args)
    source, labelled = open_images(args.images, per_class=args.per_class, max_images=args.max_images)
    mesh = parallel.make_mesh()
    networks = [_features(w, args, mesh, source, labelled) for w in wanted]
    counts = {n.label: n.num_classes for n in networks}
    pipeline.check_gradient_labels(args.gradients, labelled, source, args.images, counts)
    options = pipeline.AnalysisOptions(
        stream=StreamOptions(
            batch_size=args.batch_size,
            bins=args.bins,
            entropy_range=entropy_range,
            value_range=value_range,
            last=args.last,
            ranks=not args.no_ranks,
            gradients=args.gradients != "none",
            low_memory=args.low_memory,
        ),
        summary=SummaryOptions(
            permutations=0 if args.checkpoints else args.permutations,
            bootstrap=args.bootstrap,
            permutation_images=args.permutation_images,
            seed=args.seed,
        ),
        compare=not (args.no_compare or args.checkpoints),
        crop_pct=args.crop_pct,
        interpolation=args.interpolation,
    )
    console = Console(stderr=True)
    console.print(
        f"{len(networks)} network{'s' if len(networks) > 1 else ''} over {len(source):,} images of {args.images}",
        highlight=False,
        markup=False,
    )
    with PhaseProgress(console) as progress:
        results = pipeline.analyse(networks, source, mesh, options, scratch=out, progress=progress)
        results["settings"] |= {"source": args.images, "command": command}
        _clear(out)
        if args.saliency and not args.checkpoints:
            from jaxkd.analysis.pipeline.saliency_maps import write_saliency

            results["saliency"] = write_saliency(
                networks,
                source,
                out / "saliency",
                count=args.saliency,
                crop_pct=args.crop_pct,
                interpolation=args.interpolation,
                seed=args.seed,
                progress=progress,
            )
    (out / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False))
    write_tables(results, out)
    if args.checkpoints:
        _over_time(results, out / "dynamics", figures=not args.no_figures)
    if not args.no_figures:
        from jaxkd.report.figures import write_figures
        from jaxkd.report.html import write_report

        console.print("drawing figures", highlight=False)
        write_report(results, write_figures(results, out / "figures"), out / "report.html")
    return results


def _branches(wanted: list[Any], args: argparse.Namespace, out: Path, command: str) -> dict[str, Any]:
    """The same for super-resolution networks: the Fourier analysis of their branches."""
    from rich.console import Console

    from jaxkd.cli.branch_networks import analyse_wanted
    from jaxkd.report.branch_figures import branch_sentences
    from jaxkd.report.branch_report import write_branches

    refused = [name for name in NOT_OF_BRANCHES if name in getattr(args, "given", ())]
    if refused:
        raise ConfigError(
            f"--{refused[0].replace('_', '-')} was given, and {wanted[0].label} is a super-resolution network. Its "
            "branches get a Fourier analysis, in which this option has no meaning. Leave it out; --help marks all such "
            "options with (*)."
        )
    _check_counts(args)
    console = Console(stderr=True)
    with PhaseProgress(console) as progress:
        results = analyse_wanted(
            wanted,
            args.images,
            small=args.small_images,
            max_images=args.max_images,
            variant=_variant(args),
            seed=args.seed,
            skipped=lambda s: console.print(f"jaxkd: left out. {s}", highlight=False, markup=False, soft_wrap=True),
            progress=progress,
        )
    results["settings"] |= {"command": command}
    results["sentences"] = branch_sentences(results)
    _clear(out)
    write_branches(results, out, figures=not args.no_figures)
    return results


def _over_time(results: dict[str, Any], folder: Path, *, figures: bool) -> None:
    """Tables and figures of each statistic by step and layer, in the form of those written during training."""
    from jaxkd.report import training_statistics

    rows = [
        {"step": int(m["label"].split()[1]), "layers": m["layers"]}
        | {k: ["nan" if x is None else x for x in v["mean"]] for k, v in m["per_layer"].items()}
        for m in results["models"]
    ]
    training_statistics.write_tables(rows, folder)
    if figures:
        caption = f"{results['settings']['images']} images of {results['settings']['source']}, mean over images"
        training_statistics.draw_tables(rows, folder, caption=caption)


def _out_folder(args: argparse.Namespace) -> Path:
    out = Path(args.out)
    if (out / "results.json").exists() and not args.overwrite:
        raise ConfigError(
            f'--out="{out}" holds an earlier analysis (results.json). Nothing already saved is lost by accident. '
            "Choose another folder, or add --overwrite."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError("no permission to write there")
    except OSError as error:
        raise ConfigError(
            f'--out="{out}" cannot be used ({error.strerror or error}). A report is a folder of files. Name a folder '
            "that can be written."
        ) from None
    return out


def _clear(out: Path) -> None:
    """Removes what an earlier report left, once the new numbers are there."""
    for path in (out / "results.json", out / "report.html", *out.glob("*.csv")):
        path.unlink(missing_ok=True)
    for folder in ("figures", "saliency", "dynamics"):
        shutil.rmtree(out / folder, ignore_errors=True)


def _variant(args: argparse.Namespace) -> str:
    """Which weights of those networks that do not say it themselves."""
    return "ema" if args.ema else "raw" if args.raw else ""


def _entropy_range(text: str) -> tuple[str, tuple[float, float] | None]:
    if text in ("chunk", "exact"):
        return text, None
    try:
        low, high = (float(v) for v in text.split(":"))
        if not -math.inf < low < high < math.inf:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f'--entropy-range="{text}" is not a range. It is the span of the histogram. Use "chunk" (as published), '
            '"exact" (of all images, in a pass of its own), or two numbers such as -8:8.'
        ) from None
    return "given", (low, high)


def _check_counts(args: argparse.Namespace) -> None:
    for name, least in (
        ("batch_size", 1),
        ("bins", 2),
        ("per_class", 0),
        ("max_images", 0),
        ("permutations", 0),
        ("bootstrap", 1),
        ("permutation_images", 0),
        ("saliency", 0),
        ("image_size", 0),
        ("seed", 0),
    ):
        value = getattr(args, name)
        if value < least:
            raise ConfigError(f"--{name.replace('_', '-')}={value} is out of range. It counts. Give {least} or more.")


def _features(wanted: Any, args: argparse.Namespace, mesh: Any, source: Any, labelled: bool) -> Any:
    from jaxkd.cli.networks import name_and_args

    layers = tuple(filter(None, (t.strip() for t in args.layers.split(","))))
    if ":" in wanted.model:
        if wanted.weights or wanted.args:
            raise ConfigError(
                f'--model="{wanted.model}" is a function of your own, which builds its network itself. --weights and '
                "--model-arg do not reach it. Leave them out."
            )
        size = (args.image_size or 224, args.image_size or 224)
        return pipeline.callable_features(wanted.model, image_size=size, label=wanted.label, layers=layers)
    if args.image_size:
        raise ConfigError(
            f"--image-size={args.image_size} is the size that a function of your own gets, and {wanted.label} is a "
            "network of the zoo. Use --model-arg=img_size=SIZE, with --resize for weights of another grid."
        )
    network = weights.build_network(*name_and_args(wanted))
    if wanted.weights:
        network = weights.load_weights(
            network, wanted.weights, variant=wanted.variant or _variant(args), step=wanted.step, resize=args.resize
        )
    gradient_of = "class" if args.gradients == "none" else args.gradients
    return pipeline.network_features(
        network, mesh, label=wanted.label, layers=layers, gradient_of=gradient_of, seed=args.seed
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, or 2 for what the user can mend."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _arguments(argv)
        quiet()
        end_on_sigterm()
        results = analyze(args, command=shlex.join(["python", "-m", "jaxkd.analyze", *argv]))
    except JaxkdError as error:
        fail(error)
    except KeyboardInterrupt:
        print("jaxkd: stopped.", file=sys.stderr)
        return 130
    for model in results.get("models", ()):
        print(_line(model))
        for note in model["notes"]:
            print(f"  {note}")
    for sentence in results.get("sentences", ()):
        print(sentence)
    written = Path(args.out) / ("results.json" if args.no_figures else "report.html")
    print(f"{written} ({results['settings']['seconds']:.1f} s)")
    return 0


def _line(model: dict[str, Any]) -> str:
    last, rows = model["last"], model["per_layer"]
    images, layers = model["images"], len(model["layers"])
    parts = [f"{model['label']}: {images} image{'s'[: images > 1]}, {layers} layer{'s'[: layers > 1]}"]
    if last and last["ranks"] and last["ranks"]["99"]["p99"] is not None:
        parts.append(
            f"{last['layer']} needs {last['ranks']['99']['p99']:.0f} of {last['D']} directions for 99 % of an image's "
            "energy (99th percentile)"
        )
    if last and last["pca"] and last["pca"]["uncentred"]:
        parts.append(f"{last['pca']['uncentred']['required_d']['99']['p99']:.0f} in a shared basis")
    index = model["layers"].index(last["layer"]) if last else -1
    entropy = rows["entropy"]["mean"][index]
    if entropy is not None:
        parts.append(f"entropy {entropy:.2f} bits there")
    return " · ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
