"""A campaign of faults that anyone can repeat.

    python -m tests.faults --minutes=10                     (from the repository root; needs the extra `test`)
    python -m tests.faults --minutes=2 --kinds=images,shards --seed=7 --json=faults.json

Draws faults at random until the time is up, each kind in turn, and prints a table: how often each was tried, how often
nothing was lost and everything was said in words, and what was not. An attempt is lost where a result differs from that
of a run without faults, where damage passes in silence, or where a user would read a traceback. Exit code 1 says that
something was lost; its seed is printed and `--only=KIND:SEED` repeats it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from jaxkd.cli import console
from tests.faults import damage, processes

Attempt = Callable[[random.Random, Path], str]
KINDS: dict[str, tuple[Attempt, str]] = {
    "kill": (processes.kill, "kill -9 at random moments, then continued to the end"),
    "signal": (processes.stop, "SIGTERM, SIGINT or SIGHUP at a random moment, then continued"),
    "full disk": (processes.full_disk, "a file system that is full after a random number of bytes, then room again"),
    "two": (processes.two_at_once, "two processes in one work directory"),
    "checkpoints": (damage.checkpoints, "a byte of the newest checkpoint changed, cut off or removed"),
    "weights": (damage.weights_file, "a weight file with changed, missing or foreign bytes and tensors"),
    "images": (damage.images, "an image file with changed or missing bytes"),
    "shards": (damage.shards, "a file of a set of shards with changed or missing bytes"),
    "configs": (damage.configs, "an odd value in a random field of a config"),
}
SLOW = ("kill", "signal", "full disk", "two")  # each starts processes; the others are tried many times in between


def attempt(kind: str, seed: int, root: Path) -> str:
    """What was lost in one attempt, or "" for nothing."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        return KINDS[kind][0](random.Random(f"{kind} {seed}"), folder)
    except Exception as error:  # a bug, or a traceback that a user would read
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        damage.remove(folder)


def campaign(kinds: list[str], minutes: float, seed: int, root: Path) -> dict[str, dict]:
    """Kind -> how many were tried, and (seed, what was lost) of those that were not survived."""
    end, rows = time.monotonic() + 60 * minutes, {kind: {"tried": 0, "lost": []} for kind in kinds}
    said = time.monotonic()
    while time.monotonic() < end:
        for kind in kinds:
            share = time.monotonic() + (0 if kind in SLOW else 2.0)
            while True:
                row = rows[kind]
                lost = attempt(kind, seed + row["tried"], root)
                if lost:
                    row["lost"].append((seed + row["tried"], lost))
                    print(f"LOST {kind}:{seed + row['tried']}: {lost}", flush=True)
                row["tried"] += 1
                if time.monotonic() > min(share, end):
                    break
        if time.monotonic() - said > 30:
            said = time.monotonic()
            tried, lost = sum(r["tried"] for r in rows.values()), sum(len(r["lost"]) for r in rows.values())
            print(f"{tried} tried, {lost} lost, {max(0, end - said) / 60:.1f} minutes left", flush=True)
    return rows


def table(rows: dict[str, dict]) -> str:
    """Markdown."""
    lines = ["| kind | fault | tried | survived | lost |", "| --- | --- | --- | --- | --- |"]
    for kind, row in rows.items():
        lost = len(row["lost"])
        lines.append(f"| {kind} | {KINDS[kind][1]} | {row['tried']} | {row['tried'] - lost} | {lost} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of: " + ", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="KIND:SEED", help="repeats one attempt")
    parser.add_argument("--json", default="", metavar="FILE", help="also writes what was found")
    options = parser.parse_args(argv)
    kinds = [options.only.rpartition(":")[0]] if options.only else options.kinds.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        parser.error(f'"{unknown[0]}" is not a kind. There are: {", ".join(KINDS)}')
    console.quiet()
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        if options.only:
            lost = attempt(kinds[0], int(options.only.rpartition(":")[2]), Path(root))
            print(lost or "nothing was lost")
            return bool(lost)
        rows = campaign(kinds, options.minutes, options.seed, Path(root))
    print(table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    return int(any(row["lost"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
