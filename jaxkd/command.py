"""What the command-line programs share: how they fail, and how they keep quiet."""

from __future__ import annotations

import sys
from typing import NoReturn


def fail(error: BaseException) -> NoReturn:
    """Prints what the user can mend as one paragraph and exits with code 2."""
    print(f"jaxkd: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def quiet() -> None:
    """Keeps Orbax' running commentary, which goes through absl, out of the progress; errors still show."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)
