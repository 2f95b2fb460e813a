"""Trains what a config says; the same command continues a run that was stopped.

    jaxkd train --config=deit_cait:embedded --workdir=runs/first_light                 (no data, no GPU)
    jaxkd train --config=deit_cait --workdir=runs/a --config.data.source=/data/imagenet
    jaxkd train --config=supervised:cait_xxs24_224 --workdir=runs/b --config.train.batch_size=256
    jaxkd train --fields schedule

what to train:
  --config=RECIPE[:WORDS]   a recipe of jaxkd, or the path of a config file; WORDS select variants
  --config.FIELD=VALUE      another value of a field of the config, such as --config.train.epochs=10
  --fields [PATTERN]        print the fields that match, with type, default, meaning and recipes

where:
  --workdir=FOLDER          checkpoints, metrics, curves and log of the run
  --distributed             join the other processes of a pod or cluster

how:
  --profile=STEPS           trace some steps, and print what takes their time
  --no-compile-cache        neither keep compiled programs nor load those of before

Exit code 0: finished; 2: a user error; 3: stopped on request before the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jaxkd.cli import compile_cache, console, host_memory
from jaxkd.cli.commands import program
from jaxkd.cli.field_table import field_table
from jaxkd.cli.layout import fit
from jaxkd.cli.training_config import explain_recipe, parse, print_overridden
from jaxkd.config.packaged import recipes
from jaxkd.config.validate import check_stages, validate


@console.command("stopped; what was saved stays, and the same command continues.")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 finished, 2 user error, 3 stopped on request before the end."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or any(a in ("-h", "--help", "--helpfull") for a in argv):
        print(
            f"usage: {program('train')} --config=RECIPE[:WORDS] --workdir=FOLDER [OPTIONS]\n\n{fit(__doc__.rstrip())}"
        )
        print(fit(f"\nRecipes: {', '.join(recipes())}."))
        return 0
    given_fields = next((i for i, word in enumerate(argv) if word.split("=")[0] == "--fields"), None)
    if given_fields is not None:
        word, *rest = argv[given_fields:]
        pattern = word.partition("=")[2] or next(iter(rest), "")
        print(field_table("" if pattern.startswith("--") else pattern))
        return 0
    given = parse(argv)
    config, workdir = given.config, given.workdir
    with explain_recipe(config, argv):
        check_stages(config)
        if not config.stages:  # those are checked one by one
            validate(config)
    if not given.distributed and "JAX_COORDINATOR_ADDRESS" not in os.environ:  # else every process would print it
        print_overridden(config, argv)
        print(f"{workdir}: task {config.task}, student {config.student.name}; loading JAX ...", flush=True)
    # TensorFlow is not needed, but other packages may import it and it prints a lot.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from jaxkd import parallel
    from jaxkd.experiment import run as run_module

    console.quiet()
    host_memory.keep_freed_memory()
    parallel.initialize_distributed(given.distributed)
    compile_cache.use_compile_cache(given.compile_cache)
    # Without a terminal rich takes 80 columns, in which the table would be cut.
    output = console.terminal(width=140) if parallel.is_main_host() else None
    with explain_recipe(config, argv):
        result = run_module.run(config, workdir, console=output, profile=given.profile)
    return 0 if result["finished"] else 3


if __name__ == "__main__":
    sys.exit(main())
