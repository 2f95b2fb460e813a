"""Enlarges pictures by a super-resolution network: a file, a folder or a pattern, of any size.

    python -m jaxkd.upscale --model=mdbn_x4 --weights=mdbn_x4.safetensors --in=photo.jpg --out=photo_x4.png
    python -m jaxkd.upscale --weights=runs/mdbn_x4 --in=photos --out=photos_x4 --compare
    python -m jaxkd.upscale --model=mdbn_x2 --weights=net_g.pth --in="scans/**/*.tif" --out=large --tile=256 --ensemble

PNG, JPEG, WebP and TIFF. Greyscale, transparency, 16-bit greyscale and the ICC profile stay; the EXIF orientation is
applied, the other tags stay. Large pictures go through the network in windows whose seams are exact. Transparency is
enlarged by bicubic interpolation: the network was trained on photographs and would invent texture in it. A picture
that cannot be done is named and the others are done. Prints a line for people and a line of JSON; exit code 0 all done,
1 some not, 2 nothing could be begun.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxkd import weights
from jaxkd.cli.console import Parser, fail, model_argument, quiet
from jaxkd.errors import ConfigError, DataError, JaxkdError

ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
PAGE = "compare.html"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m jaxkd.upscale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    network = parser.add_argument_group("network")
    network.add_argument("--model", default="", help="such as mdbn_x4; not needed for a work directory")
    network.add_argument("--model-arg", action="append", default=[], metavar="NAME=VALUE", help="constructor argument")
    network.add_argument("--weights", default="", help="file, Hugging Face id or work directory of jaxkd")
    network.add_argument(
        "--variant", default="", help='"ema" or "raw" where the weights hold both; default: the moving average'
    )
    network.add_argument("--step", default="", help='of a work directory: a number, "last" (default) or "best"')
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument("--in", dest="source", default="", metavar="FILE|DIR|GLOB", help="subfolders count too")
    pictures.add_argument("--out", default="", metavar="DIR|FILE", help="names and subfolders stay")
    pictures.add_argument("--format", default="", choices=("", *ENDINGS), help="of the results; default: as they were")
    pictures.add_argument("--quality", type=int, default=95, help="of JPEG and WebP (95); WebP is lossless at 100")
    pictures.add_argument("--overwrite", action="store_true", help="replace earlier results")
    pictures.add_argument("--compare", action="store_true", help=f"also write {PAGE}: bicubic against the result")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--tile", type=int, default=0, metavar="PIXELS", help="side of a window of the input; default by scale"
    )
    how.add_argument("--batch-size", type=int, default=0, help="windows at once; default: 1 on a CPU, else 4")
    how.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
    how.add_argument("--ensemble", action="store_true", help="mean over 8 flips and rotations: 8 times the work")
    return parser


@dataclass
class Result:
    """What was done.

    Attributes:
      model, weights: which network.
      done: {"in", "out", "size", "seconds", "notes"} of each result; size is (height, width).
      failed: a sentence for each picture without one.
      compare: the page, or "".
      seconds: of everything but finding files and weights.
      megapixels_per_second: of the results.
    """

    model: str
    weights: str
    scale: int
    tile: int
    compute: str
    ensemble: bool
    done: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    compare: str = ""
    seconds: float = 0.0
    megapixels_per_second: float = 0.0


def upscale(args: argparse.Namespace, say: Callable[[str], None] = lambda _: None) -> Result:
    """Does what `args` (see `--help`) say; `say` gets a line whenever there is something to tell."""
    from jaxkd.superres import image_io, inputs
    from jaxkd.superres.compare_page import ComparisonPage

    _check(args)
    files, root = inputs.find_pictures(args.source)
    targets, folder = inputs.place(files, root, args.out, source=args.source, ending=ENDINGS.get(args.format, ""))
    for target in targets.values():
        image_io.format_of(target)
    alone = len(targets) == 1 and folder != Path(args.out).expanduser()
    page_path = folder / (f"{next(iter(targets.values())).stem}_{PAGE}" if alone else PAGE)
    if args.compare and page_path.exists() and not args.overwrite:
        raise ConfigError(
            f'"{page_path}" exists already. Nothing is overwritten unasked. Add --overwrite, or choose another --out.'
        )
    _make_folder(folder)
    network, enlarger = _network(args)
    result = Result(network.spec.name, network.origin, enlarger.scale, enlarger.tile, args.compute, args.ensemble)
    say(f"{result.model} ({result.weights}), {len(targets):,} picture{'s' if len(targets) > 1 else ''}")

    def failed(error: Exception) -> None:
        result.failed.append(str(error))
        say(f"jaxkd: left out. {error}")

    jobs = _jobs(targets, args, enlarger.scale, failed)
    page = ComparisonPage(f"Bicubic and {result.model}, x{result.scale}") if args.compare else None
    start = time.perf_counter()
    with _Progress(enlarger, [info for info, _ in jobs]) as progress:
        for info, target in jobs:
            try:
                done = _enlarge(info, target, enlarger, args, progress, page)
            except (JaxkdError, OSError, MemoryError) as error:
                progress.skip(info)
                failed(error if isinstance(error, JaxkdError) else _explained(info.path, error))
                continue
            result.done.append(done)
            notes = "".join(f"; {note}" for note in done["notes"])
            say(f"{target} {done['size'][1]:,} x {done['size'][0]:,}, {done['seconds']:.1f} s{notes}")
    if page is not None and len(page):
        page.write(page_path, overwrite=args.overwrite)
        result.compare = str(page_path)
    result.seconds = time.perf_counter() - start
    pixels = sum(d["size"][0] * d["size"][1] for d in result.done)
    result.megapixels_per_second = pixels / 1e6 / max(result.seconds, 1e-9)
    return result


def _check(args: argparse.Namespace) -> None:
    for name, value, why in (
        ("weights", args.weights, "An untrained network turns pictures into noise"),
        ("in", args.source, "There has to be something to enlarge"),
        ("out", args.out, "Originals stay as they are, so results need a place of their own"),
    ):
        if not value:
            raise ConfigError(
                f"--{name} is missing. {why}. For example: python -m jaxkd.upscale --model=mdbn_x4 "
                "--weights=mdbn_x4.safetensors --in=photos --out=photos_x4."
            )
    for name, least, most in (("tile", 0, None), ("batch_size", 0, None), ("quality", 1, 100)):
        value = getattr(args, name)
        if value < least or (most is not None and value > most):
            raise ConfigError(
                f"--{name.replace('_', '-')}={value} is out of range. It has to make sense as a number of its kind. "
                f"Give {least} {'or more' if most is None else f'to {most}'}."
            )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f'--out="{folder}" cannot be made ({error.strerror or error}). Results need a folder that can be written '
            "to. Check the path and its permissions."
        ) from None


def _network(args: argparse.Namespace) -> tuple[Any, Any]:
    """The network with its weights, and what runs it."""
    from jaxkd import models, train
    from jaxkd.superres.tiling import Enlarger

    name, model_args, variant = args.model, {}, args.variant
    run = train.find_run(args.weights)
    if run is not None:
        saved = train.read_config(run)
        trained = saved.get("student", {})
        if name and name != trained.get("name"):
            raise ConfigError(
                f'--model="{name}", but the work directory "{args.weights}" trained {trained.get("name")}. Its weights '
                "fit no other network. Leave --model out."
            )
        name = trained.get("name", "")
        model_args = {k: v for k, v in trained.get("args", {}).items() if v is not None}
        variant = variant or ("ema" if saved.get("ema", {}).get("decay") else "raw")
    if not name:
        raise ConfigError(
            f'--model is missing, and --weights="{args.weights}" is not a work directory of jaxkd that would know it. '
            f"A file of weights does not say which network it is of. Give one of: {', '.join(_upscalers())}."
        )
    if models.spec(name).task != "restoration":
        raise ConfigError(
            f"{name} classifies images and cannot enlarge them. Its answer is a class, not a picture. Use one of: "
            f"{', '.join(_upscalers())}."
        )
    model_args |= dict(model_argument(a) for a in args.model_arg)
    network = weights.build_network(name, model_args, compute=args.compute)
    network = weights.load_weights(network, args.weights, variant=variant, step=args.step)
    model, variables = weights.for_inference(network.model, network.variables)
    return network, Enlarger(model, variables, tile=args.tile, batch_size=args.batch_size, ensemble=args.ensemble)


def _upscalers() -> list[str]:
    from jaxkd import models

    return [name for name in models.list_models() if models.spec(name).task == "restoration"]


def _jobs(
    targets: dict[Path, Path], args: argparse.Namespace, scale: int, failed: Callable[[Exception], None]
) -> list[tuple[Any, Path]]:
    """(header, target) of every picture that can be done, by what can be known without decoding one."""
    from jaxkd.superres import image_io

    jobs, there = [], []
    for file, target in targets.items():
        if target.exists() and not args.overwrite:
            there.append(target)
            continue
        try:
            info = image_io.inspect(file)
            image_io.check_writable(info, target, scale)
        except JaxkdError as error:
            failed(error)
        else:
            jobs.append((info, target))
    for target in there:
        failed(DataError(f'"{target}" exists already. Nothing is overwritten unasked. Add --overwrite to replace it.'))
    return jobs


def _enlarge(
    info: Any, target: Path, enlarger: Any, args: argparse.Namespace, progress: _Progress, page: Any
) -> dict[str, Any]:
    """One picture from file to file; returns its entry of `Result.done`."""
    import numpy as np
    from PIL import Image

    from jaxkd.data.transforms.imresize import imresize
    from jaxkd.superres import image_io

    start, scale = time.perf_counter(), enlarger.scale
    with image_io.replacing(target, overwrite=args.overwrite) as partial:  # first: a full disk shows before work
        picture = image_io.read_picture(info.path)
        pixels, alpha = picture.pixels, None
        if info.alpha:
            alpha = pixels[..., -1]
            pixels = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
        # Pillow's own memory is the canvas: it needs no second one to write from.
        canvas = Image.new(picture.mode, (scale * pixels.shape[1], scale * pixels.shape[0]))
        for (rows, columns), part in enlarger.parts(pixels):
            if alpha is not None:
                window = imresize(alpha[rows.start : rows.stop, columns.start : columns.stop], scale)
                y, x = scale * (rows.first - rows.start), scale * (columns.first - columns.start)
                window = window[y : y + part.shape[0], x : x + part.shape[1], None]
                part = np.concatenate([part if part.ndim == 3 else part[..., None], window], axis=2)
            canvas.paste(Image.fromarray(np.ascontiguousarray(part)), (scale * columns.first, scale * rows.first))
            progress.advance()
        notes = image_io.write_picture(
            canvas, target, partial, exif=picture.exif, icc=picture.icc, quality=args.quality
        )
    if page is not None:
        page.add(info.path.name, picture.pixels, canvas, scale, icc=picture.icc)
    return {
        "in": str(info.path),
        "out": str(target),
        "size": [canvas.height, canvas.width],
        "seconds": time.perf_counter() - start,
        "notes": [*info.notes, *notes],
    }


def _explained(path: Path, error: Exception) -> DataError:
    if isinstance(error, MemoryError):
        return DataError(
            f'"{path}" does not fit into memory. Picture and result are held whole. Cut it into pieces, or use a '
            "machine with more memory."
        )
    return DataError(f'"{path}" was given up ({error}). The system refused a file. Check the disk and permissions.')


class _Progress:
    """Windows of all pictures: how far, how fast, how long still; silent where stderr is no terminal."""

    def __init__(self, enlarger: Any, infos: list[Any]):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._count = lambda info: len(enlarger.layout(info.height, info.width).tiles)
        self._left = 0
        self._total, self._done, self._start = sum(map(self._count, infos)), 0, time.perf_counter()
        console = Console(stderr=True)
        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn("windows"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=self._total, rate="")

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One window more is done."""
        self._done += 1
        rate = f"{self._done / max(time.perf_counter() - self._start, 1e-9):.1f} windows/s"
        self._bar.update(self._task, completed=self._done, total=max(self._total, self._done), rate=rate)

    def skip(self, info: Any) -> None:
        """A picture was given up."""
        self._total -= self._count(info)
        self._bar.update(self._task, completed=self._done, total=max(self._total, self._done))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see the module for exit codes."""
    try:
        args = _parser().parse_args(argv)
        quiet()
        result = upscale(args, lambda line: print(line, file=sys.stderr, flush=True))
    except JaxkdError as error:
        fail(error)
    except KeyboardInterrupt:
        print("jaxkd: stopped. Finished pictures stay.", file=sys.stderr)
        return 130
    page = f" · {result.compare}" if result.compare else ""
    print(
        f"{result.model}: {len(result.done):,} enlarged x{result.scale}, {len(result.failed):,} left out, "
        f"{result.seconds:.1f} s, {result.megapixels_per_second:.2f} megapixels/s{page}"
    )
    print(json.dumps(result.__dict__))
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
