"""Report of training: one HTML page of runs, populations, stages or studies, from their work directories.

    jaxkd report runs/first_light --out=report.html
    jaxkd report runs/a runs/b --out=comparison.html

The page is one file that opens from disk: what was run, results, curves, environment, and the warnings of log.txt.
Several work directories stand side by side. Runs that go on or are damaged are shown as far as their files can be read;
nothing in a work directory is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxkd.cli import console
from jaxkd.cli.commands import program
from jaxkd.errors import ConfigError


def _parser() -> console.Parser:
    parser = console.Parser(
        prog=program("report"), description=__doc__, usage="%(prog)s WORKDIR [WORKDIR ...] --out=FILE [OPTIONS]"
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="work directory of a run or a study")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page, for example report.html; replaced")
    return parser


@console.command()
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, or 2 for a user error."""
    from jaxkd.report.run_page import write_run_report

    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    out = Path(args.out).expanduser()
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f'--out="{args.out}" is no name of a page. End it in .html, for example {out / "report.html"}.'
        )
    problems = write_run_report(args.workdirs, out)
    for sentence in problems:
        print(f"jaxkd: {sentence}", file=sys.stderr)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
