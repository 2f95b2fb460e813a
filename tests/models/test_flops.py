"""Multiply-adds counted in a jaxpr, against products of the shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from jaxkd.models.flops import multiply_adds


def count(function, *args) -> int:
    return multiply_adds(jax.make_jaxpr(function)(*args).jaxpr)


def convolve(x):
    kernel = jnp.ones((3, 3, 2, 5))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_a_loop_counts_as_often_as_it_runs():
    image = jnp.ones((1, 6, 7, 2))
    looped = count(lambda x: jax.lax.scan(lambda c, _: (c, jax.jit(convolve)(x)), 0, None, length=4), image)
    assert looped == 4 * 6 * 7 * 5 * 9 * 2


def test_products_count_with_batch_axes_and_in_the_gradient():
    q, k = jnp.ones((3, 7, 4)), jnp.ones((3, 5, 4))
    product = jnp.einsum("bnc,bmc->bnm", q, k)
    assert count(lambda q, k: jnp.einsum("bnc,bmc->bnm", q, k), q, k) == 3 * 7 * 5 * 4 == product.size * 4
    both = count(jax.grad(lambda q, k: jnp.sum(jnp.einsum("bnc,bmc->bnm", q, k) ** 2), argnums=(0, 1)), q, k)
    assert both == 3 * product.size * 4  # forward and one product for each gradient
    assert count(jnp.fft.fft2, q) == count(jnp.exp, q) == 0


def test_work_of_all_devices_counts():
    mesh, split = Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ jnp.ones((4, 2)), mesh=mesh, in_specs=split, out_specs=split)
    assert count(mapped, jnp.ones((6, 4))) == 6 * 4 * 2


def test_a_kernel_counts_once_for_each_tile():
    def multiply(a, b, out):
        out[...] = a[...] @ b[...]

    kernel = pl.pallas_call(
        multiply,
        grid=(4,),
        in_specs=[pl.BlockSpec((8, 16), lambda i: (i, 0)), pl.BlockSpec((16, 32), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((8, 32), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((32, 32), jnp.float32),
    )
    assert count(kernel, jnp.ones((32, 16)), jnp.ones((16, 32))) == 32 * 16 * 32
