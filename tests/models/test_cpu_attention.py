"""Self-attention's form for CPUs: results and gradients of the plain form, and where each of the two is taken."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models.cpu_attention import attention
from jaxkd.models.target import traced_for
from tests.random_weights import random_variables


def draw(shape, scale=1.0, seed=0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_values_and_gradients_are_those_of_the_formula(scale):
    q, k, v, weight = (draw((2, 3, 7, 5), s, i) for i, s in enumerate((scale, 1.0, 1.0, 1.0)))

    def formula(q, k, v):
        return jnp.einsum("bhnm,bhmd->bhnd", jax.nn.softmax(jnp.einsum("bhnd,bhmd->bhnm", q, k)), v)

    with jax.default_matmul_precision("highest"):
        value, pull = jax.vjp(attention, q, k, v)
        _, tangent = jax.jvp(attention, (q, k, v), (k, v, q))
        given = (value, *pull(weight), tangent)
        with jax.enable_x64(True):
            doubles = [x.astype(jnp.float64) for x in (q, k, v, weight)]
            value, pull = jax.vjp(formula, *doubles[:3])
            _, tangent = jax.jvp(formula, tuple(doubles[:3]), (doubles[1], doubles[2], doubles[0]))
            wanted = (value, *pull(doubles[3]), tangent)
    for name, one, other in zip(("value", "q", "k", "v", "tangent"), given, wanted, strict=True):
        size = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * size, err_msg=name)


@pytest.fixture(scope="module")
def network():
    model = models.create(
        "deit_tiny_patch16_224", num_classes=3, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3
    )
    return model, random_variables(model, size=32), draw((2, 32, 32, 3))


def test_a_network_computes_the_same_whether_or_not_its_attention_is_asked_for(network):
    model, variables, images = network

    def loss(variables, taps):
        logits, features = model.apply(variables, images, taps=taps)
        return jnp.sum(jnp.sin(logits)), features

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
        (fast, _), fast_gradient = gradient(variables, ())
        (plain, features), plain_gradient = gradient(variables, ("attn_0", "attn_1"))
    assert set(features) == {"attn_0", "attn_1"}
    np.testing.assert_allclose(fast, plain, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), fast_gradient, plain_gradient)


@pytest.mark.parametrize(
    ("platform", "taps", "own"), [("cpu", (), 2), ("cpu", ("attn_1",), 1), ("gpu", (), 0), ("tpu", (), 0)]
)
def test_only_programs_for_cpus_take_it_and_only_without_features_of_the_attention(network, platform, taps, own):
    model, variables, images = network
    with traced_for(platform):
        program = jax.make_jaxpr(lambda v, x: model.apply(v, x, taps=taps))(variables, images)
    assert str(program).count("name=attention\n") == own
