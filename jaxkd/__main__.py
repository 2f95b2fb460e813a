"""All commands under one name: `jaxkd COMMAND [OPTIONS]`, the same as `python -m jaxkd COMMAND [OPTIONS]`.

jaxkd train --config=deit_cait:embedded --workdir=runs/first_light
jaxkd --version
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jaxkd import __version__
from jaxkd.cli.commands import COMMANDS
from jaxkd.cli.layout import fit


def _help() -> str:
    lines = "\n".join(f"  {name:<10} {sentence}" for name, (_, sentence) in COMMANDS.items())
    return f"""usage: jaxkd COMMAND [OPTIONS]

  jaxkd train --config=deit_cait:embedded --workdir=runs/first_light      (no data, no GPU)
  jaxkd train --help

{lines}

  --version  print the version
  --help     print this

`python -m jaxkd COMMAND` is the same."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `jaxkd`; imports only the command that is named, and returns its exit code; 2 for another name."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(fit(_help()))
        return 0
    if name in ("-V", "--version"):
        print(f"jaxkd {__version__}")
        return 0
    if name not in COMMANDS:
        from jaxkd.errors import did_you_mean

        meant = ' Did you mean "train"?' if name == "main" else did_you_mean(name, COMMANDS)
        print(f'jaxkd: "{name}" is not a command.{meant} There are {", ".join(COMMANDS)}.', file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    return importlib.import_module(f"jaxkd.{module}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
