"""Trains and compares the runs of a study: a declared grid over seeds, with intervals and paired tests.

    jaxkd study --config=encoding_mismatch --workdir=runs/mismatch --dry-run
    jaxkd study --config=encoding_mismatch --workdir=runs/mismatch --budget-minutes=60

The same command continues a study that was stopped. The work directory holds results.csv (a row for each run),
comparisons.csv, study.md and study.png, rewritten after each run; docs/studies/README.md says how to declare a study.
--config.<field>=VALUE changes a field of all runs, unless the study sets it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from jaxkd.cli import compile_cache, console, host_memory, training_config
from jaxkd.cli.commands import program
from jaxkd.config.validate import check_stages
from jaxkd.errors import ConfigError, check_range, did_you_mean

OPTIONS = ("--config", "--workdir", "--dry-run", "--budget-minutes", "--no-population", "--tflops")
OPTIONS += (compile_cache.OPTION,)


def _parser() -> console.Parser:
    parser = console.Parser(
        prog=program("study"), description=__doc__, epilog="--config and --config.<field> as in jaxkd train."
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost, train nothing")
    parser.add_argument(
        "--budget-minutes", type=float, default=0.0, metavar="N", help="start nothing that would not end in this time"
    )
    parser.add_argument("--no-population", action="store_true", help="train each run in a program of its own")
    parser.add_argument(
        "--tflops", type=float, default=0.0, metavar="RATE", help="10^12 operations a second, to plan before a run"
    )
    compile_cache.add_option(parser)
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Any, str, list[str]]:
    """(options, config, work directory, the arguments that describe the config).

    Raises:
      JaxkdError: an option that is not known, a value out of range, or a mistake in the config.
    """
    options, rest = _parser().parse_known_args(argv)
    check_range("--budget-minutes", options.budget_minutes, 0)
    check_range("--tflops", options.tflops, 0)
    for word in rest:
        name = word.split("=")[0]
        if name.startswith("--") and name not in OPTIONS and not name.startswith("--config."):
            raise ConfigError(
                f'"{word}" is not an option.{did_you_mean(name, OPTIONS)} There are {", ".join(OPTIONS)} and '
                "--config.<field>."
            )
    given = training_config.parse(rest, "study")
    return options, given.config, given.workdir, rest


@console.command("stopped; what was saved stays, and the same command continues.", resumable=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0: all ran, or all that the budget allowed; 2 user error; 3 stopped before the end."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        argv = ["--help"]
    options, config, workdir, rest = parse(argv)
    check_stages(config)
    training_config.print_overridden(config, rest)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from jaxkd.experiment.study.runner import run_study

    console.quiet()
    host_memory.keep_freed_memory()
    compile_cache.use_compile_cache(not options.no_compile_cache)
    output = console.terminal(width=140)
    with training_config.explain_recipe(config, rest):
        result = run_study(
            config,
            workdir,
            console=output,
            budget_minutes=options.budget_minutes,
            population=not options.no_population,
            dry_run=options.dry_run,
            tflops=options.tflops,
        )
    return 3 if result["stopped"] else 0


if __name__ == "__main__":
    sys.exit(main())
