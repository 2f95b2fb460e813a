"""The kernel of self-attention against the same computation with attention matrices, and against timm's numbers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.models import fused_attention as kernel
from jaxkd.models.windows import shift_mask
from tests.random_weights import random_variables


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("lead", "tokens", "heads", "head_dim", "windows"),
    [
        pytest.param((2,), 37, 3, 64, 0, id="a-head-in-half-a-tile-of-lanes"),
        pytest.param((2, 6), 9, 2, 8, 6, id="a-bias-for-each-window"),
        pytest.param((2, 3), 9, 3, 32, 1, id="a-bias-for-all-windows"),
        pytest.param((3, 7), 25, 5, 48, 7, id="heads-across-tiles-of-lanes"),
        pytest.param((2,), 1, 2, 4, 0, id="one-token"),
        pytest.param((1,), 300, 1, 160, 0, id="several-tiles-with-a-rest"),
        pytest.param((1,), 259, 2, 8, 1, id="several-tiles-with-a-bias"),
    ],
)
def test_the_kernel_computes_what_matrices_do(lead, tokens, heads, head_dim, windows):
    qkv = random(*lead, tokens, 3 * heads * head_dim)
    bias = random(windows, heads, tokens, tokens, seed=1) if windows else None
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(partial(kernel.reference, heads=heads))(qkv, bias=bias)
        result = kernel.fused(qkv, heads, bias, interpret=True)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_masked_keys_count_for_nothing():
    tokens, real = 12, 7
    qkv = random(3, tokens, 3 * 16)
    mask = jnp.where(jnp.arange(tokens) < real, 0.0, -1e9) * jnp.ones((1, 2, tokens, 1))
    with jax.default_matmul_precision("highest"):
        result = kernel.fused(qkv, 2, mask, interpret=True)[:, :real]
        expected = kernel.fused(qkv[:, :real], 2, interpret=True)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_a_window_of_a_shifted_grid_attends_within_its_regions():
    mask = shift_mask((6, 6), (3, 3), (1, 1))
    qkv = random(1, 4, 9, 3 * 8)
    with jax.default_matmul_precision("highest"):
        result = kernel.fused(qkv, 1, jnp.asarray(mask)[:, None], interpret=True)
        # The last window holds four regions; its first position shares one with those that the mask leaves at 0.
        same = np.flatnonzero(mask[3, 0] == 0)
        assert 1 < len(same) < 9
        expected = kernel.fused(qkv[:, 3, same], 1, interpret=True)
    np.testing.assert_allclose(result[0, 3, same], expected[0], rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_as_near_to_fp32_as_matrices_are():
    qkv = random(4, 50, 3 * 64)
    exact = np.asarray(kernel.reference(qkv, 4))
    rounded = qkv.astype(jnp.bfloat16)
    errors = [
        np.abs(np.asarray(result, np.float32) - exact).max()
        for result in (kernel.reference(rounded, 4), kernel.fused(rounded, 4, interpret=True))
    ]
    assert 0 < errors[1] < 2 * errors[0] < 0.2 * np.abs(exact).max()


@pytest.fixture
def calls(monkeypatch):
    """Shapes that the kernel was called with, which runs in `attention`'s place."""
    shapes = []

    def attention(qkv, heads, bias=None):
        shapes.append(qkv.shape)
        return kernel.fused(qkv, heads, bias, interpret=True)

    monkeypatch.setattr(kernel, "attention", attention)
    return shapes


@pytest.mark.parametrize("name", ["deit_distilled", pytest.param("swin", marks=pytest.mark.slow), "swin_nonsquare"])
def test_a_network_with_the_kernel_gives_timms_numbers(golden_network, name, calls):
    model, variables, images, data = golden_network(name, fused_attention=True)
    kind = "stage_" if name.startswith("swin") else "block_"
    taps = tuple(t for t in models.tap_names(model) if t.startswith(kind) and "." not in t)
    recorded = sorted(k for k in data.files if k.startswith("intermediate_"))
    calls.clear()  # of the fixture
    with jax.default_matmul_precision("highest"):
        logits, features = jax.jit(partial(model.apply, taps=taps))(variables, images)
    assert len(calls) == (sum(model.depths) if hasattr(model, "depths") else model.depth)
    np.testing.assert_allclose(logits, data["logits"], rtol=1e-4, atol=1e-4)
    for tap, key in zip(taps, recorded, strict=True):
        found = np.transpose(features[tap], (0, 3, 1, 2))
        np.testing.assert_allclose(found, data[key], rtol=1e-4, atol=1e-4, err_msg=tap)


def test_a_block_whose_attention_is_asked_for_or_shifted_or_trained_takes_the_plain_path(calls):
    model = models.create(
        "deit_tiny_patch16_224", num_classes=3, img_size=32, embed_dim=16, depth=2, num_heads=2, fused_attention=True
    )
    variables, images = random_variables(model, size=32), random(2, 32, 32, 3)
    calls.clear()  # of the initialiser
    _, features = model.apply(variables, images, taps=("attn_1", "block_0"))
    assert len(calls) == 1 and set(features) == {"attn_1", "block_0"}
    np.testing.assert_allclose(features["attn_1"].sum(axis=-1), 1.0, rtol=1e-5)
    model.apply(variables, images, offsets={"query_0": jnp.zeros((2, 2, 5, 8))})
    assert len(calls) == 2
    model.apply(variables, images, train=True)
    assert len(calls) == 2


def test_a_sequence_that_does_not_fit_on_the_chip_is_computed_with_matrices():
    assert kernel.fits(785, 3 * 768, 12, jnp.bfloat16) and kernel.fits(49, 3 * 768, 24, jnp.bfloat16, biased=True)
    assert not kernel.fits(4096, 3 * 768, 12, jnp.bfloat16)
    qkv = jax.ShapeDtypeStruct((1, 4096, 3 * 768), jnp.bfloat16)
    with models.traced_for("tpu"):
        program = jax.make_jaxpr(partial(kernel.attention, heads=12))(qkv)
    assert "pallas_call" not in str(program)


@pytest.mark.parametrize(("name", "matrix"), [("deit", (1, 3, 17, 17)), ("swin", (1, 9, 1, 9, 9))])
def test_on_a_tpu_no_attention_matrix_is_stored_for_the_backward_pass(tiny, randomised, pictures, name, matrix):
    model = tiny(name)
    variables, images = randomised(model), pictures(model, 1)

    def loss(variables):
        return jnp.sum(jnp.sin(model.apply(variables, images)[0]))

    stored, gradient = {}, {}
    for platform in ("cpu", "tpu"):
        with models.traced_for(platform), jax.default_matmul_precision("highest"):
            backward = jax.eval_shape(lambda v: jax.vjp(loss, v)[1], variables)
            stored[platform] = {x.shape for x in jax.tree.leaves(backward)}
            if name == "deit":
                gradient[platform] = jax.jit(lambda v: jax.grad(loss)(v))(variables)
    assert matrix in stored["cpu"] and matrix not in stored["tpu"]
    if gradient:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradient["tpu"], gradient["cpu"])


TPU = """
    import jax, jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding
    from jaxkd.models.fused_attention import fused, reference

    where = SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0])
    for shape, heads, windows, dtype in (
        ((8, 197, 192), 3, 0, jnp.bfloat16), ((2, 64, 49, 96), 3, 64, jnp.bfloat16),
        ((3, 9, 37, 144), 3, 9, jnp.float32),
    ):
        def array(*shape, dtype=dtype):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=where)
        channels, tokens = shape[-1], shape[-2]
        given = [array(*shape), array(channels, 3 * channels), array(channels, channels)]
        given += [array(windows, heads, tokens, tokens, dtype=jnp.float32)] if windows else []
        moved = []
        for attention in (fused, reference):
            def block(x, before, after, bias=None):
                return x + attention(x @ before, heads, bias) @ after
            moved.append(jax.jit(block).lower(*given).compile().cost_analysis()["bytes accessed"])
        print(moved[0] / moved[1])
"""


@pytest.mark.slow
def test_on_a_tpu_a_block_moves_less_than_half_of_what_matrices_move(compile_for_tpu):
    ratios = [float(line) for line in compile_for_tpu(TPU).split()]
    assert len(ratios) == 3 and all(0 < ratio < 0.5 for ratio in ratios), ratios
