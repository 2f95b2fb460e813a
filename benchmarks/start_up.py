"""Seconds from a command line to the first optimiser step, with an empty compile cache and with what it left.

    python benchmarks/start_up.py [--config=configs/deit_cait.py:embedded] [--config.student.args.depth=2 ...]

Starts `python -m jaxkd.main` three times, each until it says "compiled": twice with one cache folder, empty at first,
and once with --no-compile-cache. Prints one line of JSON: seconds of wall clock and of processors of each start, number
and size of the programs in the cache, and the ratio of the second start to the first. Progress goes to stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxkd import main as main_command
from jaxkd.errors import JaxkdError

CONFIG = "configs/deit_cait.py:embedded"
SAID = "compiled"


def cpu_seconds(pid: int) -> float:
    """Seconds that a process has computed so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return round(sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK"), 1)


def seconds_to_first_step(argv: list[str], folder: Path) -> dict[str, float]:
    """Seconds until the run says that its step is compiled.

    Raises:
      SystemExit: the run ended before.
    """
    environment = os.environ | {"XDG_CACHE_HOME": str(folder)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "jaxkd.main", *argv, f"--workdir={workdir}/run"]
        start = time.perf_counter()
        run = subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=1
        )
        try:
            for line in run.stdout:
                print(f"{time.perf_counter() - start:7.1f} s  {line}", end="", file=sys.stderr, flush=True)
                if line.rstrip().endswith(SAID):
                    return {"wall": round(time.perf_counter() - start, 1), "cpu": cpu_seconds(run.pid)}
        finally:
            run.kill()
            run.wait()
    raise SystemExit(f"{' '.join(command)} ended before it said {SAID!r}")


def parse(argv: list[str]) -> list[str]:
    """The arguments of jaxkd.main, without --workdir.

    Raises:
      JaxkdError: they are wrong.
    """
    if not any(arg.startswith("--config=") for arg in argv):
        argv = [f"--config={CONFIG}", *argv]
    main_command.parse([*argv, "--workdir=unused"])
    return argv


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 2 a user error."""
    try:
        argv = parse(sys.argv[1:] if argv is None else list(argv))
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        seconds = {"first": seconds_to_first_step(argv, Path(folder))}
        entries = [file for file in Path(folder).rglob("*-cache") if file.is_file()]
        size = sum(file.stat().st_size for file in entries)
        seconds["second"] = seconds_to_first_step(argv, Path(folder))
        seconds["without"] = seconds_to_first_step([*argv, "--no-compile-cache"], Path(folder))
    ratio = {kind: round(seconds["second"][kind] / seconds["first"][kind], 3) for kind in ("wall", "cpu")}
    print(json.dumps({**seconds, "ratio": ratio, "programs": len(entries), "megabytes": round(size / 1e6, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
