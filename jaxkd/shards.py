"""Puts an image folder into shards: few large files with checksums, for disks that hate millions of small ones.

    jaxkd shards --in=/data/imagenet --out=/data/imagenet_shards
    jaxkd shards --in=/data/imagenet --out=/data/imagenet_256 --resize=256 --format=arrayrecord
    jaxkd shards --verify=/data/imagenet_shards

Files are kept byte for byte unless --resize is given; labels and order are the folder's, so that training from the
shards (--config.data.source=/data/imagenet_shards) gives the same losses. The same command continues a conversion that
was stopped, however it was stopped. Nothing is ever overwritten. Prints a line per split for people and a line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxkd.cli import console
from jaxkd.cli.commands import program
from jaxkd.config.paths import user_path
from jaxkd.data.prepare.shards import Report, ShardOptions, convert, verify
from jaxkd.data.sources.folder import FolderSource
from jaxkd.data.sources.registry import SPLITS
from jaxkd.data.sources.shards import FORMATS, Manifest, is_shards
from jaxkd.errors import ConfigError, DataError, check_range, first_few


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(prog=program("shards"), description=__doc__)
    parser.add_argument("--in", dest="source", default="", metavar="FOLDER", help="with <split>/<label>/<image>")
    parser.add_argument("--out", default="", metavar="DIR", help="where <split>/manifest.json and the shards go")
    parser.add_argument("--split", choices=SPLITS, help="only this one; default: those that the folder has")
    parser.add_argument("--format", choices=tuple(FORMATS), default="tar", help="arrayrecord needs jaxkd[shards]")
    parser.add_argument(
        "--class-order", choices=("natural", "text"), default="natural", help="of labels: 1, 2, 10 as timm; 1, 10, 2"
    )
    parser.add_argument("--resize", type=int, default=0, metavar="N", help="shrink short sides to N pixels, as JPEG")
    parser.add_argument("--quality", type=int, default=95, help="of JPEGs that --resize writes, 1 to 100")
    parser.add_argument("--shard-size", type=float, default=256, metavar="MB", help="of a shard, in 10^6 bytes")
    parser.add_argument("--workers", type=int, default=0, help="threads; default: one per core, at most 16")
    parser.add_argument("--verify", default="", metavar="DIR", help="read all shards there and compare checksums")
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.verify:
        if args.source or args.out:
            raise ConfigError(
                f'--verify="{args.verify}" came with --in or --out. Run the two commands one after the other.'
            )
        return
    if not (args.source and args.out):
        raise ConfigError(
            f"--{'out' if args.source else 'in'} is missing. For example: {program('shards')} --in=/data/imagenet "
            "--out=/data/imagenet_shards."
        )
    check_range("--resize", args.resize, 0, hint="0 keeps files as they are")
    check_range("--quality", args.quality, 1, 100)
    check_range("--shard-size", args.shard_size, above=0, below=1e6)
    check_range("--workers", args.workers, 0, hint="0 is one per core")


@contextlib.contextmanager
def _progress(title: str, total: int) -> Iterator[Report]:
    """Shows images/s, MB/s and the time left on stderr; yields a function of the images and bytes that were done."""
    with console.progress() as bar:
        start, images, size = time.perf_counter(), 0, 0

        def report(more_images: int, more_bytes: int) -> None:
            nonlocal images, size
            images, size = images + more_images, size + more_bytes
            speed = size / max(time.perf_counter() - start, 1e-9) / 1e6
            bar.show(f"{title}: images", images, total, detail=f"{speed:,.1f} MB/s")

        yield report


def _splits_of(root: Path, only: str | None) -> list[str]:
    return [only] if only else [s for s in SPLITS if (root / s).is_dir()] or ["train"]


def _check_out(root: Path, out: Path, splits: Sequence[str]) -> None:
    for split in splits:
        if out.resolve().is_relative_to((root / split).resolve()):
            raise DataError(
                f'--out="{out}" lies inside "{root / split}", which is being converted. Choose a folder outside of it.'
            )
    if not out.is_dir():
        return
    foreign = sorted(e.name for e in out.iterdir() if e.name not in SPLITS and not e.name.startswith("."))
    for split in SPLITS:
        if (out / split).is_dir() and not is_shards(out / split) and any(e.is_dir() for e in (out / split).iterdir()):
            foreign.append(split)
    if foreign:
        raise DataError(
            f'--out="{out}" holds "{foreign[0]}"{f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""}, which '
            "no conversion wrote. Choose a new folder."
        )


def run_conversion(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Converts what `args` (see `--help`) names; returns what is printed as JSON, one dictionary a split."""
    root, out = user_path(args.source, "--in"), user_path(args.out, "--out")
    options = ShardOptions(args.format, round(args.shard_size * 1e6), args.resize, args.quality)
    splits = _splits_of(root, args.split)
    _check_out(root, out, splits)
    results = []
    for split in splits:
        source = FolderSource(root, split, class_order=args.class_order)
        start = time.perf_counter()
        with _progress(split, len(source)) as report:
            manifest = convert(source, out / split, options, workers=args.workers, report=report)
        results.append(_summary(manifest, time.perf_counter() - start))
    return results


def run_verification(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compares all checksums below `args.verify`; returns what is printed as JSON, one dictionary a split."""
    root = user_path(args.verify, "--verify")
    splits = [s for s in SPLITS if is_shards(root / s)]
    if not splits:
        raise DataError(f'--verify="{root}" holds no shards. Give the folder that was --out of the conversion.')
    results = []
    for split in splits:
        manifest = Manifest.load(root / split)
        start = time.perf_counter()
        with _progress(f"verify {split}", manifest.records) as report:
            bad = verify(root / split, report=report)
        if bad:
            raise DataError(
                f'{len(bad)} of {len(manifest.shards) + len(manifest.index)} files in "{root / split}" are damaged: '
                f"{first_few(bad, 10)}. Fetch them again; or delete those shards and repeat the command that made "
                "them, which writes what is missing."
            )
        results.append(_summary(manifest, time.perf_counter() - start))
    return results


def _summary(manifest: Manifest, seconds: float) -> dict[str, Any]:
    return {
        "split": manifest.split,
        "images": manifest.records,
        "classes": len(manifest.class_names),
        "shards": len(manifest.shards),
        "bytes": sum(s["bytes"] for s in manifest.shards),
        "format": manifest.format,
        "unreadable": manifest.unreadable,
        "images_per_second": manifest.records / max(seconds, 1e-9),
    }


@console.command("stopped; the same command continues.", resumable=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, 2 user error, 3 stopped on request before the end."""
    args = _parser().parse_args(argv)
    _check(args)
    results = run_verification(args) if args.verify else run_conversion(args)
    for result in results:
        print(
            f"{result['split']}: {result['images']:,} images of {result['classes']:,} classes in "
            f"{result['shards']:,} {result['format']} shards, {result['bytes'] / 1e6:,.1f} MB, "
            f"{'verified' if args.verify else 'complete'}, {result['images_per_second']:,.0f} images/s"
        )
        if result["unreadable"]:
            names = result["unreadable"]
            print(f"  {len(names):,} files could not be decoded and are kept as they are: {first_few(names, 5)}")
    console.print_json(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
