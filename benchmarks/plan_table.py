"""Plans of the three SpectralKD recipes on several TPU slices, as a Markdown table for docs/plan.md.

    python benchmarks/plan_table.py --out=plans.json > table.md

Runs jaxkd.plan with --json for each recipe and slice (needs the extra `tpu`, no TPU; three to ten minutes each on two
cores) in bfloat16 with the same number of images a chip. Results are kept in --out as they come; the same command
goes on where it was stopped, and tries plans that failed again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxkd.data.files import write_atomic

RECIPES = {
    "DeiT-Tiny <- CaiT-S24": "configs/deit_cait.py",
    "DeiT-Small <- CaiT-S24": "configs/deit_cait.py:student=deit_small_patch16_224",
    "Swin-Tiny <- Swin-Small": "configs/swin_swin.py",
}
SLICES = ("v5e:4x4", "v5e:16x16", "v4:2x2x4", "v5p:2x2x4", "v6e:4x4")
TITLES = ("recipe", "slice", "batch", "matrix GFLOP an image", "HBM MB an image", "peak GiB of a chip")
TITLES += ("ms a step: products", "memory", "interconnect", "binds", "images/s at most", "cores needed", "cores there")
TITLES += ("gathers", "compile s")


def plan(config: str, slice_name: str, per_chip: int) -> dict[str, Any]:
    """The plan of a recipe, `{"error": ...}` where it is refused without one."""
    chips = math.prod(int(side) for side in slice_name.split(":")[1].split("x"))
    command = [
        *(sys.executable, "-m", "jaxkd.plan", f"--config={config}", f"--topology={slice_name}", "--json"),
        f"--config.train.batch_size={per_chip * chips}",
        "--config.precision.compute=bfloat16",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.strip():
        said = done.stderr.strip().splitlines() or [f"jaxkd.plan ended with code {done.returncode} and no message"]
        return {"error": said[-1]}
    return json.loads(done.stdout)


def row(name: str, slice_name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    if "error" in found or not found["roofline_ms"]:
        return f"| {name} | {slice_name} | {found.get('error') or found['refusal']} |"
    times, given = found["roofline_ms"], found["input"]
    gathers = sum(row["count"] for row in found["collectives"] if row["kind"] == "all-gather")
    cells = [
        *(
            name,
            slice_name,
            f"{found['batch_size']:,}",
            f"{found['matrix_flops_per_image'] / 1e9:.1f}",
            f"{found['hbm_bytes_per_image'] / 1e6:,.0f}",
        ),
        f"{found['peak_bytes'] / 2**30:.2f} of {found['memory']['room'] / 2**30:.2f}",
        *(f"{times[part]:.2f}" if times[part] < 10 else f"{times[part]:.0f}" for part in ("compute", "memory")),
        f"{times['interconnect']:.2f}",
        {"compute": "products"}.get(times["binds"], times["binds"]),
        f"{found['images_per_second_bound']:,.0f}",
        *(f"{given['cores_needed']:,}", f"{given['cores']:,}"),
        *(str(gathers), f"{found['compile_seconds']:.0f}"),
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="JSON file of the plans")
    parser.add_argument("--per-chip", type=int, default=128, help="images of a chip (128)")
    parser.add_argument("--slices", default=",".join(SLICES), help="separated by commas")
    options = parser.parse_args(argv)
    path = Path(options.out)
    known = json.loads(path.read_text()) if path.exists() else {}
    for slice_name in options.slices.split(","):
        for name, config in RECIPES.items():
            key = f"{name} {slice_name} {options.per_chip}"
            if "error" in known.get(key, {"error": "not planned yet"}):
                print(f"{key} ...", file=sys.stderr, flush=True)
                known[key] = plan(config, slice_name, options.per_chip)
                write_atomic(path, json.dumps(known, indent=1))
    print(f"| {' | '.join(TITLES)} |\n|{' --- |' * len(TITLES)}")
    for name in RECIPES:
        for slice_name in options.slices.split(","):
            print(row(name, slice_name, known[f"{name} {slice_name} {options.per_chip}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
