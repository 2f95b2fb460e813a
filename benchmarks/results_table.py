"""The tables of docs/performance.md, in Markdown, from a file that benchmarks/merge_results.py wrote.

python benchmarks/results_table.py benchmarks/results/<device>-<date>.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PROGRAMS = {
    "teacher_forward": "teacher, forward",
    "student_forward_backward": "student, forward and backward",
    "train_step": "whole step with AdamW",
}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Lines of a Markdown table; None is an empty cell."""
    yield "| " + " | ".join(header) + " |"
    yield "| " + " | ".join("---" for _ in header) + " |"
    for row in rows:
        yield "| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |"


def lines(results: dict[str, Any]) -> Iterator[str]:
    """The whole text, a section for each part; a part without a result is one sentence."""
    yield f"{results['device']}, {results['date']}."
    sections = {
        "goldens": _goldens,
        "step_time": _step_time,
        "trace": _trace,
        "superres": _superres,
        "analysis": _analysis,
        "attention": _attention,
        "compiled": _step_time,
        "population": _population,
    }
    for name, section in sections.items():
        part = results["parts"].get(name, {})
        status = part.get("status", "not run")
        yield ""
        if "result" in part:
            yield from section(part["result"])
        if status != "ok":
            last = next(reversed(part.get("error") or [""]))
            yield f"({name}: {status}{f': {last}' if last else ''})"


def _goldens(result: dict[str, Any]) -> Iterator[str]:
    smi = result.get("nvidia_smi") or {}
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    driver = f"driver {smi['driver_version']}, " if "driver_version" in smi else ""
    yield f"Golden values at highest matmul precision ({driver}{versions}):"
    yield ""
    rows = [
        (name, case["checks"], "pass" if case["passed"] else "FAIL", _short(case["max_abs"]), _short(case["max_rel"]))
        for name, case in result["goldens"].items()
    ]
    yield from table(("case", "arrays", "", "largest absolute error", "largest relative error"), rows)


def _step_time(result: dict[str, Any]) -> Iterator[str]:
    forms = result.get("peer", {}).get("forms", {})
    works = [form for form, found in forms.items() if "programs" in found]
    yield (
        f"{result['student']} <- {result['teacher']}, {result['dtype']}, batch {result['batch_size']}: median ms, "
        "images per second, share of the data sheet's peak."
    )
    yield ""
    rows = []
    for name, words in PROGRAMS.items():
        program = result["programs"].get(name)
        if program is None:
            continue
        memory = program.get("memory_mb") or {}
        rows.append((words, "jaxkd", *_speed(program), None, memory.get("allocator_peak")))
        for form in works:
            peer = forms[form]
            rows.append(
                (
                    words,
                    f"PyTorch, {form}",
                    *_speed(peer["programs"][name]),
                    f"{peer['ratio'][name]['median']:.2f}",
                    peer["memory_mb"] and round(peer["memory_mb"], 1) if name == "train_step" else None,
                )
            )
    header = ("part", "by", "ms", "images/s", "share of peak", "jaxkd is times as fast", "peak memory, MB")
    yield from table(header, rows)
    for form, found in forms.items():
        if "error" in found:
            yield f"\nPyTorch, {form}, failed: {found['error'].splitlines()[0]}"


def _speed(program: dict[str, Any]) -> tuple[Any, Any, Any]:
    share = program.get("share_of_data_sheet")
    return program["ms"]["median"], round(program["images_per_second"]), None if share is None else f"{share:.3f}"


def _trace(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"Most expensive operations of the whole step ({result['steps']} traced steps, {result['ms_per_step']:.1f} ms "
        f"a step, {result['busy_ms_per_step']:.1f} ms of operations):"
    )
    yield ""
    rows = [
        (f"`{row['where']}`", row["ms_per_step"], f"{100 * row['share']:.1f} %", row["calls_per_step"])
        for row in result["groups"]
    ]
    yield from table(("operations", "ms per step", "share", "calls per step"), rows)


def _superres(result: dict[str, Any]) -> Iterator[str]:
    width, height = result["result"]
    yield f"{result['model'].upper()} to {width} x {height}, {result['compute']}, one image:"
    yield ""
    rows = [
        (scale, name, program["latency_ms"]["median"], program["images_per_second"], program["share_of_peak"])
        for scale, found in result["scales"].items()
        for name, program in found["programs"].items()
    ]
    yield from table(("scale", "by", "ms", "images/s", "share of the convolution peak"), rows)


def _analysis(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"All statistics of {result['images']:,} images, {' and '.join(result['networks'])}, "
        f"{result['permutations']} permutations: {result['seconds']:.1f} s with compilation "
        f"({result['images_per_second']:.1f} images per second)."
    )


def _attention(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"Self-attention in several forms (benchmarks/attention_forms.py), {result['dtype']}, batch "
        f"{result['batch_size']}, median ms:"
    )
    yield ""
    rows = []
    for name, case in result["cases"].items():
        for direction in ("forward", "forward_backward"):
            for form, found in case.get(direction, {}).items():
                if "failed" in found:
                    rows.append((name, direction.replace("_", " and "), form, None, None, None, found["failed"]))
                    continue
                speed = found["ms"]["median"], f"{found['to_plain']['median']:.2f}", found["temporary_mb"]
                rows.append((name, direction.replace("_", " and "), form, *speed, f"{found['error']:.1e}"))
    header = ("network", "part", "form", "ms", "times as fast as plain", "temporary MB", "largest error")
    yield from table(header, rows)


def _population(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"Many students in one step: {result['student']} <- {result['teacher']}, {result['dtype']}, batch "
        f"{result['batch_size']}."
    )
    yield ""
    one, peer = result["one_student"], result.get("peer")
    rows = [(1, one["ms"]["median"], 1.0, 1.0, None, peer and f"{peer['ms']['median'] / one['ms']['median']:.2f}")]
    for members, row in result["populations"].items():
        if "error" in row:
            rows.append((members, "out of memory", *[None] * 4))
            continue
        to_peer = row["to_peer"] and f"{row['to_peer']['median']:.2f}"
        speedup = f"{row['to_separate']['median']:.2f}"
        rows.append(
            (members, row["ms"]["median"], f"{row['to_one']['median']:.2f}", row["flops_to_one"], speedup, to_peer)
        )
    header = ("students", "ms", "of one student", "FLOP of one", "times as fast as separate steps", "as PyTorch's")
    yield from table(header, rows)


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.1e}"


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print("\n".join(lines(json.loads(parser.parse_args(argv).file.read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
