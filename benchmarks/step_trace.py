"""The most expensive operations of a train step, from a profiler trace of three steps.

    python benchmarks/step_trace.py --config=configs/deit_cait.py --batch-size=8 > trace.json

Traces the step that step_time.py times, with its options (images and weights are random), in a process that runs
nothing else, so that the peak memory is the step's own. Prints one JSON object with the ten most expensive operations
and groups of operations; progress goes to stderr. The trace itself is kept where --trace-dir says.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import jax
from step_time import build_step, memory_megabytes, parse, say

from jaxkd.errors import JaxkdError
from jaxkd.train.trace_events import device_events, read_events, source_names, top_operations

STEPS = 3


def trace_step(options: Any, config: Any, folder: str) -> dict[str, Any]:
    """Compiles, warms up, traces and reads the trace."""
    # Inside a CUDA graph the profiler knows a kernel by its name alone, which many operations share.
    graphs_off = {"xla_gpu_enable_command_buffer": ""} if jax.default_backend() == "gpu" else None
    step = build_step(options, config, compiler_options=graphs_off)
    for _ in range(2):
        step.run()
    memory = memory_megabytes(step)
    settings = jax.profiler.ProfileOptions()
    settings.python_tracer_level = 0  # calls of Python functions would fill the trace
    settings.host_tracer_level = 2 if jax.default_backend() == "cpu" else 1
    say(f"tracing {STEPS} steps ...")
    seconds = []
    with jax.profiler.trace(folder, profiler_options=settings):
        for _ in range(STEPS):
            start = time.perf_counter()
            step.run()
            seconds.append(time.perf_counter() - start)
    events = read_events(folder)
    hlo = step.compiled.call.as_text() or ""
    device = jax.devices()[0]
    return {
        "config": options.config,
        "batch_size": options.batch_size,
        "dtype": config.precision.compute,
        "device": f"{step.mesh.devices.size} x {device.device_kind} ({device.platform})",
        "jax": jax.__version__,
        "steps": STEPS,
        "compile_seconds": round(step.compiled.seconds, 2),
        "ms_per_step": round(1e3 * min(seconds), 3),
        "memory_mb": memory,
        "events": len(device_events(events)),
        **top_operations(events, source_names(hlo), steps=STEPS),
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 2 a user error."""
    argv = sys.argv[1:] if argv is None else list(argv)
    folders = [arg.partition("=")[2] for arg in argv if arg.startswith("--trace-dir=")]
    try:
        options, config = parse([arg for arg in argv if not arg.startswith("--trace-dir=")])
        with tempfile.TemporaryDirectory() as temporary:
            result = trace_step(options, config, folders[-1] if folders else temporary)
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
