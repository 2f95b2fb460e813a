"""The shared blocks against hand-made numbers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.errors import ConfigError
from jaxkd.models.layers import (
    Attention,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    PatchProjection,
    drop_path_rates,
    gelu,
    quick_gelu,
)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 25)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)
    # The tanh approximation would be off by 5e-4 around 2.
    assert gelu(jnp.ones((), jnp.bfloat16)).dtype == jnp.bfloat16


def test_quick_gelu():
    np.testing.assert_allclose(quick_gelu(jnp.asarray([1.0, -1.0])), [0.8457958, -0.1542042], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_survives_a_large_mean_and_divides_by_n(dtype):
    x = np.asarray([[1000.0, 1001.0, 1002.0, 1004.0]])
    layer = LayerNorm(epsilon=1e-6, dtype=dtype)
    variables = {"params": {"scale": jnp.full((4,), 2.0), "bias": jnp.full((4,), 0.5)}}
    y = layer.apply(variables, jnp.asarray(x, jnp.float32))
    expected = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * 2 + 0.5
    assert y.dtype == dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=1e-4 if dtype == jnp.float32 else 2e-2)


def test_layer_norm_epsilon_is_inside_the_root():
    layer = LayerNorm(epsilon=1.0)
    variables = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    np.testing.assert_allclose(layer.apply(variables, jnp.asarray([[-1.0, 1.0]])), [[-(0.5**0.5), 0.5**0.5]], atol=1e-6)


def test_drop_path_rates_grow_linearly():
    np.testing.assert_allclose(drop_path_rates(0.3, 4), (0.0, 0.1, 0.2, 0.3))
    assert drop_path_rates(0.3, 1) == (0.0,)


def test_drop_path_drops_whole_examples_and_rescales():
    x = jnp.ones((4000, 2, 3))
    y = np.asarray(DropPath(0.25, False).apply({}, x, rngs={"dropout": jax.random.key(3)}))
    per_example = y.reshape(4000, -1)
    assert (per_example == per_example[:, :1]).all()
    values, counts = np.unique(per_example[:, 0], return_counts=True)
    np.testing.assert_allclose(values, [0, 4 / 3], rtol=1e-6)
    assert abs(counts[0] / 4000 - 0.25) < 0.03  # more than four standard deviations
    assert DropPath(0.25, True).apply({}, x) is x


def test_dropout_drops_single_elements():
    y = np.asarray(Dropout(0.5, False).apply({}, jnp.ones((10, 400)), rngs={"dropout": jax.random.key(3)}))
    assert set(np.unique(y)) == {0.0, 2.0}
    assert abs((y == 0).mean() - 0.5) < 0.04
    assert all(0 < (row == 0).mean() < 1 for row in y)


@pytest.mark.parametrize("layer", [DropPath(0.1, False), Dropout(0.1, False)])
def test_randomness_without_a_key_is_an_error(layer):
    with pytest.raises(ConfigError, match=r'no key named "dropout".*rngs='):
        layer.apply({}, jnp.ones((2, 3)))


def test_patch_projection_is_a_strided_convolution_that_drops_the_remainder():
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, 9, 14, 3)), rng.normal(size=(2, 4, 3, 5))
    layer = PatchProjection((2, 4), 5)
    y = layer.apply(
        {"params": {"kernel": jnp.asarray(kernel), "bias": jnp.arange(5.0)}}, jnp.asarray(images, jnp.float32)
    )
    assert y.shape == (2, 4, 3, 5)
    patch = images[1, 4:6, 8:12]  # row 2, column 2
    np.testing.assert_allclose(y[1, 2, 2], np.einsum("ijc,ijcf->f", patch, kernel) + np.arange(5), rtol=1e-4, atol=1e-4)


def test_patch_initialisation_is_pytorchs_uniform():
    layer = PatchProjection((16, 16), 64)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    bound = (16 * 16 * 3) ** -0.5
    for name in ("kernel", "bias"):
        assert abs(params[name]).max() <= bound
    assert abs(params["kernel"].std() - bound / math.sqrt(3)) < 0.02 * bound


def test_linear_initialisation_is_normal_002_with_zero_bias():
    params = Linear(200).init(jax.random.key(0), jnp.zeros((1, 100)))["params"]
    assert abs(params["kernel"].std() - 0.02) < 5e-4
    assert not params["bias"].any()


def test_attention_by_hand():
    """One head, identity projections: softmax(x x^T / sqrt(D)) x."""
    x = np.random.default_rng(0).normal(size=(1, 5, 4)).astype(np.float32)
    eye = np.eye(4, dtype=np.float32)
    variables = {
        "params": {
            "qkv": {"kernel": np.concatenate([eye, eye, 2 * eye], axis=1)},
            "proj": {"kernel": eye, "bias": np.ones(4, np.float32)},
        }
    }
    y, inner = Attention(num_heads=1, qkv_bias=False).apply(variables, jnp.asarray(x), {})
    logits = x[0] @ x[0].T / 2
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(inner["attn"][0, 0], expected, atol=1e-6)
    for name, factor in (("query", 1), ("key", 1), ("value", 2)):  # none of them is scaled
        np.testing.assert_allclose(inner[name][0, 0], factor * x[0], atol=1e-6)
    np.testing.assert_allclose(y[0], expected @ (2 * x[0]) + 1, atol=1e-5)
