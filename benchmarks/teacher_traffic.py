"""Memory traffic of a teacher's forward pass on a TPU, with and without its attention kernel; needs no TPU.

    python benchmarks/teacher_traffic.py swin_small_patch4_window7_224 --batch-size=32
    python benchmarks/teacher_traffic.py deit_base_patch16_224 --batch-size=64

Compiles the network with the compiler of TPUs (the extra `tpu`), in bfloat16, with the features of its last block or
all stages, and prints one JSON object: MB an image that all operations read and write, those of the chip's main memory,
what exists only inside the program, and the seconds of compiling. Two to six minutes each on two busy cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxkd import models
from jaxkd.errors import JaxkdError
from jaxkd.experiment.plan import topology
from jaxkd.experiment.plan.hlo import Program

CHIP = "v5e:2x2"


def measure(name: str, args: dict[str, Any], batch: int, device: Any, *, fused: bool) -> dict[str, float]:
    """Memory traffic of one forward pass, in MB an image."""
    model = models.create(name, **args, dtype=jnp.bfloat16, fused_attention=fused)
    after = [tap for tap in models.tap_names(model) if tap.startswith(("block_", "stage_")) and "." not in tap]
    taps = tuple(after) if after[-1].startswith("stage_") else (after[-1],)
    where, shape = SingleDeviceSharding(device), (batch, *model.img_size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
    shapes = models.abstract_variables(model, (1, *shape[1:]))
    variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
    start = time.perf_counter()
    with models.traced_for("tpu"):
        lowered = jax.jit(lambda v, x: model.apply(v, x, taps=taps)).lower(variables, images)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    sizes = {
        "all_operations": compiled.cost_analysis()["bytes accessed"],
        "main_memory": sum(row.size for row in Program(compiled.as_text()).traffic()),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
    }
    return {key: round(size / batch / 1e6, 1) for key, size in sizes.items()} | {"compile_seconds": round(seconds)}


def main(argv: list[str] | None = None) -> int:
    """Entry point; 2 is a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name of jaxkd.models")
    parser.add_argument("--batch-size", type=int, default=32, help="images (32)")
    parser.add_argument("--args", type=json.loads, default={}, help='of the constructor, as JSON: {"depth": 2}')
    options = parser.parse_args(argv)
    try:
        chip = topology.parse(CHIP)
        topology.prepare(chip)
        device = topology.devices(chip)[0]
        given = options.model, options.args, options.batch_size, device
        result = {"plain": measure(*given, fused=False), "kernel": measure(*given, fused=True)}
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"model": options.model, "batch_size": options.batch_size, "chip": CHIP} | result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
