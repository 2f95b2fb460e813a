"""Trains what a config says.

    python -m jaxkd.main --config=configs/deit_cait.py --workdir=runs/a [--config.train.batch_size=256 ...]

The same command continues a run that was stopped. --profile=STEPS traces some of its steps and prints what takes their
time; --no-compile-cache compiles anew what an earlier start compiled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jaxkd.cli import compile_cache, console, host_memory
from jaxkd.cli.training_config import explain_recipe, parse, print_overridden
from jaxkd.config.validate import check_stages, validate


@console.command("stopped; what was saved stays, and the same command continues.")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 finished, 2 user error, 3 stopped on request before the end."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or any(a in ("-h", "--help", "--helpfull") for a in argv):
        print(__doc__)
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
    from rich.console import Console

    from jaxkd import parallel
    from jaxkd.experiment import run as run_module

    console.quiet()
    parallel.initialize_distributed(given.distributed)
    compile_cache.use_compile_cache(given.compile_cache)
    host_memory.keep_freed_memory()
    # Without a terminal rich takes 80 columns, in which the table would be cut.
    width = None if sys.stdout.isatty() else 140
    output = Console(width=width) if parallel.is_main_host() else None
    with explain_recipe(config, argv):
        result = run_module.run(config, workdir, console=output, profile=given.profile)
    return 0 if result["finished"] else 3


if __name__ == "__main__":
    sys.exit(main())
