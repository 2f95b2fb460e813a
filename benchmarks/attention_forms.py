"""Time of self-attention in several forms, forward and with its derivative: which one a network should use on a GPU.

    python benchmarks/attention_forms.py --batch-size=256 > attention.json         (a GPU: under a minute)
    python benchmarks/attention_forms.py --tiny                                    (a CPU)

From the fused qkv product (B, N, 3C) to (B, N, C), in bfloat16 on a GPU, of a DeiT-Tiny block and of the first stage of
a Swin-Tiny (64 windows an image, with the bias of relative positions and the mask of shifted windows). The forms:

    plain     what the networks compute: products and a softmax with the attention matrices in memory
    again     the same, computed again in the backward pass
    xla       jax.nn.dot_product_attention(implementation="xla")
    cudnn     jax.nn.dot_product_attention(implementation="cudnn")
    triton    jax.experimental.pallas.ops.gpu.attention; takes no bias, and tokens in multiples of 64

A form that cannot run here is an error in the result and ends nothing. All forms of one case run in turns. "to_plain"
above 1 says that the form is faster than plain; "error" is the largest difference from plain in fp32 at the highest
precision. Prints one JSON object; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
from timing import compile_program, interleaved, ratio, summary

from jaxkd.models.fused_attention import reference
from jaxkd.models.windows import shift_mask

Form = Callable[[jax.Array, jax.Array | None], jax.Array]  # (qkv, bias) -> result
BLOCK = 64  # tokens of a tile of the Triton kernel


def library(qkv: jax.Array, bias: jax.Array | None, *, heads: int, implementation: str) -> jax.Array:
    """`jax.nn.dot_product_attention` of (M, N, 3C), with a bias (W, H, N, N) of windows that follow each other."""
    sequences, tokens, channels3 = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(sequences, tokens, 3, heads, -1), 2, 0)
    if bias is not None:
        bias = jnp.tile(bias.astype(qkv.dtype), (sequences // bias.shape[0], 1, 1, 1))
    out = jax.nn.dot_product_attention(q, k, v, bias, implementation=implementation)
    return out.reshape(sequences, tokens, channels3 // 3)


def triton(qkv: jax.Array, bias: jax.Array | None, *, heads: int) -> jax.Array:
    """JAX's Triton kernel; tokens that fill up the last tile are masked as another segment."""
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    if bias is not None:
        raise NotImplementedError("the kernel takes no bias")
    sequences, tokens, channels3 = qkv.shape
    padded = jnp.pad(qkv, ((0, 0), (0, -tokens % BLOCK), (0, 0)))
    q, k, v = jnp.moveaxis(padded.reshape(sequences, padded.shape[1], 3, heads, -1), 2, 0)
    segments = jnp.broadcast_to((jnp.arange(padded.shape[1]) >= tokens).astype(jnp.int32), padded.shape[:2])
    sizes = BlockSizes(BLOCK, BLOCK, block_q_dkv=32, block_kv_dkv=32, block_q_dq=32, block_kv_dq=32)
    interpret = jax.default_backend() == "cpu"
    out = mha(q, k, v, segments, q.shape[-1] ** -0.5, False, sizes, interpret=interpret)
    return out[:, :tokens].reshape(sequences, tokens, channels3 // 3)


def windowed(qkv: jax.Array, bias: jax.Array | None, *, heads: int, again: bool = False) -> jax.Array:
    """The networks' own form; windows of an image are an axis of their own where a bias is given."""
    attend = partial(reference, heads=heads)
    if again:
        attend = jax.checkpoint(attend)
    if bias is None:
        return attend(qkv)
    return attend(qkv.reshape(-1, bias.shape[0], *qkv.shape[1:]), bias=bias).reshape(*qkv.shape[:2], -1)


def forms(heads: int) -> dict[str, Form]:
    """Name -> form."""
    return {
        "plain": partial(windowed, heads=heads),
        "again": partial(windowed, heads=heads, again=True),
        "xla": partial(library, heads=heads, implementation="xla"),
        "cudnn": partial(library, heads=heads, implementation="cudnn"),
        "triton": partial(triton, heads=heads),
    }


def cases(batch: int, tiny: bool) -> dict[str, tuple[tuple[int, int, int], int, np.ndarray | None]]:
    """Name -> shape of qkv, heads, and the bias or None."""
    if tiny:
        grid, window, shift, heads, dim, tokens = (4, 4), (2, 2), (1, 1), 2, 16, 21
    else:
        grid, window, shift, heads, dim, tokens = (56, 56), (7, 7), (3, 3), 3, 32, 197
    mask = shift_mask(grid, window, shift)
    learned = np.random.default_rng(1).normal(size=(1, heads, *mask.shape[1:])).astype(np.float32)
    return {
        "deit": ((batch, tokens, 3 * heads * (dim if tiny else 64)), heads, None),
        "swin": ((batch * len(mask), mask.shape[1], 3 * heads * dim), heads, learned + mask[:, None]),
    }


def directions(form: Form) -> dict[str, Callable]:
    """The programs of a form: its result, and the gradient of qkv (and of the bias) of a sum of its sines."""

    def loss(qkv: jax.Array, bias: jax.Array | None) -> jax.Array:
        return jnp.sum(jnp.sin(form(qkv, bias).astype(jnp.float32)))

    def gradient(qkv: jax.Array, bias: jax.Array | None) -> Any:
        return jax.grad(loss)(qkv, bias) if bias is None else jax.grad(loss, (0, 1))(qkv, bias)

    return {"forward": form, "forward_backward": gradient}


def first_array(tree: Any) -> np.ndarray:
    """The result, or the gradient of qkv, in fp32."""
    return np.asarray(jax.tree.leaves(tree)[0], np.float32)


def measure(case: tuple, direction: str, dtype: Any, repeats: int) -> dict[str, Any]:
    """Form -> time, error and temporary memory, or the error that it raised."""
    shape, heads, bias = case
    exact = jax.random.normal(jax.random.key(0), shape, jnp.float32).astype(dtype).astype(jnp.float32)
    given = exact.astype(dtype), bias if bias is None else jnp.asarray(bias)
    with jax.default_matmul_precision("highest"):
        plain = directions(forms(heads)["plain"])[direction]
        expected = first_array(jax.jit(plain)(exact, given[1]))
    found, runs = {}, {}
    for name, form in forms(heads).items():
        try:
            compiled = compile_program(jax.jit(directions(form)[direction]), *given)
            error = float(np.abs(first_array(compiled.call(*given)) - expected).max())
        except Exception as reason:  # a library that is missing, or a shape that it does not take
            found[name] = {"failed": (str(reason).strip() or type(reason).__name__).splitlines()[0][:300]}
            continue
        memory = compiled.call.memory_analysis()
        found[name] = {
            "error": float(f"{error:.3g}"),
            "temporary_mb": round(getattr(memory, "temp_size_in_bytes", 0) / 2**20, 1),
            "compile_seconds": round(compiled.seconds, 2),
        }
        runs[name] = lambda call=compiled.call: jax.block_until_ready(call(*given))
    seconds = interleaved(runs, repeats)
    for name, values in seconds.items():
        found[name] |= {"ms": summary(values), "to_plain": ratio(values, seconds["plain"])}
    return found


def stages(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result with more and more cases."""
    device = jax.devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    result = {
        "device": f"1 x {device.device_kind} ({device.platform})",
        "dtype": str(jnp.dtype(dtype)),
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "versions": {package: version(package) for package in ("jax", "jaxlib")},
        "cases": {},
    }
    for name, case in cases(options.batch_size, options.tiny).items():
        shape, heads, bias = case
        result["cases"][name] = {"qkv": list(shape), "heads": heads, "bias": None if bias is None else list(bias.shape)}
        for direction in ("forward", "forward_backward"):
            print(f"{name}, {direction} ...", file=sys.stderr, flush=True)
            result["cases"][name][direction] = measure(case, direction, dtype, options.repeats)
            yield result


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256, help="images (256)")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls of each form (20)")
    parser.add_argument("--tiny", action="store_true", help="few tokens and windows, for a CPU")
    parser.add_argument("--out", default="", help="file that is rewritten whenever more is known")
    options = parser.parse_args(argv)
    if options.batch_size < 1 or options.repeats < 1:
        parser.error(f"--batch-size={options.batch_size} and --repeats={options.repeats} must both be at least 1.")
    for result in stages(options):
        if options.out:
            Path(options.out).write_text(json.dumps(result))
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
