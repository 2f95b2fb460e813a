"""Time of a DeiT's blocks and of their parts on a CPU, forward and backward, against PyTorch.

    python benchmarks/block_parts.py > parts.json
    python benchmarks/block_parts.py --tiny         (a few seconds)

Each part is a program of its own: the result for given activations, and the gradients of the activations and of the
parameters. "attention" is what stands between the products `qkv` and `proj`; "block" is a whole block, which both
compilers fuse across the borders of the parts; "4 blocks" and "12 blocks" are blocks in a row, and "network" is the
whole network with its logits. Both frameworks run in turns, in fp32, on the same number of threads, with the compiler
settings and the memory of a training run. "count" is how often a block has the part. Prints one JSON object; progress
goes to stderr. Needs the extra `parity`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from timing import interleaved, ratio, summary
from torch_import import import_timm

from jaxkd import models, parallel
from jaxkd.cli import host_memory
from jaxkd.errors import JaxkdError
from jaxkd.models import cpu_attention, layers, vit
from jaxkd.train.cpu_compiler import compiler_options

HEADS = 3
COUNT = {"norm": 2, "qkv": 1, "attention": 1, "proj": 1, "fc1": 1, "gelu": 1, "fc2": 1}
Parts = dict[str, tuple[Any, int]]  # name -> (module, channels of its input; 0 for images)


class Attention(nn.Module):
    """The attention of a block without its products with weights, as `layers.Attention` computes it on a CPU."""

    @nn.compact
    def __call__(self, qkv: jax.Array) -> jax.Array:
        """(B, N, 3C) -> (B, N, C)."""
        q, k, v = layers.split_heads(qkv, HEADS)
        return layers.merge_heads(cpu_attention.attention(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, v))


class Gelu(nn.Module):
    """Exact GELU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Any shape -> the same."""
        return layers.gelu(x)


class Blocks(nn.Module):
    """Blocks of a DeiT in a row, without their features."""

    count: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, C) -> the same."""
        rates = {"proj_drop": 0.0, "attn_drop": 0.0, "deterministic": False, "dtype": jnp.float32}
        for _ in range(self.count):
            x, _ = vit.Block(num_heads=HEADS, mlp_ratio=4.0, qkv_bias=True, act_layer="gelu", **rates)(x)
        return x


class Network(nn.Module):
    """A DeiT with 12 blocks."""

    size: int
    channels: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, size, size, 3) -> (B, 1000)."""
        fields = {"img_size": self.size, "embed_dim": self.channels, "num_heads": HEADS, "depth": 12}
        return models.create("deit_tiny_patch16_224", **fields)(images, train=True)[0]


def jax_parts(channels: int, size: int) -> Parts:
    """The parts as jaxkd has them."""
    return {
        "norm": (layers.LayerNorm(), channels),
        "qkv": (layers.Linear(3 * channels), channels),
        "attention": (Attention(), 3 * channels),
        "proj": (layers.Linear(channels), channels),
        "fc1": (layers.Linear(4 * channels), channels),
        "gelu": (Gelu(), 4 * channels),
        "fc2": (layers.Linear(channels), 4 * channels),
        "block": (Blocks(), channels),
        "4 blocks": (Blocks(4), channels),
        "12 blocks": (Blocks(12), channels),
        "network": (Network(size, channels), 0),
    }


def torch_parts(channels: int, size: int) -> Parts:
    """The parts as timm has them."""
    torch, timm = import_timm()
    from timm.models.vision_transformer import Block as TimmBlock

    class TorchAttention(torch.nn.Module):
        def forward(self, qkv: Any) -> Any:
            batch, tokens, _ = qkv.shape
            q, k, v = qkv.reshape(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return out.transpose(1, 2).reshape(batch, tokens, -1)

    def blocks(count: int) -> Any:
        return torch.nn.Sequential(*(TimmBlock(channels, HEADS, qkv_bias=True) for _ in range(count)))

    return {
        "norm": (torch.nn.LayerNorm(channels), channels),
        "qkv": (torch.nn.Linear(channels, 3 * channels), channels),
        "attention": (TorchAttention(), 3 * channels),
        "proj": (torch.nn.Linear(channels, channels), channels),
        "fc1": (torch.nn.Linear(channels, 4 * channels), channels),
        "gelu": (torch.nn.GELU(), 4 * channels),
        "fc2": (torch.nn.Linear(4 * channels, channels), 4 * channels),
        **{name: (blocks(count), channels) for name, count in (("block", 1), ("4 blocks", 4), ("12 blocks", 12))},
        "network": (timm.create_model("vit_tiny_patch16_224", img_size=size, embed_dim=channels, num_heads=HEADS), 0),
    }


def jax_run(module: nn.Module, given: np.ndarray, options: dict[str, str] | None) -> Callable[[], Any]:
    """Calls the compiled program of a part."""
    x = jnp.asarray(given)
    variables = module.init(jax.random.key(0), x)

    def forward_backward(variables: Any, x: jax.Array, ones: jax.Array) -> Any:
        if x.ndim == 4:  # images have no gradient
            result, backward = jax.vjp(lambda v: module.apply(v, x), variables)
        else:
            result, backward = jax.vjp(module.apply, variables, x)
        return result, backward(ones)

    ones = jnp.ones(jax.eval_shape(module.apply, variables, x).shape)
    program = jax.jit(forward_backward).lower(variables, x, ones).compile(options)
    return lambda: jax.block_until_ready(program(variables, x, ones))


def torch_run(module: Any, given: np.ndarray) -> Callable[[], Any]:
    """Calls a part and its derivative."""
    torch, _ = import_timm()
    images = given.ndim == 4
    x = torch.from_numpy(given.transpose(0, 3, 1, 2).copy() if images else given).requires_grad_(not images)
    ones = torch.ones_like(module(x))

    def run() -> None:
        module.zero_grad()
        x.grad = None
        module(x).backward(ones)

    return run


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times of both and their ratio by the name of the part, and what they were measured on."""
    torch, _ = import_timm()
    tokens = (options.size // 16) ** 2 + 1
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    settings = compiler_options(parallel.make_mesh())
    rng = np.random.default_rng(0)
    runs = {}
    with models.traced_for("cpu"):
        peers = torch_parts(options.channels, options.size)
        for name, (module, channels) in jax_parts(options.channels, options.size).items():
            print(f"compiling {name} ...", file=sys.stderr, flush=True)
            shape = (tokens, channels) if channels else (options.size, options.size, 3)
            given = rng.normal(size=(options.batch_size, *shape)).astype(np.float32)
            runs[f"jaxkd {name}"] = jax_run(module, given, settings)
            runs[f"torch {name}"] = torch_run(peers[name][0], given)
    seconds = interleaved(runs, options.repeats)

    found = {}
    for name in peers:
        mine, peer = seconds[f"jaxkd {name}"], seconds[f"torch {name}"]
        found[name] = {"jaxkd_ms": summary(mine), "torch_ms": summary(peer), "ratio": ratio(mine, peer)}
        if name in COUNT:
            found[name]["count"] = COUNT[name]
    return {
        "shape": [options.batch_size, tokens, options.channels],
        "heads": HEADS,
        "repeats": options.repeats,
        "host": f"{platform.processor() or platform.machine()}, {cores} cores",
        "versions": {package: version(package) for package in ("jax", "jaxlib", "torch", "timm")},
        "parts": found,
    }


def main(argv: list[str] | None = None) -> int:
    """Prints the result; exit code 2 for a user error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8, help="images (8)")
    parser.add_argument("--size", type=int, default=224, help="side of an image, in patches of 16 pixels (224)")
    parser.add_argument("--channels", type=int, default=192, help="of a token, in three heads (192)")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls of each program (20)")
    parser.add_argument("--tiny", action="store_true", help="two images of 32 pixels, 12 channels")
    options = parser.parse_args(argv)
    if options.tiny:
        options.batch_size, options.size, options.channels, options.repeats = 2, 32, 12, 2
    host_memory.keep_freed_memory()
    try:
        print(json.dumps(measure(options), indent=2))
    except JaxkdError as error:
        print(f"block_parts.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
