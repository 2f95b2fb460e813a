"""PSNR and SSIM of a super-resolution network beside bicubic's, and what the network costs; see `jaxkd.evaluate`."""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxkd import data, weights
from jaxkd.cli.console import PhaseProgress
from jaxkd.errors import ConfigError
from jaxkd.experiment import restoration
from jaxkd.superres.tiling import by_strips

RESULT = (720, 1280)  # height and width that the field counts a network's cost for
CALLS = 5  # whose median is the latency
FLOP_IS = "2 per multiply-add of every convolution, counted from its shapes; sums and activations left out"
PLAIN = {"HR", "val", "train", "/"}  # folders whose name does not tell which set it is


def evaluate(args: argparse.Namespace, name: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """Scores what `args` (see `python -m jaxkd.evaluate --help`) names; returns what is printed as JSON.

    Args:
      args: of the command line.
      name: of the network in the zoo.
      model_args: its constructor arguments.

    Returns:
      `metrics` and `bicubic`: `{"Set5/psnr_y_crop4": dB, "Set5/ssim_y_crop4": ...}`, means over the images of a set;
      `images` of each set; `cost`, with `--cost`, as `measure_cost` returns it; and what was scored, how and where.

    Raises:
      JaxkdError: an option is wrong or meant for classifiers, the weights do not fit, images are missing or broken.
    """
    crop = "scale" if args.crop is None else args.crop
    if crop not in restoration.CROPS:
        raise ConfigError(
            f'--crop="{crop}" is no border that published figures leave out. They leave out the scale, or 4 pixels at '
            "every scale as those of MDBN do. Give --crop=scale (default) or --crop=4."
        )
    sets = _named(args.data)
    network = weights.build_network(name, model_args, compute=args.compute)
    scale = network.model.scale
    sources = {title: data.open_pairs(folder, scale, split=args.split) for title, folder in sets.items()}
    variant = "ema" if args.ema else "raw" if args.raw else ""
    network = weights.load_weights(network, args.weights, variant=variant, step=args.step)
    model, variables = weights.for_inference(network.model, network.variables)
    border, luma = restoration.CROPS[crop] or scale, not args.rgb
    scorer = restoration.PairScorer(model, sources, crop=border, luma=luma)
    images = sum(scorer.images.values())
    with PhaseProgress(Console(stderr=True)) as progress:
        bicubic = scorer.compare_bicubic(lambda done: progress("bicubic", "images", done, images))
        progress(name, "images", 0, images)
        start = time.perf_counter()
        scores = scorer(variables["params"], progress=lambda done: progress(name, "images", done, images))
        seconds = time.perf_counter() - start
        cost = None
        if args.cost:
            cost = measure_cost(
                network.model, network.variables, lambda done, of: progress(name, "timed calls", done, of)
            )
    return {
        "model": name,
        "weights": args.weights,
        "loaded": network.origin,
        "scale": scale,
        "data": sets,
        "split": args.split,
        "images": scorer.images,
        "metrics": _finite(scores),
        "bicubic": _finite(bicubic),
        "crop": border,
        "luma": luma,
        "images_per_second": images / max(seconds, 1e-9),
        **({} if cost is None else {"cost": cost}),
        "compute": args.compute,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _named(entries: Sequence[str]) -> dict[str, str]:
    """`["Set5=/data/Set5", ...]` -> {"Set5": "/data/Set5"}; one alone may go without a name."""
    named: dict[str, str] = {}
    for entry in entries:
        name, folder = restoration.split_entry(entry)
        if not name and len(entries) > 1:
            raise ConfigError(
                f'--data="{entry}" has no name, and --data was given {len(entries)} times. Results are told apart by '
                f"the names of the sets. Write --data=NAME=FOLDER, for example --data={_title(entry)}={entry}."
            )
        name = name or _title(folder)
        if name in named:
            raise ConfigError(
                f'--data names two sets "{name}": "{named[name]}" and "{folder}". Results are told apart by the names '
                "of the sets. Give each a name of its own."
            )
        named[name] = folder
    return named


def _title(folder: str) -> str:
    """What a folder without a name is called: "/data/Set5/HR" is "Set5", "embedded:photos" is "photos"."""
    first = folder.split("?lr=")[0].split(",")[0]
    if ":" in first and not Path(first).exists():
        return first.rpartition(":")[2] or "val"
    return next((part for part in reversed(Path(os.path.abspath(first)).parts) if part not in PLAIN), "val")


def _finite(scores: dict[str, float]) -> dict[str, Any]:
    """JSON has no infinity, which is the PSNR of equal pictures: a text, as in metrics.jsonl."""
    return {name: value if math.isfinite(value) else str(value) for name, value in scores.items()}


def measure_cost(
    model: Any, variables: Any, progress: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, Any]:
    """What a network costs for a result of 1280 x 720 pixels, enlarged in one pass.

    Args:
      model: a super-resolution network.
      variables: its `{"params": ...}`.
      progress: told how many calls of how many are done.

    Returns:
      `parameters`; `gflop` (1e9, see `flop_is`; half of it are the Multi-Adds of the field's tables); `latency_ms`, the
      median of `calls`; `memory_mb` (1e6 bytes; arguments, result and what the compiled program needs between, None
      where the backend does not say); `result` as (height, width), rounded up to the scale; and the `device`. Latency
      and memory are those of the form that inference uses (`weights.for_inference`, `tiling.by_strips`).

    Raises:
      ConfigError: the memory of the device is too small.
    """
    height, width = (-(-side // model.scale) for side in RESULT)
    image = np.random.default_rng(0).random((1, height, width, 3), np.float32)
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x)[0])(variables, image)
    fast, held = weights.for_inference(model, variables)
    fast = by_strips(fast)
    held, image = jax.device_put((held, image))
    try:
        compiled = jax.jit(lambda v, x: fast.apply(v, x)[0]).lower(held, image).compile()
        times = []
        for call in range(CALLS + 1):
            progress(call, CALLS + 1)
            start = time.perf_counter()
            compiled(held, image).block_until_ready()
            times.append(time.perf_counter() - start)
        progress(CALLS + 1, CALLS + 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise ConfigError(
            f"--cost: the memory of {jax.devices()[0].device_kind} is too small for a result of {RESULT[1]} x "
            f"{RESULT[0]} in one pass. That size is the convention. Leave --cost out, or use a larger device."
        ) from None
    used = compiled.memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return {
        "parameters": sum(int(p.size) for p in jax.tree.leaves(variables["params"])),
        "gflop": 2 * multiply_adds(jaxpr.jaxpr) / 1e9,
        "flop_is": FLOP_IS,
        "latency_ms": 1000 * statistics.median(times[1:]),  # the first call may still set things up
        "calls": CALLS,
        "memory_mb": None if used is None else sum(getattr(used, part) for part in parts) / 1e6,
        "result": [height * model.scale, width * model.scale],
        "device": jax.devices()[0].device_kind,
    }


def multiply_adds(jaxpr: Any) -> int:
    """Multiply-adds of all convolutions in a jaxpr; at the border those with padding count too, as is usual."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                total += times * multiply_adds(inner) if hasattr(inner, "eqns") else 0
    return total


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints the scores, and the cost if it was measured, as a table for people."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)  # a file does not wrap
    kinds = tuple(dict.fromkeys(name.rpartition("/")[2] for name in result["metrics"]))
    table = Table(title=escape(f"{result['model']} ({result['loaded']})"), title_justify="left")
    for column in ("set", "images", "network", *kinds):
        unit = " (dB)" if column.startswith("psnr") else ""
        table.add_column(column + unit, justify="left" if column in ("set", "network") else "right")
    cost = result.get("cost")
    cells: list[str] = []
    if cost is not None:
        cells = [f"{cost['parameters']:,}", f"{cost['gflop']:,.2f}", f"{cost['latency_ms']:,.1f}"]
        cells.append("-" if cost["memory_mb"] is None else f"{cost['memory_mb']:,.1f}")
        for column in ("parameters", "GFLOP", "ms", "MB"):
            table.add_column(column, justify="right")
    for name, images in result["images"].items():
        for row, scores in ((result["model"], result["metrics"]), ("bicubic", result["bicubic"])):
            values = [f"{float(scores[f'{name}/{k}']):.{2 if k.startswith('psnr') else 4}f}" for k in kinds]
            first = row != "bicubic"
            about = (escape(name), f"{images:,}") if first else ("", "")
            table.add_row(*about, row, *values, *(cells if first else ()))
    console.print(table)
    if cost is not None:
        height, width = cost["result"]
        console.print(
            f"GFLOP, ms and MB are for a result of {width} x {height} in one pass. GFLOP: {cost['flop_is']}. "
            f"ms: median of {cost['calls']} calls on {cost['device']}, {result['compute']}. MB: arguments, result and "
            "what the compiled program holds between.",
            markup=False,
            highlight=False,
        )
