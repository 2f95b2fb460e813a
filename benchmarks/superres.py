"""Speed and memory of super-resolution, against PyTorch and the peak of XLA's own convolutions.

    python benchmarks/superres.py --peer=torch > superres.json
    python benchmarks/superres.py --model=edsr --scales=4 --compute=bfloat16 --batch-size=8 --peer=torch

Enlarges random images to 1280 x 720 pixels, x2, x3 and x4 (x3: 1281 x 720), one at a time for the latency and, with
--batch-size, several at once for the throughput, in one pass without windows. The last convolutions take strips, as in
`jaxkd.upscale`. Weights are random: no data and no network access are needed. Prints one JSON object; progress goes to
stderr.

All programs of a scale run in turns in one process, so that whatever else the machine does falls on all of them. Ratios
are the result: `fastest_peer_to_jaxkd` above 1 says that jaxkd is faster than the fastest form of PyTorch. Results must
agree, or the exit code is 1. Memory is measured in a process of its own for each program: on a CPU the resident peak of
three calls above what is resident after a first one, on a GPU the allocator's peak (jaxkd: what the compiler says of
arguments, result and all between). The peak is that of the best of three 3x3 convolutions by XLA.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two frameworks share the GPU

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from peer_superres import FORMS
from process_memory import peak_megabytes, restart_peak
from timing import compile_program, interleaved, ratio, summary

from jaxkd import models
from jaxkd.errors import ConfigError, JaxkdError
from jaxkd.models.flops import multiply_adds
from jaxkd.superres.tiling import by_strips

WIDTH, HEIGHT = 1280, 720
LAYOUT = ("NHWC", "HWIO", "NHWC")
JAXKD = "jaxkd"
# Largest difference over largest value. A GPU multiplies fp32 in TF32, in both frameworks, unless it is told not to.
TOLERANCE = {"float32": 1e-5 if jax.default_backend() == "cpu" else 5e-3, "bfloat16": 5e-2}


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """Raises ConfigError: a number out of range, or a network that is not built."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", choices=("mdbn", "edsr"), default="mdbn")
    parser.add_argument("--scales", default="2,3,4", help="of 2, 3 and 4, with commas")
    parser.add_argument("--size", default=f"{WIDTH}x{HEIGHT}", help="of the result; rounded up to the scale")
    parser.add_argument("--batch-size", type=int, default=1, help="images at once for the throughput (1)")
    parser.add_argument("--compute", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each program (7)")
    parser.add_argument("--peer", choices=("torch",), help="also time the same network in PyTorch")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args(argv)
    try:
        options.scales = [int(s) for s in options.scales.split(",")]
        options.size = tuple(int(n) for n in options.size.split("x"))
        width, height = options.size
        right = set(options.scales) <= {2, 3, 4} and min(width, height) >= 4
    except ValueError:
        right = False
    if not right or options.batch_size < 1 or options.repeats < 1:
        raise ConfigError(
            f"--scales={options.scales}, --size={options.size}, --batch-size={options.batch_size} or "
            f"--repeats={options.repeats} is out of range. Nothing could be timed. Leave them out, or give for example "
            "--scales=2,3,4 --size=1280x720 --batch-size=8 --repeats=7."
        )
    return options


class Enlarger:
    """A network of jaxkd at one scale and the images it enlarges.

    Args:
      options: of the command line.
      scale: 2, 3 or 4.
    """

    def __init__(self, options: argparse.Namespace, scale: int):
        self.model = by_strips(models.create(f"{options.model}_x{scale}", dtype=jnp.dtype(options.compute)))
        blank = jnp.zeros((1, 8, 8, 3))
        self.variables = jax.block_until_ready(jax.jit(self.model.init)(jax.random.key(0), blank))
        self.height, self.width = (-(-side // scale) for side in reversed(options.size))
        self._function = jax.jit(lambda variables, images: self.model.apply(variables, images)[0])

    def images(self, count: int) -> np.ndarray:
        """(count, H, W, 3) fp32 in [0, 1], the same every time."""
        return np.random.default_rng(0).random((count, self.height, self.width, 3), np.float32)

    def program(self, count: int) -> tuple[Any, Any]:
        """(compiled, a function of no arguments that returns the result when it is there)."""
        images = jax.device_put(self.images(count))
        compiled = compile_program(self._function, self.variables, images)
        return compiled, lambda: jax.block_until_ready(compiled.call(self.variables, images))

    def flops(self, count: int) -> float:
        """2 per multiply-add of the convolutions, zeros of the padding too, as is usual in the field."""
        jaxpr = jax.make_jaxpr(lambda v, x: self.model.apply(v, x)[0])(self.variables, self.images(count))
        return 2.0 * multiply_adds(jaxpr.jaxpr)


def convolution_peak(dtype: Any) -> dict[str, tuple[float, Any]]:
    """Name -> (operations, run) of 3x3 convolutions; the best rate among them is called the machine's peak."""
    sizes = {(64, 90, 160), (128, 90, 160), (256, 45, 80)}
    if jax.default_backend() != "cpu":
        sizes = {(64, 720, 1280), (256, 720, 1280), (512, 360, 640)}
    programs = {}
    for channels, height, width in sorted(sizes):
        x = jnp.ones((1, height, width, channels), dtype)
        kernel = jnp.full((3, 3, channels, channels), 0.01, dtype)
        call = jax.jit(lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=LAYOUT))
        compiled = call.lower(x, kernel).compile()
        operations = 2.0 * height * width * 9 * channels**2
        programs[f"{channels}x{height}x{width}"] = (
            operations,
            lambda c=compiled, x=x, k=kernel: jax.block_until_ready(c(x, k)),
        )
    return programs


def first_call(name: str, call: Any) -> Any:
    """The result of the first call. Raises ConfigError where torch.compile finds no compiler."""
    try:
        return call()
    except Exception as error:
        if not name.startswith("compile"):
            raise
        last = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"torch.compile failed ({last}). It needs a C++ compiler. Install one, or add --no-compile."
        ) from error


def measure_memory(options: argparse.Namespace) -> float:
    """Peak in MB (2^20 bytes) of `options.memory_of`, see the top of this file; in this process."""
    (scale,) = options.scales
    enlarger = Enlarger(options, scale)
    if options.memory_of == JAXKD:
        compiled, run = enlarger.program(1)
        if jax.default_backend() != "cpu":
            used = compiled.call.memory_analysis()
            parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
            return sum(getattr(used, part) for part in parts) / 2**20
    else:
        from peer_superres import import_torch, programs

        run = programs(enlarger.model, enlarger.variables, enlarger.images(1), options.compute, (options.memory_of,))[
            options.memory_of
        ]
        torch = import_torch()
        if torch.cuda.is_available():
            run()
            torch.cuda.reset_peak_memory_stats()
            run()
            return torch.cuda.max_memory_allocated() / 2**20
    run()
    gc.collect()
    before = restart_peak()
    for _ in range(3):
        run()
    return peak_megabytes() - before


def memory(options: argparse.Namespace, scale: int, name: str) -> float | None:
    """`measure_memory` in a process of its own; None where that failed, which is said."""
    width, height = options.size
    given = [f"--model={options.model}", f"--scales={scale}", f"--size={width}x{height}"]
    given += [f"--compute={options.compute}", f"--memory-of={name}"]
    done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"memory of {name}: failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return None
    return round(float(done.stdout.split()[-1]), 1)


def measure_scale(options: argparse.Namespace, scale: int) -> tuple[dict[str, Any], bool]:
    """Everything about one scale, and whether all results agree."""
    say(f"x{scale}: compiling ...")
    enlarger = Enlarger(options, scale)
    compiled, run = enlarger.program(1)
    runs, many = {JAXKD: run}, {}
    if options.batch_size > 1:
        many[JAXKD] = enlarger.program(options.batch_size)[1]
    forms = tuple(f for f in FORMS if not (options.no_compile and f.startswith("compile")))
    if options.peer:
        from peer_superres import programs

        runs |= programs(enlarger.model, enlarger.variables, enlarger.images(1), options.compute, forms)
        if options.batch_size > 1:
            many |= programs(
                enlarger.model, enlarger.variables, enlarger.images(options.batch_size), options.compute, forms
            )
    expected, differences = np.asarray(runs[JAXKD](), np.float32), {}
    for name, call in runs.items():
        say(f"x{scale}: first call of {name} ...")
        if name != JAXKD:
            made = first_call(name, call).float().cpu().numpy()
            differences[name] = float(np.abs(made - expected).max() / np.abs(expected).max())
    peaks = convolution_peak(jnp.dtype(options.compute))
    say(f"x{scale}: timing {len(runs) + len(many)} programs in turns, {options.repeats} times each ...")
    turns = {f"latency {k}": v for k, v in runs.items()} | {f"throughput {k}": v for k, v in many.items()}
    seconds = interleaved(turns | {f"peak {k}": v[1] for k, v in peaks.items()}, options.repeats)
    rates = {name: operations / seconds[f"peak {name}"].min() for name, (operations, _) in peaks.items()}
    flops = enlarger.flops(1)

    def described(name: str) -> dict[str, Any]:
        latency = seconds[f"latency {name}"]
        at_once = seconds[f"throughput {name}"] / options.batch_size if many else latency
        return {
            "latency_ms": summary(latency),
            "images_per_second": float(f"{1 / np.median(at_once):.4g}"),
            "share_of_peak": round(flops / float(latency.min()) / max(rates.values()), 3),
        }

    result: dict[str, Any] = {
        "input": [enlarger.height, enlarger.width],
        "gflop": round(flops / 1e9, 2),
        "compile_seconds": round(compiled.seconds, 2),
        "convolution_peak": {
            "gflop_per_second": round(max(rates.values()) / 1e9, 1),
            "sweep": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        },
        "programs": {name: described(name) for name in runs},
    }
    if not options.no_memory:
        for name in runs:
            say(f"x{scale}: memory of {name} ...")
            result["programs"][name]["memory_mb"] = memory(options, scale, name)
    agree = all(d <= TOLERANCE[options.compute] for d in differences.values())
    if options.peer:
        result["difference"] = {name: float(f"{d:.2g}") for name, d in differences.items()}
        result["agree"] = agree
        for kind in ("latency", *(["throughput"] if many else [])):
            fastest = min(forms, key=lambda form: float(np.median(seconds[f"{kind} {form}"])))
            result[f"{kind}_fastest_peer"] = fastest
            result[f"{kind}_fastest_peer_to_jaxkd"] = ratio(seconds[f"{kind} {JAXKD}"], seconds[f"{kind} {fastest}"])
    return result, agree


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 1 that the peer computes another image, 2 that the user can mend something."""
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        if options.memory_of:
            print(measure_memory(options))
            return 0
        versions = {"python": platform.python_version()} | {p: version(p) for p in ("jax", "jaxlib", "flax")}
        if options.peer:
            from peer_superres import import_torch

            versions["torch"] = import_torch().__version__
        scales = {f"x{scale}": measure_scale(options, scale) for scale in options.scales}
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        json.dumps(
            {
                "model": options.model,
                "result": list(options.size),
                "batch_size": options.batch_size,
                "compute": options.compute,
                "repeats": options.repeats,
                "device": f"{device.device_kind} ({device.platform})",
                "host": f"{platform.processor() or platform.machine()}, {cores} cores",
                "versions": versions,
                "scales": {name: result for name, (result, _) in scales.items()},
            },
            indent=2,
        )
    )
    return 0 if all(agree for _, agree in scales.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
