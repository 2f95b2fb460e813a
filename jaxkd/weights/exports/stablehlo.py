"""Networks as serialised StableHLO (`jax.export`): weights and program in one file.

JAX alone runs it, without jaxkd and without knowing the network: `jax.export.deserialize(content).call(images)`. XLA
compiles it for the sizes that come. JAX promises to read such a file for six months at least; keep the weights, too.
Facts about the network stand behind the program, where JAX does not look: JSON, its length in eight bytes, a mark.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxkd.errors import WeightSourceError
from jaxkd.models.sr_base import RGB
from jaxkd.weights.basicsr import to_basicsr
from jaxkd.weights.exports.onnx import require_package, require_upscaler

PyTree = Any
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
MARK = b"jaxkd.facts"


def to_stablehlo(model: nn.Module, variables: PyTree) -> bytes:
    """The network with its weights as a serialised program for CPU, GPU and TPU.

    It takes images (batch, height, width, 3), RGB in [0, 1], fp32, of any size, and gives (batch, s height, s width,
    3), not clipped. Arithmetic is in the network's dtype, at JAX's current `jax_default_matmul_precision`.
    """
    from jax import export

    require_upscaler(model, "StableHLO")
    require_package("flatbuffers", "StableHLO")
    to_basicsr(model, variables)  # raises with a diff, which flax would not
    constants = jax.tree.map(np.asarray, variables)  # part of the program, on no device
    batch, height, width = export.symbolic_shape("batch, height, width")
    images = jax.ShapeDtypeStruct((batch, height, width, RGB), jnp.float32)
    model = model.clone(strip_pixels=0)  # strips are counted when the size is known, which here it never is
    enlarge = jax.jit(lambda images: model.apply(constants, images)[0])
    return bytes(export.export(enlarge, platforms=PLATFORMS)(images).serialize())


def load_stablehlo(file: str | Path | bytes) -> Callable[[Any], jax.Array]:
    """The function of a StableHLO file of `exports.save`: images (B, H, W, 3) -> (B, s H, s W, 3), or (B, K)."""
    from jax import export

    require_package("flatbuffers", "StableHLO")
    content, name = (file, "The content") if isinstance(file, bytes) else (_content(file), f'"{file}"')
    try:
        exported = export.deserialize(bytearray(content))
    except Exception as error:  # flatbuffers, MLIR and JAX each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightSourceError(
            f"{name} ({len(content)} bytes) is no serialised program ({reason}). It is damaged, of another format, or "
            "of a release of JAX too far from this one. Export it again with jaxkd convert."
        ) from error
    return exported.call


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """A program with strings by name behind it."""
    facts = json.dumps(dict(metadata)).encode()
    return content + facts + len(facts).to_bytes(8, "little") + MARK


def read_metadata(file: str | Path | bytes) -> dict[str, str]:
    """The strings of `with_metadata`; {} where there are none."""
    content = file if isinstance(file, bytes) else _content(file)
    if not content.endswith(MARK):
        return {}
    end = len(content) - len(MARK) - 8
    length = int.from_bytes(content[end : end + 8], "little")
    try:
        return {str(k): str(v) for k, v in json.loads(content[max(0, end - length) : end]).items()}
    except (ValueError, AttributeError):
        name = "the program" if isinstance(file, bytes) else f'"{file}"'
        raise WeightSourceError(f"The facts behind {name} are damaged. Export it again.") from None


def _content(path: str | Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise WeightSourceError(
            f'"{path}" cannot be read ({error.strerror or error}). Give the path of a program that python -m '
            "jaxkd.convert --to=stablehlo wrote."
        ) from None
