"""Cuts large images into overlapping sub-images: training reads small files much faster than parts of large ones.

    jaxkd subimages --in=/data/DIV2K_train_HR --out=/data/DIV2K_train_HR_sub
    jaxkd subimages --in=/data/DIV2K_train_LR_bicubic/X4 --out=/data/DIV2K_sub_LR/X4 --size=120 --step=60

Sizes, places and names are those of BasicSR's preparation of DIV2K: 480 pixels every 240, `0001_s001.png`, ... Small
images belong to large ones cut alike, with size and step divided by the scale. The same command continues what was
stopped, however it was stopped. Nothing is ever overwritten. Prints a line for people and a line of JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from jaxkd.cli import console
from jaxkd.cli.commands import program
from jaxkd.config.paths import user_path
from jaxkd.data.prepare.subimages import CutOptions, CutResult, cut_folder
from jaxkd.errors import check_range


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(prog=program("subimages"), description=__doc__)
    parser.add_argument("--in", dest="source", required=True, metavar="DIR", help="images, in subfolders too")
    parser.add_argument("--out", required=True, metavar="DIR", help="where PNG sub-images go, in the same subfolders")
    parser.add_argument("--size", type=int, default=480, help="pixels of a side (480)")
    parser.add_argument("--step", type=int, default=240, help="pixels from one to the next (240)")
    parser.add_argument("--thresh", type=int, default=0, help="pixels that may be left out at the end (0)")
    parser.add_argument("--workers", type=int, default=0, help="threads; default: one per core, at most 16")
    return parser


def run(args: argparse.Namespace) -> CutResult:
    """Cuts the images that `args` (see `--help`) name, with their progress on stderr."""
    check_range("--workers", args.workers, 0, hint="0 is one per core")
    options = CutOptions(args.size, args.step, args.thresh)
    subimages = 0
    with console.progress() as bar:

        def report(done: int, of: int, more: int) -> None:
            nonlocal subimages
            subimages += more
            bar.show("images", done, of, detail=f"{subimages:,} sub-images")

        return cut_folder(
            user_path(args.source, "--in"), user_path(args.out, "--out"), options, workers=args.workers, report=report
        )


@console.command("stopped; the same command continues.", resumable=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, 1 some images could not be read, 2 user error, 3 stopped on request."""
    args = _parser().parse_args(argv)
    start = time.perf_counter()
    result = run(args)
    for reason in result.failed:
        print(f"jaxkd: left out. {reason}", file=sys.stderr)
    small = f", {result.small:,} of them smaller than {args.size} and kept whole there" if result.small else ""
    print(
        f"{result.subimages:,} sub-images of {result.images:,} images{small}, {result.written:,} new, "
        f"{len(result.failed):,} images unreadable, {time.perf_counter() - start:.1f} s"
    )
    console.print_json(asdict(result))
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
