"""Tables of the super-resolution control, in Markdown, from its work directories or benchmarks/gpu_superres_control.sh.

    python benchmarks/superres_control_table.py runs/control_seed0 runs/control_seed1 [--keep=control-2cpu.json]
    python benchmarks/superres_control_table.py results                         (what gpu_superres_control.sh left)
    python benchmarks/superres_control_table.py control-2cpu.json

Reads work directories of the recipe mdbn_x4 with the word control, one for each seed, the folder of the script, or a
file that --keep wrote, which holds scores, curves and times and no pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from results_table import table

WORDS = {
    "mdbn": "MDBN as published: [0, 1], no mean",
    "mdbn_range": "MDBN, range and mean of EDSR",
    "mdbn_skip": "MDBN as published + bicubic skip",
    "edsr": "EDSR-baseline",
}
WARM = "-warmup"
Runs = dict[str, dict[str, Any]]


def read_runs(folder: Path) -> dict[str, Any]:
    """`{"about": {...}, "runs": {"mdbn-seed0": {"seed", "stage", "scores", "curve", ...}}}` of a folder of runs."""
    about = folder / "about.txt"
    lines = about.read_text().splitlines() if about.exists() else []
    out: dict[str, Any] = {"about": dict(line.split(": ", 1) for line in lines if ": " in line), "runs": {}}
    for path in sorted(folder.glob("*/config.json")):
        if not path.with_name("metrics.jsonl").exists():  # it has just begun
            continue
        config = json.loads(path.read_text())
        result = _read(path.with_name("result.json"))
        scores = {v: _read(path.with_name(f"scores_{v}.json")).get("metrics") for v in ("raw", "ema")}
        if not any(scores.values()):  # a work directory, whose last evaluation has both
            scores = _last_scores(result.get("metrics", {}))
        rows = [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
        stage = path.parent.name.partition("-")[0]
        name = path.parent.name if "-" in path.parent.name else f"{stage}-seed{config['seed']}"
        out["runs"][name] = {
            "stage": stage,
            "seed": config["seed"],
            "steps": result.get("step"),
            "parameters": result.get("parameters"),
            "seconds": result.get("seconds"),
            "device": result.get("device"),
            "ema": config["ema"],
            "scores": {v: found for v, found in scores.items() if found},
            "bicubic": _read(path.with_name("scores_raw.json")).get("bicubic") or _read(path.with_name("bicubic.json")),
            "curve": [{k: row[k] for k in row if k == "step" or "psnr" in k} for row in rows if row["kind"] == "eval"],
        }
    return out


def _last_scores(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores of the raw weights and of the moving average in the result of a run."""
    ema = {k.removeprefix("ema_"): v for k, v in metrics.items() if k.startswith("ema_")}
    return {"raw": {k: v for k, v in metrics.items() if not k.startswith("ema_")}, "ema": ema}


def merge(sources: Sequence[Path]) -> dict[str, Any]:
    """The results of all folders and kept files; ends the program where they cannot stand in one table."""
    merged: dict[str, Any] = {"about": {}, "runs": {}}
    for source in sources:
        try:
            results = read_runs(source) if source.is_dir() else json.loads(source.read_text())
        except (OSError, ValueError) as error:
            sys.exit(f"{source} cannot be read ({error}). Name work directories of the control, or a kept file.")
        if not results.get("runs") and not results.get("about"):  # the script's folder may have no run yet
            sys.exit(f"There are no runs in {source}. Name the work directory that has mdbn, edsr, ... as its folders.")
        for name in results["runs"].keys() & merged["runs"].keys():
            sys.exit(f"{source} has the run {name} once more. Print one table for each.")
        for part in merged:
            merged[part] |= results.get(part, {})
    for fact, values in (("steps", "lengths"), ("bicubic", "sets")) if len(sources) > 1 else ():
        scored = [run for run in merged["runs"].values() if run["scores"].get("raw")]
        if len({json.dumps(sorted(run[fact])) if fact == "bicubic" else run[fact] for run in scored}) > 1:
            sys.exit(f"The runs have different {values}, which one table cannot compare. Print one table for each.")
    return merged


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() and path.stat().st_size else {}


def lines(results: dict[str, Any]) -> Iterator[str]:
    """The text: means over seeds with every seed, differences by seed, and the two moving averages."""
    runs: Runs = {name: run for name, run in results["runs"].items() if run["scores"].get("raw")}
    if about := ", ".join(f"{k} {v}" for k, v in results["about"].items() if k != "runs"):
        yield about
    missing = [name for name in results["about"].get("runs", "").split() if name not in runs]
    if missing:
        yield f"Not finished or not scored: {', '.join(missing)}."
    if not runs:
        return
    first = next(iter(runs.values()))
    sets = list(dict.fromkeys(name.partition("/")[0] for name in first["bicubic"]))
    yield ""
    yield "PSNR in dB / SSIM at the last step, raw weights: mean over the seeds (PSNR of each seed)."
    yield ""
    rows = [("bicubic", None, None, *(_cell([first["bicubic"]], s) for s in sets))]
    plain = {name: run for name, run in runs.items() if WARM not in name}
    for stage, words in WORDS.items():
        mine = [run for run in plain.values() if run["stage"] == stage]
        if mine:
            scores = [run["scores"]["raw"] for run in mine]
            size = f"{mine[0]['parameters'] / 1e6:.2f} M"
            rows.append((words, size, mine[0]["steps"], *(_cell(scores, s) for s in sets)))
    yield from table(("network", "parameters", "steps", *sets), rows)
    yield from _differences(plain, sets)
    yield from _averages(runs, sets[0])


def _scores(scores: dict[str, Any], name: str) -> tuple[float, float]:
    found = {kind: next(v for k, v in scores.items() if k.startswith(f"{name}/{kind}")) for kind in ("psnr", "ssim")}
    return float(found["psnr"]), float(found["ssim"])


def _cell(scores: list[dict[str, Any]], name: str) -> str:
    psnr, ssim = zip(*(_scores(one, name) for one in scores), strict=True)
    text = f"{mean(psnr):.2f} / {mean(ssim):.4f}"
    return text if len(psnr) == 1 else f"{text} ({', '.join(f'{p:.2f}' for p in psnr)})"


def _differences(runs: Runs, sets: list[str]) -> Iterator[str]:
    """PSNR of one network less that of another with the same seed, for the pairs that answer a question."""
    by = {(run["stage"], run["seed"]): run["scores"]["raw"] for run in runs.values()}
    rows = []
    for one, other, question in (
        ("edsr", "mdbn", "as published: range, mean and blocks"),
        ("mdbn_range", "mdbn", "range and mean, same network"),
        ("edsr", "mdbn_range", "blocks, same range and mean"),
        ("mdbn_skip", "mdbn", "bicubic skip, same network"),
    ):
        seeds = [seed for stage, seed in by if stage == one and (other, seed) in by]
        if seeds:
            gaps = [[_scores(by[one, s], n)[0] - _scores(by[other, s], n)[0] for s in seeds] for n in sets]
            rows.append((f"{one} - {other}", question, *(", ".join(f"{gap:+.2f}" for gap in g) for g in gaps)))
    if rows:
        yield ""
        yield "Difference in PSNR (dB), seed by seed:"
        yield ""
        yield from table(("difference", "what differs", *sets), rows)


def _averages(runs: Runs, name: str) -> Iterator[str]:
    rows = [
        (
            run_name,
            f"{run['ema']['decay']}{', warm-up' if run['ema'].get('warmup') else ''}",
            *(f"{_scores(run['scores'][v], name)[0]:.2f}" if v in run["scores"] else None for v in ("raw", "ema")),
        )
        for run_name, run in runs.items()
    ]
    yield ""
    yield f"Moving average, PSNR on {name}:"
    yield ""
    yield from table(("run", "decay", "raw", "moving average"), rows)


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", help="folders of runs, or a kept file")
    parser.add_argument("--keep", type=Path, help="also write scores, curves and times as JSON")
    options = parser.parse_args(argv)
    results = merge(options.sources)
    if options.keep:
        options.keep.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(lines(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
