"""One part of benchmarks/gpu.sh: runs a command under a time limit and writes what became of it as JSON.

    python benchmarks/gpu_part.py --name=goldens --out=goldens.json --deadline=1790000000 --least=40 --most=110 \\
        -- python benchmarks/gpu_goldens.py

The command prints one JSON object on stdout. The file holds "status" (ok, failed, timed out or skipped), seconds, the
object as "result" and, where something went wrong, the last lines of stderr as "error". A command that is stopped may
have left its result so far in the file that --partial names. The exit code is 0 whatever the command's was.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

LINES = 40  # of stderr that are kept
GRACE = 5.0  # seconds between the request to end and the end


def read_json(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is or ends with, or None."""
    start = 0 if text.startswith("{") else text.find("\n{") + 1
    try:
        value = json.loads(text[start:])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _forward(stream: IO[str], kept: deque[str]) -> None:
    for line in stream:
        kept.append(line.rstrip()[:500])
        sys.stderr.write(line)
        sys.stderr.flush()


def _stop(process: subprocess.Popen) -> None:
    """Ends the command and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM:
            time.sleep(0.5)  # children of the command; then nothing is left of the group


def run_part(command: list[str], limit: float, partial: str = "") -> dict[str, Any]:
    """Runs `command` for at most `limit` seconds; never raises for what the command does."""
    kept: deque[str] = deque(maxlen=LINES)
    begin = time.time()
    timed_out = False
    with tempfile.TemporaryFile("w+") as stdout:
        try:
            process = subprocess.Popen(
                command, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
            )
        except OSError as error:
            return {"status": "failed", "seconds": 0.0, "error": [str(error)]}
        reader = threading.Thread(target=_forward, args=(process.stderr, kept), daemon=True)
        reader.start()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out = True
            _stop(process)
        reader.join(GRACE)
        stdout.seek(0)
        result = read_json(stdout.read())
    if result is None and partial and Path(partial).exists():
        result = read_json(Path(partial).read_text())
    code = process.returncode
    status = "timed out" if timed_out else "ok" if code == 0 and result is not None else "failed"
    out = {"status": status, "seconds": round(time.time() - begin, 1), "returncode": code, "limit": round(limit, 1)}
    if status != "ok":
        out["error"] = list(kept) or ["nothing on stderr"]
    return out | ({} if result is None else {"result": result})


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the part")
    parser.add_argument("--out", required=True, help="JSON file")
    parser.add_argument("--deadline", type=float, required=True, help="seconds since 1970 at which everything ends")
    parser.add_argument("--least", type=float, default=30.0, help="seconds left under which the part is skipped (30)")
    parser.add_argument("--most", type=float, default=600.0, help="seconds that the part may take (600)")
    parser.add_argument("--partial", default="", help="file that holds a result where stdout holds none")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    left = options.deadline - time.time()
    part: dict[str, Any] = {"part": options.name, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    if left < options.least:
        part |= {"status": "skipped", "error": [f"{left:.0f} s left, {options.least:.0f} s needed"]}
    else:
        print(f"== {options.name}: at most {min(left, options.most):.0f} s", file=sys.stderr, flush=True)
        part |= run_part(options.command, min(left, options.most), options.partial)
    Path(options.out).write_text(json.dumps(part, indent=1))
    print(f"== {options.name}: {part['status']}, {part.get('seconds', 0)} s", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
