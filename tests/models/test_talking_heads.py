"""The kernel of talking-heads attention against the same computation with attention matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models import talking_heads as kernel
from tests.random_weights import random_variables


def arguments(tokens, heads, head_dim, dtype=jnp.float32):
    rng = np.random.default_rng(tokens)
    qkv = jnp.asarray(rng.normal(size=(2, tokens, 3 * heads * head_dim)), dtype)
    mixers = [(rng.normal(size=(heads, heads)), rng.normal(size=heads)) for _ in range(2)]
    return qkv, *jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), mixers)


@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim"),
    [(37, 3, 8), (196, 8, 48), (1, 2, 4), pytest.param(300, 2, 64, id="several-tiles-with-a-rest")],
)
def test_the_kernel_computes_what_matrices_do(tokens, heads, head_dim):
    given = arguments(tokens, heads, head_dim)
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(kernel.reference)(*given)
        result = kernel.fused(*given, interpret=True)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_in_bfloat16_it_is_as_near_to_fp32_as_matrices_are():
    given = arguments(50, 4, 16)
    exact = np.asarray(kernel.reference(*given))
    rounded = (given[0].astype(jnp.bfloat16), *given[1:])
    errors = [
        np.abs(np.asarray(f(*rounded), np.float32) - exact).max()
        for f in (kernel.reference, lambda *a: kernel.fused(*a, interpret=True))
    ]
    assert 0 < errors[1] < 2 * errors[0] < 0.2 * np.abs(exact).max()


def test_its_gradient_is_that_of_matrices():
    given = arguments(20, 2, 4)

    def loss(function):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), argnums=(0, 1, 2))(*given)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        loss(kernel.talking_heads),
        loss(kernel.reference),
    )


def stronger(path, leaf):
    """Parameters with which attention is far from uniform and changes the residual stream."""
    names = [key.key for key in path]
    if names[-1].startswith("gamma"):
        return jnp.ones_like(leaf)
    return 30 * leaf if names[-1] == "kernel" and {"qkv", "proj_l", "proj_w"} & set(names) else leaf


def test_a_network_with_the_kernel_is_the_same_network(monkeypatch):
    options = {"num_classes": 5, "img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
    plain, fused = (models.create("cait_xxs24_224", **options, fused_attention=f) for f in (False, True))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = jax.tree_util.tree_map_with_path(stronger, random_variables(plain, size=32))
    calls = []
    monkeypatch.setattr(kernel, "_forward", lambda *a: calls.append(1) or kernel.fused(*a, interpret=True))
    taps = ("block_0", "block_1")
    with jax.default_matmul_precision("highest"):
        expected = plain.apply(variables, images, taps=(*taps, "attn_1"))
        result = fused.apply(variables, images, taps=taps)
        assert len(calls) == 2
        with_attention = fused.apply(variables, images, taps=(*taps, "attn_1"))
    assert len(calls) == 3  # block 1 took the plain path, as its attention was asked for
    assert set(result[1]) == set(taps)
    for name in taps:
        np.testing.assert_allclose(result[1][name], expected[1][name], rtol=1e-5, atol=1e-5)
    for output in (result[0], with_attention[0]):
        np.testing.assert_allclose(output, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(with_attention[1]["attn_1"], expected[1]["attn_1"], rtol=1e-5, atol=1e-6)


def test_a_block_that_does_not_fit_on_the_chip_is_computed_with_matrices():
    assert kernel.fits(196, 384, jnp.bfloat16) and kernel.fits(784, 768, jnp.bfloat16)
    assert not kernel.fits(4096, 768, jnp.float32)


TPU = """
    import jax, jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding
    from jaxkd.models.talking_heads import fused

    where = SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0])
    for tokens, heads, channels, dtype in (
        (784, 8, 384, jnp.bfloat16), (576, 16, 768, jnp.bfloat16), (196, 6, 288, jnp.bfloat16),
        (200, 4, 128, jnp.float32),
    ):
        def array(*shape, dtype=jnp.float32):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=where)
        mixer = array(heads, heads), array(heads)
        compiled = jax.jit(fused).lower(array(2, tokens, 3 * channels, dtype=dtype), mixer, mixer).compile()
        size = 2 * tokens * 4 * channels * jnp.dtype(dtype).itemsize
        print(compiled.cost_analysis()["bytes accessed"] / size)
"""


@pytest.mark.slow
def test_on_a_tpu_it_moves_hardly_more_than_its_input_and_output(compile_for_tpu):
    ratios = [float(line) for line in compile_for_tpu(TPU).split()]
    # 196 tokens and 288 channels fill no whole tiles: alone, such an array is copied before and after.
    assert len(ratios) == 4 and all(1 <= ratio < 1.5 for ratio in (*ratios[:2], ratios[3])), ratios
