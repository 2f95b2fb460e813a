"""A fast backward pass on a CPU: no fusion grows with the depth (see `layers.normalise`)."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from jaxkd import models

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 4, "num_classes": 10}


def widest_fusion(name: str, depth: int, **args) -> int:
    """Most arrays that one fused loop of the compiled gradient reads."""
    model = models.create(name, depth=depth, **SMALL, **args)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def loss(variables, images):
        logits, _ = model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(1)})
        return jnp.square(logits).sum()

    text = jax.jit(jax.grad(loss)).lower(variables, images).compile().as_text()
    heads = [line for line in text.splitlines() if re.match(r"%?fused_computation\S* \(", line)]
    return max(line.split("->")[0].count(": ") for line in heads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("deit_tiny_patch16_224", {}),
        ("deit_tiny_patch16_224", {"drop_path_rate": 0.1, "init_values": 1e-5}),
        ("cait_xxs24_224", {"depth_token_only": 1}),
    ],
)
def test_no_block_recomputes_the_gradient_of_the_blocks_above(name, args):
    if jax.default_backend() != "cpu":
        pytest.skip("reads how XLA fuses on a CPU")
    assert widest_fusion(name, 6, **args) <= widest_fusion(name, 2, **args) + 2
