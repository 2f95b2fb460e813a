"""Spectra, entropy, ranks, PCA, SEP and saliency of features; branches of super-resolution networks.

    jaxkd analyze --weights=runs/a/teacher --weights=runs/b --images=embedded:digits --out=report
    jaxkd analyze --model=cait_s24_224 --weights=cait.safetensors --images=/data/imagenet/val --per-class=1 --out=a
    jaxkd analyze --checkpoints=runs/first_light/teacher --images=embedded:digits --out=dynamics
    jaxkd analyze --model=my_package.my_module:features --image-size=224 --images=DIR --out=report
    jaxkd analyze --weights=runs/mdbn_x4 --weights=runs/edsr_x4 --images=/data/Set14 --out=branches
    jaxkd analyze --weights=runs/eeg --model=eeg_words_base --label=untrained --out=report

The first network is the teacher of the comparisons. A function of your own takes (B, H, W, 3) fp32 NumPy images in
[0, 1] and returns {name: (B, N, C) or (B, h, w, C)}. Super-resolution networks get a Fourier analysis of their
branches; their --images are large ones, or pairs ("DIR?lr=NAME"), and options marked (*) are refused. Encoders of EEG
words are analysed over passages of --words words of the test readings of their run.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.cli import compile_cache, console, networks
from jaxkd.cli.commands import program
from jaxkd.errors import ConfigError, check_range

NOT_OF_BRANCHES = (  # options that nothing reads for super-resolution networks
    *("resize", "image_size", "layout", "per_class", "crop_pct", "interpolation", "batch_size", "low_memory", "layers"),
    *("entropy_range", "bins", "gradients", "no_ranks", "permutations", "bootstrap", "permutation_images", "saliency"),
    *("last", "no_compare", "class_order", "words"),
)
NOT_OF_EEG = (  # options that nothing reads for encoders of EEG words
    *("resize", "image_size", "layout", "per_class", "class_order", "small_images", "crop_pct", "interpolation"),
    *("gradients", "saliency"),
)
RARE = (
    *("--step", "--old-grid", "--resize", "--image-size", "--layout", "--class-order", "--small-images", "--words"),
    *("--crop-pct", "--interpolation", "--last", "--entropy-range", "--bins", "--gradients", "--no-ranks"),
    *("--no-compare", "--permutations", "--permutation-images", "--low-memory", "--seed", "--batch-size"),
    "--no-compile-cache",
)
LEAST = {"batch_size": 1, "bins": 2, "words": 2}  # smallest values; 0 of other numbers


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(prog=program("analyze"), description=__doc__, rare=RARE)
    group = networks.add_options_of_networks(parser)
    group.add_argument("--resize", action="store_true", help="resize position embeddings (*)")
    group.add_argument("--image-size", type=int, default=0, help="of a function of your own (224) (*)")
    group.add_argument("--layout", default="", choices=("nhwc", "nchw"), help="of maps of a function of your own (*)")
    images = parser.add_argument_group("images")
    images.add_argument("--images", default="", help='folder, data set or "embedded:digits"; EEG: recordings')
    images.add_argument("--per-class", type=int, default=0, help="first N files of each folder; 0: all (*)")
    images.add_argument("--max-images", type=int, default=0, help="first N images or passages; 0: all")
    images.add_argument(
        "--class-order",
        choices=("natural", "text"),
        default="natural",
        help="of class folders: 1, 2, 10 or 1, 10, 2 (*)",
    )
    images.add_argument("--small-images", action="store_true", help="super-resolution: they are small already")
    images.add_argument("--words", type=int, default=32, help="of EEG: words of a passage (*)")
    images.add_argument("--crop-pct", type=float, default=0.0, help="default: each network's own (*)")
    images.add_argument("--interpolation", default="", help="default: each network's own (*)")
    group = parser.add_argument_group("statistics (*)")
    group.add_argument("--layers", default="", help="taps or patterns, as block_*; default: all blocks")
    group.add_argument("--last", default="", help="layer for ranks, PCA and SEP; default: the deepest")
    group.add_argument(
        "--entropy-range", default="chunk", metavar="RANGE", help="of the histogram: chunk, exact or LOW:HIGH"
    )
    group.add_argument("--bins", type=int, default=100, help="of the histogram")
    group.add_argument("--gradients", choices=("none", "class", "loss"), default="class", help="of what (class)")
    group.add_argument("--no-ranks", action="store_true", help="leave out singular values")
    group.add_argument("--no-compare", action="store_true", help="leave out CKA and principal angles")
    group.add_argument("--permutations", type=int, default=100, help="channel permutations of SEP; 0: none")
    group.add_argument("--bootstrap", type=int, default=2000, help="draws of the confidence intervals; 0: none")
    group.add_argument("--permutation-images", type=int, default=0, help="first N images; 0: all")
    group.add_argument("--saliency", type=int, default=2, help="saliency maps of the first N images; 0: none")
    group = parser.add_argument_group("output and resources")
    group.add_argument("--out", required=True, help="folder for report.html, JSON, CSV and figures")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier report in --out")
    group.add_argument("--seed", type=int, default=2026, help="of permutations, draws and untrained networks")
    group.add_argument("--batch-size", type=int, default=8, help="images at once; changes no number (*)")
    group.add_argument("--low-memory", action="store_true", help="features of a chunk wait on the disk (*)")
    group.add_argument("--no-figures", action="store_true", help="numbers only")
    compile_cache.add_option(parser)
    return parser


def analyze(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Runs the analysis that `args` (see `--help`), parsed from `argv`, describe; returns what results.json holds."""
    from jaxkd.analysis.pipeline import open_report

    for name, value in vars(args).items():
        if type(value) is int:
            check_range(f"--{name.replace('_', '-')}", value, least=LEAST.get(name, 0))
    command = f"{program('analyze')} {shlex.join(argv)}"
    out = open_report(args.out, overwrite=args.overwrite)
    given = networks.resolve(args.networks)
    over_time = any(n.step == networks.ALL_STEPS for n in args.networks)
    task, named = networks.common_task(given), {a.partition("=")[0].removeprefix("--").replace("-", "_") for a in argv}
    old_grid = {"old_grid": next((n.old_grid for n in given if n.old_grid), None)}
    if task == "eeg_words":
        unread = {name: getattr(args, name) for name in NOT_OF_EEG if name in named}
        console.refuse_options(unread | old_grid, f"{given[0].label} is an encoder of EEG words")
        return _analyze_eeg(given, args, out, command, over_time=over_time)
    if not args.images:
        raise ConfigError('--images is missing. Give a folder of images, a data set or "embedded:digits".')
    if task == "classification":
        unread = {"small_images": args.small_images, "words": args.words if "words" in named else None}
        console.refuse_options(unread, "the networks classify")
        return _analyze_features(given, args, out, command, over_time=over_time)
    unread = {name: getattr(args, name) for name in NOT_OF_BRANCHES if name in named}
    unread |= {"checkpoints": given[0].weights} if over_time else {}
    console.refuse_options(unread | old_grid, f"{given[0].label} is a super-resolution network")
    return _analyze_branches(given, args, out, command)


def _picked(kind: type, args: argparse.Namespace, **others: Any) -> Any:
    """A `kind` of the options that have the names of its fields, and of `others`."""
    names = {field.name for field in dataclasses.fields(kind)} & vars(args).keys() - others.keys()
    return kind(**{name: getattr(args, name) for name in names}, **others)


def _options(args: argparse.Namespace, *, over_time: bool, **stream: Any) -> Any:
    """The `AnalysisOptions` of the command line; `stream` is further fields of its `StreamOptions`."""
    from jaxkd.analysis import pipeline

    if over_time:
        args.permutations, args.saliency, args.no_compare = 0, 0, True
    ranges = pipeline.parse_entropy_range(args.entropy_range)
    options = _picked(pipeline.StreamOptions, args, entropy_range=ranges, ranks=not args.no_ranks, **stream)
    summary = _picked(pipeline.SummaryOptions, args)
    return _picked(pipeline.AnalysisOptions, args, stream=options, summary=summary, compare=not args.no_compare)


def _analyze_eeg(
    given: Sequence[networks.NetworkArgs], args: argparse.Namespace, out: Path, command: str, *, over_time: bool
) -> dict[str, Any]:
    from jaxkd import parallel
    from jaxkd.analysis import pipeline
    from jaxkd.experiment.eeg.encoders import open_encoders

    options = _options(args, over_time=over_time, gradients=False)
    mesh = parallel.make_mesh()
    with console.progress() as progress:
        features, passages, source = open_encoders(
            given,
            mesh,
            load=networks.load,
            source=args.images,
            words=args.words,
            most=args.max_images,
            layers=networks.layer_names(args.layers),
            seed=args.seed,
            on_progress=lambda *done: progress.show("reading", *done),
        )
        progress.say(f"{len(features)} network{'s'[: len(features) > 1]}, {len(passages):,} passages of {source}")
        return pipeline.write_analysis(
            features,
            passages,
            mesh,
            out,
            options,
            over_time=over_time,
            figures=not args.no_figures,
            about={"source": source, "command": command},
            progress=progress,
        )


def _analyze_features(
    given: Sequence[networks.NetworkArgs], args: argparse.Namespace, out: Path, command: str, *, over_time: bool
) -> dict[str, Any]:
    from jaxkd import parallel
    from jaxkd.analysis import pipeline
    from jaxkd.data.sources.images import open_images

    options = _options(args, over_time=over_time, gradients=args.gradients != "none")
    source, labelled = open_images(
        args.images, per_class=args.per_class, max_images=args.max_images, class_order=args.class_order
    )
    mesh = parallel.make_mesh()
    shared = {name: getattr(args, name) for name in ("layers", "gradients", "image_size", "resize", "seed", "layout")}
    with console.progress() as progress:
        features = []
        for network in given:
            progress.say(f"{network.label}: loading")
            features.append(networks.feature_source(network, mesh, **shared))
        counts = {f.label: f.num_classes for f in features}
        pipeline.check_gradient_labels(args.gradients, labelled, source, args.images, counts)
        progress.say(f"{len(features)} network{'s'[: len(features) > 1]}, {len(source):,} images of {args.images}")
        return pipeline.write_analysis(
            features,
            source,
            mesh,
            out,
            options,
            saliency=args.saliency,
            over_time=over_time,
            figures=not args.no_figures,
            about={"source": args.images, "command": command},
            progress=progress,
        )


def _analyze_branches(
    given: Sequence[networks.NetworkArgs], args: argparse.Namespace, out: Path, command: str
) -> dict[str, Any]:
    from jaxkd.analysis.pipeline.branches import BranchNetwork, write_branch_analysis

    loaded = [(n.label, networks.load(n)) for n in given]
    with console.progress() as progress:
        return write_branch_analysis(
            [BranchNetwork(label, n.model, n.variables, n.origin) for label, n in loaded],
            args.images,
            out,
            small=args.small_images,
            max_images=args.max_images,
            seed=args.seed,
            figures=not args.no_figures,
            command=command,
            skipped=lambda sentence: progress.say(f"jaxkd: left out. {sentence}"),
            progress=progress,
        )


@console.command()
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, or 2 for a user error."""
    from jaxkd.report.results import sentences

    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(argv)
    console.quiet()
    compile_cache.use_compile_cache(not args.no_compile_cache)
    begin = time.perf_counter()
    results = analyze(args, argv)
    written = Path(args.out).expanduser() / ("results.json" if args.no_figures else "report.html")
    print(*sentences(results), f"{written} ({time.perf_counter() - begin:.1f} s)", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
