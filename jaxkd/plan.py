"""Compiles the train step of a config for a machine that is not here, and prints what it needs of it.

    jaxkd plan --config=deit_cait --topology=v5e:16x16 --config.train.batch_size=8192
    jaxkd plan --config=deit_cait --topology=v5e:4x4 --search --json
    jaxkd plan --config=swin_swin:embedded --topology=cpu:8       (no libtpu, half a minute)

Needs no accelerator, no data and no weights. A TPU (v5e, v6e, v5p, v4) needs the extra `jaxkd[tpu]`, whose compiler
makes the program that a TPU would run: memory, FLOPs, traffic and collectives are those of the real step. For
gpu:h100:8 and cpu:8 the step is compiled for a CPU: its FLOPs are exact, its bytes a hint. docs/plan.md says how to
read a plan.
Exit code 0: it fits; 2: it does not, or a user error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.cli import console, training_config
from jaxkd.cli.commands import program
from jaxkd.errors import ConfigError, check_choice, check_range, did_you_mean

OPTIONS = ("--config", "--topology", "--slices", "--search", "--host-cores", "--stage", "--json")


def _parser() -> console.Parser:
    parser = console.Parser(
        prog=program("plan"), description=__doc__, epilog="--config and --config.<field> as in jaxkd train."
    )
    parser.add_argument("--topology", required=True, metavar="NAME", help="v5e:16x16, v4:2x2x4, gpu:h100:8, cpu:8, ...")
    parser.add_argument(
        "--slices", type=int, default=1, metavar="N", help="number of TPU slices of that shape (default: 1)"
    )
    parser.add_argument("--search", action="store_true", help="find the largest batch that fits; compiles a few times")
    parser.add_argument(
        "--host-cores",
        type=int,
        default=0,
        metavar="N",
        help="CPU cores of a host (default: those of the chip's usual host)",
    )
    parser.add_argument("--stage", default="", help="of a config with several stages (the last)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of tables")
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Any]:
    """(options, config) of a command line.

    Raises:
      JaxkdError: an option that is not known, a value out of range, or a mistake in the config.
    """
    options, rest = _parser().parse_known_args(argv)
    check_range("--slices", options.slices, 1, 64, whole=True)
    check_range("--host-cores", options.host_cores, 0, whole=True)
    for word in rest:
        name = word.split("=")[0]
        if name.startswith("--") and name != "--config" and not name.startswith("--config."):
            raise ConfigError(
                f'"{word}" is not an option.{did_you_mean(name, OPTIONS)} There are {", ".join(OPTIONS)} and '
                "--config.<field>."
            )
    config = training_config.parse([*rest, "--workdir=none"], "plan").config  # nothing is written
    return options, config


@console.command("stopped.")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0: the step fits; 2: it does not, or a user error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        argv = ["--help"]
    options, config = parse(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    from jaxkd.experiment.plan import make_plan, print_plan, topology
    from jaxkd.experiment.sweep import stage_configs

    where = topology.parse(options.topology, slices=options.slices)
    topology.prepare(where)
    if config.stages:
        stages = stage_configs(config, Path("none"))
        if options.stage:
            check_choice("--stage", options.stage, tuple(stages))
        chosen = options.stage or list(stages)[-1]
        training_config.print_overridden(config, argv, stage=chosen)
        config = stages[chosen]
    elif options.stage:
        raise ConfigError(f'--stage="{options.stage}" was given, but the config has no stages. Leave it out.')
    console.quiet()
    progress = console.terminal(stderr=True)
    with training_config.explain_recipe(config, argv):
        plan = make_plan(
            config,
            where,
            search=options.search,
            host_cores=options.host_cores,
            say=lambda text: progress.print(text, highlight=False),
        )
    if options.json:
        console.print_json(plan)
    else:
        print_plan(plan, console.terminal(width=140))
    if plan["refusal"]:
        raise ConfigError(plan["refusal"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
