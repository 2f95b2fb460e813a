"""MDBN against the authors' code (golden values) and against its equations written out."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models, weights


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_output_is_the_authors(golden, scale):
    data = golden("mdbn_and_sr_metrics")
    prefix = f"x{scale}/state/"
    state = {k.removeprefix(prefix): data[k] for k in data.files if k.startswith(prefix)}
    model = models.create(f"mdbn_x{scale}", num_feat=12, num_block=2)
    variables = weights.from_basicsr(model, state)
    images = jnp.asarray(data[f"x{scale}/input_nchw"]).transpose(0, 2, 3, 1)
    output, _ = jax.jit(model.apply)(variables, images)
    expected = data[f"x{scale}/output_nchw"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)


def test_a_block_is_its_equations_with_the_exact_gelu():
    """On a 1 x 1 image a padded 3x3 convolution is its middle column: a matrix product, done here in fp64."""
    model = models.create("mdbn_x2", num_feat=5, num_block=1)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1, 1, 3))))
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.7, x.shape), jnp.float32), shapes)
    image = rng.uniform(size=(1, 1, 1, 3)).astype(np.float32)
    _, features = model.apply(variables, image, taps=models.tap_names(model))

    def conv(params, x):
        return x @ np.asarray(params["kernel"], np.float64)[1, 1] + np.asarray(params["bias"], np.float64)

    params = variables["params"]
    start = y = conv(params["conv_first"], image[0, 0, 0].astype(np.float64))
    for j in range(2):
        base = params["body_0"][f"baseblock{j + 1}"]
        deep, shallow = conv(base["uconv2"], gelu(conv(base["uconv1"], y))), conv(base["dconv"], y)
        np.testing.assert_allclose(features[f"block_0.deep_{j}"][0, 0, 0], deep, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(features[f"block_0.shallow_{j}"][0, 0, 0], shallow, rtol=2e-5, atol=2e-5)
        y = gelu(deep + shallow)
    np.testing.assert_allclose(features["block_0"][0, 0, 0], start + y, rtol=2e-5, atol=2e-5)
