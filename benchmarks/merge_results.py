"""The parts of a run of benchmarks/gpu.sh as one file.

    python benchmarks/merge_results.py FOLDER            (writes FOLDER/results.json)
    python benchmarks/merge_results.py FOLDER --keep     (writes benchmarks/results/<device>-<date>.json instead)

Prints the path. benchmarks/results_table.py makes the tables of docs/performance.md from such a file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

PARTS = ("goldens", "step_time", "trace", "superres", "analysis", "attention", "compiled", "population")
KEPT = Path(__file__).resolve().parent / "results"


def merge(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Part name -> its JSON, as one object with the device and the date (UTC) of the run."""
    started = sorted(part["started"] for part in parts.values() if "started" in part)
    ordered = [name for name in PARTS if name in parts] + sorted(set(parts) - set(PARTS))
    return {
        "device": device_name(parts),
        "date": started[0][:10] if started else "",
        "status": {name: parts.get(name, {}).get("status", "not run") for name in dict.fromkeys((*PARTS, *ordered))},
        "parts": {name: parts[name] for name in ordered},
    }


def device_name(parts: dict[str, dict[str, Any]]) -> str:
    """The answer of the first part that has one, such as "NVIDIA H100 80GB HBM3"."""
    kind = parts.get("goldens", {}).get("result", {}).get("device_kind")
    if kind:
        return str(kind)
    for part in parts.values():
        device = str(part.get("result", {}).get("device", ""))
        if device:
            return re.sub(r"^\d+ x | \(\w+\)$", "", device)
    return "unknown"


def read_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """The part files of `folder`. Raises FileNotFoundError: there is none."""
    parts = {}
    for path in sorted(folder.glob("*.json")):
        part = json.loads(path.read_text())
        if isinstance(part, dict) and "part" in part:
            parts[part["part"]] = part
    if not parts:
        raise FileNotFoundError(f'"{folder}" holds no part of a run. Give the folder that benchmarks/gpu.sh wrote to.')
    return parts


def file_name(results: dict[str, Any]) -> str:
    """<device>-<date>.json in lower case."""
    device = re.sub(r"[^a-z0-9]+", "-", results["device"].lower()).strip("-")
    return f"{device}-{results['date']}.json"


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 2 a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="OUT of benchmarks/gpu.sh")
    parser.add_argument("--keep", action="store_true", help="write to benchmarks/results/")
    options = parser.parse_args(argv)
    try:
        results = merge(read_parts(options.folder))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    path = KEPT / file_name(results) if options.keep else options.folder / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
