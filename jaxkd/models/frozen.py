"""Weights of a network that does not train, in the type that its arithmetic takes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxkd.models.contract import abstract_variables


def frozen_types(model: nn.Module, shape: tuple[int, ...], **options: Any) -> Any:
    """The type in which each variable of `model` can be kept without a change of any result.

    A network in bfloat16 converts its fp32 kernels at every call. Where that is all it does with an array, the array
    can be converted once and take half of the memory. The others, such as the scales of LayerNorm and a head in fp32,
    keep their type.

    Args:
      model: with the contract of `jaxkd.models`.
      shape: of the images, (B, H, W, 3).
      **options: of `model.apply`, such as taps=("block_0",) and train=False.

    Returns:
      The variables as a tree of `jax.ShapeDtypeStruct`.
    """
    variables = abstract_variables(model, shape)
    if getattr(model, "dtype", jnp.float32) == jnp.float32:
        return variables
    if hasattr(model, "fused_attention"):  # its kernels read their weights in fp32
        model = model.clone(fused_attention=True)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    jaxpr = jax.make_jaxpr(lambda *args: model.apply(*args, **options))(variables, images).jaxpr
    leaves, tree = jax.tree.flatten(variables)
    types: dict[Any, set[Any]] = {variable: set() for variable in jaxpr.invars[: len(leaves)]}
    for equation in jaxpr.eqns:
        converted = equation.params["new_dtype"] if equation.primitive.name == "convert_element_type" else None
        for operand in equation.invars:
            if not hasattr(operand, "val") and operand in types:  # literals have a value, and no hash
                types[operand].add(converted)
    kept = []
    for leaf, found in zip(leaves, types.values(), strict=True):
        narrowed = next(iter(found)) if len(found) == 1 else None
        kept.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype if narrowed is None else narrowed))
    return jax.tree.unflatten(tree, kept)
