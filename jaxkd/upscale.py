"""Enlarges pictures by a super-resolution network: a file, a folder or a pattern, of any size.

    jaxkd upscale --model=mdbn_x4 --weights=mdbn_x4.safetensors --in=photo.jpg --out=photo_x4.png
    jaxkd upscale --weights=runs/mdbn_x4 --variant=ema --in=photos --out=photos_x4 --compare
    jaxkd upscale --model=mdbn_x2 --weights=net_g.pth --in="scans/**/*.tif" --out=large --tile=256 --ensemble

PNG, JPEG, WebP and TIFF; BMP, GIF, AVIF and others are read and become PNG. Greyscale, transparency, 16 bits a channel,
the ICC profile, resolution, EXIF, XMP, text and comments stay where the format can hold them, and a note says where it
cannot; the EXIF orientation is applied. Large pictures go through the network in windows whose seams are exact.
Transparency is enlarged by bicubic interpolation. A picture that cannot be done is named and the others are done.
Prints a line for people and a line of JSON; exit code 0 all done, 1 some not, 2 nothing could be begun.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.cli import compile_cache, console, networks
from jaxkd.cli.commands import program
from jaxkd.data.files import LONGEST_NAME
from jaxkd.errors import ConfigError, check_range, printable

ENDINGS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
PAGE = "compare.html"


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(prog=program("upscale"), description=__doc__)
    networks.add_network_options(parser)
    group = parser.add_argument_group("pictures")
    group.add_argument(
        "--in",
        dest="sources",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE|DIR|GLOB",
        help="several or repeated; subfolders count too",
    )
    group.add_argument("--out", required=True, metavar="DIR|FILE", help="names and subfolders stay")
    group.add_argument("--format", default="", choices=tuple(ENDINGS), help="of the results; default: as they were")
    group.add_argument("--quality", type=int, default=95, help="of JPEG and WebP (95); WebP is lossless at 100")
    group.add_argument("--overwrite", action="store_true", help="replace earlier results")
    group.add_argument("--compare", action="store_true", help=f"also {PAGE}: bicubic against the result")
    group = parser.add_argument_group("computation")
    group.add_argument(
        "--tile", type=int, default=0, metavar="PIXELS", help="side of a window of the input; default by scale"
    )
    group.add_argument("--batch-size", type=int, default=0, help="windows at once; default: 1 on a CPU, else 4")
    group.add_argument("--compute", choices=("float32", "bfloat16"), default="float32")
    group.add_argument("--ensemble", action="store_true", help="mean over 8 flips and rotations: 8 times the work")
    compile_cache.add_option(parser)
    return parser


def upscale(args: argparse.Namespace) -> dict[str, Any]:
    """Enlarges the pictures that `args` (see `--help`) name; returns what is printed as JSON."""
    from jaxkd import weights
    from jaxkd.superres import enlarge_files, inputs
    from jaxkd.superres.compare_page import ComparisonPage
    from jaxkd.superres.tiling import Enlarger

    given = networks.network_args(args)
    check_range("--tile", args.tile, least=0)
    check_range("--batch-size", args.batch_size, least=0)
    check_range("--quality", args.quality, least=1, most=100)
    found = inputs.find_pictures(args.sources)
    targets, folder = inputs.place(found, args.out, ending=ENDINGS.get(args.format, ""))
    page_path = None
    if args.compare:
        to_file = len(targets) == 1 and folder != Path(args.out).expanduser()
        page_path = folder / (_page_name(next(iter(targets.values()))) if to_file else PAGE)
        if page_path.exists() and not args.overwrite:
            raise ConfigError(f'"{page_path}" exists already. Add --overwrite, or choose another --out.')
    networks.require_upscaler(networks.identify(given)[0])
    network = networks.load(given, compute=args.compute)
    model, variables = weights.for_inference(network.model, network.variables)
    enlarger = Enlarger(model, variables, tile=args.tile, batch_size=args.batch_size, ensemble=args.ensemble)
    inputs.make_folder(folder)
    page = ComparisonPage(f"Bicubic and {network.spec.name}, x{enlarger.scale}") if page_path else None
    with console.progress() as progress:
        progress.say(f"{network.spec.name}, {network.origin}: {len(targets):,} picture{'s'[: len(targets) != 1]}")
        if found.others:
            progress.say(f"Left out, because they are not read as pictures: {inputs.counted(found.others)}")
        result = enlarge_files.enlarge_files(
            targets,
            enlarger,
            quality=args.quality,
            overwrite=args.overwrite,
            page=page,
            say=progress.say,
            progress=lambda done, total: progress.show("windows", done, total),
        )
    if page:
        page.write(page_path, overwrite=args.overwrite)
    return {
        "model": network.spec.name,
        "weights": network.origin,
        "scale": enlarger.scale,
        "tile": enlarger.tile,
        "compute": args.compute,
        "ensemble": args.ensemble,
        **vars(result),
        "left_out": dict(found.others),
        "compare": str(page_path) if page else "",
    }


def _page_name(target: Path) -> str:
    """Name of the page beside one result, short enough for the file system."""
    stem = os.fsencode(target.stem)[: LONGEST_NAME - len(PAGE) - 1]
    return f"{os.fsdecode(stem)}_{PAGE}"


@console.command("stopped. Finished pictures stay.")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see the module for exit codes."""
    args = _parser().parse_args(argv)
    console.quiet()
    compile_cache.use_compile_cache(not args.no_compile_cache)
    result = upscale(args)
    page = f" · {printable(result['compare'])}" if result["compare"] else ""
    print(
        f"{result['model']}: {len(result['done']):,} enlarged x{result['scale']}, {len(result['failed']):,} left out, "
        f"{result['seconds']:.1f} s, {result['megapixels_per_second']:.2f} megapixels/s{page}"
    )
    console.print_json(result)
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
